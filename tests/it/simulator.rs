//! Simulated clusters: some seeds in every test run, any seed by hand, and as many as there is time for:
//!
//! ```text
//! QUORATE_SIM_SEEDS=100000 QUORATE_SIM_JOBS=2 cargo test --release --test it simulator::seeds -- --nocapture
//! ```
//!
//! A long run goes on behind a broken seed, and tells at its end what was run.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use quorate::sim;
use quorate::sim::Summary;

/// The first seed; alone it is the only one.
const SEED: &str = "QUORATE_SIM_SEED";
/// How many.
const SEEDS: &str = "QUORATE_SIM_SEEDS";
/// On how many threads.
const JOBS: &str = "QUORATE_SIM_JOBS";
/// About 1,300 cluster-seconds: half a minute of CPU in a debug build.
const SEEDS_DEFAULT: u64 = 120;
/// A long run says how far it is after so many.
const PROGRESS_SEEDS: u64 = 1000;
/// Seeds that are run twice.
const TWICE: u64 = 50;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn run(seed: u64) -> Result<Summary, String> {
    let result = catch_unwind(AssertUnwindSafe(|| sim::run(seed)));
    result.unwrap_or_else(|panic| Err(format!("the core panicked: {}", text(&*panic))))
}

/// How to run one seed again, with the build that found it.
fn again(seed: u64) -> String {
    let release = if cfg!(debug_assertions) { "" } else { "--release " };
    format!("run it again: {SEED}={seed} cargo test {release}--test it simulator::seeds_keep_every_promise")
}

/// What many runs were together.
#[derive(Default)]
struct Total {
    seeds: u64,
    of_runs: Summary,
    broken: Vec<u64>,
}

impl Total {
    fn add(&mut self, seed: u64, result: Result<Summary, String>) {
        self.seeds += 1;
        match result {
            Ok(one) => self.of_runs.add(&one),
            Err(violation) => {
                eprintln!("{violation}\n{}", again(seed));
                self.broken.push(seed);
            }
        }
    }

    /// In words: what was done, nothing about what it proves.
    fn report(&self, elapsed: Duration) -> String {
        let runs = &self.of_runs;
        let speed = runs.seconds as f64 / elapsed.as_secs_f64();
        let faults: Vec<String> = runs.faults_of.iter().map(|(name, count)| format!("{count} {name}")).collect();
        format!(
            "{} seeds, {} broken, in {:.0} s: {:.1} cluster-hours ({speed:.0} cluster-seconds a second), {} faults, {} \
             operations checked ({} answered) against logs of {} entries, {} restarts, {} elections, {} changes of the \
             membership ({} members joined, {} removed), {} snapshots sent, {} of them on top of another\n{}",
            self.seeds,
            self.broken.len(),
            elapsed.as_secs_f64(),
            runs.seconds as f64 / 3600.0,
            runs.faults,
            runs.operations,
            runs.answered,
            runs.log_entries,
            runs.restarts,
            runs.elections,
            runs.conf_changes,
            runs.joined,
            runs.removed,
            runs.snapshots_sent,
            runs.snapshots_overlapping,
            faults.join(", "),
        )
    }
}

/// Runs seeds on so many threads. Each seed has its own world, so the threads change nothing.
fn run_all(first: u64, count: u64, jobs: u64) -> Total {
    let (next, total, started) = (AtomicU64::new(first), Mutex::new(Total::default()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let result = run(seed);
                    let mut total = total.lock().expect("no panic while it was held");
                    total.add(seed, result);
                    if total.seeds.is_multiple_of(PROGRESS_SEEDS) {
                        eprintln!("{}", total.report(started.elapsed()));
                    }
                }
            });
        }
    });
    total.into_inner().expect("no panic while it was held")
}

#[test]
fn seeds_keep_every_promise() {
    let (first, count) = (number(SEED), number(SEEDS));
    let count = count.unwrap_or(if first.is_some() { 1 } else { SEEDS_DEFAULT });
    let started = Instant::now();
    let total = run_all(first.unwrap_or(0), count, number(JOBS).unwrap_or(1));
    eprintln!("{}", total.report(started.elapsed()));
    assert!(total.broken.is_empty(), "broken promises under seeds {:?}\n{}", total.broken, again(total.broken[0]));
}

#[test]
fn one_seed_has_one_trace() {
    let mut traces = BTreeSet::new();
    for seed in 1000..1000 + TWICE {
        let once = run(seed).unwrap_or_else(|violation| panic!("{violation}\n{}", again(seed)));
        assert_eq!(Ok(&once), run(seed).as_ref(), "seed {seed} ran differently the second time");
        traces.insert(once.trace);
    }
    assert_eq!(traces.len() as u64, TWICE, "seeds that make one trace are one test");
}
