//! `connectivity`: who answers, how soon, how large packets may be, by which way.

use std::net::IpAddr;

use serde_json::Value;
use vxlan_tests::lab::{Family, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

use super::{assert_nothing_dropped, build, counters};

/// What node 1 finds, and whether all is well.
fn probe(lab: &Lab) -> (bool, Value) {
    lab.agent(1).and_then(|agent| agent.judged(&[], &["connectivity"])).expect("a report")
}

/// The row of a node over one IP version inside.
fn row(report: &Value, node: u8, family: Family) -> &Value {
    let is_meant = |row: &&Value| {
        let address: Option<IpAddr> = row["address"].as_str().and_then(|text| text.parse().ok());
        row["node"] == format!("n{node}") && address.is_some_and(|ip| ip.is_ipv4() == (family == Family::V4))
    };
    report["peers"]
        .as_array()
        .and_then(|rows| rows.iter().find(is_meant))
        .unwrap_or_else(|| panic!("{report:#}"))
}

/// Whether a node answers, and the path MTU, by the fast path and by the kernel's.
fn said(report: &Value, node: u8, family: Family) -> [(bool, Option<u64>); 2] {
    ["fast", "kernel"].map(|way| {
        let path = &row(report, node, family)[way];
        (path["reachable"] == true, path["path_mtu"].as_u64())
    })
}

#[test]
fn every_node_is_probed_both_ways_and_who_is_lost_is_named() {
    // The third is no agent's.
    let overlays = vec![Overlay::agent(), Overlay::verified(), Overlay::KernelVxlan];
    let lab = build(&LabSpec::of(overlays));
    let before = counters(&lab, 1);
    let (well, report) = probe(&lab);
    assert!(well, "{report:#}");
    for (node, family) in [2, 3].into_iter().flat_map(|n| [(n, Family::V4), (n, Family::V6)]) {
        assert_eq!(said(&report, node, family), [(true, Some(1450)); 2], "{report:#}");
        for way in ["fast", "kernel"] {
            let seconds = row(&report, node, family)[way]["round_trip_seconds"].as_f64();
            assert!(seconds.is_some_and(|s| s > 0.0 && s < 0.5), "{report:#}");
        }
    }
    // Two echoes that ask whether and how soon, and one as large as may be, to two nodes over two IP versions.
    let sent = &counters(&lab, 1) - &before;
    assert!(sent.packets("tunnel_egress", "encapsulated") >= 12, "{sent}");
    assert!(sent.packets("tunnel_egress", "options") >= 12, "{sent}");
    assert_nothing_dropped(&sent);
    let told = &report["left_by"];
    assert!(told["fast"].as_u64() >= Some(12) && told["kernel"].as_u64() >= Some(12), "{report:#}");
    a_smaller_path_is_said(&lab);
    a_node_that_is_cut_off_is_named(&lab);
}

/// What is in between takes less than either end knows, and drops in silence.
fn a_smaller_path_is_said(lab: &Lab) {
    let small = "table netdev small {\nchain entry {\ntype filter hook ingress device \"underlay0\" priority -500;\n\
                 meta length > 1350 drop\n}\n}\n";
    lab.node(3).feed("nft", &["-f", "-"], small).expect("a rule");
    let (well, report) = probe(lab);
    assert!(well, "all answer small packets: {report:#}");
    for family in [Family::V4, Family::V6] {
        assert_eq!(said(&report, 3, family), [(true, Some(1300)); 2], "{report:#}");
        assert_eq!(said(&report, 2, family), [(true, Some(1450)); 2], "{report:#}");
    }
    lab.node(3).sh("nft delete table netdev small").expect("no rule");
}

fn a_node_that_is_cut_off_is_named(lab: &Lab) {
    lab.node(2).ip(&format!("link set {UNDERLAY} down\n")).expect("down");
    let (well, report) = probe(lab);
    assert!(!well && report["all_reachable"] == false, "{report:#}");
    for family in [Family::V4, Family::V6] {
        assert_eq!(said(&report, 2, family), [(false, None); 2], "{report:#}");
        assert_eq!(said(&report, 3, family), [(true, Some(1450)); 2], "{report:#}");
    }
    let text = lab.agent(1).and_then(|agent| agent.cli(&["connectivity"])).expect_err("a node is lost");
    assert!(!format!("{text:#}").contains("panicked"), "{text:#}");
    lab.node(2).ip(&format!("link set {UNDERLAY} up\n")).expect("up");
    wait_until("all answer again", std::time::Duration::from_secs(10), || probe(lab).0).expect("a way");
}
