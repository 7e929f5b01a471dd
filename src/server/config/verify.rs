//! From what was typed to what is meant: units, defaults that depend on each other, combinations that cannot be.
//!
//! Checks come in etcd's order, so that the first complaint is the same (server.md 9.3).

use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::logging::Format;
use crate::common::logging::Level;
use crate::common::logging::LogConfig;
use crate::common::logging::Output;
use crate::common::tls::Offer;
use crate::common::tls::Settings;
use crate::common::urls::Url;
use crate::common::urls::Urls;
use crate::server::config::AutoCompaction;
use crate::server::config::ClusterState;
use crate::server::config::Config;
use crate::server::config::Note;
use crate::server::config::exit::Exit;
use crate::server::config::typed::Typed;

const ELECTION_MS_MAX: u64 = 50_000;
/// Heartbeats that an election timeout must have.
const HEARTBEATS_PER_ELECTION: u64 = 5;
/// Timeouts of connections between members are never shorter.
const RAFT_TIMEOUT_MIN: Duration = Duration::from_secs(5);
const SNAPSHOT_COUNT_DEFAULT: u64 = 10_000;
const COMPACTION_BATCH_DEFAULT: usize = 1000;
const COMPACTION_SLEEP_DEFAULT: Duration = Duration::from_millis(10);
/// Above these etcd warns.
const REQUEST_BYTES_ADVISED: u64 = 10 * 1024 * 1024;
const QUOTA_BYTES_ADVISED: i64 = 8 * 1024 * 1024 * 1024;

pub(super) fn config(mut typed: Typed) -> Result<Config, Exit> {
    let log = log_config(&typed)?;
    check_urls(&typed).map_err(Exit::failed_to_verify)?;
    check_times(&typed).map_err(Exit::failed_to_verify)?;
    check_modes(&typed).map_err(Exit::failed_to_verify)?;
    let (client_tls, peer_tls) = tls(&mut typed)?;
    check_start(&typed, &client_tls, &peer_tls).map_err(Exit::discovery_failed)?;
    let mode = typed.text("auto-compaction-mode");
    let auto_compaction =
        AutoCompaction::parse(mode, typed.text("auto-compaction-retention")).map_err(Exit::discovery_failed)?;
    let mut notes = std::mem::take(&mut typed.notes);
    notes.extend(advice(&typed));
    let name = typed.text("name").to_owned();
    let advertise_peer_urls = advertised(&typed, "initial-advertise-peer-urls", "listen-peer-urls");
    let initial_cluster_text = match typed.is_set("initial-cluster") {
        true => typed.text("initial-cluster").to_owned(),
        false => advertise_peer_urls.iter().map(|url| format!("{name}={url}")).collect::<Vec<String>>().join(","),
    };
    Ok(Config {
        data_dir: data_dir(&typed),
        wal_dir: Some(typed.text("wal-dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        listen_peer_urls: typed.urls("listen-peer-urls"),
        listen_client_urls: typed.urls("listen-client-urls"),
        listen_client_http_urls: typed.urls("listen-client-http-urls"),
        listen_metrics_urls: typed.urls("listen-metrics-urls"),
        advertise_client_urls: advertised(&typed, "advertise-client-urls", "listen-client-urls"),
        advertise_peer_urls,
        client_tls,
        peer_tls,
        auto_tls: typed.boolean("auto-tls"),
        peer_auto_tls: typed.boolean("peer-auto-tls"),
        self_signed_cert_validity: typed.unsigned("self-signed-cert-validity"),
        reuse_port: typed.boolean("socket-reuse-port"),
        reuse_address: typed.boolean("socket-reuse-address"),
        initial_cluster_text,
        initial_cluster_state: match typed.text("initial-cluster-state") {
            "existing" => ClusterState::Existing,
            _ => ClusterState::New,
        },
        initial_cluster_token: typed.text("initial-cluster-token").to_owned(),
        heartbeat_interval: Duration::from_millis(typed.unsigned("heartbeat-interval")),
        election_timeout: Duration::from_millis(typed.unsigned("election-timeout")),
        initial_election_tick_advance: typed.boolean("initial-election-tick-advance"),
        pre_vote: typed.boolean("pre-vote"),
        strict_reconfig_check: typed.boolean("strict-reconfig-check"),
        force_new_cluster: typed.boolean("force-new-cluster"),
        max_learners: usize::try_from(typed.signed("max-learners")).unwrap_or(0),
        raft_read_timeout: typed.duration("raft-read-timeout").max(RAFT_TIMEOUT_MIN),
        raft_write_timeout: typed.duration("raft-write-timeout").max(RAFT_TIMEOUT_MIN),
        snapshot_count: Some(typed.unsigned("snapshot-count"))
            .filter(|count| *count > 0)
            .unwrap_or(SNAPSHOT_COUNT_DEFAULT),
        snapshot_catchup_entries: typed.unsigned("snapshot-catchup-entries"),
        quota_backend_bytes: typed.signed("quota-backend-bytes"),
        auto_compaction,
        compaction_batch_limit: usize::try_from(typed.signed("compaction-batch-limit"))
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(COMPACTION_BATCH_DEFAULT),
        compaction_sleep_interval: Some(typed.duration("compaction-sleep-interval"))
            .filter(|pause| !pause.is_zero())
            .unwrap_or(COMPACTION_SLEEP_DEFAULT),
        corrupt_check_time: typed.duration("corrupt-check-time"),
        compact_hash_check_time: typed.duration("compact-hash-check-time"),
        fsync: !typed.boolean("unsafe-no-fsync"),
        max_txn_ops: usize::try_from(typed.unsigned("max-txn-ops")).unwrap_or(usize::MAX),
        max_request_bytes: usize::try_from(typed.unsigned("max-request-bytes")).unwrap_or(usize::MAX),
        max_concurrent_streams: u32::try_from(typed.unsigned("max-concurrent-streams")).unwrap_or(u32::MAX),
        watch_progress_interval: progress_interval(typed.duration("watch-progress-notify-interval")),
        grpc_keepalive_min_time: typed.duration("grpc-keepalive-min-time"),
        // etcd pings only when both are set.
        grpc_keepalive_interval: Some(typed.duration("grpc-keepalive-interval"))
            .filter(|interval| !interval.is_zero() && !typed.duration("grpc-keepalive-timeout").is_zero()),
        grpc_keepalive_timeout: typed.duration("grpc-keepalive-timeout"),
        cors: typed.words("cors").into_iter().collect(),
        host_whitelist: typed.words("host-whitelist").into_iter().collect(),
        extensive_metrics: typed.text("metrics") == "extensive",
        log,
        warning_unary_request: typed.duration("warning-unary-request-duration"),
        warning_apply: typed.duration("warning-apply-duration"),
        features: typed.features(),
        name,
        notes,
        warnings: typed.warnings,
    })
}

fn data_dir(typed: &Typed) -> PathBuf {
    match typed.text("data-dir") {
        "" => PathBuf::from(format!("{}.etcd", typed.text("name"))),
        dir => PathBuf::from(dir),
    }
}

/// etcd panics on a bad level (exit 2); the words are ours.
fn log_config(typed: &Typed) -> Result<LogConfig, Exit> {
    let text = typed.text("log-level");
    let level = Level::parse(text).ok_or_else(|| Exit {
        code: 2,
        stdout: String::new(),
        stderr: format!("unrecognized level: \"{text}\" (--log-level)\n"),
    })?;
    let format = match typed.text("log-format") {
        "json" => Format::Json,
        "console" => Format::Console,
        other => return Err(Exit::failed_to_verify(format!("unknown log format \"{other}\""))),
    };
    let words = typed.words("log-outputs");
    if words.len() > 1 && words.iter().any(|word| word == "default") {
        return Err(Exit::failed_to_verify("multi logoutput for \"default\" is not supported yet"));
    }
    let mut outputs = Vec::new();
    for word in words {
        let output = match word.as_str() {
            "default" | "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            "systemd/journal" => {
                let error = "--log-outputs systemd/journal is not supported by this release of quorate";
                return Err(Exit::failed_to_verify(error));
            }
            file => Output::File(PathBuf::from(file)),
        };
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    Ok(LogConfig { level, format, outputs })
}

fn check_urls(typed: &Typed) -> Result<(), String> {
    for name in ["listen-peer-urls", "listen-client-urls", "listen-client-http-urls", "listen-metrics-urls"] {
        if let Some(url) = typed.urls(name).iter().find(|url| !url.is_bindable()) {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
    }
    for name in ["initial-advertise-peer-urls", "advertise-client-urls"] {
        let hostless = |url: &&Url| url.host().is_empty() && matches!(url.scheme().as_str(), "http" | "https");
        if let Some(url) = typed.urls(name).iter().find(hostless) {
            return Err(format!(
                "--{name} {url:?} must be \"host:port\" (unexpected empty host ({url}))",
                url = url.to_string()
            ));
        }
    }
    Ok(())
}

fn check_times(typed: &Typed) -> Result<(), String> {
    let (heartbeat, election) = (typed.unsigned("heartbeat-interval"), typed.unsigned("election-timeout"));
    if heartbeat == 0 {
        return Err("--heartbeat-interval must be >0 (set to 0ms)".to_owned());
    }
    if election == 0 {
        return Err("--election-timeout must be >0 (set to 0ms)".to_owned());
    }
    if heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as {HEARTBEATS_PER_ELECTION} times as \
             --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > ELECTION_MS_MAX {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        ));
    }
    // The advertised address cannot be guessed for a listener that was chosen by hand.
    if typed.is_set("listen-client-urls") && !typed.is_set("advertise-client-urls") {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned());
    }
    Ok(())
}

fn check_modes(typed: &Typed) -> Result<(), String> {
    match typed.text("auto-compaction-mode") {
        "periodic" | "revision" => (),
        "" => return Err("undefined auto-compaction-mode".to_owned()),
        other => return Err(format!("unknown auto-compaction-mode \"{other}\"")),
    }
    if typed.duration("compact-hash-check-time").is_zero() {
        let text = typed.text("compact-hash-check-time");
        return Err(format!("--compact-hash-check-time must be >0 (set to {text})"));
    }
    Ok(())
}

/// What is said about TLS on the client port and on the peer port. The versions are checked with the flags, the suites
/// while the member starts, as in etcd.
fn tls(typed: &mut Typed) -> Result<(Settings, Settings), Exit> {
    let suites = typed.words("cipher-suites");
    let read = |suites: &[String]| Offer::read(typed.text("tls-min-version"), typed.text("tls-max-version"), suites);
    let only_tls13 = || "cipher suites cannot be configured when only TLS1.3 is enabled".to_owned();
    read(&[]).map_err(Exit::failed_to_verify)?;
    if !suites.is_empty() && typed.text("tls-min-version") == "TLS1.3" {
        return Err(Exit::failed_to_verify(only_tls13()));
    }
    let (offer, left_out) = read(&suites).map_err(Exit::discovery_failed)?;
    let text = |name: &str| typed.text(name).to_owned();
    let client = Settings {
        cert_file: text("cert-file"),
        key_file: text("key-file"),
        client_cert_file: text("client-cert-file"),
        client_key_file: text("client-key-file"),
        trusted_ca_file: text("trusted-ca-file"),
        client_cert_auth: typed.boolean("client-cert-auth"),
        crl_file: text("client-crl-file"),
        allowed_hostnames: typed.words("client-cert-allowed-hostname"),
        offer: offer.clone(),
        ..Settings::default()
    };
    let peer = Settings {
        cert_file: text("peer-cert-file"),
        key_file: text("peer-key-file"),
        client_cert_file: text("peer-client-cert-file"),
        client_key_file: text("peer-client-key-file"),
        trusted_ca_file: text("peer-trusted-ca-file"),
        client_cert_auth: typed.boolean("peer-client-cert-auth"),
        crl_file: text("peer-crl-file"),
        allowed_cns: typed.words("peer-cert-allowed-cn"),
        allowed_hostnames: typed.words("peer-cert-allowed-hostname"),
        skip_client_san_verification: typed.boolean("peer-skip-client-san-verification"),
        offer,
        ..Settings::default()
    };
    for name in left_out {
        let message = format!("left out a cipher suite that is not supported: {name}");
        typed.notes.push(Note { level: "warn", message, fields: Vec::new() });
    }
    Ok((client, peer))
}

/// What etcd finds while it starts.
fn check_start(typed: &Typed, client_tls: &Settings, peer_tls: &Settings) -> Result<(), String> {
    let (client, http) = (typed.urls("listen-client-urls"), typed.urls("listen-client-http-urls"));
    let lacks_client = client_tls.is_empty() && !typed.boolean("auto-tls");
    if let Some(url) = client.iter().chain(&http).find(|url| lacks_client && url.scheme().is_tls()) {
        return Err(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
        ));
    }
    let lacks_peer = peer_tls.is_empty() && !typed.boolean("peer-auto-tls");
    let (peer, metrics) = (typed.urls("listen-peer-urls"), typed.urls("listen-metrics-urls"));
    let peer = peer.iter().filter(|_| lacks_peer);
    let without = peer.chain(metrics.iter().filter(|_| lacks_client)).find(|url| url.scheme().is_tls());
    if let Some(url) = without {
        let host = url.authority();
        return Err(format!("cannot listen on TLS for {host}: KeyFile and CertFile are not presented"));
    }
    if let Some(url) = client.iter().find(|url| http.iter().any(|other| other.authority() == url.authority())) {
        return Err(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
        ));
    }
    Ok(())
}

/// The advertised URLs. If they are the localhost defaults and the member listens on every interface, the address of the
/// default route is advertised, when there is one.
fn advertised(typed: &Typed, advertise: &str, listen: &str) -> Urls {
    let urls = typed.urls(advertise);
    let listening = typed.urls(listen);
    let wildcard = listening.iter().find(|url| url.host() == "0.0.0.0");
    match wildcard.filter(|_| !typed.is_set(advertise)).zip(default_route_address()) {
        Some((url, address)) => vec![url.with_host(&address.to_string())],
        None => urls,
    }
}

/// Connecting a datagram socket sends nothing; the kernel only chooses the route. The target is a documentation address.
fn default_route_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_unspecified() && !address.is_loopback() => Some(address),
        _ => None,
    }
}

fn advice(typed: &Typed) -> Vec<Note> {
    let note = |message: String| Note { level: "warn", message, fields: Vec::new() };
    let mut notes = Vec::new();
    if typed.text("name") == "default" {
        notes.push(note("it isn't recommended to use default name, please set a value for --name. Note that etcd might run into issue when multiple members have the same default name".to_owned()));
    }
    let (bytes, quota) = (typed.unsigned("max-request-bytes"), typed.signed("quota-backend-bytes"));
    if bytes > REQUEST_BYTES_ADVISED {
        notes.push(note(format!(
            "exceeded recommended request limit: {bytes} bytes, advised are at most {REQUEST_BYTES_ADVISED}"
        )));
    }
    if quota > QUOTA_BYTES_ADVISED {
        notes.push(note(format!(
            "quota exceeds the maximum value: {quota} bytes, advised are at most {QUOTA_BYTES_ADVISED}"
        )));
    }
    if typed.boolean("unsafe-no-fsync") {
        notes.push(note("--unsafe-no-fsync: a power failure may lose acknowledged writes".to_owned()));
    }
    notes
}

/// Between progress notices: ten minutes unless set, and not less than 100 ms (server.md 4.5).
fn progress_interval(given: Duration) -> Duration {
    if given.is_zero() { Duration::from_secs(600) } else { given.max(Duration::from_millis(100)) }
}
