//! The root command: which commands there are, and the flags that all of them know (ctl.md 2.1).

use super::command::Action;
use super::command::Command;
use super::compaction;
use super::del;
use super::elect;
use super::endpoint;
use super::flags::Flag;
use super::flags::Kind;
use super::get;
use super::help;
use super::lease;
use super::lock;
use super::member;
use super::move_leader;
use super::put;
use super::snapshot;
use super::txn;
use super::version;
use super::watch;

pub static ROOT: Command = Command {
    name: "etcdctl",
    arguments: "",
    summary: "Talks to an etcd cluster: reads and writes keys, looks after members.",
    flags: &[],
    inherited: &GLOBAL_FLAGS,
    action: Action::Group {
        commands: &[
            &get::COMMAND,
            &put::COMMAND,
            &del::COMMAND,
            &txn::COMMAND,
            &compaction::COMMAND,
            &endpoint::COMMAND,
            &move_leader::COMMAND,
            &watch::COMMAND,
            &version::COMMAND,
            &lease::COMMAND,
            &member::COMMAND,
            &snapshot::COMMAND,
            &lock::COMMAND,
            &elect::COMMAND,
            &help::OPTIONS,
            &help::HELP,
        ],
        names: &[
            "get",
            "put",
            "del",
            "txn",
            "compaction",
            "alarm",
            "defrag",
            "endpoint",
            "move-leader",
            "watch",
            "version",
            "lease",
            "member",
            "snapshot",
            "make-mirror",
            "lock",
            "elect",
            "auth",
            "user",
            "role",
            "check",
            "completion",
            "downgrade",
            "options",
            "help",
        ],
    },
};

/// In alphabetical order, as help and `--debug` list them.
static GLOBAL_FLAGS: [Flag; 21] = [
    Flag::new("auth-jwt-token", Kind::Text, "", "token that was issued before, sent as it is instead of logging in"),
    Flag::new("cacert", Kind::Text, "", "bundle of certificate authorities that server certificates must come from"),
    Flag::new("cert", Kind::Text, "", "certificate that identifies this client to a TLS server"),
    Flag::new("command-timeout", Kind::Duration, "5s", "time that a short command may take, connecting included"),
    Flag::new("debug", Kind::Bool, "", "tell on standard error which options are in force"),
    Flag::new("dial-timeout", Kind::Duration, "2s", "time that logging in may take"),
    Flag::new("discovery-srv", Kind::Text, "", "domain whose SRV records name the endpoints").with_short('d'),
    Flag::new("discovery-srv-name", Kind::Text, "", "service name to append when asking for SRV records"),
    Flag::new("endpoints", Kind::List, "127.0.0.1:2379", "addresses of the cluster's members, separated by commas"),
    Flag::new("hex", Kind::Bool, "", "print byte strings as hexadecimal escapes"),
    Flag::new("insecure-discovery", Kind::Bool, "true", "accept SRV records that name endpoints without TLS"),
    Flag::new("insecure-skip-tls-verify", Kind::Bool, "", "do not check the server's certificate (for tests only)"),
    Flag::new("insecure-transport", Kind::Bool, "true", "speak without TLS to endpoints that have no scheme"),
    Flag::new("keepalive-time", Kind::Duration, "2s", "time between pings on a connection"),
    Flag::new("keepalive-timeout", Kind::Duration, "6s", "time after which an unanswered ping ends a connection"),
    Flag::new("key", Kind::Text, "", "private key that belongs to the certificate"),
    Flag::new("max-recv-bytes", Kind::Int, "", "largest response to accept, 0 for no limit of this client's own"),
    Flag::new("max-request-bytes", Kind::Int, "", "largest request to send, 0 for 2 MiB"),
    Flag::new("password", Kind::Text, "", "password to log in with; --user is then the whole name"),
    Flag::new("user", Kind::Text, "", "name[:password] to log in with; asks for a password that is not given"),
    Flag::new("write-out", Kind::Text, "simple", "output format: fields, json, protobuf, simple, table")
        .with_short('w'),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::flags::Values;

    #[test]
    fn every_default_can_be_read_and_flags_are_sorted() {
        fn walk(command: &'static Command) {
            let flags: Vec<&'static Flag> = command.flags.iter().chain(command.inherited).collect();
            assert!(flags.windows(2).all(|pair| pair[0].name < pair[1].name), "{}", command.name);
            assert!(Values::parse(&flags, &[]).is_ok(), "{}", command.name);
            if let Action::Group { commands, names } = command.action {
                assert!(commands.iter().all(|child| names.contains(&child.name)), "{}", command.name);
                commands.iter().for_each(|child| walk(child));
            }
        }
        walk(&ROOT);
    }
}
