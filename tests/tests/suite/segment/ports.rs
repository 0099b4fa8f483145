//! Ports that are more than a veth or a tap. What the running kernel has no driver for is skipped; `cargo xtask
//! test-kernels` has them all.

use std::time::Duration;

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Ping, tcp_bulk};
use vxlan_tests::lab::{SegmentSpec, wait_until};

use super::fast::{counted, is_fast, taken_out, warm_up};
use super::{RED, assert_all_reach_each_other, assert_answered, build, direct, verified};

const SOON: Duration = Duration::from_secs(10);

/// Puts the interface `upper`, which `commands` make on top of `{port}` with an MTU of `{mtu}`, in the place of
/// the port of node 1's host; false where the kernel cannot.
fn replace_port(lab: &SegmentLab, upper: &str, commands: &str) -> bool {
    let (node, host) = (lab.node(1), lab.host(1, RED, 1));
    let commands =
        commands.replace("{port}", &host.port).replace("{mtu}", &lab.spec().host_mtu().to_string());
    node.ip(&format!("link set {} nomaster\n", host.port)).expect("a port");
    if let Err(error) = node.ip(&commands) {
        eprintln!("SKIPPED: a port like {upper}, which this kernel lacks: {error:#}");
        return false;
    }
    node.ip(&format!("link set {} up\nlink set {upper} master {} up\n", host.port, lab.tenant(RED).bridge()))
        .expect("a port");
    let forwards = || {
        let shown = node.sh(&format!("ip -d -o link show dev {upper}"));
        shown.is_ok_and(|shown| shown.contains("bridge_slave state forwarding"))
    };
    wait_until("the port forwards", SOON, forwards).expect("in time");
    true
}

/// Frames by way of `upper` take the short cut both ways.
fn is_fast_by(upper: &str, commands: &str) {
    for overlay in [direct, verified] {
        let lab = build(&SegmentSpec::pair(overlay(), overlay()));
        let (host, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        if !replace_port(&lab, upper, commands) {
            return;
        }
        let reached = || {
            vxlan_tests::lab::traffic::ping(host, other.ip4, Ping::default()).is_ok_and(|r| r.all_answered())
        };
        wait_until("the host is reached", SOON, reached).expect("in time");
        warm_up(&lab);
        wait_until("it is fast", SOON, || is_fast(&lab)).expect("in time");
        let ([one, _], ()) = counted(&lab, || {
            for (from, to) in [(host, other), (other, host)] {
                to.ips()
                    .into_iter()
                    .for_each(|ip| assert_answered(from, ip, Ping { count: 20, ..Ping::default() }));
                tcp_bulk(from, to, to.ip4.into(), 4 << 20).expect("a transfer");
            }
        });
        assert!(one.packets("port_ingress", "encapsulated") > 60, "{one}");
        let arrived = taken_out(&one).packets + one.packets("tunnel_ingress", "delivered");
        assert!(arrived > 60, "{one}");
        assert_all_reach_each_other(&lab, RED);
    }
}

#[test]
fn a_port_may_be_a_bond() {
    let commands = "link add bond9 mtu {mtu} type bond mode active-backup miimon 20\n\
                    link set {port} down\nlink set {port} master bond9\n";
    is_fast_by("bond9", commands);
}
