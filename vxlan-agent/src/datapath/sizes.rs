//! How many places the maps have that grow with the cluster or the number of networks.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use vxlan_ebpf_common::counters::CELLS_PER_NETWORK;
use vxlan_ebpf_common::maps::{
    DEFAULT_NETWORKS, DEFAULT_VTEPS, MAX_ENDPOINTS, MAX_NETWORKS, MAX_ROUTES, names,
};

/// More than this no map gets, however many nodes there are: what does not fit is the kernel's.
const MOST: u32 = 1 << 22;

/// Places in STATIONS where there are segments. The kernel takes memory for those that are used.
const MAX_STATIONS: u32 = 1 << 18;

/// From so many networks on, there is room for an eighth more of them instead of twice as many.
const MANY_NETWORKS: usize = 512;

/// Places for networks, nodes, prefixes and stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    networks: u32,
    vteps: u32,
    routes: u32,
    stations: u32,
}

impl Sizes {
    /// For so many `networks` with together so many `nodes` and so many `prefixes` of one IP version: twice as
    /// many and more, since a node that replaces another gets its place before the other loses its own.
    pub fn of(networks: usize, nodes: usize, prefixes: usize) -> Self {
        let twice = |count: usize, least: u32| {
            let places = count.saturating_mul(2).saturating_add(1).checked_next_power_of_two();
            let places = places.and_then(|places| u32::try_from(places).ok());
            places.unwrap_or(MOST).clamp(least, MOST)
        };
        let networks = if networks < MANY_NETWORKS {
            twice(networks, DEFAULT_NETWORKS)
        } else {
            // Each has counters, which are the largest of all.
            let more = networks.min(MAX_NETWORKS as usize);
            let more = (more + more / 8).next_multiple_of(MANY_NETWORKS);
            u32::try_from(more).unwrap_or(MAX_NETWORKS).min(MAX_NETWORKS)
        };
        let vteps = twice(nodes, DEFAULT_VTEPS);
        Self { networks, vteps, routes: twice(prefixes, MAX_ROUTES), stations: vteps }
    }

    /// With room for the stations of segments, if there are any: who comes there nobody knows beforehand.
    pub const fn with_segments(self, any: bool) -> Self {
        let more = any && self.stations < MAX_STATIONS;
        Self { stations: if more { MAX_STATIONS } else { self.stations }, ..self }
    }

    /// How many stations of segments are written, beside `others`; those beyond are the kernel's. Half of the
    /// places, since one that replaces another gets its place first.
    pub const fn most_stations(self, others: usize) -> usize {
        (self.stations as usize).saturating_sub(others) / 2
    }

    /// Maps by name, and their places.
    pub(super) const fn places(self) -> [(&'static str, u32); 12] {
        // Of each network the device and some ports.
        let links = 4 * self.networks;
        [
            (names::NETWORKS, self.networks),
            (names::SWITCH, 2 * self.networks),
            (names::VNIS, self.networks),
            (names::LINKS, if links > MAX_ENDPOINTS { links } else { MAX_ENDPOINTS }),
            (names::COUNTERS, CELLS_PER_NETWORK * self.networks),
            (names::VTEPS, self.vteps),
            (names::VTEP_IDS, self.vteps),
            (names::STATIONS, self.stations),
            (names::ROUTES4, self.routes),
            (names::ROUTES6, self.routes),
            (names::SUBNETS4, self.routes),
            (names::SUBNETS6, self.routes),
        ]
    }

    /// Maps in `dir` with fewer places.
    pub(super) fn exceeded(self, dir: &Path) -> Result<Vec<&'static str>> {
        let mut exceeded = vec![];
        for (name, places) in self.places() {
            let pin = dir.join(name);
            let known = pin.exists().then(|| MapInfo::from_pin(&pin)).transpose();
            let known = known.with_context(|| format!("cannot read {name}"))?;
            if known.is_some_and(|map| map.max_entries() < places) {
                exceeded.push(name);
            }
        }
        Ok(exceeded)
    }

    /// Whether what these are made for fits into maps that `other` was made for.
    pub fn fit(self, other: Self) -> bool {
        self.networks <= other.networks
            && self.vteps <= other.vteps
            && self.routes <= other.routes
            && self.stations <= other.stations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_room_for_many_stations() {
        let alone = Sizes::of(1, 1, 1);
        let segments = alone.with_segments(true);
        assert_eq!((alone.with_segments(false), alone.stations), (alone, DEFAULT_VTEPS));
        assert_eq!(segments.most_stations(0), 1 << 17);
        assert_eq!(segments.most_stations(usize::MAX), 0);
        assert!(alone.fit(segments) && !segments.fit(alone));
        let many = Sizes::of(1, 200_000, 1);
        assert_eq!(many.with_segments(true), many);
    }

    #[test]
    fn there_is_room_for_twice_the_cluster_and_never_less_than_usual() {
        let networks = DEFAULT_NETWORKS;
        assert_eq!(
            Sizes::of(0, 0, 0),
            Sizes { networks, vteps: DEFAULT_VTEPS, routes: MAX_ROUTES, stations: DEFAULT_VTEPS }
        );
        assert_eq!(Sizes::of(1, 8_191, 0).vteps, 16_384);
        assert_eq!(
            Sizes::of(1, 8_192, 65_536),
            Sizes { networks, vteps: 32_768, routes: 262_144, stations: 32_768 }
        );
        assert_eq!(Sizes::of(1, 20_000, 20_000).vteps, 65_536);
        let most = Sizes::of(usize::MAX, usize::MAX, usize::MAX);
        assert_eq!(most, Sizes { networks: MAX_NETWORKS, vteps: MOST, routes: MOST, stations: MOST });
        assert_eq!([511, 512, 4_096].map(|n| Sizes::of(n, 1, 1).networks), [1_024, 1_024, 4_608]);
        assert!(
            Sizes::of(7, 100, 100).fit(Sizes::of(1, 1, 1))
                && !Sizes::of(1, 20_000, 1).fit(Sizes::of(1, 1, 1))
        );
        assert!(!Sizes::of(8, 1, 1).fit(Sizes::of(1, 1, 1)));
    }
}
