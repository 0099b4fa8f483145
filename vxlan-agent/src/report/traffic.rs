//! Packets and bytes: what the programs have counted.

use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use vxlan_ebpf_common::maps::{Counter, NO_NETWORK};
use vxlan_ebpf_common::{Hook, Reason};

use super::facts::Facts;
use super::family::{Labels, counter, family};
use super::fate::{Path, direction, tunnel};
use crate::datapath::Meter;

/// The network of packets that are nobody's.
const NOBODY: &str = "-";

struct Row<'t> {
    network: &'t str,
    hook: Hook,
    reason: Reason,
    path: Path,
    counter: Counter,
}

impl<'t> Row<'t> {
    fn labels(&self) -> Labels<'t, 5> {
        [
            ("network", self.network),
            ("direction", direction(self.hook)),
            ("hook", self.hook.label()),
            ("path", self.path.label()),
            ("reason", self.reason.label()),
        ]
    }
}

pub(super) fn encode(e: &mut DescriptorEncoder<'_>, facts: &Facts, meter: &Meter) -> Result<(), Error> {
    let known =
        facts.networks.iter().filter_map(|network| Some((network.name.as_str(), Some(network.entry?))));
    let (mut rows, mut through) = (vec![], vec![]);
    for (name, entry) in known.chain([(NOBODY, None)]) {
        let id = entry.map_or(NO_NETWORK, |entry| entry.id);
        let counted =
            meter.counters(id).inspect_err(|error| tracing::debug!("{error:#}")).unwrap_or_default();
        if let Some(entry) = &entry {
            through.extend(tunnel(Some(entry), &counted).into_iter().map(|(key, sum)| (name, key, sum)));
        }
        rows.extend(counted.into_iter().map(|(hook, reason, counter)| {
            let path = Path::of(entry.as_ref(), hook, reason);
            Row { network: name, hook, reason, path, counter }
        }));
    }
    family(
        e,
        "packets",
        "Packets that a program saw, by what became of them and why; an aggregate counts once",
        rows.iter().map(|row| (row.labels(), counter(row.counter.packets))),
    )?;
    family(
        e,
        "bytes",
        "Bytes of those packets, from the Ethernet header on",
        rows.iter().map(|row| (row.labels(), counter(row.counter.bytes))),
    )?;
    of_tunnel(e, &through)
}

/// The network, direction, path, and how many.
type Through<'n> = (&'n str, (&'static str, Path), Counter);

/// Those packets that go through the tunnel, each once.
fn of_tunnel(e: &mut DescriptorEncoder<'_>, through: &[Through<'_>]) -> Result<(), Error> {
    family(
        e,
        "tunnel_packets",
        "Packets into and out of the tunnel, each once: encapsulated by a program or by the kernel, delivered by a \
         program or by the kernel, or dropped",
        through.iter().map(|row| (labels(row), counter(row.2.packets))),
    )?;
    family(
        e,
        "tunnel_bytes",
        "Bytes of those packets as they were found: with outer headers where a program takes them off",
        through.iter().map(|row| (labels(row), counter(row.2.bytes))),
    )
}

fn labels<'n>((network, (direction, path), _): &Through<'n>) -> Labels<'n, 3> {
    [("network", network), ("direction", direction), ("path", path.label())]
}
