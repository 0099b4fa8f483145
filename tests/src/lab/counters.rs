//! What the programs counted, by hook and reason.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Sub;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// One counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; an aggregate counts once.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A snapshot of all counters. Two subtract: `after - before`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(String, String), Count>);

#[derive(Deserialize)]
struct Row {
    hook: String,
    reason: String,
    packets: u64,
    bytes: u64,
}

impl Counters {
    /// From what `vxlan-agent dump counters --json` prints.
    ///
    /// # Errors
    /// It is not a list of `{hook, reason, packets, bytes}`.
    pub fn parse(json: &Value) -> Result<Self> {
        let rows: Vec<Row> = Deserialize::deserialize(json).context("these are no counters")?;
        let mut cells = BTreeMap::<_, Count>::new();
        for row in rows {
            // Of several networks.
            let count = cells.entry((row.hook, row.reason)).or_default();
            count.packets += row.packets;
            count.bytes += row.bytes;
        }
        Ok(Self(cells))
    }

    /// The counter of `reason` at `hook`, by their labels: `("pod_egress", "encapsulated")`.
    pub fn get(&self, hook: &str, reason: &str) -> Count {
        self.0.get(&(hook.to_owned(), reason.to_owned())).copied().unwrap_or_default()
    }

    /// Packets of `reason` at `hook`.
    pub fn packets(&self, hook: &str, reason: &str) -> u64 {
        self.get(hook, reason).packets
    }

    /// Packets of `reason` at all hooks together.
    pub fn total(&self, reason: &str) -> u64 {
        self.iter().filter(|(_, r, _)| *r == reason).map(|(_, _, count)| count.packets).sum()
    }

    /// Hook, reason and count of everything that was counted at least once.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Count)> {
        let seen = self.0.iter().filter(|(_, count)| count.packets > 0);
        seen.map(|((hook, reason), count)| (hook.as_str(), reason.as_str(), *count))
    }
}

impl Sub for &Counters {
    type Output = Counters;

    fn sub(self, before: &Counters) -> Counters {
        let less = |(key, now): (&(String, String), &Count)| {
            let then = before.0.get(key).copied().unwrap_or_default();
            let packets = now.packets.saturating_sub(then.packets);
            (key.clone(), Count { packets, bytes: now.bytes.saturating_sub(then.bytes) })
        };
        Counters(self.0.iter().map(less).collect())
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (hook, reason, count) in self.iter() {
            writeln!(f, "{hook:<17} {reason:<16} {:>10} packets", count.packets)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_subtract_by_hook_and_reason() {
        let at = |packets| {
            let row = serde_json::json!({
                "hook": "pod_egress", "reason": "encapsulated", "packets": packets, "bytes": packets * 100
            });
            Counters::parse(&serde_json::json!([row])).expect("well-formed")
        };
        let delta = &at(7) - &at(3);
        assert_eq!(delta.get("pod_egress", "encapsulated"), Count { packets: 4, bytes: 400 });
        assert_eq!(delta.total("encapsulated"), 4);
        assert_eq!(delta.packets("tunnel_egress", "encapsulated"), 0);
    }
}
