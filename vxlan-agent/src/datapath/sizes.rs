//! How many places the maps have in which a cluster of many nodes has many entries.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use vxlan_ebpf_common::maps::{DEFAULT_VTEPS, MAX_ROUTES, names};

/// More than this no map gets, however many nodes there are: what does not fit is the kernel's.
const MOST: u32 = 1 << 22;

/// Places for nodes and for prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    vteps: u32,
    routes: u32,
}

impl Sizes {
    /// For a cluster of so many `nodes`, with so many `prefixes` of one IP version: twice as many and more,
    /// since a node that replaces another gets its place before the other loses its own.
    pub fn of(nodes: usize, prefixes: usize) -> Self {
        let twice = |count: usize, least: u32| {
            let places = count.saturating_mul(2).saturating_add(1).checked_next_power_of_two();
            let places = places.and_then(|places| u32::try_from(places).ok());
            places.unwrap_or(MOST).clamp(least, MOST)
        };
        Self { vteps: twice(nodes, DEFAULT_VTEPS), routes: twice(prefixes, MAX_ROUTES) }
    }

    /// Maps by name, and their places.
    pub(super) const fn places(self) -> [(&'static str, u32); 5] {
        [
            (names::VTEPS, self.vteps),
            (names::VTEP_IDS, self.vteps),
            (names::MACS, self.vteps),
            (names::ROUTES4, self.routes),
            (names::ROUTES6, self.routes),
        ]
    }

    /// Whether there is a map in `dir` with fewer places.
    pub(super) fn exceed(self, dir: &Path) -> Result<bool> {
        for (name, places) in self.places() {
            let pin = dir.join(name);
            let known = pin.exists().then(|| MapInfo::from_pin(&pin)).transpose();
            let known = known.with_context(|| format!("cannot read {name}"))?;
            if known.is_some_and(|map| map.max_entries() < places) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether what these are made for fits into maps that `other` was made for.
    pub fn fit(self, other: Self) -> bool {
        self.vteps <= other.vteps && self.routes <= other.routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_twice_the_cluster_and_never_less_than_usual() {
        assert_eq!(Sizes::of(0, 0), Sizes { vteps: DEFAULT_VTEPS, routes: MAX_ROUTES });
        assert_eq!(Sizes::of(8_191, 0).vteps, 16_384);
        assert_eq!(Sizes::of(8_192, 65_536), Sizes { vteps: 32_768, routes: 262_144 });
        assert_eq!(Sizes::of(20_000, 20_000).vteps, 65_536);
        assert_eq!(Sizes::of(usize::MAX, usize::MAX), Sizes { vteps: MOST, routes: MOST });
        assert!(Sizes::of(100, 100).fit(Sizes::of(1, 1)) && !Sizes::of(20_000, 1).fit(Sizes::of(1, 1)));
    }
}
