//! Outer headers are those that the network's device would have written, whatever it is set to.

use std::time::Duration;

use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, DEVICE, Family, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

use super::interop::{comparable, on_the_wire};
use super::{assert_took, build, counters, warm_up};

/// Two agents with these lines in their network's section.
fn lab(underlay: Family, network: &str) -> Lab {
    let agent = || Overlay::Agent(AgentOptions { network: network.into(), ..AgentOptions::default() });
    let lab = build(&LabSpec::pair(agent(), agent()).underlay(underlay));
    warm_up(&lab);
    lab
}

/// Packets that differ in what outer headers may have of them.
fn pings() -> [Ping; 2] {
    let plain = Ping { payload: 100, ..Ping::default() };
    [plain, Ping { ttl: 7, tos: 0xba, dont_fragment: true, ..plain }]
}

/// All of a packet but for what differs from packet to packet, and whether it has a UDP checksum.
fn seen(lab: &Lab, underlay: Family, inner: Family, ping: Ping) -> (Vec<u8>, bool) {
    let bytes = on_the_wire(lab, inner, ping);
    let checksum = if underlay == Family::V4 { 40..42 } else { 60..62 };
    let has_checksum = bytes[checksum] != [0, 0];
    (comparable(bytes, underlay, inner), has_checksum)
}

/// Sends by the fast path and by the device, and compares.
pub(super) fn assert_as_the_device(lab: &Lab, underlay: Family, set: &str) {
    let agent = lab.agent(1).expect("an agent");
    for inner in [Family::V4, Family::V6] {
        for ping in pings() {
            let before = counters(lab, 1);
            let mine = seen(lab, underlay, inner, ping);
            assert_took(&(&counters(lab, 1) - &before), "pod_egress", "encapsulated", 1);
            agent.cli(&["fastpath", "off"]).expect("switched off");
            let devices = seen(lab, underlay, inner, ping);
            agent.cli(&["fastpath", "on"]).expect("switched on");
            assert_eq!(
                mine, devices,
                "'{set}', inner {inner:?} over {underlay:?}: ours left, device's right"
            );
        }
    }
}

/// The outer TTL of a packet of node 1.
fn outer_ttl(lab: &Lab, underlay: Family) -> u8 {
    let at = if underlay == Family::V4 { 22 } else { 21 };
    on_the_wire(lab, Family::V4, pings()[0])[at]
}

fn wait_for_ttl(lab: &Lab, underlay: Family, ttl: u8) {
    wait_until("the fast path writes the TTL", Duration::from_secs(5), || outer_ttl(lab, underlay) == ttl)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
}

#[test]
fn outer_headers_are_those_of_the_device_as_configured() {
    for underlay in [Family::V4, Family::V6] {
        for set in [
            "",
            "ttl = 9\ntos = 40\ndf = true\nchecksum = true",
            "ttl = \"inherit\"\ntos = \"inherit\"\ndf = \"inherit\"\nchecksum = false",
        ] {
            assert_as_the_device(&lab(underlay, set), underlay, set);
        }
    }
}

#[test]
fn outer_headers_follow_the_device_and_the_way() {
    for underlay in [Family::V4, Family::V6] {
        let lab = lab(underlay, "");
        let node = lab.node(1);
        let set = |what: &str| node.sh(&format!("ip link set {DEVICE} type vxlan {what}")).expect("ip");
        let more = if underlay == Family::V4 { "df set" } else { "flowlabel 0x12345" };
        set(&format!("ttl 33 tos 0x20 {more}"));
        wait_for_ttl(&lab, underlay, 33);
        assert_as_the_device(&lab, underlay, more);

        set("ttl 0");
        let to = if underlay == Family::V4 { "192.0.2.2" } else { "2001:db8::2" };
        // A locked MTU takes Don't Fragment away.
        node.sh(&format!("ip route add {to} dev {UNDERLAY} hoplimit 17 mtu lock 1400")).expect("ip");
        wait_for_ttl(&lab, underlay, 17);
        assert_as_the_device(&lab, underlay, "hoplimit 17 mtu lock 1400");
    }
}

#[test]
fn a_ttl_is_changed_without_a_new_device() {
    let lab = lab(Family::V4, "ttl = 9");
    let index = || {
        let link = lab.node(1).sh(&format!("ip -o link show {DEVICE}")).expect("the device");
        link.split(':').next().map(str::to_owned)
    };
    let before = index();
    lab.agent(1).expect("an agent").reconfigure("ttl = 9", "ttl = 11").expect("a configuration");
    wait_for_ttl(&lab, Family::V4, 11);
    assert_as_the_device(&lab, Family::V4, "ttl = 11");
    assert_eq!(index(), before);
}
