//! What may be typed: every flag of an etcd 3.7 server, its kind, default and meaning (server.md 9).
//!
//! A flag that this release does not serve is in the table too: given with another value than its default it is refused
//! by name, never ignored.

/// What a value must look like. Errors differ by kind as Go's do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Text,
    /// Unsigned; Go says `parse error`.
    Unsigned,
    /// Unsigned, 32 bits; Go's strconv speaks itself.
    Unsigned32,
    Signed,
    Duration,
    /// URLs, comma separated.
    Urls,
    /// The same, or nothing.
    UrlsOrNone,
    /// One of these words.
    OneOf(&'static [&'static str]),
    FeatureGates,
}

/// What this release makes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    Served,
    /// Taken, and nothing follows from it: it tunes a part of etcd that we do not have.
    NoEffect,
    /// Refused unless it says what is the case anyhow.
    Later,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    /// As typed; also what `--help` shows.
    pub default: &'static str,
    pub support: Support,
    pub help: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, support: Support, help: &'static str) -> Flag {
    Flag { name, kind, default, support, help }
}

use Kind::Bool;
use Kind::Duration;
use Kind::OneOf;
use Kind::Signed;
use Kind::Text;
use Kind::Unsigned;
use Kind::Unsigned32;
use Kind::Urls;
use Kind::UrlsOrNone;
use Support::Later;
use Support::NoEffect;
use Support::Served;

/// A part of the help page.
pub struct Section {
    pub title: &'static str,
    pub flags: &'static [Flag],
}

pub const SECTIONS: [Section; 8] = [
    Section { title: "Member", flags: &MEMBER },
    Section { title: "Clustering", flags: &CLUSTERING },
    Section { title: "Security", flags: &SECURITY },
    Section { title: "Auth", flags: &AUTH },
    Section { title: "Profiling, metrics and logging", flags: &LOGGING },
    Section { title: "Distributed tracing", flags: &TRACING },
    Section { title: "Features", flags: &FEATURES },
    Section { title: "Unsafe and others", flags: &UNSAFE },
];

const MEMBER: [Flag; 32] = [
    flag("name", Text, "default", Served, "Name of this member; it must be one of --initial-cluster."),
    flag("data-dir", Text, "", Served, "Data directory; '<name>.etcd' if empty."),
    flag("wal-dir", Text, "", Served, "Directory of the write-ahead log, if not inside the data directory."),
    flag("snapshot-count", Unsigned, "10000", Served, "Applied entries between two snapshot marks; 0 is the default."),
    flag("snapshot-catchup-entries", Unsigned, "5000", Served, "Entries kept behind a mark for slow followers."),
    flag("heartbeat-interval", Unsigned, "100", Served, "Time between heartbeats, in milliseconds."),
    flag("election-timeout", Unsigned, "1000", Served, "Time without a leader before an election, in milliseconds."),
    flag("initial-election-tick-advance", Bool, "true", Served, "Let the first election come early."),
    flag("listen-peer-urls", Urls, "http://localhost:2380", Served, "URLs to listen on for peers."),
    flag("listen-client-urls", Urls, "http://localhost:2379", Served, "URLs to listen on for clients: gRPC and HTTP."),
    flag(
        "listen-client-http-urls",
        UrlsOrNone,
        "",
        Served,
        "URLs for HTTP alone; --listen-client-urls is then for gRPC alone.",
    ),
    flag("max-wals", Unsigned, "5", NoEffect, "Log files to keep. Ours go as soon as nothing needs them."),
    flag("max-snapshots", Unsigned, "5", NoEffect, "Snapshot files to keep. There are none here."),
    flag("memory-mlock", Bool, "false", Later, "Lock the database's pages in memory."),
    flag("quota-backend-bytes", Signed, "0", Served, "Space quota; 0 is 2 GiB, negative is none."),
    flag("backend-bbolt-freelist-type", Text, "map", NoEffect, "Tunes etcd's database."),
    flag("backend-batch-interval", Duration, "0s", NoEffect, "Tunes etcd's database."),
    flag("backend-batch-limit", Signed, "0", NoEffect, "Tunes etcd's database."),
    flag("max-txn-ops", Unsigned, "128", Served, "Operations in one transaction."),
    flag("max-request-bytes", Unsigned, "1572864", Served, "Bytes of one request."),
    flag("max-concurrent-streams", Unsigned32, "4096", Served, "Calls at once on one connection."),
    flag(
        "grpc-keepalive-min-time",
        Duration,
        "5s",
        NoEffect,
        "Shortest time between two pings of a client. Not enforced: a ping costs next to nothing here.",
    ),
    flag(
        "grpc-keepalive-interval",
        Duration,
        "2h0m0s",
        Served,
        "Time between two pings to a silent client; 0 sends none.",
    ),
    flag("grpc-keepalive-timeout", Duration, "20s", Served, "Time for the answer to a ping; 0 sends none."),
    flag("socket-reuse-port", Bool, "false", Served, "Set SO_REUSEPORT on listeners."),
    flag("socket-reuse-address", Bool, "false", Served, "Set SO_REUSEADDR on listeners. It always is."),
    flag("enable-grpc-gateway", Bool, "true", NoEffect, "JSON over HTTP. This release has none to switch off."),
    flag("raft-read-timeout", Duration, "5s", Served, "Read timeout of connections between members; at least 5s."),
    flag("raft-write-timeout", Duration, "5s", Served, "Write timeout of connections between members; at least 5s."),
    flag("feature-gates", Kind::FeatureGates, "", Served, "Name=true|false pairs, comma separated."),
    flag("auto-compaction-mode", Text, "periodic", Served, "'periodic' or 'revision'."),
    flag(
        "auto-compaction-retention",
        Text,
        "0",
        Served,
        "Hours or a duration to keep, or revisions; 0 never compacts.",
    ),
];

const CLUSTERING: [Flag; 25] = [
    flag(
        "initial-advertise-peer-urls",
        Urls,
        "http://localhost:2380",
        Served,
        "This member's peer URLs, as others reach it.",
    ),
    flag(
        "initial-cluster",
        Text,
        "",
        Served,
        "name=URL pairs of all first members; '<name>=<its peer URLs>' if empty.",
    ),
    flag("initial-cluster-state", OneOf(&["new", "existing"]), "new", Served, "'new', or 'existing' to join."),
    flag("initial-cluster-token", Text, "etcd-cluster", Served, "Keeps clusters apart that start with the same URLs."),
    flag(
        "advertise-client-urls",
        Urls,
        "http://localhost:2379",
        Served,
        "This member's client URLs, as others reach it.",
    ),
    flag("discovery-token", Text, "", Later, "Token of the discovery service."),
    flag("discovery-endpoints", Text, "", Later, "Endpoints of the discovery service."),
    flag("discovery-dial-timeout", Duration, "2s", Later, "Discovery: time to connect."),
    flag("discovery-request-timeout", Duration, "5s", Later, "Discovery: time for a request."),
    flag("discovery-keepalive-time", Duration, "2s", Later, "Discovery: time between pings."),
    flag("discovery-keepalive-timeout", Duration, "6s", Later, "Discovery: time for a ping's answer."),
    flag("discovery-insecure-transport", Bool, "true", Later, "Discovery: without TLS."),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", Later, "Discovery: trust any certificate."),
    flag("discovery-cert", Text, "", Later, "Discovery: client certificate."),
    flag("discovery-key", Text, "", Later, "Discovery: client key."),
    flag("discovery-cacert", Text, "", Later, "Discovery: trusted CAs."),
    flag("discovery-user", Text, "", Later, "Discovery: user[:password]."),
    flag("discovery-password", Text, "", Later, "Discovery: password."),
    flag("discovery-srv", Text, "", Later, "DNS domain with SRV records of the members."),
    flag("discovery-srv-name", Text, "", Later, "Suffix of the SRV service."),
    flag("discovery-fallback", OneOf(&["exit", "proxy"]), "exit", Later, "What to do when discovery fails."),
    flag("strict-reconfig-check", Bool, "true", Served, "Refuse membership changes that would lose the quorum."),
    flag("pre-vote", Bool, "true", Served, "Ask before an election whether it could be won."),
    flag(
        "v2-deprecation",
        OneOf(&["not-yet", "write-only", "write-only-drop-data", "gone"]),
        "write-only",
        NoEffect,
        "There is no v2 store here.",
    ),
    flag("max-learners", Signed, "1", Served, "Learners a cluster may have."),
];

const SECURITY: [Flag; 26] = [
    flag("cert-file", Text, "", Served, "Certificate for clients."),
    flag("key-file", Text, "", Served, "Its key."),
    flag("client-cert-file", Text, "", Served, "Certificate that this member shows as a client."),
    flag("client-key-file", Text, "", Served, "Its key."),
    flag("client-cert-auth", Bool, "false", Served, "Demand client certificates."),
    flag("trusted-ca-file", Text, "", Served, "CAs of client certificates."),
    flag("client-crl-file", Text, "", Served, "Revoked client certificates."),
    flag("client-cert-allowed-hostname", Text, "", Served, "Names of client certificates."),
    flag("auto-tls", Bool, "false", Served, "Make a certificate for clients."),
    flag("peer-cert-file", Text, "", Served, "Certificate for peers."),
    flag("peer-key-file", Text, "", Served, "Its key."),
    flag("peer-client-cert-file", Text, "", Served, "Certificate that this member shows to peers."),
    flag("peer-client-key-file", Text, "", Served, "Its key."),
    flag("peer-client-cert-auth", Bool, "false", Served, "Demand peer certificates."),
    flag("peer-trusted-ca-file", Text, "", Served, "CAs of peer certificates."),
    flag("peer-auto-tls", Bool, "false", Served, "Make a certificate for peers."),
    flag("peer-crl-file", Text, "", Served, "Revoked peer certificates."),
    flag("peer-cert-allowed-cn", Text, "", Served, "Common names of peer certificates."),
    flag("peer-cert-allowed-hostname", Text, "", Served, "Names of peer certificates."),
    flag(
        "peer-skip-client-san-verification",
        Bool,
        "false",
        Served,
        "Do not compare a peer's address with its certificate.",
    ),
    flag("self-signed-cert-validity", Unsigned, "1", Served, "Years that a made certificate is valid."),
    flag("cipher-suites", Text, "", Served, "Cipher suites of TLS."),
    flag("tls-min-version", Text, "TLS1.2", Served, "Lowest TLS version."),
    flag("tls-max-version", Text, "", Served, "Highest TLS version."),
    flag("cors", Text, "*", Served, "Origins whose pages may use the HTTP endpoints."),
    flag("host-whitelist", Text, "*", Served, "Host names under which plain HTTP is answered."),
];

const AUTH: [Flag; 3] = [
    flag("auth-token", Text, "simple", Later, "Kind of tokens."),
    flag("bcrypt-cost", Unsigned, "10", Later, "Cost of hashing a password."),
    flag("auth-token-ttl", Unsigned, "300", Later, "Seconds that a simple token lives."),
];

const LOGGING: [Flag; 11] = [
    flag("enable-pprof", Bool, "false", Later, "Profiles of Go's runtime."),
    flag("metrics", Text, "basic", Served, "'extensive' adds a histogram for each gRPC method."),
    flag("listen-metrics-urls", UrlsOrNone, "", Served, "More URLs for /metrics and health."),
    flag("logger", OneOf(&["zap"]), "zap", Served, "Form of the log: etcd's."),
    flag("log-outputs", Text, "default", Served, "'stdout', 'stderr' or files, comma separated."),
    flag("log-level", Text, "info", Served, "debug, info, warn, error, panic or fatal."),
    flag("log-format", Text, "json", Served, "json or console."),
    flag("enable-log-rotation", Bool, "false", Later, "Rotate the log file."),
    flag(
        "log-rotation-config-json",
        Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        Later,
        "How to rotate.",
    ),
    flag("warning-unary-request-duration", Duration, "300ms", Served, "Log requests that take longer."),
    flag("warning-apply-duration", Duration, "100ms", Served, "Log entries that take longer to apply."),
];

const TRACING: [Flag; 5] = [
    flag("enable-distributed-tracing", Bool, "false", Later, "Send traces to a collector."),
    flag("distributed-tracing-address", Text, "localhost:4317", Later, "The collector."),
    flag("distributed-tracing-service-name", Text, "etcd", Later, "Name of the service."),
    flag("distributed-tracing-instance-id", Text, "", Later, "Name of the instance."),
    flag("distributed-tracing-sampling-rate", Signed, "0", Later, "Samples in a million."),
];

const FEATURES: [Flag; 7] = [
    flag("corrupt-check-time", Duration, "0s", Served, "Time between two comparisons of members; 0 for never."),
    flag("compact-hash-check-time", Duration, "1m0s", Served, "Time between two comparisons of compaction hashes."),
    flag("compaction-batch-limit", Signed, "0", Served, "Revisions deleted in one step of a compaction; 0 is 1000."),
    flag("compaction-sleep-interval", Duration, "0s", Served, "Pause between two steps; 0 is 10ms."),
    flag("watch-progress-notify-interval", Duration, "0s", Served, "Time between progress notices; 0 is 10m."),
    flag("bootstrap-defrag-threshold-megabytes", Unsigned, "0", NoEffect, "Nothing here needs defragmenting."),
    flag("downgrade-check-time", Duration, "5s", Later, "Time between two looks at a downgrade."),
];

const UNSAFE: [Flag; 4] = [
    flag(
        "force-new-cluster",
        Bool,
        "false",
        Served,
        "Go on alone with this member's data, for when the quorum is lost.",
    ),
    flag(
        "unsafe-no-fsync",
        Bool,
        "false",
        Served,
        "Never wait for the disk. A power failure loses acknowledged writes.",
    ),
    flag("config-file", Text, "", Later, "Read the configuration from a file."),
    flag("version", Bool, "false", Served, "Print the version and exit."),
];

/// Flags of very old releases: taken with or without a value, and warned about.
pub const LEGACY: [&str; 13] = [
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
];

pub fn all() -> impl Iterator<Item = &'static Flag> {
    SECTIONS.iter().flat_map(|section| section.flags)
}

pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// The environment variable of a flag: `ETCD_INITIAL_CLUSTER`.
pub fn variable(name: &str) -> String {
    format!("ETCD_{}", name.to_ascii_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_defaults_are_valid() {
        let mut seen = HashSet::new();
        for flag in all() {
            assert!(seen.insert(flag.name), "{}", flag.name);
            assert_eq!(crate::server::config::value::check(flag.kind, flag.default), Ok(()), "{}", flag.name);
        }
        assert!(LEGACY.iter().all(|name| !seen.contains(name)));
        assert_eq!(variable("initial-cluster"), "ETCD_INITIAL_CLUSTER");
    }
}
