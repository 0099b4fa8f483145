//! A device like Calico's: VNI 4096, port 4789, blocks of /26, and a route of its own for each pod's veth.

use std::fmt::Write as _;

use vxlan_tests::lab::addr::{inner4, underlay4, vtep_mac};
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, Attach, DEVICE, Lab, UNDERLAY, wait_until};

use super::dump::{assert_same, dump};
use super::{SOON, kernels, short_cuts};
use crate::e2e::{assert_answered, build, counters};

const CALICO: &str = "vxlan.calico";

/// What Felix makes on node `n`; protocol 80 is its own. The tunnel's address is one of the block's.
fn set_up(lab: &Lab, n: u8) {
    let (other, node) = (3 - n, lab.node(n));
    let (mac, local, remote) = (vtep_mac(n), underlay4(n), underlay4(other));
    let (own, gateway) = (inner4(n, 60), inner4(other, 60));
    let mut batch = format!("link del {DEVICE}\n");
    let _ = write!(
        batch,
        "link add {CALICO} address {mac} mtu 1450 type vxlan id 4096 dev {UNDERLAY} local {local} dstport 4789 nolearning\n\
         addr add {own}/32 dev {CALICO}\nlink set {CALICO} up\n\
         neigh add {gateway} lladdr {} dev {CALICO} nud permanent\n\
         route add {}/26 via {gateway} dev {CALICO} onlink proto 80\n\
         route add blackhole {}/26 proto 80\n",
        vtep_mac(other),
        inner4(other, 0),
        inner4(n, 0),
    );
    node.ip(&batch).expect("Calico's device");
    node.sh(&format!("bridge fdb add {} dev {CALICO} self permanent dst {remote}", vtep_mac(other)))
        .expect("an entry");
}

#[test]
fn calicos_device_is_accelerated_and_left_as_it_is() {
    let mut lab = build(&kernels().attach(Attach::Ptp));
    [1, 2].iter().for_each(|n| set_up(&lab, *n));
    let (from, ip) = (lab.pod(1, 1).ip4, lab.pod(2, 1).ip4);
    assert_answered(lab.pod(1, 1), ip, Ping::default());
    let before = dump(lab.node(1));
    for mode in ["direct", "verified"] {
        lab.add_agent(1, &AgentOptions::beside(mode, CALICO)).expect("an agent");
        lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
        let is_fast = || {
            let Ok(before) = lab.agent(1).and_then(|agent| agent.counters()) else { return false };
            let ping = Ping { count: 10, ..Ping::default() };
            assert_answered(lab.pod(1, 1), ip, ping);
            assert_answered(lab.pod(2, 1), from, ping);
            let (out, arrived) = short_cuts(&(&counters(&lab, 1) - &before));
            out >= 16 && arrived >= 16
        };
        wait_until("packets take the short cut", SOON, is_fast)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .expect("in time");
        assert_same(&before, &dump(lab.node(1)), "while it runs");
        lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
        lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        assert_same(&before, &dump(lab.node(1)), "after detach");
    }
}
