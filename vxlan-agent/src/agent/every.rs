//! All devices that somebody else manages: each has a network, which comes and goes with it.

use std::collections::{BTreeMap, BTreeSet};

use vxlan_ebpf_common::maps::MAX_NETWORKS;

use super::Agent;
use super::network::Network;
use crate::config::{Config, NetworkConfig, View, name_after};
use crate::kernel::{Kind, Link, Tables};
use crate::net::IfIndex;
use crate::{mirror, ownership};

/// Which devices have a network because all have one.
#[derive(Debug, Default)]
pub(super) struct Every {
    /// What their networks are called. A device that is renamed keeps its own.
    names: BTreeMap<IfIndex, String>,
    /// Devices without one, and why: a sentence each.
    pub(super) left: Vec<String>,
}

impl Every {
    /// Adds to `config`, if it wants them, the networks of all devices in `tables` but those that are `taken`.
    fn complete(&mut self, config: &mut Config, tables: &Tables, taken: &BTreeSet<IfIndex>) {
        self.left.clear();
        let Some(like) = config.all.clone() else { return self.names.clear() };
        let room = (MAX_NETWORKS as usize - 1).saturating_sub(config.networks.len());
        let devices = candidates(config, tables, taken);
        self.names.retain(|index, _| devices.contains_key(index));
        let configured = config.networks.iter().map(|view| view.network.name.clone());
        let mut names: BTreeSet<String> = configured.collect();
        // One that a configured network has now is another device's.
        self.names.retain(|_, name| names.insert(name.clone()));
        let mut beyond = vec![];
        for link in devices.values() {
            if self.names.contains_key(&link.index) {
                continue;
            }
            if let Err(reason) = mirror::check(tables, link) {
                self.left.push(reason);
            } else if self.names.len() == room {
                beyond.push(link.name.as_str());
            } else {
                let name = free_name(link, &names);
                names.insert(name.clone());
                self.names.insert(link.index, name);
            }
        }
        self.left = mirror::shorten(std::mem::take(&mut self.left), "devices");
        self.left.extend(beyond.first().map(|first| {
            format!("{} devices beyond the {room} that have a network, from {first} on", beyond.len())
        }));
        for (index, name) in &self.names {
            let device = devices.get(index).map_or("", |link| link.name.as_str());
            let network = NetworkConfig { name: name.clone(), device: device.to_owned(), ..like.clone() };
            config.networks.push(View::beside(&config.node, network));
        }
    }

    /// Takes those networks out of `config`.
    fn strip(&self, config: &mut Config) {
        let names: BTreeSet<&String> = self.names.values().collect();
        config.networks.retain(|view| !names.contains(&view.network.name));
    }
}

/// Devices that are no agent's and that no network in `config` names.
fn candidates<'t>(
    config: &Config,
    tables: &'t Tables,
    taken: &BTreeSet<IfIndex>,
) -> BTreeMap<IfIndex, &'t Link> {
    let mut named = BTreeSet::new();
    for view in &config.networks {
        named.insert(view.network.device.as_str());
        named.extend(view.devices().into_iter().map(|(device, _)| device));
    }
    let is_ours = |link: &Link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        ownership::network_of_device(alias).is_some() || link.mac == ownership::HEADROOM_MAC
    };
    let vxlan = tables.links.values().filter(|link| matches!(link.kind, Kind::Vxlan(_)) && !is_ours(link));
    let free = vxlan.filter(|link| !(taken.contains(&link.index) || named.contains(link.name.as_str())));
    free.map(|link| (link.index, link)).collect()
}

/// The name after a device that no other network has.
fn free_name(link: &Link, names: &BTreeSet<String>) -> String {
    let name = name_after(&link.name);
    if names.contains(&name) { format!("{name}-{}", link.index) } else { name }
}

impl Agent {
    /// `config` with the networks of all devices, if it wants them.
    pub(super) fn completed(&mut self, mut config: Config) -> Config {
        let names = self.every.names.values().cloned().collect::<BTreeSet<_>>();
        let others = self.networks.iter().filter(|network| !names.contains(network.name()));
        let taken = others.flat_map(Network::held).collect();
        self.every.complete(&mut config, &self.machine.tables, &taken);
        config
    }

    /// Follows devices that have come, gone, or got another name; whether there is news.
    ///
    /// # Errors
    /// As [`Agent::take_up`].
    pub(super) async fn follow_devices(&mut self) -> anyhow::Result<bool> {
        if self.config.all.is_none() {
            return Ok(false);
        }
        let mut config = self.config.clone();
        self.every.strip(&mut config);
        let left = self.every.left.clone();
        let config = self.completed(config);
        if config.networks != self.config.networks {
            self.change_to(config).await?;
            return Ok(true);
        }
        Ok(left != self.every.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fastpath, NodeConfig};
    use crate::kernel::{Address, Vxlan};
    use crate::net::Vni;
    use crate::text::Text;

    fn add(tables: &mut Tables, index: u32, name: &str) {
        let local = Some([192, 0, 2, 1].into());
        let vxlan = Vxlan { vni: Vni::try_from(index).ok(), port: 8472, local, ..Vxlan::default() };
        let kind = Kind::Vxlan(vxlan);
        let index = IfIndex(index);
        let link = Link { index, name: name.into(), kind, up: true, sends_ethernet: true, ..Link::default() };
        tables.links.insert(index, link);
    }

    fn tables(devices: &[(u32, &str)]) -> Tables {
        let mut tables = Tables::default();
        let eth0 = Link { index: IfIndex(2), name: "eth0".into(), ..Link::default() };
        tables.links.insert(IfIndex(2), eth0);
        tables.addresses.insert(Address { ifindex: IfIndex(2), ip: [192, 0, 2, 1].into(), prefix: 24 });
        devices.iter().for_each(|(index, name)| add(&mut tables, *index, name));
        tables
    }

    fn config() -> Config {
        let node = NodeConfig::parse(&Text::new("the node", "[node]\nname = \"a\"\n")).expect("valid");
        Config::accelerate_all(node, Fastpath::Direct).expect("valid")
    }

    /// Networks and their devices.
    fn networks(every: &mut Every, tables: &Tables) -> Vec<(String, String)> {
        let mut config = config();
        every.complete(&mut config, tables, &BTreeSet::new());
        config.networks.into_iter().map(|view| (view.network.name, view.network.device)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, device)| ((*name).to_owned(), (*device).to_owned())).collect()
    }

    #[test]
    fn each_device_of_others_has_a_network_that_is_named_after_it() {
        let (mut every, mut tables) = (Every::default(), tables(&[(7, "flannel.1"), (8, "ours"), (9, "v9")]));
        tables.links.get_mut(&IfIndex(8)).expect("there").alias = Some("vxlan-agent network pods".into());
        assert_eq!(networks(&mut every, &tables), pairs(&[("flannel-1", "flannel.1"), ("v9", "v9")]));
        assert!(every.left.is_empty(), "of an agent's there is nothing to say: {:?}", every.left);
        tables.links.remove(&IfIndex(9));
        add(&mut tables, 10, "flannel-1");
        let expected = pairs(&[("flannel-1", "flannel.1"), ("flannel-1-10", "flannel-1")]);
        assert_eq!(networks(&mut every, &tables), expected, "names that differ in signs only");
    }

    #[test]
    fn a_device_that_is_renamed_keeps_its_network_and_another_gets_its_name() {
        let (mut every, mut tables) = (Every::default(), tables(&[(7, "v")]));
        assert_eq!(networks(&mut every, &tables), pairs(&[("v", "v")]));
        add(&mut tables, 7, "w");
        assert_eq!(networks(&mut every, &tables), pairs(&[("v", "w")]));
        add(&mut tables, 8, "v");
        assert_eq!(networks(&mut every, &tables), pairs(&[("v", "w"), ("v-8", "v")]));
    }

    #[test]
    fn a_device_that_cannot_be_accelerated_is_named_and_one_that_could_is_kept() {
        let (mut every, mut tables) = (Every::default(), tables(&[(7, "v7"), (8, "v8")]));
        let down = |tables: &mut Tables, n| tables.links.get_mut(&IfIndex(n)).expect("there").up = false;
        down(&mut tables, 8);
        assert_eq!(networks(&mut every, &tables), pairs(&[("v7", "v7")]));
        assert_eq!(every.left, ["v8 is down"]);
        down(&mut tables, 7);
        assert_eq!(networks(&mut every, &tables), pairs(&[("v7", "v7")]), "it says so itself");
    }

    #[test]
    fn what_a_network_of_the_configuration_has_is_nobody_elses() {
        let text = "[[network]]\nkind = \"accelerate\"\ndevices = \"all\"\nfastpath = \"direct\"\n\
                    [[network]]\nkind = \"accelerate\"\ndevice = \"v7\"\nname = \"v8\"\n";
        let text = Text::new("c", text);
        let mut config = Config::parse(&text, "/".as_ref(), &|| Some("a".into())).expect("valid");
        let tables = tables(&[(7, "v7"), (8, "v8"), (9, "v9")]);
        Every::default().complete(&mut config, &tables, &[IfIndex(9)].into());
        let named: Vec<_> = config.networks.iter().map(|view| view.network.name.as_str()).collect();
        assert_eq!(named, ["v8", "v8-8"]);
        assert_eq!(config.networks[1].network.fastpath, Fastpath::Direct);
    }

    #[test]
    fn there_are_no_more_networks_than_numbers() {
        let devices: Vec<(u32, String)> = (10..10 + MAX_NETWORKS + 1).map(|n| (n, format!("v{n}"))).collect();
        let devices: Vec<_> = devices.iter().map(|(n, name)| (*n, name.as_str())).collect();
        let mut every = Every::default();
        let found = networks(&mut every, &tables(&devices));
        assert_eq!(found.len(), MAX_NETWORKS as usize - 1);
        assert_eq!(every.left, ["2 devices beyond the 8191 that have a network, from v8201 on"]);
        assert_eq!(networks(&mut every, &tables(&devices)), found, "the others stay where they are");
    }
}
