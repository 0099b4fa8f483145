//! The fast path beside a device that somebody else manages.

use vxlan_ebpf_common::maps::{KERNEL_VTEP, Mode, PARTIAL, local};

use super::{BridgeFilters, Desired, Input, SegmentInput};
use crate::config::{Fastpath, Flood, Segment};
use crate::mirror::Mirror;

/// Without it, packets that return to conntrack from a bypass are invalid to it.
const NOT_TAKEN_BACK: &str = "TCP connections meet the host stack, because conntrack would not take them back: \
                              set net.netfilter.nf_conntrack_tcp_be_liberal to 1, which only you may";

/// Programs can add a checksum to what has one inside, and that is no aggregate.
const WRITES_CHECKSUMS: &str = "aggregates of TCP, and datagrams without a checksum, because the device writes UDP \
                                checksums over IPv4: checksum = false in the configuration leaves them out";

impl Input<'_> {
    /// Whether outer packets over IPv4 get checksums.
    fn sums(&self) -> bool {
        let v4 = self.sides.iter().filter(|side| side.underlay.address.is_ipv4());
        v4.into_iter().any(|side| self.header_flags(side) & local::CHECKSUM != 0)
    }

    /// As [`Input::plan`], for a device that somebody else manages: nothing is desired of the kernel. `mirror` is
    /// what the device does, or why nothing of it can be done here.
    pub fn plan_beside(&self, mirror: &Result<Mirror, String>, filters: BridgeFilters) -> Desired {
        let bridge = mirror.as_ref().ok().and_then(|mirror| mirror.bridge.as_deref());
        let mut desired = match (bridge, self.sides.first()) {
            (Some(bridge), Some(side)) => {
                let segment = &owners_segment(bridge);
                SegmentInput { input: self, segment, side, filters, held: None }.plan()
            }
            _ => self.plan(),
        };
        desired.kernel.clear();
        let path = &mut desired.datapath;
        match mirror {
            Ok(mirror) => {
                path.routes.extend(mirror.holes.iter().map(|to| ((self.id, *to), KERNEL_VTEP)));
                if !(mirror.holes.is_empty() && mirror.left.is_empty()) {
                    // What has no place in the tables has one in the kernel's.
                    path.networks.values_mut().for_each(|network| network.flags |= PARTIAL);
                }
                desired.left.extend(mirror.left.iter().cloned());
                let gaps = bridge.is_none()
                    && self.config.network.fastpath == Fastpath::Verified
                    && !(self.takes_back || self.by_address);
                desired.left.extend(gaps.then(|| NOT_TAKEN_BACK.to_owned()));
                desired.left.extend(self.sums().then(|| WRITES_CHECKSUMS.to_owned()));
            }
            Err(reason) => {
                path.vnis.clear();
                path.networks.values_mut().for_each(|network| network.mode = Mode::Off as u8);
                desired.left.push(reason.clone());
            }
        }
        if !self.is_fast() {
            desired.left.clear();
        }
        desired
    }
}

/// A segment on a bridge that somebody else manages: nothing is asked of it.
fn owners_segment(bridge: &str) -> Segment {
    let (bridge, addresses, flood) = (bridge.to_owned(), vec![], Flood::default());
    Segment { bridge, addresses, flood, learning: true, suppress: false }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use vxlan_ebpf_common::maps::LOCAL_VTEP;

    use super::*;
    use crate::config::{Kind, NetworkConfig, View};
    use crate::kernel::{Link, NextHop, Tables};
    use crate::net::{IfIndex, Mtu, Vni};
    use crate::plan::Side;
    use crate::plan::tests::{World, cluster};
    use crate::underlay::Underlay;

    /// Nodes 1 and 2, and a hole in the subnet of the second.
    fn mirror(holes: &[&str]) -> Mirror {
        let (name, address) = ("eth0".to_owned(), IpAddr::from([192, 0, 2, 1]));
        Mirror {
            device: IfIndex(9),
            vni: Vni::try_from(7).expect("in range"),
            port: 8472,
            bridge: None,
            underlay: Underlay { ifindex: IfIndex(2), name, address, inner_mtu: Mtu(1450) },
            cluster: cluster(&[2].into()),
            holes: holes.iter().map(|to| to.parse().expect("a prefix")).collect::<BTreeSet<_>>(),
            left: vec![],
        }
    }

    fn plan(fastpath: Fastpath, mirror: &Result<Mirror, String>) -> Desired {
        let filters = BridgeFilters::default();
        let plan = |input: &Input<'_>| input.plan_beside(mirror, filters);
        World::new(fastpath).with_input(&Tables::default(), &cluster(&[2].into()), plan)
    }

    #[test]
    fn a_hole_leads_to_no_vtep_and_nobody_is_accused_for_it() {
        let desired = plan(Fastpath::Direct, &Ok(mirror(&["10.2.0.7/32"])));
        assert!(desired.kernel.is_empty(), "nothing is desired of the kernel");
        let state = &desired.datapath;
        let to = |prefix: &str| {
            let prefix = prefix.parse().expect("a prefix");
            state.routes.iter().find(|((_, to), _)| *to == prefix).map(|(_, vtep)| *vtep)
        };
        assert_eq!((to("10.2.0.7/32"), to("10.1.0.0/24")), (Some(KERNEL_VTEP), Some(LOCAL_VTEP)));
        assert!(to("10.2.0.0/24").is_some_and(|vtep| state.vteps.contains_key(&vtep)));
        let partial = |state: &crate::datapath::DatapathState| {
            state.networks.values().all(|network| network.flags & PARTIAL != 0)
        };
        assert!(partial(state) && !partial(&plan(Fastpath::Direct, &Ok(mirror(&[]))).datapath));
    }

    #[test]
    fn without_a_device_the_network_is_off_and_says_why() {
        let desired = plan(Fastpath::Direct, &Err("it is gone".into()));
        assert_eq!(desired.left, ["it is gone"]);
        assert!(desired.datapath.vnis.is_empty());
        assert!(desired.datapath.networks.values().all(|network| network.mode == Mode::Off as u8));
    }

    #[test]
    fn a_setting_of_the_owners_is_named_where_it_keeps_packets_from_the_short_cut() {
        // The world's conntrack takes connections back.
        assert!(plan(Fastpath::Verified, &Ok(mirror(&[]))).left.is_empty());
        assert!(plan(Fastpath::Off, &Err("it is gone".into())).left.is_empty(), "nobody asks for it");
    }

    /// Plans with the world's side as `change` makes it, and the way to node 2 as it is from `source`.
    fn plan_side(change: impl Fn(&mut Side), source: Option<IpAddr>) -> Desired {
        let (vtep, mut tables) = (IpAddr::from([192, 0, 2, 2]), Tables::default());
        let link = Link { index: IfIndex(2), up: true, sends_ethernet: true, ..Link::default() };
        tables.links.insert(link.index, link);
        let plan = |input: &Input<'_>| {
            let mut side = input.sides[0].clone();
            change(&mut side);
            let hop = NextHop { source, ..NextHop::new(IfIndex(2), vtep) };
            let ways = [(side.asked, [(vtep, Some(hop))].into())].into();
            let network = NetworkConfig { kind: Kind::Accelerate, ..input.config.network.clone() };
            let config = View { network, ..input.config.clone() };
            let input = Input { sides: &[side], ways: &ways, config: &config, ..*input };
            input.plan_beside(&Ok(mirror(&[])), BridgeFilters::default())
        };
        World::new(Fastpath::Direct).with_input(&tables, &cluster(&[2].into()), plan)
    }

    #[test]
    fn a_vtep_that_the_kernel_sends_to_from_another_address_is_its_own() {
        let any = |side: &mut Side| side.asked.source = IpAddr::from([0; 4]);
        let way =
            |desired: Desired| desired.datapath.vteps.values().map(|vtep| vtep.ifindex).collect::<Vec<_>>();
        let (own, other) = (Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([192, 0, 2, 9])));
        assert_eq!((way(plan_side(any, own)), way(plan_side(any, other))), (vec![2], vec![0]));
        assert_eq!(way(plan_side(|_| (), other)), [2], "who asks from an address sends from it");
    }

    #[test]
    fn a_device_that_writes_checksums_says_what_that_costs() {
        let sums = plan_side(|side| side.headers.checksum = true, None);
        let flags = |desired: &Desired| {
            desired.datapath.networks.values().map(|n| n.local4.flags).collect::<Vec<_>>()
        };
        assert!(flags(&sums)[0] & local::CHECKSUM != 0 && sums.left == [WRITES_CHECKSUMS], "{:?}", sums.left);
        let none = plan_side(|side| side.headers.checksum = false, None);
        assert!(flags(&none)[0] & local::CHECKSUM == 0 && none.left.is_empty(), "{:?}", none.left);
    }
}
