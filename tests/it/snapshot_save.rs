//! `snapshot save` both ways: our members with etcd's clients and tools, our client with etcd's members.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use quorate::proto::etcdserverpb::PutRequest;
use quorate::proto::etcdserverpb::SnapshotRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::lease::grant;
use crate::lease::put_with;
use crate::lease::time_to_live;
use crate::oracle::Oracle;
use crate::oracle::oracle;
use crate::support::named_program;

fn run(program: &Path, dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.env_clear().current_dir(dir).args(words).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a run that must succeed.
fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Keys, values of several sizes, tombstones, a lease with a key.
async fn fill(member: &Member) -> i64 {
    let mut client = KvClient::new(member.connect().await.expect("a connection"));
    for number in 0..300 {
        let value = vec![b'v'; number * 37];
        let put = PutRequest { key: format!("k/{number:03}").into(), value: value.into(), ..PutRequest::default() };
        client.put(put).await.expect("a put");
    }
    let range = quorate::proto::etcdserverpb::DeleteRangeRequest {
        key: "k/1".into(),
        range_end: "k/2".into(),
        ..Default::default()
    };
    client.delete_range(range).await.expect("a delete");
    let lease = grant(member, 600).await;
    put_with(member, "leased", lease).await.expect("a put");
    lease
}

/// The revision in what etcdutl says of a file: `hash, revision, keys, size`.
fn revision_of(real: &Oracle, dir: &Path, file: &str) -> i64 {
    let status = succeeded(run(&real.etcdutl, dir, &["snapshot", "status", file]));
    let revision = status.split(", ").nth(1).and_then(|revision| revision.parse().ok());
    revision.unwrap_or_else(|| panic!("{status}"))
}

/// A real member that starts on a snapshot that etcdutl restored.
async fn restored(real: &Oracle, dir: &Path, file: &str) -> Cluster {
    let mut cluster = Cluster::prepare(&[Program::Etcd(real.etcd.clone())], &[]);
    let member = &mut cluster.members[0];
    let (data, peer) = (member.data_dir.display().to_string(), format!("http://127.0.0.1:{}", member.peer_port));
    let initial = format!("{}={peer}", member.name);
    let words = ["snapshot", "restore", file, "--data-dir", &data, "--name", &member.name];
    let words = [&words[..], &["--initial-cluster", &initial, "--initial-advertise-peer-urls", &peer]].concat();
    succeeded(run(&real.etcdutl, dir, &words));
    member.start();
    cluster.wait_ready().await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_tools_save_restore_and_open_what_ours_serves() {
    let Some(real) = oracle("etcds_tools_save_restore_and_open_what_ours_serves") else { return };
    let cluster = Cluster::ours(1, &[]).await;
    let member = &cluster.members[0];
    let lease = fill(member).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let endpoint = member.endpoint();
    // Twice: by the real client, and by ours.
    succeeded(run(&real.etcdctl, dir.path(), &["--endpoints", &endpoint, "snapshot", "save", "theirs.db"]));
    let (_link, etcdctl) = named_program("etcdctl");
    let saved = run(&etcdctl, dir.path(), &["--endpoints", &endpoint, "snapshot", "save", "ours.db"]);
    assert_eq!(succeeded(saved), "Snapshot saved at ours.db\nServer version 3.7.0\n");
    let read = |name: &str| std::fs::read(dir.path().join(name)).expect("a saved file");
    assert!(read("theirs.db") == read("ours.db"), "nothing was written in between");
    let revision = revision_of(real, dir.path(), "ours.db");
    assert_eq!(revision, member.get("x").await.expect("a read").header.map(|header| header.revision).expect("one"));
    // The whole way round: what the real member serves from it hashes as ours does.
    let back = restored(real, dir.path(), "ours.db").await;
    let (mine, theirs) = (member.hash_kv(revision).await, back.members[0].hash_kv(revision).await);
    assert_eq!(mine.expect("a hash").hash, theirs.expect("a hash").hash);
    let shown = time_to_live(&back.members[0], lease, true).await.expect("shown");
    assert_eq!((shown.granted_ttl, shown.keys), (600, vec!["leased".into()]));
    // A byte that fell over is found by the digest.
    let mut damaged = read("ours.db");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(dir.path().join("damaged.db"), damaged).expect("a file");
    let refused = run(&real.etcdutl, dir.path(), &["snapshot", "restore", "damaged.db", "--data-dir", "no"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("expected sha256"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_one_state_while_writes_go_on() {
    let Some(real) = oracle("a_snapshot_is_one_state_while_writes_go_on") else { return };
    let cluster = Cluster::ours(1, &["--unsafe-no-fsync"]).await;
    let member = &cluster.members[0];
    fill(member).await;
    let channel = member.connect().await.expect("a connection");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut writer = KvClient::new(channel.clone());
    let writing = tokio::spawn(async move {
        let mut stopped = stopped;
        let mut count = 0;
        while stopped.try_recv().is_err() {
            crate::cluster::put(&mut writer, &format!("w/{}", count % 50), &"x".repeat(count % 700))
                .await
                .expect("a put");
            count += 1;
        }
        count
    });
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut revisions = Vec::new();
    for number in 0..3 {
        let mut chunks = MaintenanceClient::new(channel.clone());
        let mut chunks = chunks.snapshot(SnapshotRequest {}).await.expect("a stream").into_inner();
        let mut file = Vec::new();
        while let Some(chunk) = chunks.message().await.expect("no error") {
            file.extend_from_slice(&chunk.blob);
        }
        let name = format!("{number}.db");
        std::fs::write(dir.path().join(&name), file).expect("a file");
        revisions.push(revision_of(real, dir.path(), &name));
    }
    stop.send(()).expect("the writer runs");
    assert!(writing.await.expect("no panic") > 0);
    assert!(revisions.windows(2).all(|pair| pair[0] <= pair[1]), "{revisions:?}");
    // Exactly the state of its revision.
    let back = restored(real, dir.path(), "1.db").await;
    let (mine, theirs) = (member.hash_kv(revisions[1]).await, back.members[0].hash_kv(revisions[1]).await);
    assert_eq!(mine.expect("a hash").hash, theirs.expect("a hash").hash);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_saves_as_the_original_says_it_does() {
    let Some(real) = oracle("our_client_saves_as_the_original_says_it_does") else { return };
    let theirs = Cluster::start(&[Program::Etcd(real.etcd.clone())], &[]).await;
    let ours = Cluster::ours(1, &[]).await;
    let (_link, etcdctl) = named_program("etcdctl");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    fill(&theirs.members[0]).await;
    let save = |cluster: &Cluster, name: &str| {
        run(&etcdctl, dir.path(), &["--endpoints", &cluster.members[0].endpoint(), "snapshot", "save", name])
    };
    // Members before 3.6 tell no version. An older file is replaced.
    std::fs::write(path("a.db"), "old").expect("a file");
    assert_eq!(succeeded(save(&theirs, "a.db")), "Snapshot saved at a.db\n");
    assert_eq!(revision_of(real, dir.path(), "a.db"), 303);
    assert_eq!(path("a.db").metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    let saved = save(&ours, "b.db");
    let log: Vec<String> = text(&saved.stderr).lines().map(str::to_owned).collect();
    let expected = [
        r#","caller":"snapshot/v3_snapshot.go:83","msg":"created temporary db file","path":"b.db.part"}"#,
        r#","logger":"client","caller":"v3/maintenance.go:236","msg":"opened snapshot stream; downloading"}"#,
        &format!(
            r#","caller":"snapshot/v3_snapshot.go:96","msg":"fetching snapshot","endpoint":"{}"}}"#,
            ours.members[0].endpoint()
        ),
        r#","logger":"client","caller":"v3/maintenance.go:302","msg":"completed snapshot read; closing"}"#,
        r#","etcd-version":"3.7.0"}"#,
        r#","caller":"snapshot/v3_snapshot.go:121","msg":"saved","path":"b.db"}"#,
    ];
    assert_eq!(log.len(), expected.len(), "{log:?}");
    for (line, end) in log.iter().zip(expected) {
        assert!(line.starts_with(r#"{"level":"info","ts":""#) && line.ends_with(end), "{line}\n{end}");
    }
    std::fs::create_dir(path("taken")).expect("a directory");
    let check = |words: &[&str], code: i32, error: &str| {
        let output = run(&etcdctl, dir.path(), words);
        let last = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
        assert_eq!((output.status.code(), last), (Some(code), format!("Error: {error}")), "{words:?}");
    };
    let endpoint = ours.members[0].endpoint();
    check(
        &["--endpoints", &endpoint, "snapshot", "save", "taken"],
        5,
        "could not rename taken.part to taken (rename taken.part taken: file exists)",
    );
    check(
        &["--endpoints", &endpoint, "snapshot", "save", "none/x"],
        5,
        "could not open none/x.part (open none/x.part: no such file or directory)",
    );
    check(
        &["--endpoints", "a:1,b:2", "snapshot", "save", "x"],
        5,
        "snapshot must be requested to one selected node, not multiple [a:1 b:2]",
    );
    check(&["snapshot", "save"], 128, "snapshot save expects one argument <filename>");
    assert!(!path("taken.part").exists() && !path("x.part").exists());
}
