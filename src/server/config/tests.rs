//! Command lines and environments, and what becomes of them.

use super::*;
use crate::common::logging::Level;
use crate::common::logging::Output;
use crate::common::urls;

fn read(words: &[&str], env: &[(&str, &str)], personality: Personality) -> Result<Config, Exit> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let env: Vec<(String, String)> = env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Config::from_args(&words, env.into_iter(), personality)
}

fn etcd(words: &[&str]) -> Result<Config, Exit> {
    read(words, &[], Personality::Etcd)
}

#[test]
fn nothing_typed_is_etcds_default_member() {
    let config = etcd(&[]).expect("valid");
    assert_eq!((config.name.as_str(), config.data_dir.to_str()), ("default", Some("default.etcd")));
    assert_eq!(config.initial_cluster_text, "default=http://localhost:2380");
    assert_eq!(urls::join(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!((config.election_ticks(), config.request_timeout()), (10, Duration::from_secs(7)));
    assert_eq!((config.snapshot_count, config.max_request_bytes, config.max_txn_ops), (10_000, 1_572_864, 128));
    assert_eq!(config.auto_compaction, None);
    assert_eq!(config.grpc_keepalive_interval, Some(Duration::from_secs(7200)));
    assert_eq!((config.compaction_batch_limit, config.compaction_sleep_interval), (1000, Duration::from_millis(10)));
    assert!(config.fsync && config.pre_vote && config.strict_reconfig_check && !config.extensive_metrics);
    assert!(config.listen_metrics_urls.is_empty());
}

#[test]
fn gos_forms_are_read() {
    let config = etcd(&[
        "-name",
        "m1",
        "--data-dir=/d",
        "--initial-cluster",
        "m1=http://127.0.0.1:1",
        "-pre-vote=false",
        "--log-level=debug",
        "--log-outputs",
        "stdout,/tmp/x.log",
        "--auto-compaction-retention",
        "5m",
        "--heartbeat-interval",
        "0x64",
        "--unsafe-no-fsync",
        "--listen-metrics-urls",
        "",
        "-snapshot-count=0",
    ])
    .expect("valid");
    assert_eq!((config.name.as_str(), config.data_dir.to_str()), ("m1", Some("/d")));
    assert_eq!(config.auto_compaction, Some(AutoCompaction::Periodic(Duration::from_secs(300))));
    assert_eq!(config.log.outputs, [Output::Stdout, Output::File("/tmp/x.log".into())]);
    assert_eq!((config.log.level, config.heartbeat_interval), (Level::Debug, Duration::from_millis(100)));
    assert!(!config.pre_vote && !config.fsync);
    assert_eq!(config.snapshot_count, 10_000);
}

#[test]
fn dashes_of_other_kinds_are_understood_with_a_note() {
    let config = etcd(&["\u{2013}name", "m1", "\u{2014}data-dir=/d"]).expect("valid");
    assert_eq!(config.name, "m1");
    assert!(config.warnings.contains("note: understood \"\u{2013}name\" as \"--name\"\n"), "{}", config.warnings);
    assert_eq!(config.warnings.lines().count(), 2);
}

#[test]
fn unreadable_flags_exit_2_with_the_reason_first() {
    let check = |words: &[&str], first: &str| {
        let exit = etcd(words).expect_err(first);
        assert_eq!((exit.code, exit.stderr.lines().next()), (2, Some(first)));
        assert!(exit.stderr.contains("Usage:") && exit.stdout.is_empty());
    };
    check(&["--foo"], "flag provided but not defined: -foo");
    check(
        &["-experimental-initial-corrupt-check=true"],
        "flag provided but not defined: -experimental-initial-corrupt-check",
    );
    check(&["--initial-cluster-state", "foo"], "invalid value \"foo\" for flag -initial-cluster-state: invalid value");
    check(
        &["--feature-gates", "Nope=true"],
        "invalid value \"Nope=true\" for flag -feature-gates: unrecognized feature gate: Nope",
    );
    check(&["--snapshot-count", "x"], "invalid value \"x\" for flag -snapshot-count: parse error");
    check(&["--pre-vote=maybe"], "invalid boolean value \"maybe\" for -pre-vote: parse error");
    check(&["--name"], "flag needs an argument: -name");
    check(&["---name"], "bad flag syntax: ---name");
    check(&["--=x"], "bad flag syntax: --=x");
    check(
        &["--listen-client-urls", "http://h:1/p"],
        "invalid value \"http://h:1/p\" for flag -listen-client-urls: URL must not contain a path: http://h:1/p",
    );
}

#[test]
fn impossible_settings_exit_1_with_etcds_log_lines() {
    let check = |words: &[&str], message: &str, error: &str| {
        let exit = etcd(words).expect_err(error);
        let line: serde_json::Value = serde_json::from_str(&exit.stderr).expect("one JSON line");
        assert_eq!((exit.code, line["msg"].as_str(), line["error"].as_str()), (1, Some(message), Some(error)));
        let level = if message == "discovery failed" { "fatal" } else { "warn" };
        assert_eq!(line["level"], level);
    };
    let verify = "failed to verify flags";
    check(&["--pre-vote", "false"], verify, "\"false\" is not a valid flag");
    check(&["--", "x"], verify, "\"x\" is not a valid flag");
    check(&["-"], verify, "\"-\" is not a valid flag");
    check(
        &["--heartbeat-interval", "300"],
        verify,
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
    );
    check(
        &["--election-timeout", "50001"],
        verify,
        "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
    );
    check(&["--heartbeat-interval=0"], verify, "--heartbeat-interval must be >0 (set to 0ms)");
    check(
        &["--listen-peer-urls", "http://example.com:52061"],
        verify,
        "expected IP in URL for binding (http://example.com:52061)",
    );
    check(&["--auto-compaction-mode", "x"], verify, "unknown auto-compaction-mode \"x\"");
    check(
        &["--listen-client-urls", "http://127.0.0.1:2379"],
        verify,
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    );
    let start = "discovery failed";
    check(
        &["--auto-compaction-retention", "x"],
        start,
        "error parsing CompactionRetention: time: invalid duration \"x\"",
    );
    let https = "https://127.0.0.1:2379";
    check(
        &["--listen-client-urls", https, "--advertise-client-urls", https],
        start,
        "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:2379 with HTTPS scheme",
    );
    check(
        &["--listen-peer-urls", "https://127.0.0.1:2380"],
        start,
        "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
    );
    check(
        &["--listen-metrics-urls", "https://127.0.0.1:2381"],
        start,
        "cannot listen on TLS for 127.0.0.1:2381: KeyFile and CertFile are not presented",
    );
    let version = "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)";
    check(&["--tls-min-version", "TLS1.1"], verify, version);
    check(&["--tls-max-version", "TLS1.1"], verify, version);
    check(
        &["--tls-min-version", "TLS1.3", "--tls-max-version", "TLS1.2"],
        verify,
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    );
    check(
        &["--tls-min-version", "TLS1.3", "--cipher-suites", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        verify,
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    );
    check(&["--cipher-suites", "X"], start, "unexpected TLS cipher suite \"X\"");
    let url = "http://127.0.0.1:1";
    check(
        &["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-client-http-urls", url],
        start,
        "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://127.0.0.1:1",
    );
}

#[test]
fn flags_that_are_not_served_are_refused_by_name() {
    let check = |words: &[&str], name: &str| {
        let exit = etcd(words).expect_err(name);
        assert!(
            exit.code == 1 && exit.stderr.contains(name) && exit.stderr.contains("not supported"),
            "{}",
            exit.stderr
        );
    };
    check(&["--discovery-srv", "x"], "--discovery-srv");
    check(&["--config-file", "x"], "--config-file");
    check(&["--downgrade-check-time", "1h"], "--downgrade-check-time");
    check(&["--feature-gates", "PriorityRequest=true"], "PriorityRequest");
    // What says how it is anyhow is taken.
    etcd(&["--client-cert-auth=false", "--discovery-fallback=exit", "--downgrade-check-time=5000ms"]).expect("valid");
}

#[test]
fn the_environment_fills_what_was_not_typed() {
    let env = [("ETCD_NAME", "m2"), ("ETCD_DATA_DIR", ""), ("HOME", "/x"), ("ETCD_NOSUCH", "1")];
    let config = read(&[], &env, Personality::Etcd).expect("valid");
    assert_eq!((config.name.as_str(), config.data_dir.to_str()), ("m2", Some("m2.etcd")));
    let told = |message: &str| config.notes.iter().any(|note| note.message == message);
    assert!(told("unrecognized environment variable") && told("recognized and used environment variable"));
    // Set through the environment counts as set.
    let env = [("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")];
    assert!(read(&[], &env, Personality::Etcd).is_err());
}

#[test]
fn flag_and_variable_conflict_in_etcd_and_not_natively() {
    let env = [("ETCD_NAME", "m2")];
    let exit = read(&["--name", "m1"], &env, Personality::Etcd).expect_err("conflict");
    let line: serde_json::Value = serde_json::from_str(&exit.stderr).expect("one JSON line");
    assert_eq!((exit.code, line["environment-variable"].as_str()), (1, Some("ETCD_NAME")));
    assert!(line["msg"].as_str().is_some_and(|text| text.starts_with("conflicting environment variable is shadowed")));
    let config = read(&["--name", "m1"], &env, Personality::Native).expect("the flag wins");
    assert_eq!(config.name, "m1");
}

#[test]
fn a_wrong_variable_is_named() {
    let exit = read(&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")], Personality::Etcd).expect_err("no number");
    assert!(
        exit.stderr.contains("invalid value \\\"x\\\" for ETCD_HEARTBEAT_INTERVAL: parse error"),
        "{}",
        exit.stderr
    );
}

#[test]
fn version_and_help_exit_0() {
    let exit = etcd(&["--version"]).expect_err("prints");
    let starts = ["etcd Version: 3.7.1", "Git SHA: ", "Go Version: ", "Go OS/Arch: "];
    assert!(exit.code == 0 && exit.stdout.lines().zip(starts).all(|(line, start)| line.starts_with(start)));
    let exit = etcd(&["-h"]).expect_err("prints");
    assert!(exit.code == 0 && exit.stdout.contains("  --initial-cluster-token 'etcd-cluster'\n"));
    assert!(exit.stderr.starts_with("Usage:"));
    let exit = read(&["--help"], &[], Personality::Native).expect_err("prints");
    assert!(exit.stderr.is_empty() && exit.stdout.contains("quorate server [flags]"));
}

#[test]
fn legacy_flags_are_taken_and_warned_about() {
    let config = etcd(&["--snapshot", "-v=2", "--name", "m1"]).expect("valid");
    assert_eq!(config.notes.iter().filter(|note| note.message.contains("old release")).count(), 2);
}

#[test]
fn quirks_of_etcd_that_start_normally() {
    etcd(&["--max-learners", "0"]).expect("valid");
    assert!(etcd(&["--force-new-cluster"]).expect("valid").force_new_cluster);
    etcd(&["--metrics", "x"]).expect("valid");
    let config = etcd(&["--auto-compaction-mode", "revision", "--auto-compaction-retention", "1h"]).expect("valid");
    assert_eq!(config.auto_compaction, Some(AutoCompaction::Revision(3_600_000_000_000)));
}

#[test]
fn a_bad_log_level_exits_2() {
    assert_eq!(etcd(&["--log-level", "loud"]).map(drop).map_err(|exit| exit.code), Err(2));
}

#[test]
fn the_initial_cluster_is_read_late() {
    let config = etcd(&["--initial-cluster", "default=foo"]).expect("a member with a log never reads it");
    let expected = "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: foo";
    assert_eq!(config.initial_cluster().map(drop), Err(expected.to_owned()));
}

proptest::proptest! {
    /// Any words make a configuration or an exit (reliability.md 4.5, F12).
    #[test]
    fn no_words_panic(
        words in proptest::collection::vec("[-–—]{0,3}(name|pre-vote|snapshot-count|initial-cluster|auto-compaction-retention|feature-gates|é)?=?[a-z0-9=:,./é-]{0,12}", 0..5),
    ) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Ok(config) = etcd(&words) {
            let _ = config.initial_cluster();
        }
    }
}
