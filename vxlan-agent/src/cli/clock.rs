//! The time of what programs report, which have no other clock than `CLOCK_MONOTONIC`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// How far the two clocks are apart.
pub(super) struct Clock {
    /// The time since 1970 when `CLOCK_MONOTONIC` was zero.
    epoch: Duration,
}

impl Clock {
    /// As it is now.
    ///
    /// # Errors
    /// The clock is set to before the machine was started, in 1970.
    pub(super) fn now() -> Result<Self> {
        let read = |clock| clock_gettime(clock).map(Duration::from);
        let (wall, monotonic) = (read(ClockId::CLOCK_REALTIME)?, read(ClockId::CLOCK_MONOTONIC)?);
        let epoch = wall.checked_sub(monotonic).context("the clock is set to 1970")?;
        Ok(Self { epoch })
    }

    /// Since 1970, of a program's time.
    pub(super) fn since_1970(&self, monotonic: u64) -> Duration {
        self.epoch + Duration::from_nanos(monotonic)
    }

    fn at(&self, monotonic: u64) -> Timestamp {
        let nanoseconds = i128::try_from(self.since_1970(monotonic).as_nanos()).unwrap_or(i128::MAX);
        Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::MAX)
    }

    /// As RFC 3339 has it, in UTC.
    pub(super) fn timestamp(&self, monotonic: u64) -> String {
        self.at(monotonic).to_string()
    }

    /// Hours, minutes, seconds and microseconds in UTC.
    pub(super) fn time_of_day(&self, monotonic: u64) -> String {
        self.at(monotonic).strftime("%H:%M:%S.%6f").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_utc() {
        let clock = Clock { epoch: Duration::from_secs(1_700_000_000) };
        assert_eq!(clock.timestamp(1_500_000_001), "2023-11-14T22:13:21.500000001Z");
        assert_eq!(clock.time_of_day(1_500_000_001), "22:13:21.500000");
    }
}
