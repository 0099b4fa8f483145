//! Masquerading, in an nf_tables table that is named after the network.
//!
//! - From a pod to anything but pods and multicast: the node's address, because nobody outside
//!   knows the way to a pod.
//! - From elsewhere through the tunnel to a pod: the tunnel's address, so that the answer comes
//!   back the same way. That is a node's process that uses another of the node's addresses, or a
//!   client outside whose connection to a service this node passes on. Where nodes on the same link are
//!   reached without a tunnel, it is the same for the underlay and its address.
//!
//! Between pods, never.

use ipnetwork::IpNetwork;
use nix::libc;

use super::guard::Sets;
use super::packet::Version;
use super::table::{Chain, Change, comments, explain, replace};
use crate::kernel::nft::expression::Ports;
use crate::kernel::nft::{self, Attributes};
use crate::ownership;

/// What a network's own table does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Name of the network, which the table is named after.
    pub network: String,
    /// Networks of all pods of the cluster, at most one of each IP version, and the names of the
    /// interfaces that lead to other nodes' pods: the vxlan device, and perhaps the underlay.
    pub pods: Vec<(IpNetwork, Vec<String>)>,
    /// What becomes of the ports of what is masqueraded.
    pub ports: Ports,
}

impl Masquerade {
    /// Puts the table in place, in one step, if it is not there already as it should be.
    pub fn install(&self) -> anyhow::Result<Change> {
        let table = ownership::nft_table(&self.network);
        let chains = [chain(&self.pods, self.ports)];
        if nft::comments(&table).map_err(|e| explain(&e))? == comments(&chains) {
            return Ok(Change::Nothing);
        }
        replace(&table, &Sets::new(), &chains).commit().map_err(|e| explain(&e))?;
        Ok(Change::Table)
    }
}

/// The rules for `pods`: networks of pods, and the names of the interfaces that lead to them.
fn chain(pods: &[(IpNetwork, Vec<String>)], ports: Ports) -> Chain {
    let rules = pods.iter().flat_map(|(network, interfaces)| {
        let inwards = interfaces.iter().map(|interface| elsewhere_to_pods(network, interface));
        let inwards = inwards.map(|rule| ("elsewhere to pods", rule.masquerade(ports)));
        std::iter::once(("pods to elsewhere", pods_to_elsewhere(network).masquerade(ports))).chain(inwards)
    });
    Chain {
        name: "postrouting",
        kind: "nat",
        hook: libc::NF_INET_POST_ROUTING,
        priority: libc::NF_IP_PRI_NAT_SRC,
        rules: rules.collect(),
    }
}

fn pods_to_elsewhere(pods: &IpNetwork) -> Attributes {
    let version = Version::of(pods);
    let rule = Attributes::default()
        .over(version)
        .load_source(version)
        .within(pods)
        .load_destination(version)
        .outside(pods);
    // 224.0.0.0/4 and ff00::/8.
    match version.is_ipv4() {
        true => rule.load_destination(version).mask(&[0xf0, 0, 0, 0]).is_not(&[0xe0, 0, 0, 0]),
        false => rule.load_network_header(version.destination(), 1).is_not(&[0xff]),
    }
}

fn elsewhere_to_pods(pods: &IpNetwork, interface: &str) -> Attributes {
    let version = Version::of(pods);
    let mut name = [0; libc::IFNAMSIZ];
    name.iter_mut().zip(interface.bytes()).for_each(|(to, from)| *to = from);
    Attributes::default()
        .over(version)
        .load_source(version)
        .outside(pods)
        .load_destination(version)
        .within(pods)
        .load_meta(libc::NFT_META_OIFNAME)
        .is(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(network: &str, interfaces: &[&str]) -> Vec<String> {
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        comments(&[chain(&[(network.parse().expect("a network"), interfaces)], Ports::Random)])
    }

    #[test]
    fn the_mark_in_the_comments_tells_one_table_from_another() {
        let base = marks("10.244.0.0/16", &["vxlan1"]);
        assert_eq!(base.len(), 2, "one family, two rules");
        assert_eq!(base, marks("10.244.0.0/16", &["vxlan1"]));
        assert_eq!(marks("10.244.0.0/16", &["vxlan1", "eth0"]).len(), 3, "one interface more, one rule more");
        for other in [marks("10.245.0.0/16", &["vxlan1"]), marks("10.244.0.0/16", &["vxlan2"])] {
            assert_ne!(base[0], other[0]);
        }
    }
}
