//! `quorate utl` and the real etcdutl on one another's files, and members of both kinds on what they restore.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use quorate::disk::real::RealDisk;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::DeleteRangeRequest;
use quorate::proto::etcdserverpb::MemberListRequest;
use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::cluster_client::ClusterClient;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::server::raft::wal::Wal;
use tonic::Code;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::lease::grant;
use crate::lease::put_with;
use crate::lease::time_to_live;
use crate::oracle::debian_etcd;
use crate::oracle::oracle;
use crate::support::named_program;
use crate::support::shared_dir;
use crate::support::skipped;

/// Runs a program with nothing in its environment.
pub fn run(program: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.env_clear().args(words).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}

/// Standard output of a run that must succeed.
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Our own `utl`, which must succeed.
pub fn utl(words: &[&str]) -> String {
    succeeded(&run(Path::new(env!("CARGO_BIN_EXE_quorate")), &[&["utl"], words].concat()))
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// The revision to which a filled member is compacted.
const COMPACTED: i64 = 60;

/// What a filled member holds.
pub struct Filled {
    pub revision: i64,
    pub hash: u32,
    pub lease: i64,
}

/// Keys with history, tombstones, a compaction, a lease with a key.
pub async fn fill(member: &Member) -> Filled {
    let mut client = KvClient::new(member.connect().await.expect("a connection"));
    for number in 0..120 {
        let key = format!("k/{:03}", number % 80);
        let put = PutRequest { key: key.into(), value: vec![b'v'; number * 31].into(), ..PutRequest::default() };
        client.put(put).await.expect("a put");
        if number == 57 {
            // The compaction is to end at a tombstone.
            let delete = DeleteRangeRequest { key: "k/000".into(), ..DeleteRangeRequest::default() };
            let deleted = client.delete_range(delete).await.expect("a delete").into_inner();
            assert_eq!(deleted.header.map(|header| header.revision), Some(COMPACTED));
        }
    }
    let range = DeleteRangeRequest { key: "k/01".into(), range_end: "k/02".into(), ..DeleteRangeRequest::default() };
    client.delete_range(range).await.expect("a delete");
    client.compact(CompactionRequest { revision: COMPACTED, physical: true }).await.expect("a compaction");
    let lease = grant(member, 6000).await;
    put_with(member, "leased", lease).await.expect("a put");
    let revision = member.put("last", "one").await.expect("a put");
    Filled { revision, hash: member.hash_kv(revision).await.expect("a hash").hash, lease }
}

/// This member holds what the other one did.
pub async fn holds(member: &Member, filled: &Filled) {
    let hash = member.hash_kv(filled.revision).await.expect("a hash");
    assert_eq!((hash.hash, hash.compact_revision), (filled.hash, COMPACTED), "{}", member.name);
    let shown = time_to_live(member, filled.lease, true).await.expect("shown");
    assert_eq!((shown.granted_ttl, shown.keys), (6000, vec!["leased".into()]));
    assert_eq!(member.get("last").await.expect("a read").kvs[0].value, "one");
}

/// Ids and names of the members, as this one lists them.
pub async fn members(member: &Member) -> Vec<(u64, String)> {
    let mut client = ClusterClient::new(member.connect().await.expect("a connection"));
    let listed = client.member_list(MemberListRequest { linearizable: true }).await.expect("a list").into_inner();
    listed.members.into_iter().map(|member| (member.id, member.name)).collect()
}

/// Fills a member of this program and saves its database.
async fn saved(program: &Program, file: &Path) -> Filled {
    let cluster = Cluster::start(std::slice::from_ref(program), &[]).await;
    let filled = fill(&cluster.members[0]).await;
    let (_link, etcdctl) = named_program("etcdctl");
    succeeded(&run(&etcdctl, &["--endpoints", &cluster.members[0].endpoint(), "snapshot", "save", text(file)]));
    filled
}

/// Words of a restore of `file` for a member of a cluster that has not started.
fn words<'a>(file: &'a str, member: &'a Member, urls: &'a (String, String), data: &'a str) -> Vec<&'a str> {
    let (initial, own) = urls;
    let head = ["snapshot", "restore", file, "--name", &member.name, "--initial-cluster-token", "restored"];
    let tail = ["--initial-cluster", initial, "--initial-advertise-peer-urls", own, "--data-dir", data];
    [&head[..], &tail[..]].concat()
}

/// `--initial-cluster` of all, and the peer URL of one.
fn urls(cluster: &Cluster, member: &Member) -> (String, String) {
    let url = |member: &Member| format!("http://127.0.0.1:{}", member.peer_port);
    let all: Vec<String> = cluster.members.iter().map(|member| format!("{}={}", member.name, url(member))).collect();
    (all.join(","), url(member))
}

/// Restores the file for every member with what `program` runs, and starts them.
async fn restored(file: &Path, programs: &[Program], program: impl Fn(&[&str])) -> Cluster {
    let mut cluster = Cluster::prepare(programs, &[]);
    for member in &cluster.members {
        program(&words(text(file), member, &urls(&cluster, member), text(&member.data_dir)));
    }
    cluster.members.iter_mut().for_each(Member::start);
    cluster.wait_ready().await;
    cluster
}

/// Programs of all releases that can be had, by name.
pub fn programs(test: &str) -> Option<Vec<(&'static str, Program)>> {
    let real = oracle(test)?;
    let old = debian_etcd(test)?;
    Some(vec![
        ("ours", Program::Ours),
        ("3.5.1", Program::Etcd(real.etcd.clone())),
        ("3.4.23", Program::Etcd(old.to_owned())),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_every_release_are_restored_with_all_that_is_in_them() {
    let test = "snapshots_of_every_release_are_restored_with_all_that_is_in_them";
    let Some(programs) = programs(test) else { return };
    let real = oracle(test).expect("had above");
    let dir = tempfile::tempdir().expect("a directory");
    for (name, program) in &programs {
        let file = dir.path().join(format!("{name}.db"));
        let filled = saved(program, &file).await;
        // The real tool and ours say the same of the file; the number of keys is counted as 3.6 does.
        let theirs = succeeded(&run(&real.etcdutl, &["snapshot", "status", text(&file)]));
        let ours = utl(&["snapshot", "status", text(&file)]);
        let fields = |line: &str| line.trim_end_matches('\n').split(", ").map(str::to_owned).collect::<Vec<_>>();
        let (theirs, ours) = (fields(&theirs), fields(&ours));
        assert_eq!((&ours[0], &ours[1], &ours[3]), (&theirs[0], &theirs[1], &theirs[3]), "{name}");
        assert_eq!(ours[2], "72", "{name}: live keys");
        let hash = utl(&["hashkv", text(&file)]);
        assert_eq!(hash, format!("{}, {}, {COMPACTED}\n", filled.hash, filled.revision), "{name}");
        let alone = restored(&file, &[Program::Ours], |words| drop(utl(words))).await;
        holds(&alone.members[0], &filled).await;
        alone.members[0].put("after", "it").await.expect("a put");
        assert_eq!(alone.members[0].get("after").await.expect("a read").kvs[0].mod_revision, filled.revision + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_restore_alone_and_find_each_other() {
    let test = "three_members_restore_alone_and_find_each_other";
    let Some(real) = oracle(test) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snap.db");
    let filled = saved(&Program::Ours, &file).await;
    let programs = [Program::Ours, Program::Ours, Program::Etcd(real.etcd.clone())];
    // Each with a tool of its own: ours in our format, ours under its other name, the real one.
    let (_link, etcdutl) = named_program("etcdutl");
    type Tool<'a> = &'a dyn Fn(&[&str]);
    let tools: [Tool<'_>; 3] = [&|words| drop(utl(words)), &|words| drop(succeeded(&run(&etcdutl, words))), &|words| {
        drop(succeeded(&run(&real.etcdutl, words)))
    }];
    let mut cluster = Cluster::prepare(&programs, &[]);
    let mut expected = Vec::new();
    for (member, tool) in cluster.members.iter().zip(tools) {
        let urls = urls(&cluster, member);
        tool(&words(text(&file), member, &urls, text(&member.data_dir)));
        // The real tool's ids, whoever made the directory.
        let reference = dir.path().join(&member.name);
        succeeded(&run(&real.etcdutl, &words(text(&file), member, &urls, text(&reference))));
        let log = |data: &Path| Wal::inspect(&RealDisk, &data.join("member/wal")).expect("a log");
        let (made, meant) = (log(&member.data_dir), log(&reference));
        assert_eq!((made.metadata, made.hard_state), (meant.metadata, meant.hard_state));
        assert_eq!(made.snapshots.last(), meant.snapshots.last());
        expected.push((meant.metadata.node_id, member.name.clone()));
    }
    cluster.members.iter_mut().for_each(Member::start);
    cluster.wait_ready().await;
    expected.sort();
    crate::support::eventually("everybody's name", async || {
        let mut found = members(&cluster.members[0]).await;
        found.sort();
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    for member in &cluster.members {
        holds(member, &filled).await;
    }
    cluster.members[1].put("after", "it").await.expect("a put");
    cluster.hashes_agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_opens_what_the_others_tool_restored() {
    let test = "each_opens_what_the_others_tool_restored";
    let Some(real) = oracle(test) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snap.db");
    let filled = saved(&Program::Etcd(real.etcd.clone()), &file).await;
    let (_link, etcdutl) = named_program("etcdutl");
    let theirs = [Program::Etcd(real.etcd.clone())];
    let ours = |words: &[&str]| drop(succeeded(&run(&etcdutl, words)));
    let cluster = restored(&file, &theirs, ours).await;
    holds(&cluster.members[0], &filled).await;
    let cluster = restored(&file, &[Program::Ours], |words| drop(succeeded(&run(&real.etcdutl, words)))).await;
    holds(&cluster.members[0], &filled).await;
    assert!(cluster.members[0].data_dir.join("member.etcd/snap/db").exists(), "taken over as any directory of etcd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bumped_revision_leaves_everything_below_compacted() {
    let test = "a_bumped_revision_leaves_everything_below_compacted";
    let Some(real) = oracle(test) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snap.db");
    let filled = saved(&Program::Ours, &file).await;
    let bump = ["--bump-revision", "1000000", "--mark-compacted"];
    let (_link, etcdutl) = named_program("etcdutl");
    let ours = restored(&file, &[Program::Ours], |words| drop(utl(&[words, &bump].concat()))).await;
    let theirs = [Program::Etcd(real.etcd.clone())];
    let tool = |words: &[&str]| drop(succeeded(&run(&etcdutl, &[words, &bump].concat())));
    let theirs = restored(&file, &theirs, tool).await;
    let bumped = filled.revision + 1_000_000;
    let mut hashes = Vec::new();
    for member in [&ours.members[0], &theirs.members[0]] {
        let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
        let mut client = KvClient::new(member.connect().await.expect("a connection"));
        let read = client.range(all.clone()).await.expect("a range").into_inner();
        assert_eq!((read.header.map(|header| header.revision), read.count), (Some(bumped), 72), "{}", member.name);
        assert!(read.kvs.iter().all(|kv| !kv.key.is_empty()), "the empty record is nobody's key");
        let old = client.range(RangeRequest { revision: bumped - 1, ..all }).await.expect_err("compacted");
        assert_eq!(old.code(), Code::OutOfRange, "{old}");
        assert_eq!(member.put("after", "it").await.expect("a put"), bumped + 1);
        let hash = member.hash_kv(0).await.expect("a hash");
        hashes.push((hash.hash, hash.compact_revision));
        let shown = time_to_live(member, filled.lease, true).await.expect("shown");
        assert_eq!(shown.keys, ["leased"]);
    }
    assert_eq!(hashes[0], hashes[1]);
}

/// Users and roles of a real 3.7.1 and 3.6.14 are kept: etcd itself serves them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_are_kept() {
    let test = "users_and_roles_are_kept";
    let Some(real) = oracle(test) else { return };
    let Some(shared) = shared_dir() else {
        skipped(test, "no folder shared/fixtures beside this checkout; QUORATE_SHARED can name one");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["etcd-3.6.14", "etcd-3.7.1"] {
        let packed = shared.join("fixtures").join(version).join("snapshot.db.gz");
        let file = dir.path().join(version);
        std::fs::write(&file, run(Path::new("gzip"), &["-dc", text(&packed)]).stdout).expect("written");
        let mut cluster = Cluster::prepare(&[Program::Etcd(real.etcd.clone())], &[]);
        let member = &cluster.members[0];
        let urls = urls(&cluster, member);
        let native = words(text(&file), member, &urls, text(&member.data_dir));
        utl(&[&native[..], &["--format", "etcd"]].concat());
        cluster.members[0].start();
        let endpoint = cluster.members[0].endpoint();
        let users = crate::support::eventually("the users", async || {
            real.ctl(&endpoint, &["--user", "root:rootpw", "user", "list"])
        })
        .await;
        assert_eq!(users, "alice\nroot\n", "{version}");
        let role = real.ctl(&endpoint, &["--user", "alice:alicepw", "role", "get", "writer"]).expect("a role");
        assert!(role.contains("w0"), "{role}");
        assert!(real.ctl(&endpoint, &["get", "w0"]).is_err(), "authentication is on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_shrinks_offline_and_keeps_its_content() {
    let test = "a_database_shrinks_offline_and_keeps_its_content";
    let Some(real) = oracle(test) else { return };
    for program in [Program::Ours, Program::Etcd(real.etcd.clone())] {
        let mut cluster = Cluster::start(&[program], &["--unsafe-no-fsync"]).await;
        let filled = fill(&cluster.members[0]).await;
        let data = cluster.members[0].data_dir.clone();
        let defrag = ["defrag", "--data-dir", text(&data)];
        // A running member has its files locked.
        let busy =
            run(Path::new(env!("CARGO_BIN_EXE_quorate")), &[&["utl", "--timeout", "100ms"], &defrag[..]].concat());
        let told = String::from_utf8_lossy(&busy.stderr);
        assert!(busy.status.code() == Some(1) && told.contains("another process"), "{told}");
        cluster.members[0].terminate();
        let snap = data.join("member/snap");
        let database = ["db.redb", "db"].map(|name| snap.join(name)).into_iter().find(|path| path.exists());
        let database: PathBuf = database.expect("a database");
        let length = || std::fs::metadata(&database).expect("a file").len();
        let (before, hash) = (length(), utl(&["hashkv", text(&database)]));
        utl(&defrag);
        assert!(length() < before, "{} to {}", before, length());
        assert_eq!(utl(&["hashkv", text(&database)]), hash);
        cluster.members[0].start();
        cluster.wait_ready().await;
        holds(&cluster.members[0], &filled).await;
    }
}
