//! How long requests took: counts in buckets that are at most 1/128 wide, so that a percentile is right to 0.8 %.
//!
//! ```text
//!  0 1 2 … 255 │ 256 258 260 … 510 │ 512 516 … 1020 │ …      nanoseconds; each row of 128 buckets is twice as wide
//! ```
//!
//! All clients count into the same buckets: two cores on one atomic number cost less than a thousand copies to sum up.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

/// Buckets of one doubling are 2 to the power of this.
const ROW_BITS: u32 = 7;
const ROW: usize = 1 << ROW_BITS;
/// Rows for every number that 64 bits hold.
const BUCKETS: usize = (64 - ROW_BITS as usize + 1) * ROW;

/// Latencies of one kind of request.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
    max_nanos: AtomicU64,
}

/// What people ask of latencies, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    pub max: f64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
            max_nanos: AtomicU64::new(0),
        }
    }

    pub fn record(&self, latency: Duration) {
        // 584 years: longer than anybody waits.
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.max_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// The percentiles; `None` when nothing was recorded. To be asked when all clients have stopped.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return None;
        }
        let max = self.max_nanos.load(Ordering::Relaxed);
        let at = |share: f64| millis(quantile(&counts, count, share).min(max));
        Some(Percentiles {
            count,
            mean: millis(self.sum_nanos.load(Ordering::Relaxed)) / count as f64,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(max),
        })
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// The bucket that counts `nanos`.
fn bucket(nanos: u64) -> usize {
    if nanos < ROW as u64 {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - ROW_BITS;
    // The top bit is one in the whole row and says nothing: what follows it is the place in the row.
    (shift as usize + 1) * ROW + ((nanos >> shift) as usize - ROW)
}

/// The largest number that the bucket counts.
fn upper(bucket: usize) -> u64 {
    let (row, place) = (bucket / ROW, bucket % ROW);
    match row {
        0 => place as u64,
        row => {
            let first = ((ROW + place) as u64) << (row - 1);
            first + ((1 << (row - 1)) - 1)
        }
    }
}

/// The smallest bucket's end that at least `share` of the requests do not exceed.
fn quantile(counts: &[u64], count: u64, share: f64) -> u64 {
    let wanted = ((count as f64 * share).ceil() as u64).clamp(1, count);
    let mut seen = 0;
    for (bucket, here) in counts.iter().enumerate() {
        seen += here;
        if seen >= wanted {
            return upper(bucket);
        }
    }
    unreachable!("all {count} requests are in the buckets, {wanted} were wanted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_up_to_the_largest_number() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(index)), index, "end of {index}");
            assert_eq!(bucket(upper(index) + 1), index + 1, "start of {}", index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn percentiles_are_those_of_a_sorted_list() {
        let check = |nanos: Vec<u64>| {
            let histogram = Histogram::new();
            nanos.iter().for_each(|one| histogram.record(Duration::from_nanos(*one)));
            let mut sorted = nanos;
            sorted.sort_unstable();
            let found = histogram.percentiles().expect("something was recorded");
            assert_eq!(found.count, sorted.len() as u64);
            assert_eq!(found.max, millis(sorted[sorted.len() - 1]));
            let shares =
                [(0.5, found.p50), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99), (0.999, found.p999)];
            for (share, told) in shares {
                let rank = (sorted.len() as f64 * share).ceil() as usize;
                let exact = millis(sorted[rank - 1]);
                assert!(told >= exact && told <= exact * (1.0 + 1.0 / 128.0), "{share}: {told} for {exact}");
            }
            let mean = sorted.iter().sum::<u64>() as f64 / sorted.len() as f64 / 1e6;
            assert!((found.mean - mean).abs() < 1e-9, "{} for {mean}", found.mean);
        };
        check(vec![1]);
        check(vec![127, 128, 129, 255, 256, 257]);
        check((1..=1000).map(|n| n * 1000).collect());
        check((0..5000u64).map(|n| 40_000 + n * n).collect());
        check(vec![60_000_000_000, 10]);
    }

    #[test]
    fn nothing_recorded_is_not_zero() {
        assert_eq!(Histogram::new().percentiles(), None);
    }
}
