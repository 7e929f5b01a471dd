//! The driver in other hands: a proposal that comes alone is done by whoever brings it, and nothing else changes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::driver::Fake;
use super::driver::bootstrapped;
use super::driver::config;
use super::driver::lone;
use super::driver::start_with;
use super::driver::wait_for;
use crate::common::ids::MemberId;
use crate::server::raft::config::RaftConfig;
use crate::server::raft::handle::Busy;
use crate::server::raft::handle::RaftHandle;

/// Proposes until the driver is lent: then a proposal is committed when the call returns, and was written by this thread.
fn until_lent(handle: &RaftHandle, fake: &Fake) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    wait_for("the driver is lent", || {
        let value = format!("warm-up-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        handle.propose_here(1, Bytes::from(value.clone())).unwrap();
        let committed = fake.events().iter().any(|event| event.ends_with(&value));
        committed && fake.last_writer() == Some(thread::current().id())
    });
}

/// A lone leader on a disk that was quick for a while, whose thread sleeps.
fn lent() -> (RaftHandle, Fake) {
    let (handle, fake) = lone();
    until_lent(&handle, &fake);
    (handle, fake)
}

#[test]
fn a_proposal_that_comes_alone_is_committed_when_the_call_returns() {
    let (handle, fake) = lent();
    // The thread is asleep now, and nobody else wakes it.
    for value in 0..100 {
        let value = format!("here-{value}");
        handle.propose_here(1, Bytes::from(value.clone())).unwrap();
        assert!(fake.events().last().unwrap().ends_with(&value), "{:#?}", fake.events().last());
    }
    // Too large to be done here.
    handle.propose_here(1, Bytes::from(vec![b'x'; 1 << 20])).unwrap();
    fake.until("xxx");
    assert_ne!(fake.last_writer(), Some(thread::current().id()));
    handle.stop();
    assert_eq!(handle.propose_here(2, Bytes::new()), Err(Busy::Stopped));
}

#[test]
fn both_ways_together_commit_everything_once_and_in_the_order_of_each_caller() {
    const CALLERS: u64 = 8;
    const PROPOSALS: u64 = 150;
    let (handle, fake) = lent();
    let committed = |event: &str, value: &str| event.starts_with("committed") && event.ends_with(value);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (handle, fake) = (&handle, &fake);
            scope.spawn(move || {
                for number in 0..PROPOSALS {
                    let value = format!(" {caller}/{number};");
                    let data = Bytes::from(value.trim_start().to_owned());
                    match (caller + number) % 3 {
                        0 => handle.propose(1, data).unwrap(),
                        _ => handle.propose_here(1, data).unwrap(),
                    }
                    // Every other one is followed by the next at once.
                    if number % 2 == 0 {
                        fake.until(&value);
                    }
                }
            });
        }
    });
    for caller in 0..CALLERS {
        fake.until(&format!(" {caller}/{};", PROPOSALS - 1));
    }
    let events = fake.events();
    let indexes: Vec<u64> =
        events.iter().filter_map(|event| event.strip_prefix("committed ")?.split(' ').next()?.parse().ok()).collect();
    assert!(indexes.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a repetition: {indexes:?}");
    for caller in 0..CALLERS {
        let all: Vec<usize> = (0..PROPOSALS)
            .map(|number| {
                let value = format!(" {caller}/{number};");
                let at: Vec<usize> = (0..events.len()).filter(|at| committed(&events[*at], &value)).collect();
                assert_eq!(at.len(), 1, "{value} was committed {} times", at.len());
                at[0]
            })
            .collect();
        assert!(all.is_sorted_by(|one, next| one < next), "caller {caller}: {all:?}");
    }
    assert!(fake.writers().len() > 1, "only one way was gone");
    handle.stop();
}

#[test]
fn a_slow_disk_and_company_are_the_threads_own() {
    let (handle, fake) = lent();
    fake.set(|world| world.slow = Some(Duration::from_millis(6)));
    // The first one finds out.
    handle.propose_here(1, Bytes::from_static(b"first")).unwrap();
    fake.until("first");
    fake.set(|world| world.writers.clear());
    for value in 0..20 {
        handle.propose_here(1, Bytes::from(format!("slow-{value};"))).unwrap();
        fake.until(&format!("slow-{value};"));
    }
    assert_eq!((fake.writers().len(), fake.writers().contains(&thread::current().id())), (1, false));
    fake.set(|world| world.slow = None);
    until_lent(&handle, &fake);
    handle.stop();

    let (handle, fake) = start_with(&config(1), bootstrapped(3));
    for _ in 0..20 {
        handle.propose_here(1, Bytes::from_static(b"v")).unwrap();
        fake.until("refused 1 NoLeader");
        fake.set(|world| world.events.clear());
    }
    assert!(!fake.writers().contains(&thread::current().id()));
    handle.stop();
}

#[test]
fn a_failed_write_in_other_hands_stops_the_member() {
    let (handle, fake) = lent();
    fake.set(|world| world.disk_broken = true);
    handle.propose_here(1, Bytes::from_static(b"value")).unwrap();
    fake.until("failed: cannot fdatasync wal");
    assert_eq!(fake.last_writer(), Some(thread::current().id()));
    assert!(!fake.events().iter().any(|event| event.ends_with("value")));
    wait_for("proposals are refused", || handle.propose_here(2, Bytes::new()) == Err(Busy::Stopped));
    assert!(!handle.lone_leader());
    handle.stop();
}

#[test]
fn a_panic_in_other_hands_ends_the_process_and_names_the_thread() {
    let (handle, fake) = lent();
    fake.set(|world| world.apply_panics = true);
    handle.propose_here(1, Bytes::from_static(b"value")).unwrap();
    assert_eq!(fake.last_writer(), Some(thread::current().id()));
    fake.until("thread raft ended: apply is told to panic");
    wait_for("the handle knows", || handle.propose_here(2, Bytes::new()) == Err(Busy::Stopped));
}

#[test]
fn a_disk_that_hangs_in_other_hands_keeps_nobody_else_from_asking() {
    // Ticks come due while it hangs.
    let config = RaftConfig { tick: Duration::from_millis(5), ..config(1) };
    let (handle, fake) = start_with(&config, bootstrapped(1));
    wait_for("the lone voter leads", || {
        handle.applied(handle.status().commit_index);
        handle.lone_leader()
    });
    until_lent(&handle, &fake);
    // With such short ticks the thread may be just awake: then it writes, and we try again.
    let hung = |attempt: u32| {
        fake.set(|world| world.disk_stuck = true);
        let writings = fake.writings();
        let (borrower, value) = (handle.clone(), Bytes::from(format!("hung-{attempt};")));
        let borrower = thread::spawn(move || borrower.propose_here(1, value));
        fake.until_writing(writings + 1);
        let lent = fake.last_writer() == Some(borrower.thread().id());
        if lent {
            handle.propose(2, Bytes::from_static(b"meanwhile")).unwrap();
            handle.propose_here(3, Bytes::from_static(b"as well")).unwrap();
            thread::sleep(4 * config.tick);
            // All were taken though nobody can write.
            assert_eq!(fake.writings(), writings + 1);
        }
        fake.set(|world| world.disk_stuck = false);
        borrower.join().unwrap().unwrap();
        fake.until(&format!("hung-{attempt};"));
        lent
    };
    assert!((0..1000).any(hung), "the driver was never lent");
    // Both are the thread's, in one write or two.
    fake.until("meanwhile");
    fake.until("as well");
    until_lent(&handle, &fake);
    handle.stop();
}

#[test]
fn a_stop_waits_for_the_borrower_and_is_the_threads() {
    let (handle, fake) = lent();
    fake.set(|world| world.disk_stuck = true);
    let before = fake.writings();
    let borrower = {
        let handle = handle.clone();
        thread::spawn(move || handle.propose_here(1, Bytes::from_static(b"last")))
    };
    fake.until_writing(before + 1);
    assert_eq!(fake.last_writer(), Some(borrower.thread().id()));
    let stopping = {
        let handle = handle.clone();
        thread::spawn(move || handle.stop())
    };
    wait_for("the stop is asked for", || handle.propose(2, Bytes::from_static(b"too late")).is_ok());
    fake.set(|world| world.disk_stuck = false);
    borrower.join().unwrap().unwrap();
    stopping.join().unwrap();
    assert!(fake.events().iter().any(|event| event.ends_with("last")));
    assert!(fake.events().last().unwrap().ends_with("[] sync true"), "{:#?}", fake.events().last());
    assert_eq!(handle.propose_here(3, Bytes::new()), Err(Busy::Stopped));
}

#[test]
fn a_configuration_change_takes_the_driver_back() {
    let (handle, fake) = lent();
    let change = crate::proto::raftpb::ConfChange {
        id: 9,
        r#type: crate::proto::raft_numbers::CONF_ADD_NODE,
        node_id: 2,
        context: Bytes::new(),
    };
    handle.propose_conf_change(9, change).unwrap();
    wait_for("it is not alone", || !handle.lone_leader());
    fake.set(|world| world.writers.clear());
    handle.propose_here(1, Bytes::from_static(b"for two")).unwrap();
    fake.until("for two");
    assert!(!fake.writers().contains(&thread::current().id()));
    assert!(!fake.events().iter().any(|event| event.starts_with("committed") && event.ends_with("for two")));
    assert_eq!(handle.match_index(MemberId(2)), Some(0));
    handle.stop();
}
