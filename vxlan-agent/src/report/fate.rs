//! What counters say of packets: what became of them, which way they went, and which of them went through the tunnel.

use std::collections::BTreeMap;

use vxlan_ebpf_common::maps::{Counter, Network};
use vxlan_ebpf_common::{Disposition, Hook, Reason};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// A program has forwarded it.
    Fast,
    /// It was left to the kernel.
    Kernel,
    /// A program has dropped it.
    Drop,
}

impl Path {
    /// What becomes of packets that `hook` of `network` has counted for `reason`, as it is configured now.
    pub(crate) fn of(network: Option<&Network>, hook: Hook, reason: Reason) -> Self {
        match reason.disposition() {
            Disposition::Forwarded => Self::Fast,
            _ if network.is_some_and(|network| network.drops(hook, reason)) => Self::Drop,
            _ => Self::Kernel,
        }
    }

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::Drop => "drop",
        }
    }
}

/// Whether the packets of a hook leave this node's pods, or come to them.
pub(crate) const fn direction(hook: Hook) -> &'static str {
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
        // The bridge behind the device gets it, where it is counted again.
        (Hook::StrippedIngress, _) => reason != Reason::HandedOver,
        (Hook::TunnelIngress, _) => true,
        _ => false,
    }
}

/// Packets into and out of the tunnel, each once, by direction and path.
pub(crate) type Tunnel = BTreeMap<(&'static str, Path), Counter>;

/// What of the counters of `network` is packets of the tunnel.
pub(crate) fn tunnel(network: Option<&Network>, counters: &[(Hook, Reason, Counter)]) -> Tunnel {
    let mut sums = Tunnel::new();
    for (hook, reason, counter) in counters {
        let path = Path::of(network, *hook, *reason);
        if is_at_tunnel(*hook, *reason, path) {
            let sum = sums.entry((direction(*hook), path)).or_default();
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        }
    }
    sums
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
        let ways: [&[(Hook, Reason)]; 11] = [
            &[(PodEgress, Reason::Encapsulated)],
            &[(PodEgress, Reason::Unverified), (TunnelEgress, Reason::Encapsulated)],
            &[(PodEgress, Reason::TooBig), (TunnelEgress, Reason::Fragment)],
            &[(PortIngress, Reason::Encapsulated)],
            &[(PortIngress, Reason::Flooded), (TunnelEgress, Reason::Flooded)],
            &[(UnderlayIngress, Reason::Decapsulated)],
            &[(UnderlayIngress, Reason::HandedOver), (TunnelIngress, Reason::Unverified)],
            &[(UnderlayXdp, Reason::Decapsulated), (StrippedIngress, Reason::Delivered)],
            &[
                (UnderlayXdp, Reason::Decapsulated),
                (StrippedIngress, Reason::HandedOver),
                (TunnelIngress, Reason::Moved),
            ],
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
