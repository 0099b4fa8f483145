//! Median, lowest and highest.

use serde::Serialize;

/// A case's values over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `None` without values.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        let summary = Summary::of(&[5.0, 1.0, 3.0]);
        assert_eq!(summary, Some(Summary { median: 3.0, min: 1.0, max: 5.0 }));
        assert_eq!(Summary::of(&[4.0, 2.0]).map(|s| s.median), Some(3.0));
        assert_eq!(Summary::of(&[]), None);
    }
}
