//! Simulated clusters: some seeds in every test run, any seed by hand.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use quorate::sim;
use quorate::sim::Summary;

/// Runs this seed, or this many: `QUORATE_SIM_SEED=17`, `QUORATE_SIM_SEEDS=1000`.
const SEED: &str = "QUORATE_SIM_SEED";
const SEEDS: &str = "QUORATE_SIM_SEEDS";
const SEEDS_DEFAULT: u64 = 12;

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
    let seeds = match (number(SEED), number(SEEDS)) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS_DEFAULT),
    };
    let mut total = Summary::default();
    for seed in seeds {
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
    eprintln!("{total:?}");
}
