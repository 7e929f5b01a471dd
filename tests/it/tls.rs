//! TLS on the client port: real etcdctl at ours, ours at real etcd, strangers at both, files that change, stallers.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use quorate::common::tls::ClientSide;
use quorate::common::tls::Settings;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::certificates::Authority;
use crate::certificates::Pair;
use crate::certificates::Wanted;
use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::put;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::free_port;
use crate::support::named_program;

/// One member with a plain client port and one with TLS, and who is believed there.
pub struct Secured {
    pub cluster: Cluster,
    /// Where TLS is spoken.
    port: u16,
    files: TempDir,
    ours: Authority,
    client: Pair,
}

impl Secured {
    /// Demands certificates of `ours`; `more` are further flags, which may name the files' directory as `DIR`.
    async fn start(program: Program, more: &[&str]) -> Secured {
        let files = tempfile::tempdir().expect("a directory");
        let ours = Authority::new(files.path(), "ours");
        let server = ours.issue("server", &Wanted::default());
        let client = ours.issue("client", &Wanted { hosts: Vec::new(), ..Wanted::default() });
        ours.revoke("list", &[1]);
        let mut cluster = Cluster::prepare(&[program], &[]);
        let member = &mut cluster.members[0];
        let port = free_port();
        let urls = format!("http://127.0.0.1:{},https://127.0.0.1:{port}", member.client_port);
        member.set_arg("--listen-client-urls", &urls);
        member.set_arg("--advertise-client-urls", &urls);
        member.add_args(&["--cert-file", &server.cert, "--key-file", &server.key]);
        let dir = files.path().to_str().expect("UTF-8");
        for word in more {
            member.add_args(&[&word.replace("DIR", dir)]);
        }
        member.start();
        cluster.wait_ready().await;
        Secured { cluster, port, files, ours, client }
    }

    pub async fn demanding(program: Program) -> Secured {
        Secured::start(program, &["--client-cert-auth", "--trusted-ca-file", "DIR/ours.crt"]).await
    }

    fn member(&self) -> &Member {
        &self.cluster.members[0]
    }

    /// Flags of a client of ours authority, and the endpoint.
    fn flags(&self) -> Vec<String> {
        self.flags_with(&self.client)
    }

    fn flags_with(&self, pair: &Pair) -> Vec<String> {
        let endpoint = format!("https://127.0.0.1:{}", self.port);
        let words = ["--cacert", &self.ours.bundle, "--cert", &pair.cert, "--key", &pair.key, "--endpoints", &endpoint];
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// A connection of our own with these protocols.
    async fn connect(&self, protocols: &'static [&'static [u8]]) -> Result<impl Socket + use<>, String> {
        let settings = Settings {
            trusted_ca_file: self.ours.bundle.clone(),
            cert_file: self.client.cert.clone(),
            key_file: self.client.key.clone(),
            ..Settings::default()
        };
        connect(self.port, &settings, protocols).await
    }
}

trait Socket: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static> Socket for T {}

async fn connect(
    port: u16,
    settings: &Settings,
    protocols: &'static [&'static [u8]],
) -> Result<impl Socket + use<>, String> {
    let side = ClientSide::new(settings, protocols)?;
    let socket = TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())?;
    side.connect(socket, "127.0.0.1").await
}

/// What a command ended with: its code and all that it said.
fn run(program: &Path, flags: &[String], words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program)
        .env_clear()
        .args(flags)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).replace("\\\"", "\""))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_client_speaks_tls_with_either_member() {
    let Some(real) = oracle("either_client_speaks_tls_with_either_member") else { return };
    let (_link, ours) = named_program("etcdctl");
    for program in [Program::Ours, Program::Etcd(real.etcd.clone())] {
        let secured = Secured::demanding(program).await;
        let unsaid: Vec<String> = secured.flags().iter().map(|word| word.replace("https://", "")).collect();
        for etcdctl in [&ours, &real.etcdctl] {
            let good = |flags: &[String], words: &[&str], text: &str| {
                let (code, said) = run(etcdctl, flags, words);
                assert!(code == Some(0) && said.contains(text), "{words:?}: {said}");
            };
            good(&secured.flags(), &["put", "k", "over-tls"], "OK");
            good(&unsaid, &["get", "k"], "over-tls");
            good(&secured.flags(), &["endpoint", "health"], "is healthy");
            good(&unsaid, &["endpoint", "status"], &format!("127.0.0.1:{}, ", secured.port));
            // The member advertises both of its addresses; one of them is plain.
            good(
                &secured.flags(),
                &["endpoint", "health", "--cluster"],
                &format!("http://{}", secured.member().endpoint()),
            );
            let trusting: Vec<String> =
                unsaid[2..].iter().cloned().chain(["--insecure-skip-tls-verify".to_owned()]).collect();
            good(&trusting, &["get", "k"], "over-tls");
        }
    }
}

/// Runs a client that must fail with 1 at its deadline, and tells what it and the member say of it.
fn fails(etcdctl: &Path, flags: &[String], words: &[&str]) -> String {
    let flags: Vec<String> = ["--command-timeout=1s".to_owned()].iter().chain(flags).cloned().collect();
    let (code, said) = run(etcdctl, &flags, words);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.ends_with("Error: context deadline exceeded\n"), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_in_etcds_words_and_nothing_is_lost() {
    let more = ["--client-cert-auth", "--trusted-ca-file", "DIR/ours.crt", "--client-crl-file", "DIR/list.crl"];
    let secured = Secured::start(Program::Ours, &more).await;
    let (_link, etcdctl) = named_program("etcdctl");
    let revision = secured.member().put("kept", "1").await.expect("a put");
    let foreign = Authority::new(secured.files.path(), "foreign");
    let good = Wanted { hosts: Vec::new(), ..Wanted::default() };
    let check = async |flags: Vec<String>, client: &str, member: &str| {
        let before = secured.member().log_count(member);
        let said = fails(&etcdctl, &flags, &["put", "k", "stranger"]);
        assert!(said.contains(client), "{said}");
        let rejected = "rejected connection on client endpoint";
        eventually("a line in the log", async || {
            let log = secured.member().log_text();
            let told = log.lines().any(|line| line.contains(rejected) && line.contains(member));
            if told && secured.member().log_count(member) > before { Ok(()) } else { Err(log) }
        })
        .await;
    };
    let endpoint = format!("https://127.0.0.1:{}", secured.port);
    let flags = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let without = flags(&["--cacert", &secured.ours.bundle, "--endpoints", &endpoint]);
    let required = "error reading server preface: remote error: tls: certificate required";
    check(without, required, "tls: client didn't provide a certificate").await;
    let unknown = "x509: certificate signed by unknown authority";
    let stranger = foreign.issue("stranger", &good);
    let alert = "error reading server preface: remote error: tls: unknown certificate authority";
    check(secured.flags_with(&stranger), alert, unknown).await;
    let expired = secured.ours.issue("expired", &Wanted { years: (2000, 2001), ..good.clone() });
    let alert = "error reading server preface: remote error: tls: expired certificate";
    check(secured.flags_with(&expired), alert, "x509: certificate has expired or is not yet valid: current time").await;
    let revoked = secured.ours.issue("revoked", &Wanted { serial: 0xbad, ..good.clone() });
    secured.ours.revoke("list", &[0xbad]);
    let eof = "error reading server preface: EOF";
    check(secured.flags_with(&revoked), eof, "transport: certificate serial 0bad revoked").await;
    let plain = flags(&["--endpoints", &format!("http://127.0.0.1:{}", secured.port)]);
    check(plain, eof, "tls: first record does not look like a TLS handshake").await;
    let distrusting = flags(&["--cacert", &foreign.bundle, "--endpoints", &endpoint]);
    let failed = format!("authentication handshake failed: tls: failed to verify certificate: {unknown}");
    check(distrusting, &failed, "remote error: tls: unknown certificate authority").await;
    // The other way round: TLS at the plain port.
    let mut there = secured.flags();
    let last = there.len() - 1;
    there[last] = format!("https://{}", secured.member().endpoint());
    let said = fails(&etcdctl, &there, &["put", "k", "stranger"]);
    assert!(said.contains("authentication handshake failed: EOF"), "{said}");
    assert_eq!(run(&etcdctl, &secured.flags(), &["get", "k"]), (Some(0), String::new()));
    let read = secured.member().get("kept").await.expect("a read");
    assert_eq!((read.kvs[0].value.as_ref(), read.header.map(|header| header.revision)), (&b"1"[..], Some(revision)));
}

#[test]
fn files_that_cannot_be_used_end_a_client_with_128() {
    let files = tempfile::tempdir().expect("a directory");
    let ours = Authority::new(files.path(), "ours");
    let (pair, other) = (ours.issue("client", &Wanted::default()), ours.issue("other", &Wanted::default()));
    let (_link, etcdctl) = named_program("etcdctl");
    let check = |words: &[&str], error: &str| {
        let (code, said) = run(&etcdctl, &[], &[words, &["get", "k"]].concat());
        assert_eq!((code, said), (Some(128), format!("Error: {error}\n")), "{words:?}");
    };
    for name in ["cert", "key", "cacert"] {
        check(&[&format!("--{name}=")], &format!("empty string is passed to --{name} option"));
    }
    let half = format!("KeyFile and CertFile must both be present[key: , cert: {}]", pair.cert);
    check(&["--cert", &pair.cert], &half);
    let half = format!("KeyFile and CertFile must both be present[key: {}, cert: ]", pair.key);
    check(&["--key", &pair.key], &half);
    check(&["--cacert", "/nonexistent"], "open /nonexistent: no such file or directory");
    check(&["--cert", "/nonexistent", "--key", &pair.key], "open /nonexistent: no such file or directory");
    check(&["--cert", &pair.cert, "--key", &other.key], "tls: private key does not match public key");
    check(&["--cacert", &pair.key], "x509: malformed tbs certificate");
}

#[test]
fn files_that_cannot_be_used_end_a_member_before_it_listens() {
    let files = tempfile::tempdir().expect("a directory");
    let ours = Authority::new(files.path(), "ours");
    let (pair, other) = (ours.issue("server", &Wanted::default()), ours.issue("other", &Wanted::default()));
    let data = files.path().join("data");
    let client = format!("https://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let base = ["server", "--data-dir", data.to_str().expect("UTF-8"), "--listen-client-urls", &client];
    let base = [&base[..], &["--advertise-client-urls", &client, "--listen-peer-urls", &peer]].concat();
    let program = Path::new(env!("CARGO_BIN_EXE_quorate"));
    let check = |words: &[&str], error: &str| {
        let (code, said) = run(program, &[], &[base.as_slice(), words].concat());
        assert!(code == Some(1) && said.contains(error), "{words:?}: {said}");
    };
    check(&[], "TLS key/cert (--cert-file, --key-file) must be provided for client url");
    let good = ["--cert-file", &pair.cert, "--key-file", &pair.key];
    check(&good[..2], "KeyFile and CertFile must both be present");
    check(&["--cert-file", "/nonexistent", "--key-file", &pair.key], "open /nonexistent: no such file or directory");
    check(&["--cert-file", &pair.cert, "--key-file", &other.key], "tls: private key does not match public key");
    check(
        &[&good[..], &["--trusted-ca-file", "/nonexistent"]].concat(),
        "open /nonexistent: no such file or directory",
    );
    check(&["--auto-tls", "--self-signed-cert-validity=0"], "selfSignedCertValidity is invalid");
    assert!(!data.join("member").exists(), "a refused start leaves no log behind");
}

/// A page over an open connection of HTTP/1.1.
async fn page(mut socket: impl Socket, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    // Whether the end is announced is not the matter here.
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_come_over_either_protocol_and_under_any_host_name() {
    let metrics = free_port();
    let url = format!("https://127.0.0.1:{metrics}");
    let more = ["--trusted-ca-file", "DIR/ours.crt", "--listen-metrics-urls", &url, "--host-whitelist", "localhost"];
    let secured = Secured::start(Program::Ours, &more).await;
    let answer = page(secured.connect(&[b"http/1.1"]).await.expect("let in"), "/health").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("{\"health\":\"true\""), "{answer}");
    let answer = page(secured.connect(&[]).await.expect("let in"), "/version").await;
    assert!(answer.contains("\"etcdserver\":\"3.7.1\""), "{answer}");
    // HTTP/2, pages and calls on one connection.
    let socket = secured.connect(&[b"h2"]).await.expect("let in");
    let (mut sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let running = tokio::spawn(async move { drop(connection.await) });
    for (path, kind, status) in
        [("/metrics", "", 200), ("/nowhere", "", 404), ("/etcdserverpb.KV/Nope", "application/grpc", 200)]
    {
        let request = http::Request::get(format!("https://rebound.example{path}")).header("content-type", kind);
        let (answer, _) = sender.send_request(request.body(()).expect("a request"), true).expect("sent");
        let answer = answer.await.expect("answered");
        assert_eq!(answer.status(), status, "{path}");
        let told = answer.headers().get("grpc-status").map(|code| code.to_str().expect("a number").to_owned());
        assert_eq!(told.as_deref(), if kind.is_empty() { None } else { Some("12") }, "{path}");
    }
    running.abort();
    // A metrics listener compares the client's address with its certificate as well.
    let settings = |pair: &Pair| Settings {
        trusted_ca_file: secured.ours.bundle.clone(),
        cert_file: pair.cert.clone(),
        key_file: pair.key.clone(),
        ..Settings::default()
    };
    let answer = page(connect(metrics, &settings(&secured.client), &[]).await.expect("let in"), "/metrics").await;
    assert!(answer.contains("etcd_server_has_leader 1"), "{answer}");
    let elsewhere =
        secured.ours.issue("elsewhere", &Wanted { hosts: vec!["10.9.9.9".to_owned()], ..Wanted::default() });
    let answer = page(connect(metrics, &settings(&elsewhere), &[]).await.expect("a handshake"), "/metrics").await;
    assert_eq!(answer, "");
    eventually("a line in the log", async || {
        let text = "x509: certificate is valid for 10.9.9.9, not 127.0.0.1";
        if secured.member().log_count(text) > 0 { Ok(()) } else { Err(secured.member().log_text()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_serves_both_and_versions_are_bounded() {
    let files = tempfile::tempdir().expect("a directory");
    let ours = Authority::new(files.path(), "ours");
    let server = ours.issue("server", &Wanted::default());
    let mut cluster =
        Cluster::prepare(&[Program::Ours], &["--tls-min-version", "TLS1.2", "--tls-max-version", "TLS1.2"]);
    let member = &mut cluster.members[0];
    let port = member.client_port;
    member.set_arg("--listen-client-urls", &format!("http://127.0.0.1:{port},https://127.0.0.1:{port}"));
    member.add_args(&["--cert-file", &server.cert, "--key-file", &server.key]);
    member.add_args(&["--cipher-suites", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_RSA_WITH_AES_128_CBC_SHA"]);
    member.start();
    cluster.wait_ready().await;
    let trusting = Settings { trusted_ca_file: ours.bundle.clone(), ..Settings::default() };
    let answer = page(connect(port, &trusting, &[]).await.expect("let in"), "/version").await;
    assert!(answer.contains("etcdserver"), "{answer}");
    let of = |version: &str, suites: &[String]| {
        let (offer, _) = quorate::common::tls::Offer::read(version, "", suites).expect("an offer");
        Settings { offer, ..trusting.clone() }
    };
    let refused = connect(port, &of("TLS1.3", &[]), &[]).await.err();
    assert_eq!(refused.as_deref(), Some("remote error: tls: protocol version not supported"));
    let other = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned()];
    let refused = connect(port, &of("TLS1.2", &other), &[]).await.err();
    assert_eq!(refused.as_deref(), Some("remote error: tls: handshake failure"));
    assert_eq!(cluster.members[0].log_count("left out a cipher suite that is not supported: TLS_RSA_WITH_AES"), 1);
}

/// The flags of a client for a member with a certificate of its own making.
fn auto_flags(port: u16, more: &[&str]) -> Vec<String> {
    let endpoint = format!("https://localhost:{port}");
    ["--endpoints", &endpoint].iter().chain(more).map(|word| (*word).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_makes_its_own_certificate_once() {
    let (_link, etcdctl) = named_program("etcdctl");
    let mut cluster = Cluster::prepare(&[Program::Ours], &["--auto-tls"]);
    let member = &mut cluster.members[0];
    let port = free_port();
    let urls = format!("http://127.0.0.1:{},https://localhost:{port}", member.client_port);
    member.set_arg("--listen-client-urls", &urls);
    member.start();
    cluster.wait_ready().await;
    let made: PathBuf = cluster.members[0].data_dir.join("fixtures/client/cert.pem");
    let first = std::fs::read(&made).expect("it was made");
    let trusting = auto_flags(port, &["--insecure-skip-tls-verify"]);
    assert_eq!(run(&etcdctl, &trusting, &["put", "k", "v"]).0, Some(0));
    // It is its own authority.
    let pinned = auto_flags(port, &["--cacert", made.to_str().expect("UTF-8")]);
    assert_eq!(run(&etcdctl, &pinned, &["get", "k"]), (Some(0), "k\nv\n".to_owned()));
    fails(&etcdctl, &auto_flags(port, &[]), &["get", "k"]);
    cluster.members[0].terminate();
    cluster.members[0].start();
    cluster.wait_ready().await;
    assert_eq!(std::fs::read(&made).expect("kept"), first);
    assert_eq!(run(&etcdctl, &pinned, &["get", "k"]), (Some(0), "k\nv\n".to_owned()));
}

/// A channel of tonic's over our own TLS.
pub async fn channel(secured: &Secured) -> Result<tonic::transport::Channel, String> {
    let settings = Settings {
        trusted_ca_file: secured.ours.bundle.clone(),
        cert_file: secured.client.cert.clone(),
        key_file: secured.client.key.clone(),
        ..Settings::default()
    };
    let port = secured.port;
    let connector = tower::service_fn(move |_: http::Uri| {
        let settings = settings.clone();
        async move {
            let socket = connect(port, &settings, &[b"h2"]).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(socket))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://127.0.0.1");
    endpoint
        .timeout(Duration::from_secs(30))
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("{error:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_change_under_load_and_no_call_fails() {
    let secured = Secured::demanding(Program::Ours).await;
    let client = KvClient::new(channel(&secured).await.expect("let in"));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (mut client, stopped) = (client.clone(), stopped.clone());
        writers.spawn(async move {
            let mut written = 0_u64;
            while !*stopped.borrow() {
                put(&mut client, &format!("load/{writer}"), "v").await.expect("an open connection goes on");
                written += 1;
            }
            written
        });
    }
    for round in 0..5 {
        // The leaf and what clients show are renewed, then the authority behind them; newcomers are let in every time.
        secured.ours.issue("server", &Wanted { serial: 2000 + round, ..Wanted::default() });
        secured.ours.issue("client", &Wanted { serial: 3000 + round, hosts: Vec::new(), ..Wanted::default() });
        let mut newcomer = KvClient::new(channel(&secured).await.expect("let in"));
        put(&mut newcomer, "newcomer", "v").await.expect("a put");
    }
    let next = Authority::new(secured.files.path(), "ours");
    next.issue("server", &Wanted::default());
    next.issue("client", &Wanted { hosts: Vec::new(), ..Wanted::default() });
    let mut newcomer = KvClient::new(channel(&secured).await.expect("let in by the new authority"));
    put(&mut newcomer, "newcomer", "v").await.expect("a put");
    stop.send_replace(true);
    while let Some(written) = writers.join_next().await {
        assert!(written.expect("no panic") > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_stall_keep_nobody_out() {
    let secured = Secured::demanding(Program::Ours).await;
    // More than there are places for handshakes: some began one, some say nothing.
    let mut stalling = Vec::new();
    for number in 0..700 {
        let mut socket = TcpStream::connect(("127.0.0.1", secured.port)).await.expect("a connection");
        if number % 7 != 0 {
            socket.write_all(b"\x16\x03\x01\x01\x00").await.expect("written");
        }
        stalling.push(socket);
    }
    let mut client = KvClient::new(channel(&secured).await.expect("let in"));
    put(&mut client, "served", "v").await.expect("a put");
    // Those who stall are cut in the end, all of them.
    for mut socket in stalling {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still open");
    }
    put(&mut client, "served", "again").await.expect("a put");
}
