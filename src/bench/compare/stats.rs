//! Medians of rounds, and how far a ratio of two of them can be trusted.

use serde::Serialize;

/// Two programs' figures, round by round, as one answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub ours: f64,
    pub theirs: f64,
    /// Median by median; with fewer than two rounds the spread says nothing.
    pub ratio: f64,
    /// Our lowest by their highest, our highest by their lowest. Of two equal programs all rounds of one are above all
    /// of the other in 2 of 252 comparisons of five rounds: so seldom is 1 outside.
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// `None` when a side has no figure or only zeros to divide by.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Option<Ratio> {
        let (ours_median, theirs_median) = (median(ours)?, median(theirs)?);
        let ((ours_low, ours_high), (theirs_low, theirs_high)) = (ends(ours)?, ends(theirs)?);
        let ratio = Ratio {
            ours: ours_median,
            theirs: theirs_median,
            ratio: ours_median / theirs_median,
            low: ours_low / theirs_high,
            high: ours_high / theirs_low,
        };
        (theirs_low > 0.0).then_some(ratio)
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn ends(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    let high = values.iter().copied().max_by(f64::total_cmp)?;
    Some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::keys::mix;

    #[test]
    fn medians_are_the_middle() {
        let check = |values: &[f64], expected: Option<f64>| assert_eq!(median(values), expected);
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 9.0], Some(3.0));
    }

    #[test]
    fn a_ratio_has_its_worst_and_its_best_pairing() {
        let found = Ratio::of(&[10.0, 20.0, 30.0], &[40.0, 50.0, 100.0]).expect("figures");
        assert_eq!(found, Ratio { ours: 20.0, theirs: 50.0, ratio: 0.4, low: 0.1, high: 0.75 });
        assert_eq!(Ratio::of(&[], &[1.0]), None);
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
    }

    /// Rounds as they are on a machine where single ones differ by a third and the later one of a pair looks faster.
    fn rounds(seed: u64, count: u64, speed: f64) -> (Vec<f64>, Vec<f64>) {
        let mut figures = (Vec::new(), Vec::new());
        for round in 0..count {
            let noise = |side: u64| 1.0 + (mix(seed * 1000 + round * 2 + side) % 1000) as f64 / 3000.0;
            let ours_first = round % 2 == 0;
            let late = |second: bool| if second { 1.15 } else { 1.0 };
            figures.0.push(1000.0 * speed * noise(0) * late(!ours_first));
            figures.1.push(1000.0 * noise(1) * late(ours_first));
        }
        figures
    }

    #[test]
    fn equal_programs_come_out_as_one_within_the_spread_and_different_ones_do_not() {
        let outside = |speed: f64| {
            (0..1000)
                .filter(|seed| {
                    let (ours, theirs) = rounds(*seed, 5, speed);
                    let ratio = Ratio::of(&ours, &theirs).expect("figures");
                    assert!(ratio.low <= ratio.ratio && ratio.ratio <= ratio.high);
                    !(ratio.low..=ratio.high).contains(&1.0)
                })
                .count()
        };
        let equal = outside(1.0);
        assert!(equal <= 15, "{equal} of 1000 comparisons of equal programs found a difference");
        assert_eq!(outside(2.0), 1000);
        assert_eq!(outside(0.5), 1000);
    }
}
