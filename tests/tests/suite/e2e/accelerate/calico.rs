//! A device like Calico's: VNI 4096, port 4789, blocks of /26, and for each pod a veth that answers ARP for 169.254.1.1, with
//! a route of its own.

use std::net::Ipv4Addr;

use vxlan_tests::lab::addr::{inner4, underlay4, vtep_mac};

use super::dump::{assert_same, dump};
use super::{SOON, answers4, wait_fast4};
use crate::e2e::build;
use vxlan_tests::lab::{AgentOptions, Attach, DEVICE, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

const CALICO: &str = "vxlan.calico";
const POD: &str = "cali0123456789a";
const GATEWAY: &str = "169.254.1.1";

/// The tunnel's address of node `n`, which is one of its block's.
const fn tunnel(n: u8) -> Ipv4Addr {
    inner4(n, 60)
}

/// Three nodes with a pod each, which know each other but for the last one.
fn calico() -> Lab {
    let lab = build(&LabSpec::of(vec![Overlay::KernelVxlan; 3]).attach(Attach::Ptp));
    for n in 1..=3 {
        lab.node(n).ip(&format!("link del {DEVICE}\n")).expect("gone");
        make_device(&lab, n);
        attach_pod(&lab, n);
    }
    know(&lab, 1, 2, &vtep_mac(2));
    [2, 3].iter().for_each(|n| know(&lab, *n, 1, &vtep_mac(1)));
    lab
}

/// What Felix makes on node `n`; protocol 80 is its own.
fn make_device(lab: &Lab, n: u8) {
    let (mac, local, own) = (vtep_mac(n), underlay4(n), tunnel(n));
    lab.node(n)
        .ip(&format!(
            "link add {CALICO} address {mac} mtu 1450 type vxlan id 4096 dev {UNDERLAY} local {local} dstport 4789 \
             nolearning\naddr add {own}/32 dev {CALICO}\nlink set {CALICO} up\n\
             route replace blackhole {}/26 proto 80\n",
            inner4(n, 0),
        ))
        .expect("Calico's device");
}

/// Has the pod of node `n` as Calico's plugin makes it. A node answers ARP for what it has a route to.
fn attach_pod(lab: &Lab, n: u8) {
    let (node, pod) = (lab.node(n), lab.pod(n, 1));
    let (veth, ip) = (&pod.host_veth, pod.ip4);
    node.ip(&format!(
        "link set {veth} down\naddr flush dev {veth}\n\
         link set {veth} name {POD} address ee:ee:ee:ee:ee:ee up\nroute add {ip}/32 dev {POD} scope link\n\
         route add default dev {UNDERLAY}\n"
    ))
    .expect("a veth");
    let settings = [("conf", "proxy_arp", "1"), ("neigh", "proxy_delay", "0")];
    let settings = settings.map(|(kind, name, value)| (format!("ipv4/{kind}/{POD}/{name}"), value));
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    node.sysctl(&settings).expect("settings");
    for command in [
        "flush dev eth0",
        &format!("add {GATEWAY} dev eth0 scope link"),
        &format!("add default via {GATEWAY} dev eth0"),
    ] {
        pod.sh(&format!("ip route {command}")).expect("a route");
    }
}

/// Lets node `n` know node `other`, whose tunnel has the MAC `mac`.
fn know(lab: &Lab, n: u8, other: u8, mac: &str) {
    let (node, gateway, remote) = (lab.node(n), tunnel(other), underlay4(other));
    node.ip(&format!("neigh replace {gateway} lladdr {mac} dev {CALICO} nud permanent\n"))
        .expect("a neighbour");
    node.sh(&format!("bridge fdb replace {mac} dev {CALICO} self permanent dst {remote}")).expect("an entry");
    let block = inner4(other, 0);
    node.ip(&format!("route replace {block}/26 via {gateway} dev {CALICO} onlink proto 80\n"))
        .expect("a route");
}

/// Lets node `n` forget node `other`.
fn forget(lab: &Lab, n: u8, other: u8) {
    let (node, gateway, mac, remote) = (lab.node(n), tunnel(other), vtep_mac(other), underlay4(other));
    node.ip(&format!("route del {}/26\nneigh del {gateway} dev {CALICO}\n", inner4(other, 0))).expect("gone");
    node.sh(&format!("bridge fdb del {mac} dev {CALICO} self dst {remote}")).expect("gone");
}

/// Changes what only Calico may, with the agent of node 1 behind it. Node 2 gets the MAC `new`.
fn changes_are_followed(lab: &Lab, new: &str) {
    know(lab, 1, 3, &vtep_mac(3));
    wait_fast4(lab, 3);
    lab.node(2).ip(&format!("link set {CALICO} address {new}\n")).expect("a MAC");
    know(lab, 2, 1, &vtep_mac(1));
    know(lab, 1, 2, new);
    wait_fast4(lab, 2);
    // Felix makes its device anew.
    lab.node(1).ip(&format!("link del {CALICO}\n")).expect("gone");
    make_device(lab, 1);
    know(lab, 1, 2, new);
    know(lab, 1, 3, &vtep_mac(3));
    [2, 3].iter().for_each(|other| wait_fast4(lab, *other));
    forget(lab, 1, 3);
    wait_until("nobody is led there", SOON, || !answers4(lab, 3)).expect("in time");
    wait_fast4(lab, 2);
}

#[test]
fn calicos_device_is_accelerated_and_left_as_it_is() {
    let mut lab = calico();
    wait_until("the kernel alone delivers", SOON, || answers4(&lab, 2)).expect("in time");
    for (mode, new) in [("direct", "0e:99:00:00:00:02"), ("verified", "0e:99:00:00:00:03")] {
        let before = dump(lab.node(1));
        lab.add_agent(1, &AgentOptions::beside(mode, CALICO)).expect("an agent");
        lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
        wait_fast4(&lab, 2);
        assert_same(&before, &dump(lab.node(1)), "while it runs");
        changes_are_followed(&lab, new);
        let before = dump(lab.node(1));
        lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
        wait_fast4(&lab, 2);
        lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        assert_same(&before, &dump(lab.node(1)), "after detach");
        assert!(answers4(&lab, 2), "the owner's overlay works");
    }
}
