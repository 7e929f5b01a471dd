//! Drives a cluster with etcd-client. Arguments: endpoints, separated by commas.

use std::time::Duration;

use etcd_client::AlarmAction;
use etcd_client::AlarmType;
use etcd_client::Client;
use etcd_client::CompactionOptions;
use etcd_client::Compare;
use etcd_client::CompareOp;
use etcd_client::DeleteOptions;
use etcd_client::Error;
use etcd_client::EventType;
use etcd_client::GetOptions;
use etcd_client::LeaseTimeToLiveOptions;
use etcd_client::LockOptions;
use etcd_client::ProclaimOptions;
use etcd_client::PutOptions;
use etcd_client::ResignOptions;
use etcd_client::SortOrder;
use etcd_client::SortTarget;
use etcd_client::Txn;
use etcd_client::TxnOp;
use etcd_client::TxnOpResponse;
use etcd_client::WatchOptions;

type Done = Result<(), Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let argument = std::env::args().nth(1).expect("endpoints");
    let endpoints: Vec<&str> = argument.split(',').collect();
    let mut client = Client::connect(&endpoints, None).await?;
    kv(&mut client).await?;
    txn(&mut client).await?;
    watch(&mut client).await?;
    lease(&mut client).await?;
    lock(&mut client).await?;
    elect(&mut client).await?;
    members(&mut client, endpoints.len()).await?;
    status(&mut client).await?;
    snapshot(&mut client).await
}

/// The text of an error that the server has to answer with.
fn refused<T>(answer: Result<T, Error>) -> String {
    match answer {
        Ok(_) => panic!("it was not refused"),
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(error) => panic!("{error}"),
    }
}

async fn kv(client: &mut Client) -> Done {
    let first = client.put("kv/a", "1", None).await?.header().expect("a header").revision();
    client.put("kv/b", "2", None).await?;
    let replaced = client.put("kv/a", "3", Some(PutOptions::new().with_prev_key())).await?;
    assert_eq!(replaced.prev_key().expect("a previous pair").value(), b"1");
    let sorted = GetOptions::new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Descend);
    let all = client.get("kv/", Some(sorted)).await?;
    let pairs: Vec<_> = all.kvs().iter().map(|kv| (kv.key(), kv.value(), kv.version())).collect();
    assert_eq!(pairs, [(&b"kv/a"[..], &b"3"[..], 2), (b"kv/b", b"2", 1)]);
    let limited = client.get("kv/", Some(GetOptions::new().with_prefix().with_limit(1))).await?;
    assert!(limited.more() && limited.count() == 2 && limited.kvs().len() == 1);
    let old = client.get("kv/a", Some(GetOptions::new().with_revision(first))).await?;
    assert_eq!(old.kvs()[0].value(), b"1");
    let deleted = client.delete("kv/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len()), (2, 2));
    assert_eq!(refused(client.put("", "x", None).await), "InvalidArgument: etcdserver: key is not provided");
    println!("ok kv");
    Ok(())
}

async fn txn(client: &mut Client) -> Done {
    client.put("txn/a", "1", None).await?;
    let inner = Txn::new().and_then([TxnOp::get("txn/a", None)]);
    let whole = Txn::new()
        .when([
            Compare::value("txn/a", CompareOp::Equal, "1"),
            Compare::create_revision("txn/none", CompareOp::Equal, 0),
        ])
        .and_then([TxnOp::put("txn/a", "2", None), TxnOp::txn(inner)])
        .or_else([TxnOp::delete("txn/a", None)]);
    let done = client.txn(whole).await?;
    assert!(done.succeeded());
    let responses = done.op_responses();
    let TxnOpResponse::Txn(nested) = &responses[1] else { panic!("{responses:?}") };
    let responses = nested.op_responses();
    let TxnOpResponse::Get(read) = &responses[0] else { panic!("{responses:?}") };
    assert_eq!(read.kvs()[0].value(), b"2");
    let other =
        Txn::new().when([Compare::version("txn/a", CompareOp::Greater, 7)]).or_else([TxnOp::delete("txn/a", None)]);
    assert!(!client.txn(other).await?.succeeded());
    assert_eq!(client.get("txn/a", None).await?.count(), 0);
    println!("ok txn");
    Ok(())
}

async fn watch(client: &mut Client) -> Done {
    let first = client.put("watch/a", "1", None).await?.header().expect("a header").revision();
    let options = WatchOptions::new().with_prefix().with_start_revision(first).with_prev_key();
    let mut changes = client.watch("watch/", Some(options)).await?;
    client.put("watch/a", "2", None).await?;
    client.delete("watch/a", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = changes.message().await?.expect("no end");
        for event in response.events() {
            let kv = event.kv().expect("a pair");
            let before = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type() == EventType::Put, kv.value().to_vec(), before));
        }
    }
    let expected = [
        (true, b"1".to_vec(), None),
        (true, b"2".to_vec(), Some(b"1".to_vec())),
        (false, Vec::new(), Some(b"2".to_vec())),
    ];
    assert_eq!(seen, expected);
    client.put("watch/c", "1", None).await?;
    let last = client.put("watch/c", "2", None).await?.header().expect("a header").revision();
    client.compact(last, Some(CompactionOptions::new().with_physical())).await?;
    let options = WatchOptions::new().with_start_revision(last - 1);
    let mut changes = client.watch("watch/c", Some(options)).await?;
    loop {
        let response = changes.message().await?.expect("no end");
        if response.canceled() {
            assert_eq!(response.compact_revision(), last);
            break;
        }
    }
    println!("ok watch");
    Ok(())
}

async fn lease(client: &mut Client) -> Done {
    let granted = client.lease_grant(30, None).await?;
    assert_eq!(granted.ttl(), 30);
    client.put("lease/a", "x", Some(PutOptions::new().with_lease(granted.id()))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(granted.id()).await?;
    keeper.keep_alive().await?;
    assert_eq!(answers.message().await?.expect("an answer").ttl(), 30);
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let shown = client.lease_time_to_live(granted.id(), Some(options)).await?;
    assert_eq!((shown.granted_ttl(), shown.keys()), (30, &[b"lease/a".to_vec()][..]));
    assert!(client.leases().await?.leases().iter().any(|lease| lease.id() == granted.id()));
    client.lease_revoke(granted.id()).await?;
    assert_eq!(client.get("lease/a", None).await?.count(), 0);
    let again = client.lease_revoke(granted.id()).await;
    assert_eq!(refused(again), "NotFound: etcdserver: requested lease not found");
    println!("ok lease");
    Ok(())
}

/// By the lock service.
async fn lock(client: &mut Client) -> Done {
    let held = client.lock("lock", None).await?.key().to_vec();
    assert!(held.starts_with(b"lock/"));
    let granted = client.lease_grant(30, None).await?.id();
    let mut other = client.clone();
    let options = LockOptions::new().with_lease(granted);
    let short = tokio::time::timeout(Duration::from_millis(200), other.lock("lock", Some(options.clone()))).await;
    assert!(short.is_err(), "somebody else holds it");
    let in_queue = |client: &Client| {
        let mut client = client.clone();
        async move { Ok::<i64, Error>(client.get("lock/", Some(GetOptions::new().with_prefix())).await?.count()) }
    };
    while in_queue(client).await? > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waiting = tokio::spawn(async move { other.lock("lock", Some(options)).await });
    while in_queue(client).await? < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.unlock(held).await?;
    let locked = waiting.await.expect("no panic")?;
    assert_eq!(locked.key(), format!("lock/{granted:x}").as_bytes());
    client.unlock(locked.key()).await?;
    println!("ok lock");
    Ok(())
}

/// By the election service.
async fn elect(client: &mut Client) -> Done {
    assert_eq!(refused(client.leader("elect").await), "Unknown: election: no leader");
    let (one, two) = (client.lease_grant(30, None).await?.id(), client.lease_grant(30, None).await?.id());
    let first = client.campaign("elect", "one", one).await?;
    let leader = first.leader().expect("a leader").clone();
    let mut other = client.clone();
    let standing = tokio::spawn(async move { other.campaign("elect", "two", two).await });
    let mut observed = client.observe("elect").await?;
    let mut value = async || {
        let told = observed.message().await?.expect("no end");
        Ok::<String, Error>(told.kv().expect("a pair").value_str()?.to_owned())
    };
    assert_eq!(value().await?, "one");
    client.proclaim("uno", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    assert_eq!(value().await?, "uno");
    assert_eq!(client.leader("elect").await?.kv().expect("a pair").value(), b"uno");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    let second = standing.await.expect("no panic")?;
    assert_eq!(second.leader().expect("a leader").key(), format!("elect/{two:x}").as_bytes());
    assert_eq!(value().await?, "two");
    println!("ok elect");
    Ok(())
}

async fn members(client: &mut Client, count: usize) -> Done {
    let list = client.member_list().await?;
    assert_eq!(list.members().len(), count);
    assert!(list.members().iter().all(|member| !member.name().is_empty() && !member.client_urls().is_empty()));
    println!("ok members");
    Ok(())
}

async fn status(client: &mut Client) -> Done {
    let status = client.status().await?;
    assert!(!status.version().is_empty() && status.leader() != 0 && status.raft_applied_index() > 0);
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    assert!(alarms.alarms().is_empty());
    client.hash_kv(0).await?;
    client.defragment().await?;
    println!("ok status");
    Ok(())
}

async fn snapshot(client: &mut Client) -> Done {
    let mut chunks = client.snapshot().await?;
    let (mut bytes, mut remaining) = (0, 1);
    while let Some(chunk) = chunks.message().await? {
        bytes += chunk.blob().len();
        remaining = chunk.remaining_bytes();
    }
    // Whole sectors and a digest.
    assert_eq!((bytes % 512, remaining), (32, 0));
    println!("ok snapshot");
    Ok(())
}
