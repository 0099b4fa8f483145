//! The fast path as its pins show it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Counter, NetworkId, endpoint};

use super::peers::Peers;
use crate::datapath::{Attachment, DatapathState, Meter, Pins};
use crate::kernel::Reach;
use crate::net::interface_name;
use crate::report::fate;

#[derive(Default, Serialize)]
pub(super) struct FastpathReport {
    /// Whether anything is pinned.
    pub(super) pinned: bool,
    /// Why the pins cannot be read.
    pub(super) error: Option<String>,
    /// As set by `fastpath on|off`.
    pub(super) switched_on: Option<bool>,
    /// Programs on interfaces.
    pub(super) attachments: Vec<AttachmentReport>,
    pub(super) routes: usize,
    pub(super) vteps: usize,
    pub(super) endpoints: usize,
    /// Addresses that more than one pod claims.
    pub(super) disputed: Vec<IpAddr>,
    /// Ends of other nodes' tunnels, and who leads there.
    pub(super) peers: Peers,
    /// Packets through the tunnel since the network's counters began, by direction.
    pub(super) tunnel: BTreeMap<&'static str, Share>,
}

#[derive(Serialize)]
pub(super) struct AttachmentReport {
    pub(super) hook: &'static str,
    pub(super) ifindex: u32,
    /// What the interface is called in this network namespace.
    pub(super) interface: String,
}

/// Packets of one direction, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Share {
    pub(super) fast: u64,
    pub(super) kernel: u64,
    pub(super) drop: u64,
}

impl Share {
    pub(super) const fn all(self) -> u64 {
        self.fast + self.kernel + self.drop
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            fast: self.fast + other.fast,
            kernel: self.kernel + other.kernel,
            drop: self.drop + other.drop,
        }
    }

    /// How many of hundred took the fast path, in words; none where there were no packets.
    pub(super) fn percent(self) -> Option<String> {
        let all = self.all();
        (all != 0).then(|| format!("{:.1} %", self.fast as f64 * 100.0 / all as f64))
    }
}

/// Pins that cannot be read are something to report, not a reason to report nothing.
pub(super) fn read(dir: &Path, reach: &Reach) -> (FastpathReport, BTreeMap<String, FastpathReport>) {
    if !dir.is_dir() {
        return Default::default();
    }
    read_pins(dir, reach).unwrap_or_else(|error| {
        let error = Some(format!("{error:#}"));
        (FastpathReport { pinned: true, error, ..FastpathReport::default() }, BTreeMap::new())
    })
}

fn read_pins(
    dir: &Path,
    reach: &Reach,
) -> anyhow::Result<(FastpathReport, BTreeMap<String, FastpathReport>)> {
    let pins = Pins::open(dir)?;
    let meter = Meter::open(dir)?;
    let (state, mut each, mut all_on) = (pins.state()?, BTreeMap::new(), true);
    let mut tunnel = BTreeMap::<_, Share>::new();
    for (id, network) in &state.networks {
        let on = pins.switched_on(*id)?;
        all_on &= on;
        let own = through(&meter, &state, *id)?;
        own.iter().for_each(|(way, share)| {
            let sum = tunnel.entry(*way).or_default();
            *sum = sum.plus(*share);
        });
        let report = FastpathReport { tunnel: own, ..report(on, &state.of(*id), reach) };
        each.insert(network.name().unwrap_or_default().to_owned(), report);
    }
    Ok((FastpathReport { tunnel, ..report(all_on, &state, reach) }, each))
}

/// Packets through the tunnel of a network, by direction.
fn through(
    meter: &Meter,
    state: &DatapathState,
    id: NetworkId,
) -> anyhow::Result<BTreeMap<&'static str, Share>> {
    let counters = meter.counters(id)?;
    let mut shares = BTreeMap::<_, Share>::new();
    for ((direction, path), Counter { packets, .. }) in fate::tunnel(state.networks.get(&id), &counters) {
        let share = shares.entry(direction).or_default();
        *match path {
            fate::Path::Fast => &mut share.fast,
            fate::Path::Kernel => &mut share.kernel,
            fate::Path::Drop => &mut share.drop,
        } += packets;
    }
    Ok(shares)
}

fn report(switched_on: bool, state: &DatapathState, reach: &Reach) -> FastpathReport {
    let attachment = |&Attachment { hook, ifindex }: &Attachment| AttachmentReport {
        hook: Hook::label(hook),
        ifindex,
        interface: interface_name(ifindex),
    };
    let disputed = state.endpoints.iter().filter(|(_, pod)| pod.flags & endpoint::DISPUTED != 0);
    FastpathReport {
        pinned: true,
        error: None,
        switched_on: Some(switched_on),
        attachments: state.attachments.iter().map(attachment).collect(),
        routes: state.routes.len(),
        vteps: state.vteps.len(),
        endpoints: state.endpoints.len(),
        disputed: disputed.map(|((_, address), _)| *address).collect(),
        peers: Peers::of(state, reach),
        tunnel: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_all_packets_and_of_none_there_is_none() {
        assert_eq!(Share::default().percent(), None);
        let share = Share { fast: 985, kernel: 10, drop: 5 };
        assert_eq!(share.percent().as_deref(), Some("98.5 %"));
    }
}
