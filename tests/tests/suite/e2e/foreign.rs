//! What somebody else has put on interfaces is obeyed as without a fast path: each case drops everything
//! at one place, and the kernel's overlay says what comes of it.

use std::time::Duration;

use vxlan_agent::datapath::KernelFeatures;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, DEVICE, Dropper, Lab, LabSpec, Netns, Overlay, UNDERLAY, wait_until};

use super::{assert_answered, assert_took, build, counted, underlay_hook, warm_up};

/// Where packets from the pod of node 1 to that of node 2 meet it.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The host side of the pod's veth.
    Veth,
    /// The pods' bridge.
    Bridge,
    Device,
    Underlay,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Qdisc,
    /// A filter behind ours.
    Filter,
    Program,
    /// Of nf_tables, family `netdev`.
    Chain,
}

/// On which node, where, at the entry or the exit, and what.
type Case = (u8, Place, bool, What);

const ENTRY: bool = true;
const EXIT: bool = false;

const CASES: [Case; 18] = [
    (1, Place::Veth, ENTRY, What::Filter),
    (1, Place::Veth, ENTRY, What::Program),
    (1, Place::Bridge, ENTRY, What::Filter),
    (1, Place::Device, EXIT, What::Qdisc),
    (1, Place::Device, EXIT, What::Filter),
    (2, Place::Underlay, ENTRY, What::Filter),
    (2, Place::Device, ENTRY, What::Filter),
    (2, Place::Device, ENTRY, What::Program),
    (2, Place::Bridge, EXIT, What::Qdisc),
    (2, Place::Veth, EXIT, What::Qdisc),
    (2, Place::Veth, EXIT, What::Filter),
    (2, Place::Veth, EXIT, What::Program),
    (1, Place::Veth, ENTRY, What::Chain),
    (1, Place::Device, EXIT, What::Chain),
    (1, Place::Underlay, EXIT, What::Chain),
    (2, Place::Underlay, ENTRY, What::Chain),
    (2, Place::Device, ENTRY, What::Chain),
    (2, Place::Veth, EXIT, What::Chain),
];

fn interface(lab: &Lab, n: u8, place: Place) -> String {
    match place {
        Place::Veth => lab.node(n).pods[0].host_veth.clone(),
        Place::Bridge => "cni0".into(),
        Place::Device => DEVICE.into(),
        Place::Underlay => UNDERLAY.into(),
    }
}

/// Puts it there; takes it away again when called.
fn put<'a>(lab: &'a Lab, (n, place, entry, what): Case) -> Box<dyn FnOnce() + 'a> {
    let (node, on) = (lab.node(n), interface(lab, n, place));
    match what {
        What::Qdisc => {
            node.sh(&format!("tc qdisc add dev {on} root blackhole")).expect("a qdisc");
            Box::new(move || drop(node.sh(&format!("tc qdisc del dev {on} root")).expect("no qdisc")))
        }
        What::Filter => {
            let edge = if entry { "ingress" } else { "egress" };
            // It is there already where our programs are filters, too.
            let _ = node.sh(&format!("tc qdisc add dev {on} clsact"));
            filter(node, "add", &on, edge, "20000", &DROPS);
            Box::new(move || filter(node, "del", &on, edge, "20000", &[]))
        }
        What::Chain => {
            let hook = if entry { "ingress" } else { "egress" };
            let chain = format!("type filter hook {hook} device {on} priority 0; policy drop;");
            node.feed(
                "nft",
                &["-f", "-"],
                &format!("table netdev case {{\n chain c {{\n  {chain}\n }}\n}}\n"),
            )
            .expect("a chain");
            Box::new(move || drop(node.sh("nft delete table netdev case").expect("no chain")))
        }
        What::Program => {
            let dropper = Dropper::behind(node, &on, entry).expect("a program");
            Box::new(move || drop(dropper))
        }
    }
}

/// `ret TC_ACT_SHOT`, in classic BPF.
const DROPS: [&str; 4] = ["bpf", "da", "bytecode", "1,6 0 0 2"];

fn filter(node: &Netns, command: &str, on: &str, edge: &str, priority: &str, what: &[&str]) {
    let words = ["filter", command, "dev", on, edge, "pref", priority];
    node.cmd("tc", &[words.as_slice(), what].concat()).expect("a filter");
}

fn answered(lab: &Lab) -> bool {
    let options = Ping { count: 3, timeout: Duration::from_millis(100), ..Ping::default() };
    !ping(lab.pod(1, 1), lab.pod(2, 1).ips()[0], options).expect("a socket").rtts.is_empty()
}

/// What node `n` says that the kernel carries packets because of.
fn hooked(lab: &Lab, n: u8) -> Option<usize> {
    let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).ok()?;
    Some(status["networks"][0]["hooked"].as_array()?.len())
}

/// Waits until node `n` says that something is passed by the kernel, or that nothing is.
fn wait_for_status(lab: &Lab, n: u8, case: Case, something: bool) {
    let agent = lab.agent(n).expect("an agent");
    let says = || hooked(lab, n).is_some_and(|found| (found != 0) == something);
    // The kernel gives no notice of programs: the agent looks for them every five seconds.
    wait_until("the agent follows", Duration::from_secs(15), says)
        .inspect_err(|_| agent.print_log())
        .unwrap_or_else(|error| panic!("{case:?}: {error}"));
}

fn cases() -> impl Iterator<Item = Case> {
    let tcx = KernelFeatures::probe().tcx;
    if !tcx {
        eprintln!("SKIPPED: programs of others, because this kernel has no TCX");
    }
    CASES.into_iter().filter(move |(.., what)| tcx || !matches!(what, What::Program))
}

/// Two nodes with programs attached as `attach` says.
fn attached(fastpath: &str, attach: &str) -> Lab {
    let node = format!("attach = \"{attach}\"");
    let options =
        || AgentOptions { fastpath: fastpath.into(), node: node.clone(), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options())));
    warm_up(&lab);
    lab
}

#[test]
fn what_is_in_front_of_ours_has_had_its_say_and_closes_nothing() {
    let lab = attached("direct", "clsact");
    let (node, veth) = (lab.node(1), interface(&lab, 1, Place::Veth));
    filter(node, "add", &veth, "ingress", "10", &DROPS);
    assert!(!answered(&lab), "a filter in front of ours is passed by");
    assert_eq!(hooked(&lab, 1), Some(0));
    filter(node, "del", &veth, "ingress", "10", &[]);
    assert!(answered(&lab));
    if !KernelFeatures::probe().tcx {
        eprintln!("SKIPPED: programs of others, because this kernel has no TCX");
        return;
    }
    for attach in ["clsact", "auto"] {
        let lab = attached("direct", attach);
        let (node, veth) = (lab.node(1), interface(&lab, 1, Place::Veth));
        let dropper = Dropper::in_front(node, &veth, ENTRY).expect("a program");
        assert!(!answered(&lab), "a program in front of ours is passed by, {attach}");
        assert_eq!(hooked(&lab, 1), Some(0), "{attach}");
        drop(dropper);
        assert!(answered(&lab), "{attach}");
    }
}

#[test]
fn what_somebody_else_has_put_on_an_interface_is_obeyed() {
    let kernel = build(&LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan));
    assert!(answered(&kernel));
    for case in cases() {
        let remove = put(&kernel, case);
        assert!(!answered(&kernel), "{case:?}: the kernel lets it through");
        remove();
        assert!(answered(&kernel), "{case:?}: the kernel does not recover");
    }
    drop(kernel);
    for (fastpath, attach) in [("direct", "auto"), ("verified", "auto"), ("verified", "clsact")] {
        let lab = attached(fastpath, attach);
        // A program is in front of all filters.
        let in_front =
            |case: &Case| attach == "clsact" && matches!(case, (_, Place::Veth, ENTRY, What::Program));
        for case in cases().filter(|case| !in_front(case)) {
            let remove = put(&lab, case);
            wait_for_status(&lab, case.0, case, true);
            let counts =
                counted(&lab, || assert!(!answered(&lab), "{case:?} is passed by, {fastpath} {attach}"));
            let hooked: u64 = counts.iter().map(|c| c.total("hooked")).sum();
            // What is new takes the stack, where a chain comes before the program that would count it.
            let unseen = fastpath == "verified" && matches!(case, (_, Place::Device, EXIT, What::Chain));
            assert!(hooked >= 3 || unseen, "{case:?}, {fastpath} {attach}: {hooked} were left to the kernel");
            remove();
            wait_for_status(&lab, case.0, case, false);
            let echoes = Ping { count: 10, ..Ping::default() };
            let [one, two] = counted(&lab, || assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, echoes));
            assert_took(&one, "pod_egress", "encapsulated", 5);
            assert_took(&two, underlay_hook(), "decapsulated", 5);
        }
    }
}
