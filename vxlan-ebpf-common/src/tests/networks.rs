//! Several networks on one node, with the same addresses in all of them.

use super::*;
use crate::counters::Hook;
use crate::headers::Be16;
use crate::hooks::{self, Forward, pod_egress, stripped_ingress, underlay_ingress, underlay_xdp};
use crate::maps::{Key4, LinkEntry, MacKey, NO_NETWORK, Network, NetworkId, Station, VniKey};
use crate::testbed::*;

/// The other tenant: the same subnets and MACs, another VNI and port.
const TENANT: NetworkId = 2;
const TENANT_VNI: u32 = VNI + 1;
const TENANT_PORT: u16 = 4789;
/// The tenant's remote node: it has the addresses of `REMOTE4`.
const TENANT_REMOTE: u32 = 12;
/// Host side of the veth of the tenant's pod.
const TENANT_POD: u32 = 77;

fn two() -> Maps {
    let mut maps = maps();
    let port = Be16::new(TENANT_PORT);
    maps.node.only = NO_NETWORK;
    maps.node.ports[1] = port;
    let tenant = Network { id: TENANT, vni: TENANT_VNI, port: TENANT_PORT.to_be_bytes(), ..maps.network() };
    maps.networks.insert(TENANT, tenant);
    maps.vnis.insert(VniKey::new(TENANT_VNI, port), TENANT);
    maps.links.insert(TENANT_POD, LinkEntry { network: TENANT, flags: 0 });
    for (node, id) in [(1, 0), (2, TENANT_REMOTE)] {
        maps.routes4.insert((Key4 { network: TENANT, ..key4(pod4(node, 0)) }, 24), id);
    }
    let remote = maps.vteps[&REMOTE4];
    maps.vteps.insert(TENANT_REMOTE, remote);
    maps.vtep_ids.insert(crate::maps::Key6 { network: TENANT, ..key6(node4(2)) }, TENANT_REMOTE);
    maps.stations.insert(MacKey::new(TENANT, vtep_mac(REMOTE4)), Station::vtep(TENANT_REMOTE));
    let pod = crate::maps::Endpoint { ifindex: TENANT_POD, ..endpoint(1) };
    maps.endpoints4.insert(Key4 { network: TENANT, ..key4(pod4(1, 1)) }, pod);
    maps
}

fn tunnelled(vni: u32, port: u16, inner: &Inner) -> Frame {
    let [_, a, b, c] = vni.to_be_bytes();
    Outer { vxlan: [8, 0, 0, 0, a, b, c, 0], port, ..Outer::from_remote(REMOTE4, inner.build()) }.frame()
}

#[test]
fn with_several_networks_a_packet_fares_as_with_one() {
    let (one, mut several) = (maps(), maps());
    several.node.only = NO_NETWORK;
    for (hook, frame) in seeds() {
        let (mut alone, mut among) = (frame.clone(), frame);
        assert_eq!(hooks::run(hook, &mut alone, &one), hooks::run(hook, &mut among, &several));
        assert_eq!(alone, among);
    }
}

#[test]
fn the_interface_says_whose_packet_a_pod_sends() {
    let frame = Inner::from_pod(pod4(2, 9).into()).frame();
    for (ifindex, network, vni, port) in
        [(POD_IFINDEX, NETWORK, VNI, PORT), (TENANT_POD, TENANT, TENANT_VNI, TENANT_PORT)]
    {
        let mut sent = Frame { ifindex, ..frame.clone() };
        let maps = two();
        let verdict = pod_egress(&mut sent, &maps);
        assert_eq!((verdict.network, verdict.reason()), (network, Reason::Encapsulated));
        assert_eq!(sent.bytes[36..38], port.to_be_bytes(), "UDP port");
        assert_eq!(sent.bytes[46..49], vni.to_be_bytes()[1..], "VNI");
    }
    let unknown = Frame { ifindex: 99, ..frame };
    assert_eq!(run_with(pod_egress, &unknown, &two()), (Reason::SwitchedOff, unknown.clone()));
}

#[test]
fn vni_and_port_say_whose_packet_arrives() {
    let inner = Inner::from_remote(REMOTE4, false);
    let maps = two();
    for (vni, port, network, pod) in
        [(VNI, PORT, NETWORK, POD_IFINDEX), (TENANT_VNI, TENANT_PORT, TENANT, TENANT_POD)]
    {
        let mut frame = tunnelled(vni, port, &inner);
        let mut stripped = frame.clone();
        let verdict = underlay_ingress(&mut frame, &maps);
        assert_eq!(verdict.network, network);
        assert!(matches!(verdict.outcome, Ok(Forward::Decapsulated(to)) if to.ifindex == pod));
        assert_eq!(underlay_xdp(&mut stripped, &maps).network, network);
        let delivered = stripped_ingress(&mut stripped, &maps);
        assert!(matches!(delivered.outcome, Ok(Forward::Delivered(to)) if to.ifindex == pod));
        assert_eq!(stripped.bytes, frame.bytes);
    }
}

#[test]
fn no_packet_crosses_from_one_network_to_another() {
    let inner = Inner::from_remote(REMOTE4, false);
    for hook in [Hook::UnderlayIngress, Hook::UnderlayXdp] {
        // One's VNI at the other's port, and a VNI of nobody's.
        for (vni, port) in [(VNI, TENANT_PORT), (TENANT_VNI, PORT), (VNI + 2, PORT)] {
            let mut frame = tunnelled(vni, port, &inner);
            let verdict = hooks::run(hook, &mut frame, &two()).reason();
            assert_eq!(verdict, Reason::OtherVni);
        }
        let mut elsewhere = tunnelled(VNI, 4790, &inner);
        assert_eq!(hooks::run(hook, &mut elsewhere, &two()).reason(), Reason::NotVxlan);
    }
    // A node of the one is a stranger to the other.
    let mut maps = two();
    maps.vtep_ids.remove(&crate::maps::Key6 { network: TENANT, ..key6(node4(2)) });
    maps.routes4.remove(&(Key4 { network: TENANT, ..key4(pod4(2, 0)) }, 24));
    let (reason, _) = run_with(underlay_ingress, &tunnelled(TENANT_VNI, TENANT_PORT, &inner), &maps);
    assert_eq!(reason, Reason::UnknownVtep);
    // Nor does a pod get anywhere but in its own.
    maps.links.insert(POD_IFINDEX, LinkEntry { network: TENANT, flags: 0 });
    let frame = Inner::from_pod(pod4(3, 9).into()).frame();
    assert_eq!(run_with(pod_egress, &frame, &maps).0, Reason::NoRoute);
}
