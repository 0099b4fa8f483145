//! What only packets can tell of another node.

use vxlan_tests::lab::{LabSpec, Overlay, PORT, UNDERLAY};

use super::super::build;
use super::{await_findings, findings, ids};

const PEER: &[&str] = &["--peer", "n2"];

#[test]
fn faults_on_the_way_to_a_node_are_found_by_probing_it() {
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::agent()));
    let other = lab.node(2);
    await_findings(&lab, PEER, "a healthy way", &[]);
    await_findings(&lab, &["--peer", "192.0.2.2"], "a healthy way to an address", &[]);

    let drop = format!(
        "table inet firewall {{\nchain tunnel {{\ntype filter hook input priority 0;\nudp dport {PORT} drop\n}}\n}}\n"
    );
    other.feed("nft", &["-f", "-"], &drop).expect("a rule");
    await_findings(&lab, PEER, "the port is blocked at the other end", &["port-eaten"]);
    other.sh("nft delete table inet firewall").expect("no rule");

    // Neither end of the underlay knows that what is in between takes less, and drops in silence.
    let small = "table netdev small {\nchain entry {\ntype filter hook ingress device \"underlay0\" priority -500;\n\
                 meta length > 1380 drop\n}\n}\n";
    other.feed("nft", &["-f", "-"], small).expect("a rule");
    let found = await_findings(&lab, PEER, "the path is smaller than it seems", &["path-mtu"]);
    assert!(found[0]["evidence"].as_str().is_some_and(|text| text.contains("1380")), "{found:#}");
    other.sh("nft delete table netdev small").expect("no rule");

    other.ip(&format!("link set {UNDERLAY} down\n")).expect("down");
    let found = findings(&lab, PEER);
    assert!(ids(&found).contains("peer-unreachable"), "{found:#}");
    other.ip(&format!("link set {UNDERLAY} up\n")).expect("up");
    await_findings(&lab, PEER, "the way is there again", &[]);
    let said =
        lab.agent(1).and_then(|agent| agent.cli(&["doctor", "--peer", "n9"])).expect_err("no such node");
    assert!(format!("{said:#}").contains("there is no node 'n9' to probe: there are n2"), "{said:#}");
}
