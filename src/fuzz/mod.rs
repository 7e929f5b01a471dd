//! Fuzzing of everything that reads bytes from outside (reliability.md 4.5): each target is a plain function of bytes.
//!
//! ```text
//!  corpus (valid inputs) ─▶ mutate (flip, cut, splice, grow, lengths) ─▶ target: must return, and keep its property
//! ```
//! A few hundred cases run in every `cargo test`; hours by hand: `QUORATE_FUZZ_CASES=1000000 QUORATE_FUZZ_SEED=7 cargo
//! test --lib fuzz::`. A case that fails is printed with the command that repeats it.

mod files;
mod mutate;
mod texts;
mod wires;

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::PoisonError;
use std::sync::RwLock;

use crate::disk::sim::Dice;
use crate::fuzz::mutate::mutate;

/// Cases of a target in a plain `cargo test`.
const CASES: u64 = 400;

/// Cases between two looks at the process's memory.
const LOOK_EVERY: u64 = 64;

/// Growth of the address space between two looks that no input explains: the inputs are below 1 MiB. Tests beside this
/// one, with a heap for each thread, stay far below.
const GROWTH_MAX: u64 = 1 << 30;

/// Held by every target, and alone by the test that asks for too much memory on purpose: all share one address space.
static ADDRESS_SPACE: RwLock<()> = RwLock::new(());

/// Runs `target` on the corpus, then on mutations of it.
fn fuzz(name: &str, corpus: &[Vec<u8>], target: impl Fn(&[u8])) {
    let _shared = ADDRESS_SPACE.read().unwrap_or_else(PoisonError::into_inner);
    fuzz_alone(name, corpus, target);
}

fn fuzz_alone(name: &str, corpus: &[Vec<u8>], target: impl Fn(&[u8])) {
    if let Ok(hex) = std::env::var("QUORATE_FUZZ_INPUT") {
        return target(&from_hex(&hex));
    }
    let number = |variable: &str, default: u64| {
        std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number in QUORATE_FUZZ_*"))
    };
    let (cases, seed) = (number("QUORATE_FUZZ_CASES", CASES), number("QUORATE_FUZZ_SEED", 1));
    corpus.iter().for_each(|input| run(name, input, &target));
    let mut dice = Dice::new(seed);
    let mut peak = peak_bytes();
    for case in 1..=cases {
        let input = mutate(&mut dice, corpus);
        run(name, &input, &target);
        if case % LOOK_EVERY == 0 || case == cases {
            let now = peak_bytes();
            assert!(
                now - peak < GROWTH_MAX,
                "{name}: {} MiB of address space in some cases up to {case} of seed {seed}",
                (now - peak) >> 20
            );
            peak = now;
        }
    }
}

fn run(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("to repeat it: QUORATE_FUZZ_INPUT={hex} cargo test --lib {name}");
        resume_unwind(panic);
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The largest address space that the process ever had: it shows memory that was asked for and never touched, too.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// The first bytes choose where the rest is cut: for readers that must not care how bytes arrive.
fn pieces(input: &[u8]) -> Vec<&[u8]> {
    let Some((cut, rest)) = input.split_first() else { return Vec::new() };
    rest.chunks(1 + usize::from(*cut)).collect()
}

#[test]
#[should_panic(expected = "found it")]
fn a_target_that_panics_is_noticed() {
    fuzz("fuzz::a_target_that_panics_is_noticed", &[b"abcdef".to_vec()], |input| {
        assert!(!input.contains(&0xff), "found it");
    });
}

#[test]
#[should_panic(expected = "of address space")]
fn memory_beyond_the_input_is_noticed() {
    let _alone = ADDRESS_SPACE.write().unwrap_or_else(PoisonError::into_inner);
    fuzz_alone("fuzz::memory_beyond_the_input_is_noticed", &[b"abc".to_vec()], |input| {
        let length = if input.len() == 2 { 4 << 30 } else { 1 };
        let bytes: Vec<u8> = Vec::with_capacity(length);
        assert!(bytes.capacity() >= length);
    });
}
