//! What the agent reads of a node's nf_tables rules.

use vxlan_agent::kernel::ruleset::{self, Ruleset};
use vxlan_tests::lab::{Lab, LabSpec, Netns, Overlay};

use super::build;

fn node() -> Lab {
    build(&LabSpec::pair(Overlay::None, Overlay::None))
}

fn read(node: &Netns) -> Ruleset {
    node.run(ruleset::read).expect("rules")
}

fn device_chains(node: &Netns) -> Vec<String> {
    read(node).device_chains.iter().map(ToString::to_string).collect()
}

#[test]
fn chains_at_devices_are_found() {
    let lab = node();
    let node = lab.node(1);
    assert_eq!(read(node), Ruleset::default());
    node.ip("link add d0 type veth peer x0\nlink add d1 type veth peer x1").expect("devices");
    let rules = "table netdev t {\n chain out { type filter hook egress device d0 priority 0; }\n \
                 chain both { type filter hook ingress devices = { d0, d1 } priority 5; }\n }\n \
                 table inet u {\n chain in { type filter hook ingress device d1 priority 0; }\n \
                 chain other { type filter hook prerouting priority 0; }\n }\n \
                 table netdev asleep { flags dormant;\n chain c { type filter hook ingress device d0 priority 0; }\n }";
    node.feed("nft", &["-f", "-"], rules).expect("rules");
    assert_eq!(
        device_chains(node),
        [
            "chain netdev t both (ingress of d0)",
            "chain netdev t out (egress of d0)",
            "chain inet u in (ingress of d1)",
            "chain netdev t both (ingress of d1)",
        ]
    );
    node.sh("nft flush ruleset").expect("no rules");
    assert_eq!(read(node), Ruleset::default());
}
