//! Packets and bytes: what the programs have counted.

use std::collections::BTreeMap;
use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use vxlan_ebpf_common::maps::{Counter, NO_NETWORK, Network};
use vxlan_ebpf_common::{Disposition, Hook, Reason};

use super::facts::Facts;
use super::family::{Labels, counter, family};
use crate::datapath::Meter;

/// The network of packets that are nobody's.
const NOBODY: &str = "-";

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Fast,
    Kernel,
    Drop,
}

impl Path {
    /// What becomes of packets that `hook` of `network` has counted for `reason`, as it is configured now.
    fn of(network: Option<&Network>, hook: Hook, reason: Reason) -> Self {
        match reason.disposition() {
            Disposition::Forwarded => Self::Fast,
            _ if network.is_some_and(|network| network.drops(hook, reason)) => Self::Drop,
            _ => Self::Kernel,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::Drop => "drop",
        }
    }
}

/// Whether the packets of a hook leave this node's pods, or come to them.
const fn direction(hook: Hook) -> &'static str {
    match hook {
        Hook::PodEgress | Hook::TunnelEgress | Hook::PortIngress => "out",
        Hook::UnderlayIngress
        | Hook::TunnelIngress
        | Hook::PodIngress
        | Hook::StrippedIngress
        | Hook::UnderlayXdp => "in",
    }
}

/// Whether packets with `reason` at `hook` are at the place where they go into the tunnel or come out of it, so that
/// each is counted once, whichever programs see it before or after.
fn is_at_tunnel(hook: Hook, reason: Reason, path: Path) -> bool {
    match (hook, path) {
        (_, Path::Drop) => true,
        (_, Path::Fast) if reason == Reason::Encapsulated => true,
        // What a program does not encapsulate, the device does. On ports the program only looks.
        (Hook::TunnelEgress, Path::Kernel) => reason != Reason::Passed,
        // What XDP takes out of its tunnel, and what TC leaves to the device, another program sees again.
        (Hook::UnderlayIngress, Path::Fast) => true,
        (Hook::StrippedIngress | Hook::TunnelIngress, _) => true,
        _ => false,
    }
}

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
    let mut rows = vec![];
    for (name, entry) in known.chain([(NOBODY, None)]) {
        let id = entry.map_or(NO_NETWORK, |entry| entry.id);
        let counted =
            meter.counters(id).inspect_err(|error| tracing::debug!("{error:#}")).unwrap_or_default();
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
    tunnel(e, &rows)
}

/// Those packets that go through the tunnel, each once.
fn tunnel(e: &mut DescriptorEncoder<'_>, rows: &[Row<'_>]) -> Result<(), Error> {
    let mut sums = BTreeMap::<_, Counter>::new();
    for row in rows.iter().filter(|row| row.network != NOBODY && is_at_tunnel(row.hook, row.reason, row.path))
    {
        let sum = sums.entry((row.network, direction(row.hook), row.path)).or_default();
        sum.packets += row.counter.packets;
        sum.bytes += row.counter.bytes;
    }
    family(
        e,
        "tunnel_packets",
        "Packets into and out of the tunnel, each once: encapsulated by a program or by the kernel, delivered by a \
         program or by the kernel, or dropped",
        sums.iter().map(|(key, sum)| (of_tunnel(*key), counter(sum.packets))),
    )?;
    family(
        e,
        "tunnel_bytes",
        "Bytes of those packets as they were found: with outer headers where a program takes them off",
        sums.iter().map(|(key, sum)| (of_tunnel(*key), counter(sum.bytes))),
    )
}

fn of_tunnel<'n>((network, direction, path): (&'n str, &'static str, Path)) -> Labels<'n, 3> {
    [("network", network), ("direction", direction), ("path", path.label())]
}

#[cfg(test)]
mod tests {
    use vxlan_ebpf_common::maps::{DROP_MALFORMED, TOLERATE_VIOLATIONS};

    use super::*;

    #[test]
    fn what_becomes_of_a_packet_is_what_the_network_is_configured_for() {
        let of = |flags, hook, reason| Path::of(Some(&Network { flags, ..Network::default() }), hook, reason);
        let hook = Hook::UnderlayIngress;
        assert_eq!(of(0, hook, Reason::Decapsulated), Path::Fast);
        assert_eq!(of(0, hook, Reason::Aggregate), Path::Kernel);
        assert_eq!(of(0, hook, Reason::UnknownVtep), Path::Drop);
        assert_eq!(of(TOLERATE_VIOLATIONS, hook, Reason::UnknownVtep), Path::Kernel);
        assert_eq!(of(0, hook, Reason::BadChecksum), Path::Kernel);
        assert_eq!(of(DROP_MALFORMED, hook, Reason::BadChecksum), Path::Drop);
        assert_eq!(Path::of(None, hook, Reason::OtherVni), Path::Kernel, "nobody's");
    }

    /// The ways of a packet, as the hooks that count it and for what; each is one packet of the tunnel.
    #[test]
    fn every_packet_of_the_tunnel_is_counted_once_whichever_programs_see_it() {
        use Hook::*;
        let ways: [&[(Hook, Reason)]; 10] = [
            &[(PodEgress, Reason::Encapsulated)],
            &[(PodEgress, Reason::Unverified), (TunnelEgress, Reason::Encapsulated)],
            &[(PodEgress, Reason::TooBig), (TunnelEgress, Reason::Fragment)],
            &[(PortIngress, Reason::Encapsulated)],
            &[(PortIngress, Reason::Flooded), (TunnelEgress, Reason::Flooded)],
            &[(UnderlayIngress, Reason::Decapsulated)],
            &[(UnderlayIngress, Reason::HandedOver), (TunnelIngress, Reason::Unverified)],
            &[(UnderlayXdp, Reason::Decapsulated), (StrippedIngress, Reason::Delivered)],
            &[
                (UnderlayXdp, Reason::Fragment),
                (UnderlayIngress, Reason::Fragment),
                (TunnelIngress, Reason::NotIp),
            ],
            &[
                (UnderlayIngress, Reason::Aggregate),
                (TunnelIngress, Reason::Unverified),
                (PodIngress, Reason::Passed),
            ],
        ];
        let counted =
            |(hook, reason): &&(Hook, Reason)| is_at_tunnel(*hook, *reason, Path::of(None, *hook, *reason));
        for way in ways {
            assert_eq!(way.iter().filter(counted).count(), 1, "{way:?}");
        }
        let local: [&[(Hook, Reason)]; 3] = [
            &[(PodEgress, Reason::Routed)],
            &[(PodEgress, Reason::NoRoute)],
            &[(PortIngress, Reason::UnknownStation), (TunnelEgress, Reason::Passed)],
        ];
        for way in local {
            assert_eq!(way.iter().filter(counted).count(), 0, "{way:?}");
        }
    }
}
