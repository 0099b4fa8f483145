//! What outer packets are like: from which address they come, and their headers.

use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{DEVICE, Family, UNDERLAY, wait_until};

use super::changes::three;
use super::{SOON, accelerated, is_fast, left, wait_fast};
use crate::e2e::headers::assert_as_the_device;
use crate::e2e::{assert_answered, counters};

#[test]
fn a_device_without_an_address_sends_from_what_the_kernel_takes() {
    let lab = three();
    let node = lab.node(1);
    wait_fast(&lab, 1, 2);
    node.sh(&format!("ip link set {DEVICE} type vxlan local 0.0.0.0")).expect("no address");
    let shown = node.sh(&format!("ip -d link show {DEVICE}")).expect("a device");
    assert!(!shown.contains(" local "), "{shown}");
    wait_fast(&lab, 1, 3);
    // To one node, the kernel sends from another address.
    node.ip(&format!(
        "addr add 192.0.2.77/24 dev {UNDERLAY}\nroute add 192.0.2.3 dev {UNDERLAY} src 192.0.2.77\n"
    ))
    .expect("a source");
    let says = || left(&lab, 1).contains("the VTEP 192.0.2.3: the kernel sends to it from 192.0.2.77");
    wait_until("that node is the kernel's", SOON, says).expect("in time");
    let before = counters(&lab, 1);
    assert_answered(lab.pod(1, 1), lab.pod(3, 1).ip4, Ping { count: 5, ..Ping::default() });
    let during = &counters(&lab, 1) - &before;
    assert_eq!(during.packets("pod_egress", "encapsulated"), 0, "{during}");
    assert!(is_fast(&lab, 1, 2), "the other one stays");
    node.ip(&format!("route del 192.0.2.3 dev {UNDERLAY}\n")).expect("gone");
    wait_fast(&lab, 1, 3);
    assert_eq!(left(&lab, 1).matches("the VTEP").count(), 0);
}

#[test]
fn checksums_are_written_where_the_device_writes_them() {
    let lab = accelerated();
    assert!(left(&lab, 1).contains("writes UDP checksums"), "{}", left(&lab, 1));
    assert_as_the_device(&lab, Family::V4, "as its owner made it");
}
