//! What somebody else has put on interfaces is obeyed as without a fast path: each case drops everything
//! at one place, and the kernel's overlay says what comes of it.

use std::time::Duration;

use vxlan_agent::datapath::KernelFeatures;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, DEVICE, Dropper, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

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
}

/// On which node, where, at the entry or the exit, and what.
type Case = (u8, Place, bool, What);

const ENTRY: bool = true;
const EXIT: bool = false;

const CASES: [Case; 12] = [
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
            // `ret TC_ACT_SHOT`, in classic BPF.
            let drops = ["bpf", "da", "bytecode", "1,6 0 0 2"];
            let filter = |command| ["filter", command, "dev", on.as_str(), edge, "pref", "20000"];
            node.cmd("tc", &[filter("add").as_slice(), &drops].concat()).expect("a filter");
            let remove = filter("del").map(str::to_owned);
            Box::new(move || {
                let remove: Vec<&str> = remove.iter().map(String::as_str).collect();
                drop(node.cmd("tc", &remove).expect("no filter"));
            })
        }
        What::Program => {
            let dropper = Dropper::attach(node, &on, entry).expect("a program");
            Box::new(move || drop(dropper))
        }
    }
}

fn answered(lab: &Lab) -> bool {
    let options = Ping { count: 3, timeout: Duration::from_millis(100), ..Ping::default() };
    !ping(lab.pod(1, 1), lab.pod(2, 1).ips()[0], options).expect("a socket").rtts.is_empty()
}

/// Waits until node `n` says that something is passed by the kernel, or that nothing is.
fn wait_for_status(lab: &Lab, n: u8, case: Case, something: bool) {
    let agent = lab.agent(n).expect("an agent");
    let says = || {
        let status = agent.json(&["status"]).unwrap_or_default();
        status["networks"][0]["hooked"].as_array().is_some_and(|all| all.is_empty() != something)
    };
    wait_until("the agent follows", Duration::from_secs(5), says)
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
        let node = format!("attach = \"{attach}\"");
        let options =
            || AgentOptions { fastpath: fastpath.into(), node: node.clone(), ..AgentOptions::default() };
        let lab = build(&LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options())));
        warm_up(&lab);
        // A program at the entry of a veth is in front of filters, and has had its say.
        let in_front =
            |case: &Case| attach == "clsact" && matches!(case, (_, Place::Veth, ENTRY, What::Program));
        for case in cases().filter(|case| !in_front(case)) {
            let remove = put(&lab, case);
            wait_for_status(&lab, case.0, case, true);
            let counts =
                counted(&lab, || assert!(!answered(&lab), "{case:?} is passed by, {fastpath} {attach}"));
            let hooked: u64 = counts.iter().map(|c| c.total("hooked")).sum();
            assert!(hooked >= 3, "{case:?}, {fastpath} {attach}: {hooked} packets were left to the kernel");
            remove();
            wait_for_status(&lab, case.0, case, false);
            let echoes = Ping { count: 10, ..Ping::default() };
            let [one, two] = counted(&lab, || assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, echoes));
            assert_took(&one, "pod_egress", "encapsulated", 5);
            assert_took(&two, underlay_hook(), "decapsulated", 5);
        }
    }
}
