//! How large packets may be on a path.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Outcome, Prober};

/// Sizes that are tried at once.
const STEPS: usize = 16;
/// A size is too large if it is not answered within so many round trips, and at least this.
const ROUND_TRIPS: u32 = 8;
const PATIENCE: Duration = Duration::from_millis(150);

/// The largest packet of at most `most` bytes that `to`, which answers small ones after `round_trip`, answers.
///
/// Whoever drops what is too large may say so or not: sizes are tried, many at once, between one that passes and
/// one that does not.
pub async fn path_mtu(prober: &Prober, to: IpAddr, most: usize, round_trip: Duration) -> usize {
    let timeout = (round_trip * ROUND_TRIPS).max(PATIENCE);
    let passes = async |bytes: usize| matches!(prober.echo(to, bytes, timeout).await, Outcome::Answered(_));
    if passes(most).await {
        return most;
    }
    let (mut passed, mut refused) = (prober.smallest(), most);
    while refused.saturating_sub(passed) > 1 {
        let tried = join_all(between(passed, refused).map(async |bytes| (bytes, passes(bytes).await))).await;
        let (before, after) = (passed, refused);
        passed = tried.iter().filter(|(_, passed)| *passed).map(|(bytes, _)| *bytes).max().unwrap_or(passed);
        let larger = tried.iter().filter(|(bytes, passes)| !passes && *bytes > passed);
        refused = larger.map(|(bytes, _)| *bytes).min().unwrap_or(refused);
        if (before, after) == (passed, refused) {
            break;
        }
    }
    passed
}

/// Sizes between two, evenly spaced.
fn between(passed: usize, refused: usize) -> impl Iterator<Item = usize> {
    let gap = refused.saturating_sub(passed);
    let step = gap.div_ceil(STEPS + 1).max(1);
    (1..).map(move |n| passed + n * step).take_while(move |bytes| *bytes < refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_lie_between_and_come_closer() {
        assert_eq!(between(10, 12).collect::<Vec<_>>(), [11]);
        assert_eq!(between(10, 11).count(), 0);
        let (mut passed, mut refused, mut rounds) = (48, 1450, 0);
        // Of a path of 1337 bytes.
        while refused - passed > 1 {
            let tried: Vec<_> = between(passed, refused).collect();
            assert!(tried.len() <= STEPS && tried.iter().all(|bytes| (passed + 1..refused).contains(bytes)));
            passed = tried.iter().copied().filter(|bytes| *bytes <= 1337).max().unwrap_or(passed);
            refused = tried.iter().copied().find(|bytes| *bytes > 1337).unwrap_or(refused);
            rounds += 1;
        }
        assert_eq!((passed, rounds), (1337, 3));
    }
}
