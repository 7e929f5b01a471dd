//! What is on disk and not what was written: noticed when it is read, and when members are compared; never served.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use quorate::common::revision::Revision;
use quorate::proto::etcdserverpb::AlarmRequest;
use quorate::proto::etcdserverpb::AlarmType;
use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::server::checkpoint::Batch;
use quorate::server::checkpoint::Checkpoint;
use quorate::server::checkpoint::store::RedbCheckpoint;
use quorate::server::run::ends::EXIT_FAILURE;
use tonic::Code;
use tonic::Status;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::tail;
use crate::support::PATIENCE;
use crate::support::eventually;
use crate::support::http_get;

/// The database file of a member.
fn database(member: &Member) -> PathBuf {
    member.data_dir.join("member/snap/db.redb")
}

/// A member's own answer, without asking the others.
async fn own_answer(member: &Member, key: &str) -> Result<Option<Bytes>, Status> {
    let channel = member.connect().await?;
    let read = RangeRequest { key: key.to_owned().into(), serializable: true, ..RangeRequest::default() };
    let answer = KvClient::new(channel).range(read).await?.into_inner();
    Ok(answer.kvs.into_iter().next().map(|kv| kv.value))
}

/// Whether the member answers or has ended: whatever comes first.
async fn serves_or_ends(member: &mut Member) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if member.ended().is_some() {
            return false;
        }
        if own_answer(member, "ready").await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("it neither serves nor ends: {}", tail(&member.log_text(), 12));
}

/// How a member that must not go on has ended.
async fn code_of(member: &mut Member) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match member.try_exit() {
            Some(status) => return status.code(),
            None if Instant::now() > deadline => panic!("it goes on: {}", tail(&member.log_text(), 12)),
            None => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

/// Asks for every key: what is answered is right. Whether something was not answered.
async fn answers_are_right(member: &Member, expected: &BTreeMap<String, String>, what: &str) -> bool {
    let mut refused = false;
    for (key, value) in expected {
        match own_answer(member, key).await {
            Ok(found) => assert_eq!(found.as_deref(), Some(value.as_bytes()), "{what}: {key}"),
            Err(_) => refused = true,
        }
    }
    refused
}

/// B18, B19, D6: bytes of values, keys and pages flipped while the member was stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_on_disk_is_never_served() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let mut expected = BTreeMap::new();
    for number in 0..12 {
        let (key, value) = (format!("key {number:03}"), format!("<value {number:03}>").repeat(90));
        cluster.members[0].put(&key, &value).await.expect("a put");
        expected.insert(key, value);
    }
    cluster.members[0].terminate();
    let path = database(&cluster.members[0]);
    let good = std::fs::read(&path).expect("a database");
    let used = good.iter().rposition(|byte| *byte != 0).expect("something was written");
    let places = |needle: &str| -> Vec<usize> {
        let ends = good.len() - needle.len();
        (0..ends).filter(|at| good[*at..].starts_with(needle.as_bytes())).collect()
    };
    let mut trials: Vec<(String, Vec<usize>)> = Vec::new();
    for (number, (key, value)) in expected.iter().enumerate() {
        let offset = number * value.len() / expected.len();
        trials.push((format!("value of {key}"), places(value).iter().map(|at| at + offset).collect()));
    }
    for key in expected.keys().take(2) {
        trials.push((format!("name of {key}"), places(key)));
    }
    trials.extend((0..10_usize).map(|round| (round * 7919 * 61) % used).map(|at| (format!("byte {at}"), vec![at])));
    let mut noticed = 0;
    for (what, flips) in trials {
        assert!(!flips.is_empty(), "{what} is in the file");
        let mut bytes = good.clone();
        flips.iter().for_each(|at| bytes[*at] ^= 0x10);
        std::fs::write(&path, &bytes).expect("flipped");
        let member = &mut cluster.members[0];
        let said_before = member.log_count("db.redb");
        member.start();
        let ended = !serves_or_ends(member).await || answers_are_right(member, &expected, &what).await;
        if ended {
            let code = code_of(member).await;
            let log = member.log_text();
            assert_eq!(code, Some(i32::from(EXIT_FAILURE)), "{what}: {}", tail(&log, 12));
            assert!(member.log_count("db.redb") > said_before, "{what}: the file is not named: {}", tail(&log, 12));
            noticed += 1;
        } else {
            assert!(!what.contains(" of "), "{what} was flipped, and nobody noticed");
            member.terminate();
        }
    }
    assert!(noticed >= 14, "{noticed}");
    std::fs::write(&path, &good).expect("mended");
    cluster.members[0].start();
    cluster.wait_ready().await;
    assert!(!answers_are_right(&cluster.members[0], &expected, "mended").await);
}

/// Changes the value of a key in the database of a stopped member as our own code would have written it: every checksum
/// is right, only the members differ.
fn alter(member: &Member, key: &str) {
    let mut store = RedbCheckpoint::open(&database(member)).expect("a database");
    let mut found = None;
    let all = (Revision::default(), Revision::new(i64::MAX, i64::MAX));
    let visit = &mut |record: quorate::server::checkpoint::Record| {
        if record.kv.key == key {
            found = Some(record);
        }
        ControlFlow::Continue(())
    };
    store.tables().and_then(|tables| tables.records(all.0, all.1, visit)).expect("records");
    let mut record = found.expect("the key was stored");
    record.kv.value = "altered".into();
    let applied = store.applied().expect("a mark");
    store.write(&Batch { records: vec![record], applied, ..Batch::default() }).expect("altered");
}

async fn alarms(member: &Member) -> Result<Vec<(u64, i32)>, String> {
    let channel = member.connect().await.map_err(|status| status.to_string())?;
    let raised = MaintenanceClient::new(channel).alarm(AlarmRequest::default()).await;
    let raised = raised.map_err(|status| status.to_string())?.into_inner().alarms;
    Ok(raised.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect())
}

async fn corrupt_is_raised(cluster: &Cluster, by: usize, ids: &[u64]) {
    let expected: Vec<(u64, i32)> = ids.iter().map(|id| (*id, AlarmType::Corrupt as i32)).collect();
    eventually("the alarm", async || match alarms(&cluster.members[by]).await? {
        raised if raised == expected => Ok(()),
        raised => Err(cluster.logs(&format!("raised is {raised:?}, not {expected:?}"))),
    })
    .await;
}

/// The sum of a member's comparisons with this check and result.
async fn compared(member: &Member, check: &str, result: &str) -> u64 {
    let (status, text) = http_get(member.client_port, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    let name = format!("quorate_server_integrity_comparisons_total{{check=\"{check}\",result=\"{result}\"}} ");
    text.lines().filter_map(|line| line.strip_prefix(&name)).filter_map(|count| count.parse::<u64>().ok()).sum()
}

async fn compared_at_least_once(cluster: &Cluster, leader: usize, check: &str, result: &str) {
    eventually(&format!("{check}: {result}"), async || match compared(&cluster.members[leader], check, result).await {
        0 => Err(cluster.logs("never")),
        _ => Ok(()),
    })
    .await;
}

async fn put_some(cluster: &Cluster) {
    for number in 0..5 {
        cluster.members[0].put(&format!("key {number}"), "value").await.expect("a put");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_member_that_differs_does_not_serve() {
    let mut cluster = Cluster::ours(3, &["--feature-gates", "InitialCorruptCheck=true"]).await;
    put_some(&cluster).await;
    cluster.hashes_agree().await;
    cluster.members[2].terminate();
    let path = database(&cluster.members[2]);
    let good = std::fs::read(&path).expect("a database");
    alter(&cluster.members[2], "key 3");
    cluster.members[2].start();
    assert_eq!(code_of(&mut cluster.members[2]).await, Some(1), "{}", cluster.logs("it ended otherwise"));
    let refusal = "found data inconsistency with peers";
    assert!(cluster.members[2].log_count(refusal) == 1, "{}", cluster.logs("it does not say why"));
    std::fs::write(&path, &good).expect("mended");
    cluster.members[2].start();
    cluster.members[2].wait_ready().await;
    assert_eq!(compared(&cluster.members[2], "initial", "equal").await, 2);
    // A byte that nobody has asked for yet is found before serving, too.
    cluster.members[2].terminate();
    let mut bytes = std::fs::read(&path).expect("a database");
    let needle = b"value";
    let places: Vec<usize> = (0..bytes.len() - 5).filter(|at| bytes[*at..].starts_with(needle)).collect();
    places.iter().for_each(|at| bytes[*at] ^= 1);
    std::fs::write(&path, &bytes).expect("flipped");
    cluster.members[2].start();
    let code = code_of(&mut cluster.members[2]).await;
    assert_eq!(code, Some(i32::from(EXIT_FAILURE)), "{}", cluster.logs("it ended otherwise"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_reports_a_member_that_differs() {
    let mut cluster = Cluster::ours(3, &["--corrupt-check-time", "500ms"]).await;
    put_some(&cluster).await;
    let leader = cluster.leader().await;
    let altered = (leader + 1) % 3;
    let id = cluster.members[altered].id().await;
    compared_at_least_once(&cluster, leader, "periodic", "equal").await;
    assert_eq!(compared(&cluster.members[leader], "periodic", "different").await, 0);
    cluster.members[altered].terminate();
    // A member that does not answer is no equal one.
    compared_at_least_once(&cluster, leader, "periodic", "not_compared").await;
    assert_eq!(alarms(&cluster.members[leader]).await, Ok(vec![]));
    alter(&cluster.members[altered], "key 3");
    cluster.members[altered].start();
    cluster.members[altered].wait_ready().await;
    assert_eq!(cluster.leader().await, leader, "{}", cluster.logs("the leader stays"));
    corrupt_is_raised(&cluster, altered, &[id]).await;
    compared_at_least_once(&cluster, leader, "periodic", "different").await;
    for member in &cluster.members {
        let refused = member.put("key 3", "new").await.expect_err("a corrupt cluster takes no writes");
        assert_eq!((refused.code(), refused.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
        assert_eq!(member.get("key 4").await.expect("reads go on").count, 1);
        let (status, body) = http_get(member.client_port, "/health").await;
        assert_eq!((status, body.contains("ALARM CORRUPT")), (503, true), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_compaction_the_minority_is_reported() {
    let extra = ["--feature-gates", "CompactHashCheck=true", "--compact-hash-check-time", "500ms"];
    let mut cluster = Cluster::ours(3, &extra).await;
    put_some(&cluster).await;
    // The leader, so that whoever leads next has to see it from the other side, or it itself that it is wrong.
    let altered = cluster.leader().await;
    let id = cluster.members[altered].id().await;
    cluster.members[altered].terminate();
    alter(&cluster.members[altered], "key 3");
    cluster.members[altered].start();
    cluster.wait_ready().await;
    let revision = cluster.members[0].put("key 5", "value").await.expect("a put");
    assert_eq!(alarms(&cluster.members[0]).await, Ok(vec![]));
    let channel = cluster.members[0].connect().await.expect("a connection");
    let compaction = CompactionRequest { revision, physical: true };
    KvClient::new(channel).compact(compaction).await.expect("compacted");
    corrupt_is_raised(&cluster, 0, &[id]).await;
}
