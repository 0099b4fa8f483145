//! Faults that an agent that runs lives with.

use std::net::IpAddr;

use vxlan_tests::lab::addr::{underlay4, vtep_mac};
use vxlan_tests::lab::{DEVICE, Dropper, Lab, LabSpec, Overlay, PORT, UNDERLAY};

use super::super::{build, warm_up};
use super::Mended::{AsNamed, AsNamedAnd, By};
use super::{Fault, await_findings, host, make_and_find};

fn sysctl(lab: &Lab, name: &str, value: &str) {
    lab.node(1).sysctl(&[(name, value)]).expect("a setting");
}

fn sh(lab: &Lab, line: &str) {
    lab.node(1).sh(line).expect("a command that does it");
}

fn ip(lab: &Lab, batch: &str) {
    lab.node(1).ip(batch).expect("commands that do it");
}

fn nft(lab: &Lab, rules: &str) {
    lab.node(1).feed("nft", &["-f", "-"], rules).expect("rules");
}

/// A table of somebody's firewall with one chain at `hook`.
fn firewall(lab: &Lab, hook: &str, rules: &str) {
    nft(
        lab,
        &format!(
            "table inet firewall {{\nchain one {{\ntype filter hook {hook} priority 0; {rules}\n}}\n}}\n"
        ),
    );
}

fn no_firewall(lab: &Lab) {
    sh(lab, "nft delete table inet firewall");
}

fn drop_port(lab: &Lab, hook: &str) {
    firewall(lab, hook, &format!("\nct state established accept\niif lo accept\nudp dport {PORT} drop"));
}

/// Another interface that packets could leave by.
fn other_interface(lab: &Lab) {
    ip(
        lab,
        "link add other type veth peer name beyond\naddr add 198.51.100.1/24 dev other\nlink set beyond up\nlink set other up\n",
    );
}

fn without_other(lab: &Lab) {
    ip(lab, "link del other\n");
}

/// Replaces the state file by one in which node 2 differs.
fn second_node(lab: &Lab, change: impl FnOnce(&mut vxlan_tests::lab::StateNode)) {
    let mut state = lab.state().clone();
    change(&mut state.nodes[1]);
    state.write(&lab.state_path()).expect("a state file");
}

fn state_as_before(lab: &Lab) {
    lab.state().write(&lab.state_path()).expect("a state file");
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "IPv4 is not forwarded",
        make: |lab| sysctl(lab, "ipv4/ip_forward", "0"),
        found: &["forwarding-off"],
        mended: AsNamed,
    },
    Fault {
        name: "IPv6 is not forwarded",
        make: |lab| sysctl(lab, "ipv6/conf/all/forwarding", "0"),
        found: &["forwarding-off"],
        mended: AsNamed,
    },
    Fault {
        name: "the tunnel's device does not forward",
        make: |lab| sysctl(lab, &format!("ipv4/conf/{DEVICE}/forwarding"), "0"),
        found: &["forwarding-off"],
        mended: AsNamed,
    },
    Fault {
        name: "a rule drops what comes in by the tunnel's port",
        make: |lab| drop_port(lab, "input"),
        found: &["port-blocked"],
        mended: AsNamedAnd(no_firewall),
    },
    Fault {
        name: "a rule drops what leaves by the tunnel's port",
        make: |lab| drop_port(lab, "output"),
        found: &["port-blocked"],
        mended: AsNamedAnd(no_firewall),
    },
    Fault {
        name: "a firewall lets nothing in that it does not know",
        make: |lab| {
            firewall(lab, "input", "policy drop;\nct state established,related accept\ntcp dport 22 accept")
        },
        found: &["port-blocked"],
        mended: AsNamedAnd(no_firewall),
    },
    Fault {
        name: "nothing is forwarded by default",
        make: |lab| {
            firewall(lab, "forward", "policy drop;\nct state established accept\niifname docker0 accept")
        },
        found: &["forward-drop"],
        mended: AsNamedAnd(no_firewall),
    },
    Fault {
        name: "firewalld does not know the tunnel's device",
        make: |lab| {
            nft(
                lab,
                "table inet firewalld {\nchain filter_FORWARD {\ntype filter hook forward priority 10;\n\
                 ct state established,related accept\niifname \"eth0\" accept\nreject with icmpx admin-prohibited\n}\n}\n",
            );
        },
        found: &["firewalld", "forward-drop"],
        mended: By(|lab| sh(lab, "nft delete table inet firewalld")),
    },
    Fault {
        name: "a strict reverse path filter, and another way to a node",
        make: |lab| {
            other_interface(lab);
            sysctl(lab, "ipv4/conf/all/rp_filter", "1");
            ip(lab, &format!("route add {}/32 dev other\n", underlay4(2)));
        },
        found: &["rp-filter"],
        mended: AsNamedAnd(|lab| {
            without_other(lab);
            sysctl(lab, "ipv4/conf/all/rp_filter", "0");
        }),
    },
    Fault {
        name: "part of a node's subnet is routed elsewhere",
        make: |lab| {
            other_interface(lab);
            ip(lab, "route add 10.244.2.0/25 dev other\n");
        },
        found: &["route-elsewhere"],
        mended: By(without_other),
    },
    Fault {
        name: "policy routing sends packets for pods elsewhere",
        make: |lab| {
            other_interface(lab);
            ip(lab, "route add default dev other table 99\nrule add to 10.244.2.0/24 lookup 99 pref 99\n");
        },
        found: &["route-elsewhere"],
        mended: By(|lab| {
            ip(lab, "rule del pref 99\n");
            without_other(lab);
        }),
    },
    Fault {
        name: "a routing rule looks at source ports",
        make: |lab| ip(lab, "rule add ipproto udp sport 1000-2000 lookup main pref 98\n"),
        found: &["policy-routing"],
        mended: AsNamed,
    },
    Fault {
        name: "an IPsec policy is about the other node",
        make: |lab| {
            let (own, peer) = (underlay4(1), underlay4(2));
            ip(lab, &format!("xfrm policy add src {own} dst {peer} dir out action block\n"));
        },
        found: &["ipsec"],
        mended: By(|lab| {
            let (own, peer) = (underlay4(1), underlay4(2));
            ip(lab, &format!("xfrm policy delete src {own} dst {peer} dir out\n"));
        }),
    },
    Fault {
        name: "the route to a node has a smaller MTU",
        make: |lab| ip(lab, &format!("route add {}/32 dev {UNDERLAY} mtu 1300\n", underlay4(2))),
        found: &["path-mtu"],
        mended: By(|lab| ip(lab, &format!("route del {}/32 dev {UNDERLAY}\n", underlay4(2)))),
    },
    Fault {
        name: "a pod sends packets larger than the tunnel takes",
        make: |lab| ip(lab, "link set veth1 mtu 1500\n"),
        found: &["pod-mtu"],
        mended: By(|lab| ip(lab, "link set veth1 mtu 1450\n")),
    },
    Fault {
        name: "offloads of the device are off",
        make: |lab| sh(lab, &format!("ethtool -K {DEVICE} tx off")),
        found: &["offload-off"],
        mended: AsNamed,
    },
    Fault {
        name: "a queueing discipline that a bypass would skip",
        make: |lab| {
            sh(lab, &format!("tc qdisc add dev {DEVICE} root tbf rate 100mbit burst 100kb latency 50ms"))
        },
        found: &["hooked"],
        mended: AsNamed,
    },
    Fault {
        name: "a rule that has to see every packet",
        make: |lab| firewall(lab, "forward", "\nlimit rate over 100000/second drop"),
        found: &["meters"],
        mended: By(no_firewall),
    },
    Fault {
        name: "the fast path is switched off",
        make: |lab| drop(lab.agent(1).and_then(|agent| agent.cli(&["fastpath", "off"])).expect("off")),
        found: &["fastpath-off"],
        mended: AsNamed,
    },
    Fault {
        name: "somebody else's device has VNI and port",
        make: |lab| ip(lab, &format!("link add other type vxlan id 1 dstport {PORT} gbp\n")),
        found: &["foreign-device"],
        mended: AsNamed,
    },
    Fault {
        name: "the configuration is refused",
        make: |lab| {
            lab.agent(1)
                .and_then(|agent| agent.reconfigure("mtu = \"auto\"", "mtu = \"often\""))
                .expect("changed")
        },
        found: &["config-refused"],
        mended: By(|lab| {
            lab.agent(1)
                .and_then(|agent| agent.reconfigure("mtu = \"often\"", "mtu = \"auto\""))
                .expect("changed");
        }),
    },
    Fault {
        name: "two nodes have one MAC",
        make: |lab| second_node(lab, |node| node.mac = Some(vtep_mac(1))),
        found: &["state-refused"],
        mended: By(state_as_before),
    },
    Fault {
        name: "two nodes have one address",
        make: |lab| second_node(lab, |node| node.vtep = IpAddr::from(underlay4(1))),
        found: &["state-refused"],
        mended: By(state_as_before),
    },
    Fault {
        name: "two nodes have one subnet",
        make: |lab| second_node(lab, |node| node.subnets = vec!["10.244.1.0/24".into()]),
        found: &["state-refused"],
        mended: By(state_as_before),
    },
];

#[test]
fn each_fault_that_an_agent_lives_with_is_found_and_goes_with_its_cause() {
    let lab = build(&LabSpec::pair(Overlay::verified(), Overlay::verified()));
    warm_up(&lab);
    make_and_find(&lab, FAULTS, &[]);
    programs_of_others(&lab);
    host::managers(&lab);
    host::other_agents(&lab);
    host::wrong_checksums(&lab);
}

fn programs_of_others(lab: &Lab) {
    match Dropper::behind(lab.node(1), DEVICE, true) {
        Ok(dropper) => {
            await_findings(lab, &[], "a program of somebody else's", &["hooked"]);
            drop(dropper);
            await_findings(lab, &[], "no program of somebody else's", &[]);
        }
        Err(error) => eprintln!("SKIPPED, because this kernel has no TCX: {error:#}"),
    }
}

#[test]
fn a_healthy_node_gives_no_finding_and_a_device_of_somebody_elses_what_keeps_it_slow() {
    // The device of `ip link` writes checksums, which a program leaves to the kernel.
    let beside = Overlay::Agent(vxlan_tests::lab::AgentOptions::beside("direct", DEVICE));
    let kinds: [(_, &[&str]); 2] = [(Overlay::agent(), &[]), (beside, &["left"])];
    for (overlay, expected) in kinds {
        let lab = build(&LabSpec::pair(overlay, Overlay::KernelVxlan));
        await_findings(&lab, &[], "a healthy node", expected);
    }
}
