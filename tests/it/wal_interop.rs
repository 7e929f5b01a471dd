//! Our log is etcd's: the real etcd goes on from one that we wrote, and we read what it added.

use prost::Message;
use quorate::disk::real::RealDisk;
use quorate::proto::raftinternalpb::InternalRaftRequest;
use quorate::proto::raftpb::Entry;
use quorate::server::raft::wal::Recovered;
use quorate::server::raft::wal::Wal;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::copy_dir;
use crate::oracle::oracle;

const KEYS: usize = 40;

fn key(number: usize) -> String {
    format!("key{number:02}")
}

fn value(number: usize) -> String {
    format!("value of {number} {}", "v".repeat(number * 37))
}

fn log_of(member: &Member) -> Recovered {
    Wal::inspect(&RealDisk, &member.data_dir.join("member").join("wal")).expect("a log that we can read")
}

/// Keys of the puts among these entries, in their order.
fn puts(entries: &[Entry]) -> Vec<String> {
    let requests = entries.iter().filter(|entry| entry.r#type == 0 && !entry.data.is_empty());
    // A 3.5 publishes itself by a request of etcd's v2 API, which is no such message.
    let requests = requests.filter_map(|entry| InternalRaftRequest::decode(entry.data.clone()).ok());
    let puts = requests.filter_map(|request| request.put);
    puts.map(|put| String::from_utf8(put.key.to_vec()).expect("keys of this test are text")).collect()
}

/// The cluster version of a member of ours alone is one that 3.5 refuses, so it is agreed with a 3.5 beside it.
#[tokio::test]
async fn etcd_goes_on_from_our_log_and_we_read_what_it_wrote() {
    let Some(real) = oracle("etcd_goes_on_from_our_log_and_we_read_what_it_wrote") else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, etcd.clone()], &[]).await;
    for number in 0..KEYS {
        cluster.members[0].put(&key(number), &value(number)).await.expect("a put");
    }
    // What is committed is written with the next entries: these make sure that the log says so of all before.
    for number in 0..3 {
        cluster.members[0].put("more", &value(number)).await.expect("a put");
    }
    cluster.members.iter_mut().for_each(Member::kill);
    let member = &mut cluster.members[0];
    let written = log_of(member);
    let committed = usize::try_from(written.hard_state.commit - written.base.index).expect("a small log");
    assert!(puts(&written.entries[..committed]).starts_with(&(0..KEYS).map(key).collect::<Vec<_>>()));

    let ours = member.data_dir.clone();
    member.replace(etcd, ours.with_extension("theirs"));
    copy_dir(&ours.join("member").join("wal"), &member.data_dir.join("member").join("wal"));
    // Alone, so that nobody tells it what our log should have told it.
    member.add_args(&["--force-new-cluster"]);
    member.start();
    member.wait_ready().await;
    for number in 0..KEYS {
        let response = member.get(&key(number)).await.expect("a read");
        let values: Vec<_> = response.kvs.iter().map(|kv| kv.value.clone()).collect();
        assert_eq!(values, [value(number).into_bytes()], "{}", key(number));
    }
    member.put("theirs", "1").await.expect("a put");
    member.kill();

    let read = log_of(member);
    assert_eq!(read.metadata, written.metadata);
    assert_eq!(read.entries[..committed], written.entries[..committed], "what we wrote is still there");
    assert!(read.hard_state.term > written.hard_state.term, "{:?} {:?}", read.hard_state, written.hard_state);
    assert_eq!(puts(&read.entries).last().map(String::as_str), Some("theirs"));
}
