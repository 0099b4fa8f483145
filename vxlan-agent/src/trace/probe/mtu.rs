//! How large packets may be: requests of falling sizes that nobody may fragment.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::echo::{Answer, Echoes};

/// How long an answer is waited for; those before came much sooner.
const PATIENCE: Duration = Duration::from_millis(150);
/// How often one size is tried before it counts as too large.
const ATTEMPTS: usize = 2;
/// What every IPv4 network takes (RFC 791), and every IPv6 network (RFC 8200 §5).
const LEAST: [usize; 2] = [68, 1280];

/// The largest IP packet that is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathMtu {
    /// In bytes, of those that were tried.
    pub largest: usize,
    /// What there should be room for.
    pub expected: usize,
    /// Who answered that a packet is too big; none of those who did so were not this host.
    pub told_by: Option<IpAddr>,
    /// Whether larger packets vanish without an answer.
    pub black_hole: bool,
}

impl PathMtu {
    /// Whether packets of the expected size arrive.
    pub const fn is_whole(&self) -> bool {
        self.largest >= self.expected
    }

    pub(super) fn text(&self) -> String {
        let Self { largest, expected, .. } = self;
        if self.is_whole() {
            return format!("{largest} bytes, as expected.");
        }
        let how = match (self.told_by, self.black_hole) {
            (Some(by), _) => format!("{by} says that larger ones are too big"),
            (None, true) => "larger ones vanish without a word: a black hole".to_owned(),
            (None, false) => "this host sends no larger ones".to_owned(),
        };
        format!("{largest} bytes, not {expected}: {how}.")
    }
}

/// The path MTU between two ends of the overlay. `tunnel`: what the tunnel between them takes, if there is one.
pub(super) fn inner(echoes: &Echoes, tunnel: Option<usize>) -> Result<Option<PathMtu>> {
    search(echoes, tunnel.unwrap_or(LEAST[1]))
}

/// The largest size up to `expected` that is answered; none if not even the least is.
pub(super) fn search(echoes: &Echoes, expected: usize) -> Result<Option<PathMtu>> {
    let mut told_by = None;
    let (largest, black_hole) = bisect(LEAST[usize::from(echoes.is_ipv6())], expected, |size| {
        let mut answer = Answer::None;
        for _ in 0..ATTEMPTS {
            answer = echoes.exchange(size, PATIENCE)?;
            if answer != Answer::None {
                break;
            }
        }
        Ok(match answer {
            Answer::Reply(_) => Tried::Answered,
            Answer::TooBig { mtu, by } => {
                told_by = told_by.or(by);
                Tried::TooBig(usize::try_from(mtu).ok().filter(|mtu| *mtu != 0))
            }
            Answer::None | Answer::Unreachable { .. } | Answer::Refused(_) => Tried::Lost,
        })
    })?;
    Ok(largest.map(|largest| PathMtu { largest, expected, told_by, black_hole }))
}

/// What came of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Answered,
    /// Somebody said so, and perhaps how large it may be.
    TooBig(Option<usize>),
    Lost,
}

/// The largest size from `least` to `most` that is answered, and whether one that is not was lost without a word.
fn bisect(
    least: usize,
    most: usize,
    mut attempt: impl FnMut(usize) -> Result<Tried>,
) -> Result<(Option<usize>, bool)> {
    let (mut answered, mut refused, mut lost) = (None, most + 1, false);
    let mut size = most;
    while answered.map_or(least, |size| size + 1) < refused {
        let mut hint = None;
        match attempt(size)? {
            Tried::Answered => answered = Some(size),
            Tried::TooBig(mtu) => {
                refused = size;
                hint = mtu;
            }
            Tried::Lost => {
                (refused, lost) = (size, true);
            }
        }
        let floor = answered.map_or(least, |size| size + 1);
        // Somebody's word is tried first.
        size = hint
            .filter(|mtu| (floor..refused).contains(mtu))
            .unwrap_or(floor.midpoint(refused.saturating_sub(1)));
    }
    Ok((answered, lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(limit: usize, told: bool) -> (Option<usize>, bool, usize) {
        let mut attempts = 0;
        let (largest, lost) = bisect(68, 1450, |size| {
            attempts += 1;
            Ok(match size <= limit {
                true => Tried::Answered,
                false if told => Tried::TooBig(Some(limit)),
                false => Tried::Lost,
            })
        })
        .expect("no error");
        (largest, lost, attempts)
    }

    #[test]
    fn the_largest_size_is_found_wherever_it_is() {
        assert_eq!(found(9000, false), (Some(1450), false, 1));
        for limit in [68, 69, 576, 1350, 1400, 1449] {
            let (largest, lost, attempts) = found(limit, false);
            assert_eq!((largest, lost), (Some(limit), true));
            assert!(attempts <= 13, "{attempts} for {limit}");
        }
        assert_eq!(found(67, false).0, None);
    }

    #[test]
    fn who_says_what_fits_is_believed_at_once() {
        let (largest, lost, attempts) = found(1400, true);
        assert_eq!((largest, lost), (Some(1400), false));
        assert!(attempts <= 8, "{attempts}");
    }
}
