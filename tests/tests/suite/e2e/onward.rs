//! Pods that hand packets on: what they get must be ordinary packets, merged or not, that can be
//! forwarded, cut and bridged like any other.

use vxlan_tests::lab::traffic::{Cable, mac_of, tcp_bulk};
use vxlan_tests::lab::{Lab, Netns};

use super::{aggregates_hook, assert_nothing_dropped, assert_took, build, counted, pair, warm_up};

const MIB: u64 = 1 << 20;

/// A network behind the first pod of node 2, which routes and translates to it.
fn behind(lab: &Lab) -> Netns {
    let pod: &Netns = lab.pod(2, 1);
    let behind = lab.add_namespace("behind").expect("a namespace");
    pod.ip(&format!(
        "link add in0 type veth peer name eth0 netns {}\naddr add 10.9.0.1/24 dev in0\n\
         addr add fd09::1/64 dev in0 nodad\nlink set in0 up\n",
        behind.namespace()
    ))
    .expect("a veth");
    behind
        .ip("addr add 10.9.0.2/24 dev eth0\naddr add fd09::2/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.9.0.1\nroute add default via fd09::1\n")
        .expect("an interface");
    pod.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]).expect("forwarding");
    pod.feed(
        "nft",
        &["-f", "-"],
        "table inet onward {
            chain in {
                type nat hook prerouting priority dstnat
                iifname eth0 meta l4proto tcp dnat ip to 10.9.0.2
                iifname eth0 meta l4proto tcp dnat ip6 to fd09::2
            }
            chain out { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }
        }",
    )
    .expect("translation");
    behind
}

/// Transfers between the first pod of node 1 and `other`, which has the addresses of the first pod of
/// node 2 as seen from outside. Node 2 must have got them on the fast path, and in few large pieces.
fn transfers(lab: &Lab, other: &Netns) {
    let (client, pod) = (lab.pod(1, 1), lab.pod(2, 1));
    for (there, back) in pod.ips().into_iter().zip(client.ips()) {
        let nodes = counted(lab, || {
            tcp_bulk(client, other, there, 32 * MIB).expect("a transfer there");
            tcp_bulk(other, client, back, 32 * MIB).expect("a transfer back");
        });
        assert_took(&nodes[1], aggregates_hook(), "delivered", 100);
        let delivered = nodes[1].get(aggregates_hook(), "delivered");
        assert!(delivered.bytes > 30 * MIB, "{}", nodes[1]);
        assert!(delivered.bytes / delivered.packets > 2_500, "not merged: {delivered:?}");
        assert!(nodes[1].get("pod_egress", "encapsulated").bytes > 30 * MIB, "{}", nodes[1]);
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn a_pod_that_routes_onwards_can_forward_and_cut_what_it_gets() {
    let lab = build(&pair().gro());
    warm_up(&lab);
    let behind = behind(&lab);
    transfers(&lab, &behind);
    // Now the pod has to cut aggregates into segments itself.
    lab.pod(2, 1).sh("ethtool -K in0 tso off gso off").expect("offloads");
    transfers(&lab, &behind);
}

#[test]
fn a_virtual_machine_behind_a_bridge_in_the_pod_gets_frames_as_on_a_wire() {
    let lab = build(&pair().gro());
    warm_up(&lab);
    let (pod, machine): (&Netns, _) = (lab.pod(2, 1), lab.add_namespace("vm").expect("a namespace"));
    let mac = mac_of(pod, "eth0").expect("a MAC");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let routes = pod.sh("ip route show default").expect("routes");
    let gateway4 = routes.split_whitespace().nth(2).expect("a gateway").to_owned();
    let routes = pod.sh("ip -6 route show default").expect("routes");
    let gateway6 = routes.split_whitespace().nth(2).expect("a gateway").to_owned();
    let cable = Cable::plug((pod, "tap0"), (&machine, "eth0")).expect("taps");
    pod.ip("addr flush dev eth0\nlink set eth0 address 02:00:00:00:00:aa\n\
         link add br0 mtu 1450 type bridge mcast_snooping 0\nlink set tap0 mtu 1450\n\
         link set eth0 master br0\nlink set tap0 master br0 up\nlink set br0 up\n")
        .expect("a bridge");
    machine
        .ip(&format!(
            "link set eth0 address {mac} mtu 1450 up\naddr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\nroute add default via {gateway4}\n\
             route add default via {gateway6}\n",
            lab.pod(2, 1).ip4,
            lab.pod(2, 1).ip6
        ))
        .expect("the machine's interface");
    vxlan_tests::lab::wait_until("the machine is reached", std::time::Duration::from_secs(5), || {
        use vxlan_tests::lab::traffic::{Ping, ping};
        let reached = |ip| ping(lab.pod(1, 1), ip, Ping::default()).is_ok_and(|r| r.all_answered());
        lab.pod(2, 1).ips().into_iter().all(reached)
    })
    .expect("a machine that answers");
    transfers(&lab, &machine);
    assert_eq!(cable.longest(), 1450 + 14, "the longest frame");
}
