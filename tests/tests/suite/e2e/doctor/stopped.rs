//! Faults that an agent mends within milliseconds, while none runs.

use std::net::UdpSocket;

use vxlan_tests::lab::addr::vtep_mac;
use vxlan_tests::lab::{DEVICE, Lab, LabSpec, Overlay, PORT};

use super::super::{build, warm_up};
use super::Mended::AsNamed;
use super::{Fault, await_findings, findings, host, ids, make_and_find, mend};

const STOPPED: &str = "agent-not-running";

fn ip(lab: &Lab, line: &str) {
    lab.node(1).ip(&format!("{line}\n")).expect("a command that does it");
}

fn fdb(lab: &Lab, line: &str) {
    lab.node(1).sh(&format!("bridge fdb {line}")).expect("a command that does it");
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "a route is missing",
        make: |lab| ip(lab, "route del 10.244.2.0/24"),
        found: &["route-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "a route over IPv6 is missing",
        make: |lab| ip(lab, "route del fd00:244:2::/64"),
        found: &["route-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "a route is left over",
        make: |lab| ip(lab, &format!("route add 10.244.9.0/24 via 10.244.9.0 dev {DEVICE} onlink proto 86")),
        found: &["route-stale"],
        mended: AsNamed,
    },
    Fault {
        name: "a neighbour entry is missing",
        make: |lab| ip(lab, &format!("neigh del 10.244.2.0 dev {DEVICE}")),
        found: &["neighbour-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "a neighbour entry leads elsewhere",
        make: |lab| {
            ip(lab, &format!("neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 dev {DEVICE} nud permanent"))
        },
        found: &["neighbour-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "a neighbour entry is left over",
        make: |lab| {
            ip(lab, &format!("neigh add 10.244.9.0 lladdr 02:00:00:00:00:99 dev {DEVICE} nud permanent"))
        },
        found: &["neighbour-stale"],
        mended: AsNamed,
    },
    Fault {
        name: "a forwarding entry is missing",
        make: |lab| fdb(lab, &format!("del {} dev {DEVICE} self", vtep_mac(2))),
        found: &["fdb-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "a forwarding entry is left over",
        make: |lab| fdb(lab, &format!("add 02:00:00:00:00:99 dev {DEVICE} dst 192.0.2.99 self permanent")),
        found: &["fdb-stale"],
        mended: AsNamed,
    },
    Fault {
        name: "the device lacks its address",
        make: |lab| ip(lab, &format!("addr del 10.244.1.0/32 dev {DEVICE}")),
        // With the last IPv4 address the kernel drops what is IPv4 on the device.
        found: &["address-missing", "route-missing", "neighbour-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "the MTU is another",
        make: |lab| ip(lab, &format!("link set {DEVICE} mtu 1400")),
        found: &["device-mtu"],
        mended: AsNamed,
    },
    Fault {
        name: "the VTEP's MAC is another",
        make: |lab| ip(lab, &format!("link set {DEVICE} address 02:00:00:00:00:99")),
        // The kernel drops all neighbours with it.
        found: &["vtep-mac", "neighbour-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "the device is down",
        make: |lab| ip(lab, &format!("link set {DEVICE} down")),
        found: &["device-down", "route-missing", "neighbour-missing", "address-missing"],
        mended: AsNamed,
    },
    Fault {
        name: "conntrack takes nothing back",
        make: |lab| {
            lab.node(1).sysctl(&[("netfilter/nf_conntrack_tcp_be_liberal", "0")]).expect("a setting");
        },
        found: &["conntrack-strict"],
        mended: AsNamed,
    },
];

#[test]
fn each_fault_in_the_kernels_tables_is_found_and_mended_as_the_doctor_says() {
    let mut lab = build(&LabSpec::pair(Overlay::verified(), Overlay::verified()));
    warm_up(&lab);
    await_findings(&lab, &[], "a healthy node", &[]);
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    make_and_find(&lab, FAULTS, &[STOPPED]);
    host::mac_of_udev(&lab);
    in_a_vrf(&lab);
    a_program_has_the_port(&lab);
    ip(&lab, &format!("link del {DEVICE}"));
    await_findings(
        &lab,
        &[],
        "the device is missing",
        &[STOPPED, "device-missing", "address-missing", "route-missing", "neighbour-missing", "fdb-missing"],
    );
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    await_findings(&lab, &[], "the agent has mended it", &[]);
}

fn a_program_has_the_port(lab: &Lab) {
    ip(lab, &format!("link set {DEVICE} down"));
    let socket = lab.node(1).run(|| UdpSocket::bind(("0.0.0.0", PORT))).expect("the port is free");
    let down = ["device-down", "route-missing", "neighbour-missing", "address-missing", STOPPED];
    await_findings(lab, &[], "a program has the port", &[&down[..], &["foreign-port"]].concat());
    drop(socket);
    let found = await_findings(lab, &[], "the port is free again", &down);
    assert_eq!(mend(lab, &found, &[STOPPED]), Vec::<String>::new());
    await_findings(lab, &[], "the device is up again", &[STOPPED]);
}

fn in_a_vrf(lab: &Lab) {
    if let Err(error) = lab.node(1).ip("link add vrf0 type vrf table 10\n") {
        eprintln!("SKIPPED, because this kernel has no VRFs: {error:#}");
        return;
    }
    ip(lab, "link set vrf0 up");
    ip(lab, &format!("link set {DEVICE} master vrf0"));
    let found = || findings(lab, &[]);
    assert!(ids(&found()).contains("vrf"), "{:#}", found());
    // Entering and leaving it the kernel drops routes, neighbours and addresses.
    for _ in 0..2 {
        mend(lab, &found(), &[STOPPED]);
    }
    await_findings(lab, &[], "the device is in no VRF", &[STOPPED]);
}
