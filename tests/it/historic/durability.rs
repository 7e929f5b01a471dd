//! Bugs that lost, doubled or diverged data (reliability.md 2.1), where it takes real processes and real files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use quorate::proto::etcdserverpb::CompactionRequest;
use quorate::proto::etcdserverpb::DefragmentRequest;
use quorate::proto::etcdserverpb::HashKvResponse;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::ResponseHeader;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::channel;
use crate::cluster::tail;
use crate::cluster_faults::Writer;
use crate::cluster_faults::check;
use crate::contract::DATABASE;
use crate::contract::Ext4;
use crate::contract::write;
use crate::differential_gen::Random;
use crate::support::eventually;

/// Asks one member to defragment, over and over, whether it is there or not, until it is told to stop.
struct Defragmenting {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Defragmenting {
    fn start(member: &Member) -> Defragmenting {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (endpoint, stopped, counted) = (member.endpoint(), Arc::clone(&stop), Arc::clone(&done));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                if defragment(&endpoint).await {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        });
        Defragmenting { stop, done, task }
    }

    /// Waits until `more` further requests were carried out.
    async fn progress(&self, more: usize) {
        let goal = self.done.load(Ordering::Relaxed) + more;
        eventually("defragmentations", async || match self.done.load(Ordering::Relaxed) {
            done if done >= goal => Ok(()),
            done => Err(format!("{done} of {goal}")),
        })
        .await;
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it does not panic");
    }
}

/// Whether the member there carried it out.
async fn defragment(endpoint: &str) -> bool {
    match channel(endpoint).await {
        Ok(channel) => MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

/// The hash over everything, with the revision that it is of.
async fn hash(member: &Member) -> (i64, HashKvResponse) {
    let hash = member.hash_kv(0).await.unwrap_or_else(|status| panic!("{}: {status}", member.name));
    let revision = hash.header.as_ref().map(|header: &ResponseHeader| header.revision).unwrap_or_default();
    (revision, HashKvResponse { header: None, ..hash })
}

async fn compact(member: &Member, revision: i64) {
    let channel = member.connect().await.expect("a connection");
    KvClient::new(channel).compact(CompactionRequest { revision, physical: true }).await.expect("a compaction");
}

/// B3, etcd 14685 and 11613: defragmentation lost the applied index or pages of the database, by itself or because the
/// process ended on the way. Ours swaps no file, it makes everything durable; it still may neither change anything nor
/// mind being killed, in the middle of writes and behind a compaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b03_defragment_changes_nothing_and_may_be_killed() {
    let mut cluster = Cluster::ours(1, &[]).await;
    for round in 0..4 {
        let prefix = format!("defragment{round}");
        let writer = Writer::start(&prefix, &cluster);
        let defragmenting = Defragmenting::start(&cluster.members[0]);
        writer.progress(40).await;
        defragmenting.progress(3).await;
        cluster.members[0].kill();
        let acknowledged = writer.finish().await;
        defragmenting.finish().await;
        cluster.members[0].start();
        cluster.wait_ready().await;
        check(&cluster, &prefix, &acknowledged).await;
        let member = &cluster.members[0];
        let newest = acknowledged.values().max().copied().expect("something was written");
        compact(member, newest).await;
        let before = hash(member).await;
        assert!(before.0 >= newest, "revision {} after {newest} was acknowledged", before.0);
        assert!(defragment(&member.endpoint()).await, "{}", cluster.logs("not defragmented"));
        assert_eq!(hash(member).await, before, "round {round}");
    }
}

/// What the log says once for each snapshot that took the database's place.
const INSTALLED: [&str; 2] = ["run/ports.rs", "installed a snapshot"];

/// B11, etcd 20271: a defragmentation during the installation of a snapshot worked on the file that was being replaced,
/// and the open database was damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b11_a_member_that_defragments_may_be_sent_snapshots() {
    let mut cluster = Cluster::ours(3, &["--snapshot-count", "100", "--snapshot-catchup-entries", "20"]).await;
    let away = (cluster.leader().await + 1) % 3;
    let mut installed = 0;
    for round in 0..10 {
        cluster.members[away].kill();
        // One that has just sent a snapshot keeps its log for the next half minute; one that has just started does not.
        let sender = cluster.leader().await;
        cluster.members[sender].kill();
        cluster.members[sender].start();
        let leader = cluster.leader().await;
        let prefix = format!("away{round}");
        let mut acknowledged = write(&cluster.members[leader], &prefix, 150).await;
        // Durable: from here on the log may begin behind what the absent one has.
        assert!(defragment(&cluster.members[leader].endpoint()).await);
        acknowledged.append(&mut write(&cluster.members[leader], &format!("{prefix}/more"), 50).await);
        assert!(defragment(&cluster.members[leader].endpoint()).await);
        let defragmenting = Defragmenting::start(&cluster.members[away]);
        cluster.members[away].start();
        cluster.members[away].wait_ready().await;
        defragmenting.progress(5).await;
        defragmenting.finish().await;
        check(&cluster, &prefix, &acknowledged).await;
        let log = cluster.members[away].log_text();
        installed = log.lines().filter(|line| INSTALLED.iter().all(|word| line.contains(word))).count();
        if installed >= 3 {
            break;
        }
    }
    assert!(installed >= 3, "{}", cluster.logs(&format!("only {installed} snapshots")));
    // And its file is whole.
    cluster.members[away].kill();
    cluster.members[away].start();
    cluster.members[away].wait_ready().await;
    cluster.hashes_agree().await;
}

/// B16, etcd 14140 and 14143: all members lost their power at once, and with it what was synced nowhere; a write that
/// the cluster had acknowledged was among it, and nobody was left to know of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b16_all_members_lose_their_power_at_once_and_no_acknowledged_write() {
    let test = "b16_all_members_lose_their_power_at_once_and_no_acknowledged_write";
    let Some(disk) = Ext4::new(test, 1 << 30) else { return };
    let mut cluster = Cluster::prepare(&[Program::Ours, Program::Ours, Program::Ours], &[]);
    for member in &mut cluster.members {
        let data_dir = disk.dir().join(format!("{}.etcd", member.name));
        member.set_arg("--data-dir", data_dir.to_str().expect("temporary paths are UTF-8"));
        member.data_dir = data_dir;
    }
    let mut rounds: Vec<(String, BTreeMap<String, i64>)> = Vec::new();
    for round in 0..3 {
        let Some(mount) = disk.mount() else { return };
        cluster.members.iter_mut().for_each(Member::start);
        cluster.wait_ready().await;
        for (prefix, acknowledged) in &rounds {
            check(&cluster, prefix, acknowledged).await;
        }
        let prefix = format!("blackout{round}");
        let writer = Writer::start(&prefix, &cluster);
        writer.progress(60).await;
        let leader = cluster.leader().await;
        mount.cut_power();
        // It cannot write any more, and says so with its end; what it acknowledged meanwhile counts as well.
        cluster.members[leader].wait_exit();
        cluster.members.iter_mut().filter(|member| member.is_running()).for_each(Member::kill);
        rounds.push((prefix, writer.finish().await));
        mount.unmount();
    }
    let Some(_mount) = disk.mount() else { return };
    cluster.members.iter_mut().for_each(Member::start);
    cluster.wait_ready().await;
    for (prefix, acknowledged) in &rounds {
        check(&cluster, prefix, acknowledged).await;
    }
    cluster.members.iter_mut().for_each(|member| assert_eq!(member.terminate().signal(), Some(15)));
}

const PAGE_BYTES: usize = 4096;
const DAMAGED_COPIES: u64 = 10;

/// The numbers of the pages that hold anything.
fn pages_in_use(content: &[u8]) -> Vec<usize> {
    let pages = content.chunks(PAGE_BYTES).enumerate();
    pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).map(|(number, _)| number).collect()
}

/// The database with some of its pages zeroed or a bit of them turned.
fn with_bad_pages(whole: &[u8], seed: u64) -> Vec<u8> {
    let (mut content, pages) = (whole.to_vec(), pages_in_use(whole));
    let mut random = Random::new(seed);
    // The first copy loses the page that everything begins with, the others three of any.
    let mut page = if seed == 0 { 0 } else { pages[seed as usize * 7 % pages.len()] };
    for round in 0..3 {
        let bytes = &mut content[page * PAGE_BYTES..][..PAGE_BYTES];
        match (seed + round).is_multiple_of(2) {
            true => bytes.fill(0),
            false => bytes[random.below(PAGE_BYTES as u64) as usize] ^= 0x10,
        }
        page = pages[random.below(pages.len() as u64) as usize];
    }
    content
}

/// The database with one digit of one value changed, wherever it stands.
fn with_another_digit(whole: &[u8], key: usize) -> Vec<u8> {
    let mut content = whole.to_vec();
    let piece = &expected(key)[..400];
    let mut changed = 0;
    for at in 0..content.len() - piece.len() {
        if content[at..].starts_with(piece) {
            content[at + 200] ^= 1;
            changed += 1;
        }
    }
    assert!(changed > 0, "no value of key {key} in the file");
    content
}

/// Starts the member with this in the place of its database. True if it refused or gave up with a sentence that names
/// the file; else everything that it says must be right.
async fn notices_damage(member: &mut Member, content: &[u8], what: &str) -> bool {
    // The log is as it was left: a log from a copy would lack what this member has promised since.
    std::fs::write(member.data_dir.join(DATABASE), content).expect("a file of ours");
    let lines_before = member.log_text().lines().count();
    member.start();
    let member = RefCell::new(member);
    let endpoint = member.borrow().endpoint();
    // It may end while it starts, while it is asked, or not at all: some pages hold nothing any more.
    let ended = eventually("a start or a refusal", async || {
        if member.borrow_mut().try_exit().is_some() {
            return Ok(true);
        }
        for number in 0..KEYS {
            let value = read(&endpoint, number).await?;
            let log = || tail(&member.borrow().log_text(), 10);
            assert!(value == expected(number), "{what}, key {number}: {} bytes, {}", value.len(), log());
        }
        Ok(false)
    })
    .await;
    let member = member.into_inner();
    if !ended {
        member.kill();
        return false;
    }
    let log: Vec<String> = member.log_text().lines().skip(lines_before).map(str::to_owned).collect();
    let told = |line: &String| line.contains("db.redb is damaged");
    assert!(log.iter().any(told), "{what}, no reason: {log:#?}");
    true
}

const KEYS: usize = 60;

fn expected(number: usize) -> Vec<u8> {
    format!("{number:04}").repeat(500).into_bytes()
}

/// What the member itself has, without asking anybody.
async fn read(endpoint: &str, number: usize) -> Result<Vec<u8>, String> {
    let request =
        RangeRequest { key: format!("page/{number:04}").into(), serializable: true, ..RangeRequest::default() };
    let channel = channel(endpoint).await.map_err(|status| status.to_string())?;
    let response = KvClient::new(channel).range(request).await.map_err(|status| status.to_string())?.into_inner();
    Ok(response.kvs.first().map(|kv| kv.value.to_vec()).unwrap_or_default())
}

/// B19, bbolt 562, 675 and 695: pages of the database came back from the file system as zeros, and the member went on
/// with them. Damage is found, the reason is told, and nothing wrong is ever served; without its database the member
/// builds it again from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b19_damaged_pages_are_noticed_and_never_served() {
    let mut cluster = Cluster::ours(3, &[]).await;
    for number in 0..KEYS {
        let value = String::from_utf8(expected(number)).expect("digits");
        cluster.members[0].put(&format!("page/{number:04}"), &value).await.expect("a put");
    }
    cluster.hashes_agree().await;
    let victim = (cluster.leader().await + 1) % 3;
    assert!(defragment(&cluster.members[victim].endpoint()).await, "everything is in the file");
    cluster.members[victim].terminate();
    let whole = std::fs::read(cluster.members[victim].data_dir.join(DATABASE)).expect("a database");
    let member = &mut cluster.members[victim];
    let mut noticed = 0;
    for seed in 0..DAMAGED_COPIES {
        noticed += u64::from(notices_damage(member, &with_bad_pages(&whole, seed), &format!("copy {seed}")).await);
    }
    assert!(noticed >= DAMAGED_COPIES / 3, "only {noticed} of {DAMAGED_COPIES} were noticed: not the pages in use?");
    assert!(notices_damage(member, &with_another_digit(&whole, 7), "another digit").await);
    std::fs::remove_file(member.data_dir.join(DATABASE)).expect("a database");
    member.start();
    member.wait_ready().await;
    cluster.hashes_agree().await;
}
