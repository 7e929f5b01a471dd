//! Simulated clusters: some seeds in every test run, any seed by hand.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::time::Instant;

use quorate::sim;
use quorate::sim::Summary;

/// The first seed; alone it is the only one.
const SEED: &str = "QUORATE_SIM_SEED";
/// How many.
const SEEDS: &str = "QUORATE_SIM_SEEDS";
/// About four hundred cluster-seconds.
const SEEDS_DEFAULT: u64 = 36;
/// Seeds that are run twice.
const TWICE: u64 = 20;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn run(seed: u64) -> Summary {
    let result = catch_unwind(AssertUnwindSafe(|| sim::run(seed)));
    let result = result.unwrap_or_else(|panic| Err(format!("the core panicked: {}", text(&*panic))));
    result.unwrap_or_else(|violation| {
        panic!("{violation}\nrun it again: {SEED}={seed} cargo test --test it simulator::seeds_keep_every_promise")
    })
}

#[test]
fn seeds_keep_every_promise() {
    let (first, count) = (number(SEED), number(SEEDS));
    let count = count.unwrap_or(if first.is_some() { 1 } else { SEEDS_DEFAULT });
    let first = first.unwrap_or(0);
    let started = Instant::now();
    let mut total = Summary::default();
    for seed in first..first + count {
        let one = run(seed);
        total.seconds += one.seconds;
        total.events += one.events;
        total.faults += one.faults;
        total.restarts += one.restarts;
        total.snapshots_sent += one.snapshots_sent;
        total.elections += one.elections;
        total.operations += one.operations;
        total.answered += one.answered;
        total.log_entries += one.log_entries;
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{count} seeds in {seconds:.1} s, {:.0} cluster-seconds a second: {total:?}",
        total.seconds as f64 / seconds
    );
}

#[test]
fn one_seed_has_one_trace() {
    let mut traces = BTreeSet::new();
    for seed in 1000..1000 + TWICE {
        let once = run(seed);
        assert_eq!(once, run(seed), "seed {seed} ran differently the second time");
        traces.insert(once.trace);
    }
    assert_eq!(traces.len() as u64, TWICE, "seeds that make one trace are one test");
}
