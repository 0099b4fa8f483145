//! The agent, its networks and their sources.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use vxlan_ebpf_common::maps::LAYOUT_VERSION;

use super::facts::{Facts, NetworkFacts};
use super::family::{Labels, family, flag, number, since_1970, single};
use crate::datapath::Meter;

pub(super) fn encode(
    e: &mut DescriptorEncoder<'_>,
    facts: &Facts,
    meter: Option<&Meter>,
) -> Result<(), Error> {
    agent(e, facts, meter.is_some())?;
    networks(e, facts)?;
    sources(e, facts)?;
    let Some(meter) = meter else { return Ok(()) };
    let switched = |network: &NetworkFacts| meter.switched_on(network.entry?.id).ok();
    let rows = facts.networks.iter().filter_map(|network| Some((of(network), flag(switched(network)?))));
    family(
        e,
        "fastpath_switched_on",
        "Whether the fast path of a network is let run (vxlan-agent fastpath)",
        rows,
    )
}

fn agent(e: &mut DescriptorEncoder<'_>, facts: &Facts, loaded: bool) -> Result<(), Error> {
    let layout = LAYOUT_VERSION.to_string();
    let build: Labels<'_, 3> =
        [("version", env!("CARGO_PKG_VERSION")), ("map_layout", &layout), ("kernel", &facts.kernel)];
    family(
        e,
        "build_info",
        "The agent's version, that of its maps, and the kernel's release",
        [(build, flag(true))],
    )?;
    single(e, "fastpath_loaded", "Whether programs and maps are there", flag(loaded))?;
    single(
        e,
        "configuration_refused",
        "Whether the configuration as it is now was refused; the one before is in force",
        flag(facts.config_refused),
    )?;
    single(e, "reconcile_failing", "Whether nothing could be done in the last round", flag(facts.failed))?;
    single(e, "retrying_changes", "Changes that failed and are being tried again", number(facts.retrying))?;
    single(
        e,
        "unreported_networks",
        "Networks beyond the first 256, of which there are no metrics",
        number(facts.unreported),
    )
}

fn networks(e: &mut DescriptorEncoder<'_>, facts: &Facts) -> Result<(), Error> {
    let mut info = e.encode_descriptor(
        "network_info",
        "Kind, mode, VNI and device of a network",
        None,
        flag(true).metric_type(),
    )?;
    for network in &facts.networks {
        let vni = network.vni.map(|vni| vni.to_string()).unwrap_or_default();
        let labels: Labels<'_, 5> = [
            ("network", &network.name),
            ("kind", network.kind),
            ("mode", network.mode),
            ("vni", &vni),
            ("device", &network.device),
        ];
        flag(true).encode(info.encode_family(&labels)?)?;
    }
    let mut each = |name, help, value: &dyn Fn(&NetworkFacts) -> usize| {
        family(e, name, help, facts.networks.iter().map(|network| (of(network), number(value(network)))))
    };
    each("network_ready", "Whether a network runs as the newest cluster state asks for", &|n| {
        n.ready.into()
    })?;
    each("nodes", "Other nodes of a network", &|n| n.nodes)?;
    each("vteps", "VTEPs of those nodes", &|n| n.vteps)?;
    each("attached_interfaces", "Interfaces of pods, or ports of a segment, with a program", &|n| {
        n.interfaces
    })?;
    each(
        "endpoints",
        "Addresses of local pods, or a segment's stations, that are known to the fast path",
        &|n| n.endpoints,
    )?;
    each("metering_rules", "Packet filter rules because of which no flow bypasses the host stack", &|n| {
        n.meters
    })?;
    each(
        "foreign_hooks",
        "Queueing disciplines, filters and programs of others because of which packets are left to the kernel",
        &|n| n.foreign,
    )
}

fn sources(e: &mut DescriptorEncoder<'_>, facts: &Facts) -> Result<(), Error> {
    let all = || facts.networks.iter();
    let connected = all().map(|network| {
        let labels: Labels<'_, 2> = [("network", &network.name), ("source", network.source)];
        (labels, flag(network.contact.is_made()))
    });
    family(e, "source_connected", "Whether the source of a network's cluster state answers", connected)?;
    family(
        e,
        "source_refused",
        "Whether the newest cluster state was refused; the one before is in force",
        all().map(|network| (of(network), flag(network.refused))),
    )?;
    family(
        e,
        "source_snapshot_time_seconds",
        "When the cluster state in force came from the source, in seconds since 1970",
        all().filter_map(|network| Some((of(network), ConstGauge::new(since_1970(network.snapshot?)?)))),
    )
}

/// The label that says which network.
fn of(network: &NetworkFacts) -> Labels<'_, 1> {
    [("network", &network.name)]
}
