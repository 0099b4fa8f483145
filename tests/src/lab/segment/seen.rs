//! Which frames come by at hosts.

use std::time::Duration;

use anyhow::Result;

use super::SegmentLab;
use crate::lab::traffic::Capture;

/// After what time all that was sent has come.
const QUIET: Duration = Duration::from_millis(200);

impl SegmentLab {
    /// How many frames with `payload` come by at the hosts of each of `tenants` while `work` runs. What a
    /// host sends itself counts, too.
    ///
    /// # Errors
    /// Frames cannot be captured, or `work` fails.
    pub fn frames_seen<const N: usize>(
        &self,
        tenants: [&str; N],
        payload: &[u8],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<[usize; N]> {
        let mut captures = Vec::new();
        for (index, tenant) in tenants.into_iter().enumerate() {
            for host in self.hosts(tenant) {
                captures.push((index, Capture::start(host, "eth0")?));
            }
        }
        work()?;
        std::thread::sleep(QUIET);
        let mut seen = [0; N];
        for (index, capture) in captures {
            seen[index] += capture.pending()?.iter().filter(|frame| frame.carries(payload)).count();
        }
        Ok(seen)
    }
}
