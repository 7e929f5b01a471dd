//! Two members of ours and two real ones, thousands of writes of every kind through all of them, and a leader that is moved
//! and killed meanwhile: equal in the end to the last byte.
//!
//! `QUORATE_MIXED_WRITES` and `QUORATE_MIXED_SEED` make a longer run, or another one, by hand: issue 5 wants 20,000.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use quorate::proto::etcdserverpb::HashRequest;
use quorate::proto::etcdserverpb::LeaseLeasesRequest;
use quorate::proto::etcdserverpb::MoveLeaderRequest;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::lease::leases;
use crate::lease::time_to_live;
use crate::members_work::accepted;
use crate::mixed_writer::Tally;
use crate::mixed_writer::Writer;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::from_environment;

/// Writes of the ordinary test run.
const WRITES: u64 = 2500;

/// At each member, at once.
const WRITERS_EACH: u64 = 2;

/// Leaders killed at most, until one of each kind has taken over from a dead one.
const KILLS_MAX: u64 = 20;

/// Positions below are of ours, the others are real.
const FIRST_REAL: usize = 2;

/// What to do with the leader.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Ask it to hand over to one of this kind.
    MoveTo(Kind),
    /// Have one of this kind lead, then kill it.
    Kill(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ours,
    Real,
}

fn kind(position: usize) -> Kind {
    if position < FIRST_REAL { Kind::Ours } else { Kind::Real }
}

/// The writers, while the leader is changed under them.
struct Work {
    writers: JoinSet<Tally>,
    begun: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// False holds the writers up before their next write.
    gate: watch::Sender<bool>,
    /// Writes on their way.
    flying: Arc<AtomicU64>,
}

impl Work {
    fn start(cluster: &Cluster, seed: u64) -> Work {
        let (gate, opened) = watch::channel(true);
        let (begun, stop, flying) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut writers = JoinSet::new();
        for member in (0..WRITERS_EACH).flat_map(|_| &cluster.members) {
            let (number, endpoint) = (writers.len() as u64, member.endpoint());
            let (begun, stop, flying, mut opened) = (begun.clone(), stop.clone(), flying.clone(), opened.clone());
            writers.spawn(async move {
                let mut writer = Writer::new(&endpoint, seed, number);
                while !stop.load(Ordering::Relaxed) {
                    // First counted, then looked at: who closes the gate and finds nobody underway is right.
                    flying.fetch_add(1, Ordering::SeqCst);
                    if *opened.borrow_and_update() {
                        begun.fetch_add(1, Ordering::Relaxed);
                        writer.write().await;
                        flying.fetch_sub(1, Ordering::SeqCst);
                    } else {
                        flying.fetch_sub(1, Ordering::SeqCst);
                        let _ = opened.changed().await;
                    }
                }
                writer.tally
            });
        }
        Work { writers, begun, stop, gate, flying }
    }

    async fn reach(&self, cluster: &Cluster, count: u64) {
        // Each tenth of the way in its own patience: the whole may take long.
        loop {
            let before = self.begun.load(Ordering::Relaxed);
            if before >= count {
                return;
            }
            eventually("writes to go on", async || {
                let now = self.begun.load(Ordering::Relaxed);
                if now >= count || now > before + 50 { Ok(()) } else { Err(cluster.logs(&format!("{now} so far"))) }
            })
            .await;
        }
    }

    async fn progress(&self, cluster: &Cluster, by: u64) {
        self.reach(cluster, self.begun.load(Ordering::Relaxed) + by).await;
    }

    /// Holds the writers up and has this real member commit what it has applied to its database. A 3.5.1 that is killed
    /// while it applies may have stored the index of entries without the entries: it never applies them then (etcd 13766,
    /// mended in 3.5.3; B1 here).
    async fn hush(&self, cluster: &Cluster, member: &Member) {
        self.gate.send_replace(false);
        eventually("nobody to write", async || match self.flying.load(Ordering::SeqCst) {
            0 => Ok(()),
            many => Err(cluster.logs(&format!("{many} on their way"))),
        })
        .await;
        let channel = member.connect().await.expect("a connection");
        // It commits before it computes.
        MaintenanceClient::new(channel).hash(HashRequest {}).await.expect("a hash of its database");
    }

    async fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.gate.send_replace(true);
        let mut all = Tally::default();
        while let Some(tally) = self.writers.join_next().await {
            all.add(tally.expect("a writer ends by itself"));
        }
        all
    }
}

/// The position of the leader, once it is of this kind; whoever leads is asked to hand over to one.
async fn led_by(cluster: &Cluster, wanted: Kind) -> usize {
    eventually("a leader of the other kind", async || {
        let leader = cluster.leader().await;
        if kind(leader) == wanted {
            return Ok(leader);
        }
        let target = (0..cluster.members.len()).find(|at| kind(*at) == wanted && cluster.members[*at].is_running());
        let target = target.ok_or_else(|| "none of that kind runs".to_owned())?;
        let target_id = cluster.members[target].status().await.map_err(|status| status.to_string())?;
        let target_id = target_id.header.map(|header| header.member_id).unwrap_or_default();
        let channel = cluster.members[leader].connect().await.map_err(|status| status.to_string())?;
        let moved = MaintenanceClient::new(channel).move_leader(MoveLeaderRequest { target_id }).await;
        Err(cluster.logs(&format!("asked {} to hand over to {target}: {moved:?}", leader)))
    })
    .await
}

/// The kind that leads after the change.
async fn carry_out(cluster: &mut Cluster, work: &Work, change: Change) -> Kind {
    match change {
        Change::MoveTo(wanted) => kind(led_by(cluster, wanted).await),
        Change::Kill(victim) => {
            let leader = led_by(cluster, victim).await;
            if victim == Kind::Real {
                work.hush(cluster, &cluster.members[leader]).await;
            }
            cluster.members[leader].kill();
            work.gate.send_replace(true);
            let heir = kind(cluster.leader().await);
            // It misses something.
            work.progress(cluster, 40).await;
            cluster.members[leader].start();
            cluster.members[leader].wait_ready().await;
            heir
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_and_two_agree_after_thousands_of_writes_and_changes_of_the_leader() {
    let test = "two_and_two_agree_after_thousands_of_writes_and_changes_of_the_leader";
    let Some(real) = oracle(test) else { return };
    let writes = from_environment("QUORATE_MIXED_WRITES", WRITES);
    let seed = from_environment("QUORATE_MIXED_SEED", 1);
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(&[Program::Ours, Program::Ours, etcd.clone(), etcd], &[]).await;
    let work = Work::start(&cluster, seed);
    let changes =
        [Change::MoveTo(Kind::Real), Change::MoveTo(Kind::Ours), Change::Kill(Kind::Real), Change::Kill(Kind::Ours)];
    // All of them by default, and again for each further thousands.
    let rounds = 1 + writes / 5000;
    let steps = rounds * changes.len() as u64;
    let mut heirs = BTreeSet::new();
    for step in 0..steps {
        work.reach(&cluster, (step + 1) * writes / (steps + 1)).await;
        let change = changes[step as usize % changes.len()];
        let leads = carry_out(&mut cluster, &work, change).await;
        println!("{change:?}: {leads:?} leads, {} writes", work.begun.load(Ordering::Relaxed));
        if matches!(change, Change::Kill(_)) {
            heirs.insert(leads);
        }
    }
    // Who takes over from a dead leader is up to chance.
    for kill in 0..KILLS_MAX {
        if heirs.len() == 2 {
            break;
        }
        let victim = if kill % 2 == 0 { Kind::Real } else { Kind::Ours };
        heirs.insert(carry_out(&mut cluster, &work, Change::Kill(victim)).await);
    }
    assert_eq!(heirs.len(), 2, "only {heirs:?} ever took over from a dead leader");
    work.reach(&cluster, writes).await;
    let tally = work.finish().await;
    println!("seed {seed}: {}", tally.told());
    tally.check(writes);
    cluster.wait_ready().await;
    acknowledged_keys_are_there(&cluster, &tally).await;
    let kept = leases_agree(&cluster, &tally).await;
    assert!(kept > 0, "no lease is left: {}", tally.told());
    cluster.hashes_agree().await;
    for member in &mut cluster.members {
        member.terminate();
    }
    let shared = cluster.logs_agree();
    println!("{kept} leases are left, {shared} entries were compared");
    // Each entry lies in four logs; a member may have come by a snapshot, which none needs here.
    assert!(shared as u64 > writes * 2, "the logs have only {shared} entries in common");
}

/// At every member, read through it.
async fn acknowledged_keys_are_there(cluster: &Cluster, tally: &Tally) {
    for member in &cluster.members {
        let all =
            RangeRequest { key: "ack/".into(), range_end: "ack0".into(), keys_only: true, ..RangeRequest::default() };
        let found = accepted("a linearizable read", async || {
            Ok(KvClient::new(member.connect().await?).range(all.clone()).await?.into_inner().kvs)
        })
        .await;
        let found: BTreeSet<_> = found.into_iter().map(|pair| pair.key).collect();
        let missing = tally.keys.iter().find(|key| !found.contains(key.as_bytes()));
        assert_eq!(missing, None, "{}", cluster.logs(&format!("acknowledged, and missing at {}", member.name)));
    }
}

/// Short leases have ended, revoked ones are gone, long ones are there with the same keys, whoever leads; how many.
async fn leases_agree(cluster: &Cluster, tally: &Tally) -> usize {
    let listed = async |member: &Member| {
        let answer = leases(member).await.lease_leases(LeaseLeasesRequest {}).await;
        answer.map(|answer| answer.into_inner().leases.into_iter().map(|lease| lease.id).collect::<BTreeSet<i64>>())
    };
    let kept = eventually("the same leases everywhere", async || {
        let mut lists = Vec::new();
        for member in &cluster.members {
            lists.push(listed(member).await.map_err(|status| cluster.logs(status.message()))?);
        }
        let short = tally.short.iter().find(|id| lists[0].contains(id));
        let same = lists.iter().all(|list| *list == lists[0]);
        if same && short.is_none() { Ok(lists.swap_remove(0)) } else { Err(format!("{short:?} of {lists:?}")) }
    })
    .await;
    let lost = tally.kept.iter().find(|id| !kept.contains(id));
    assert_eq!(lost, None, "{}", cluster.logs("a lease is gone"));
    let back = tally.revoked.iter().find(|id| kept.contains(id));
    assert_eq!(back, None, "{}", cluster.logs("a revoked lease is there"));
    // Followers ask the leader about keys: each kind is asked as one.
    let mut shown = Vec::new();
    for leader in [Kind::Ours, Kind::Real] {
        let leader = led_by(cluster, leader).await;
        let mut leases = Vec::new();
        for id in &kept {
            let lease = accepted("a lease", async || time_to_live(&cluster.members[leader], *id, true).await).await;
            let mut keys = lease.keys;
            keys.sort();
            leases.push((*id, lease.granted_ttl, keys));
        }
        shown.push(leases);
    }
    assert_eq!(shown[0], shown[1], "what ours knows of leases, and what a real member knows");
    let attached: usize = shown[0].iter().map(|(_, _, keys)| keys.len()).sum();
    assert!(attached > 0, "no key is attached");
    kept.len()
}
