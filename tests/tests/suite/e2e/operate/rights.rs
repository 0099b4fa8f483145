use std::fs;
use std::time::Duration;

use vxlan_tests::lab::{DEVICE, LabSpec, Overlay, wait_until};

use super::super::{build, warm_up};

/// `CAP_DAC_OVERRIDE`, `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`, `CAP_PERFMON` and `CAP_BPF`, as docs/security.md has them.
const KEPT: &str = "000000c000201002";

#[test]
fn a_running_agent_has_the_documented_capabilities_and_no_way_to_others() {
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::agent()));
    warm_up(&lab);
    let agent = lab.agent(1).expect("an agent");
    let pid = agent.pid().expect("runs");
    let threads: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten().collect();
    assert!(!threads.is_empty());
    for thread in threads {
        let status = fs::read_to_string(thread.path().join("status")).expect("a thread");
        for line in [
            format!("CapEff:\t{KEPT}"),
            format!("CapPrm:\t{KEPT}"),
            format!("CapBnd:\t{KEPT}"),
            "CapInh:\t0000000000000000".to_owned(),
            "CapAmb:\t0000000000000000".to_owned(),
            "NoNewPrivs:\t1".to_owned(),
        ] {
            assert!(status.lines().any(|found| found == line), "{line}:\n{status}");
        }
    }
    let names = ["CAP_BPF", "CAP_DAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"];
    assert_eq!(agent.json(&["status"]).expect("a status")["rights"], serde_json::json!(names));
    let text = agent.cli(&["status"]).expect("a status");
    assert!(text.contains(&format!("rights     {}", names.join(", "))), "{text}");
    let documented = include_str!("../../../../../docs/security.md");
    names.iter().for_each(|name| assert!(documented.contains(&format!("`{name}`")), "{name}"));

    // It can still do what it is there for: what has the device has to be made anew, with its programs.
    lab.node(1).sh(&format!("ip link del {DEVICE}")).expect("damage");
    let repaired = || {
        let status = agent.json(&["status"]).unwrap_or_default();
        let attached = status["fastpath"]["attachments"].as_array().cloned().unwrap_or_default();
        let is_on = |hook: &str| attached.iter().any(|at| at["hook"] == hook && at["interface"] == DEVICE);
        is_on("tunnel_egress") && is_on("tunnel_ingress") && status["health"]["grade"] == "healthy"
    };
    wait_until("it is repaired", Duration::from_secs(10), repaired)
        .inspect_err(|_| agent.print_log())
        .expect("a repair");
}
