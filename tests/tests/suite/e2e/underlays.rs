//! Underlays that are more than an interface with an address, and nodes that encrypt what they send each
//! other. What the running kernel has no driver for is skipped; `cargo xtask test-kernels` has them all.

use std::time::Duration;

use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Master, Overlay, PORT, UNDERLAY, VNI};

use super::guard::forged;
use super::routing::wait_for_ipsec;
use super::{assert_answered, assert_took, build, counted, pair, underlay_hook, warm_up};

/// Whether the kernel takes these commands of `ip` on a node.
fn takes(what: &str, commands: &str) -> bool {
    let lab = build(&LabSpec::pair(Overlay::None, Overlay::None));
    let done = lab.node(1).ip(commands);
    if let Err(error) = &done {
        eprintln!("SKIPPED: {what}, which this kernel lacks: {error:#}");
    }
    done.is_ok()
}

/// Runs both modes over `master`, with these lines of the `[node]` section; packets come out of their tunnel
/// at `hook`.
fn runs_over(master: Master, node: &str, hook: &str) {
    for mode in [AgentOptions::default(), AgentOptions::verified()] {
        let overlay = || Overlay::Agent(AgentOptions { node: node.into(), ..mode.clone() });
        let lab = build(&LabSpec::pair(overlay(), overlay()).master(master));
        warm_up(&lab);
        let echoes = Ping { count: 20, ..Ping::default() };
        for n in [1, 2] {
            let other = 3 - n;
            let counts = counted(&lab, || assert_answered(lab.pod(n, 1), lab.pod(other, 1).ip4, echoes));
            let [from, to] = [usize::from(n) - 1, usize::from(other) - 1].map(|index| &counts[index]);
            assert_took(from, "pod_egress", "encapsulated", 15);
            assert_took(to, hook, "decapsulated", 15);
        }
    }
}

/// A bridge has no native XDP.
#[test]
fn an_underlay_may_be_a_bridge() {
    runs_over(Master::Bridge, "xdp = \"auto\"", "underlay_ingress");
}

#[test]
fn an_underlay_may_be_a_bond() {
    if takes("a bond", "link add bond9 type bond mode active-backup\n") {
        runs_over(Master::Bond, "", underlay_hook());
    }
}

#[test]
fn an_underlay_may_be_in_a_vrf() {
    if takes("a VRF", "link add vrf9 type vrf table 9\n") {
        runs_over(Master::Vrf, "", underlay_hook());
    }
}

/// A key for 32 bytes of AES and one for SHA-256, and how to use them.
const ALGORITHMS: &str = "auth hmac(sha256) 0x0101010101010101010101010101010101010101010101010101010101010101 \
                          enc cbc(aes) 0x0202020202020202020202020202020202020202020202020202020202020202";

fn state(verb: &str, from: u8, to: u8, algorithms: &str) -> String {
    let (source, destination) = (underlay4(from), underlay4(to));
    format!("xfrm state {verb} src {source} dst {destination} proto esp spi 0x10{from} mode transport {algorithms}\n")
        .replace("mode transport \n", "\n")
}

/// `add` or `delete` what has nodes 1 and 2 encrypt all that they send each other.
fn encrypt(lab: &Lab, verb: &str) {
    for (n, other) in [(1, 2), (2, 1)] {
        let (own, peer) = (underlay4(n), underlay4(other));
        let template = |from, to| {
            if verb == "add" {
                format!("tmpl src {from} dst {to} proto esp mode transport")
            } else {
                String::new()
            }
        };
        let mut commands =
            format!("xfrm policy {verb} src {own} dst {peer} dir out {}\n", template(own, peer));
        commands += &format!("xfrm policy {verb} src {peer} dst {own} dir in {}\n", template(peer, own));
        if verb == "add" {
            commands = state(verb, n, other, ALGORITHMS) + &state(verb, other, n, ALGORITHMS) + &commands;
        }
        lab.node(n).ip(&commands).expect("IPsec");
    }
    let wanted = verb == "add";
    for n in [1, 2] {
        wait_for_ipsec(lab, n, wanted);
    }
}

#[test]
fn what_nodes_encrypt_is_never_sent_or_taken_in_clear() {
    if !takes("IPsec", &state("add", 1, 2, ALGORITHMS)) {
        return;
    }
    let lab = build(&pair());
    warm_up(&lab);
    encrypt(&lab, "add");
    let is_clear = |frame: &Frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT);
    let is_esp = |frame: &Frame| frame.ethertype() == Some(0x0800) && frame.0.get(23) == Some(&50);
    let [clear, encrypted] = [(), ()].map(|()| Capture::start(lab.node(2), UNDERLAY).expect("a capture"));
    let echoes = Ping { count: 10, ..Ping::default() };
    let [one, two] = counted(&lab, || assert_answered(lab.pod(1, 1), inner4(2, 2), echoes));
    assert_took(&one, "pod_egress", "ipsec", 10);
    assert_took(&two, "tunnel_ingress", "delivered", 10);
    assert_eq!(two.packets(underlay_hook(), "decapsulated"), 0, "{two}");
    let soon = Duration::from_millis(300);
    assert!(encrypted.next(soon, is_esp).expect("a capture").is_some(), "nothing is encrypted");
    assert!(clear.next(soon, is_clear).expect("a capture").is_none(), "something was sent in clear");

    // What says that it comes from the other node, and is in clear, does not.
    let capture = Capture::start(lab.pod(1, 1), "eth0").expect("a capture");
    inject(lab.node(2), UNDERLAY, &forged(&lab, underlay4(2), inner4(2, 9), VNI)).expect("sent");
    let forged = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
    assert!(capture.next(soon, forged).expect("a capture").is_none(), "something in clear was taken");

    encrypt(&lab, "delete");
    let [one, two] = counted(&lab, || assert_answered(lab.pod(1, 1), inner4(2, 2), echoes));
    assert_took(&one, "pod_egress", "encapsulated", 10);
    assert_took(&two, underlay_hook(), "decapsulated", 10);
}
