//! The unmodified etcdctl 3.5.1 and Debian's 3.4.23 against our members print what they print against real ones.
//!
//! The same commands go, with the same client, to three members of ours and to three of etcd 3.5.1. Names that differ
//! (addresses, ids, versions) are replaced by common ones; terms, indexes, sizes and durations are masked.

use std::path::Path;

use quorate::common::ids::ClusterId;
use quorate::common::ids::MemberId;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::oracle::debian_etcdctl;
use crate::oracle::oracle;
use crate::recorded::TOKEN;
use crate::recorded::ports_in_recorded_order;
use crate::support::named_program;
use crate::transcripts::Replayer;
use crate::transcripts::Step;

/// Commands, in order; `ALL` stands for all endpoints, `ONE` for the first, `URL` for that with its scheme. Behind a `<`, the lines of stdin.
const SESSION: &str = "
ONE put foo bar
ONE put foo bar1 --prev-kv
ONE put foo --ignore-value
ALL put k1 v1
ALL put k2 v2
ALL put k3 v3
ALL put k4 v4
ALL put k5 v5
ONE put
ONE put '' x
ONE put nokey --ignore-value
ONE put a 1 --lease=123
ONE -w json put w val
ONE -w fields put w val --prev-kv
ONE -w json put w val --prev-kv
ONE -w table put w x
ONE put from stdin
ONE get foo
ONE get nothing
ONE get k1 k4
ONE get k --prefix
ONE get k3 --from-key
ONE get '' --prefix --keys-only
ONE get k --prefix --limit 2
ONE -w json get k --prefix --limit 2
ONE -w fields get k --prefix --limit 2
ONE -w table get k --prefix
ONE get k1 --rev 3
ONE get foo --rev 2
ONE -w json get foo --rev 3
ONE get k --prefix --rev 8 --sort-by=MODIFY --order=DESCEND
ONE get k1 --rev 9999
ONE get k --prefix --order=DESCEND --sort-by=KEY
ONE get k --prefix --order=ASCEND --sort-by=VALUE
ONE get k --prefix --order=DESCEND --sort-by=CREATE
ONE get k --prefix --order=DESCEND --sort-by=MODIFY --limit 2
ONE get k --prefix --sort-by=VERSION
ONE get k1 --print-value-only
ONE get k1 --hex
ONE -w json --hex get k1
ONE -w fields --hex get k1
ONE get k1 --consistency s
ONE get k1 --consistency x
ONE get k --prefix --order=bogus
ONE get k --prefix --from-key
ONE get
ALL txn < value(\"k1\") = \"v1\"<<put k1 w1<get k1<<put k1 x<<
ALL txn < mod(\"k1\") > \"1000\"<<put k1 2<<get k1<del k2<<
ALL txn < version(\"k3\") = \"1\"<create(\"k3\") > \"1\"<<get k --prefix<<<
ONE -w json txn < version(\"k3\") = \"1\"<<get k3<put k6 v6<<<
ONE -w fields txn < mod(\"k3\") < \"1000\"<<get k3<put k6 v7<del nothing<<<
ONE txn < <put d 1<put d 2<<<
ONE txn < bogus(\"x\") = \"1\"<<get x<<<
ONE del k1
ONE del k1
ONE del k3 --prev-kv
ONE -w json del k4 --prev-kv
ONE -w fields del k5 --prev-kv
ONE -w json del nothing
ONE del k --prefix
ONE del zzz --from-key
ONE del
ONE -w simple endpoint hashkv
ALL -w simple member list
ALL -w json member list
ALL -w fields member list
ALL -w table member list
ALL -w simple endpoint status
ALL -w json endpoint status
ALL -w fields endpoint status
ALL -w table endpoint status
ALL -w simple endpoint health
ALL -w json endpoint health
ALL -w fields endpoint health
ALL -w table endpoint health
ALL -w simple endpoint hashkv
ALL -w json endpoint hashkv
ALL -w fields endpoint hashkv
ALL -w table endpoint hashkv
ONE endpoint status --cluster -w table
ONE endpoint health --cluster
URL get k2
URL member list
URL endpoint status
URL endpoint health
URL endpoint hashkv
ONE compaction 5
ONE compaction 5
ONE compaction 6 --physical
ONE compaction 99999
ONE compaction x
ONE compaction
ONE get k1 --rev 3
ALL endpoint hashkv
ONE endpoint hashkv --rev 12
ONE endpoint hashkv --rev 2
ONE endpoint hashkv --rev 9999
ONE nosuch
ONE --nosuch get a
";

const CLIENTS: [&str; 3] = ["CLIENT1", "CLIENT2", "CLIENT3"];

/// The session's steps, for a client of that name.
fn steps() -> Vec<Step> {
    let lines = SESSION.lines().filter(|line| !line.is_empty());
    let read = lines.enumerate().map(|(at, line)| {
        let (command, input) = line.split_once(" < ").unwrap_or((line, ""));
        let (endpoints, command) = command.split_once(' ').expect("endpoints and a command");
        let endpoints = match endpoints {
            "ALL" => CLIENTS.join(","),
            "URL" => format!("http://{}", CLIENTS[0]),
            _ => CLIENTS[0].to_owned(),
        };
        let words = ["etcdctl", "--endpoints", &endpoints].into_iter().chain(command.split(' '));
        let words = words.map(|word| if word == "''" { "" } else { word }.to_owned()).collect();
        Step { line: at + 1, words, input: input.replace('<', "\n") + "\n", ..Step::default() }
    });
    read.collect()
}

struct Side {
    /// Its members run as long as this lives.
    _cluster: Cluster,
    names: Vec<(String, String)>,
}

impl Side {
    /// Three members; their version is that of the programs.
    async fn start(program: &Program, version: &str) -> Side {
        let ports = ports_in_recorded_order();
        let mut cluster = Cluster::prepare_at(&vec![program.clone(); 3], &ports, &["--unsafe-no-fsync"]);
        for member in &mut cluster.members {
            member.set_arg("--initial-cluster-token", TOKEN);
            member.start();
        }
        cluster.wait_ready().await;
        cluster.leader().await;
        let ids = ports.map(|(_, peer)| MemberId::of_bootstrap_member(&[format!("http://127.0.0.1:{peer}")], TOKEN));
        let id = ClusterId::of_members(&ids).0;
        let mut names = vec![
            ("VERSION".to_owned(), version.to_owned()),
            ("CLUSTER".to_owned(), format!("{id:x}")),
            ("CLUSTER_DECIMAL".to_owned(), id.to_string()),
        ];
        for (at, (client, peer)) in ports.iter().enumerate() {
            names.push((CLIENTS[at].to_owned(), format!("127.0.0.1:{client}")));
            names.push((format!("PEER{at}"), format!("127.0.0.1:{peer}")));
            names.push((format!("MEMBER{at}"), format!("{:x}", ids[at].0)));
            names.push((format!("MEMBER{at}_DECIMAL"), ids[at].0.to_string()));
        }
        Side { _cluster: cluster, names }
    }

    fn replayer(&self, client: &Path) -> Replayer {
        let mut replayer = Replayer::new(client, &self.names);
        replayer.leader_varies = true;
        replayer
    }
}

/// Steps that print something else with the clients of a side each.
fn differences(ours: &Replayer, theirs: &Replayer, steps: &[Step]) -> Vec<String> {
    let mut different = Vec::new();
    for step in steps {
        let expected = theirs.comparable(step, &theirs.run_step(step));
        let found = ours.comparable(step, &ours.run_step(step));
        if expected != found {
            let command = step.words.join(" ");
            different.push(format!("{command}\n--- real\n{expected}--- ours\n{found}"));
        }
    }
    different
}

async fn check(etcdctl: &Path, etcd: &Path) {
    let real = Side::start(&Program::Etcd(etcd.to_owned()), "3.5.1").await;
    let ours = Side::start(&Program::Ours, "3.7.1").await;
    let different = differences(&ours.replayer(etcdctl), &real.replayer(etcdctl), &steps());
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_3_5_prints_the_same_with_our_members() {
    let Some(oracle) = oracle("etcdctl_3_5_prints_the_same_with_our_members") else { return };
    check(&oracle.etcdctl, &oracle.etcd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_3_4_prints_the_same_with_our_members() {
    const TEST: &str = "etcdctl_3_4_prints_the_same_with_our_members";
    let (Some(oracle), Some(etcdctl)) = (oracle(TEST), debian_etcdctl(TEST)) else { return };
    check(etcdctl, &oracle.etcd).await;
}

/// Bytes that no transcript can hold: the protobuf format of our client beside that of 3.5.1, from the same members.
#[tokio::test(flavor = "multi_thread")]
async fn our_protobuf_output_is_that_of_3_5() {
    let Some(oracle) = oracle("our_protobuf_output_is_that_of_3_5") else { return };
    let cluster = Side::start(&Program::Ours, "3.7.1").await;
    let (_link, etcdctl) = named_program("etcdctl");
    let (ours, theirs) = (cluster.replayer(&etcdctl), cluster.replayer(&oracle.etcdctl));
    for key in ["k1", "k2"] {
        let words = ["etcdctl", "--endpoints", CLIENTS[0], "put", key, "value"].map(str::to_owned).to_vec();
        assert_eq!(ours.run_step(&Step { words, ..Step::default() }).code, 0);
    }
    let commands = ["get k --prefix", "get nothing", "del nothing --prev-kv", "member list", "compaction 99", "txn"];
    for command in commands {
        let line = format!("etcdctl --endpoints {} -w protobuf {command}", CLIENTS[0]);
        let words = line.split(' ').map(str::to_owned).collect();
        let step = Step { words, input: "\nget k1\n\n\n".to_owned(), ..Step::default() };
        let (expected, found) = (theirs.run_step(&step), ours.run_step(&step));
        assert_eq!((found.code, found.out), (expected.code, expected.out), "{command}");
    }
}
