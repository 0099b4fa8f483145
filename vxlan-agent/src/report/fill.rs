//! How full the maps are.

use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::gauge::ConstGauge;
use vxlan_ebpf_common::maps::names;

use super::facts::Facts;
use super::family::{Labels, family};
use crate::datapath::Meter;

pub(super) fn encode(e: &mut DescriptorEncoder<'_>, facts: &Facts, meter: &Meter) -> Result<(), Error> {
    // The agent writes all but FLOWS, and knows what is there.
    let known = facts.used.iter().map(|(map, used)| (*map, *used as u64));
    let used: Vec<_> = known.chain(meter.flows().ok().map(|flows| (names::FLOWS, flows))).collect();
    let places = meter.places();
    let is_counted = |map: &str| used.iter().any(|(counted, _)| *counted == map);
    let of = |map| -> Labels<'_, 1> { [("map", map)] };
    family(
        e,
        "map_entries",
        "Entries of a BPF map; FLOWS, if it has many, within a few percent",
        used.iter().map(|(map, used)| (of(map), ConstGauge::new(*used))),
    )?;
    let places = places.iter().filter(|(map, _)| is_counted(map));
    family(
        e,
        "map_max_entries",
        "Entries that a BPF map has room for",
        places.map(|(map, places)| (of(map), ConstGauge::new(*places))),
    )
}
