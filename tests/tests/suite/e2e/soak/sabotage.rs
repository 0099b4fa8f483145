//! Parts of the overlay that somebody takes away.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use vxlan_tests::lab::addr::{underlay4, vtep_mac};
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Agent, DEVICE, UNDERLAY, remove_pins, wait_until};

use super::{NODES, SOON, Soak};

/// What is taken away from a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sabotage {
    Device,
    DeviceDown,
    UnderlayDown,
    Mac,
    Mtu,
    Alias,
    Address,
    Address6,
    Addresses,
    Route,
    Route6,
    Routes,
    Neighbour,
    Neighbour6,
    Neighbours,
    Fdb,
    HeadRoom,
    Pins,
    Map,
    Programs,
    Links,
    PodsLink,
    UnderlaysLink,
    Table,
    /// All that is not pinned, while no agent is there: a machine that starts with pins of the one before.
    AllButPins,
}

impl Sabotage {
    pub(super) const ALL: [Self; 25] = [
        Self::Device,
        Self::DeviceDown,
        Self::UnderlayDown,
        Self::Mac,
        Self::Mtu,
        Self::Alias,
        Self::Address,
        Self::Address6,
        Self::Addresses,
        Self::Route,
        Self::Route6,
        Self::Routes,
        Self::Neighbour,
        Self::Neighbour6,
        Self::Neighbours,
        Self::Fdb,
        Self::HeadRoom,
        Self::Pins,
        Self::Map,
        Self::Programs,
        Self::Links,
        Self::PodsLink,
        Self::UnderlaysLink,
        Self::Table,
        Self::AllButPins,
    ];
}

impl Soak {
    /// Does the damage, and waits until it is healed.
    pub(super) fn suffer(&mut self, sabotage: Sabotage) -> Result<()> {
        let n = self.random.node();
        let dead = matches!(sabotage, Sabotage::AllButPins);
        if dead {
            self.agent(n)?.kill9()?;
        }
        self.damage(sabotage, n)?;
        let started = Instant::now();
        if dead {
            self.agent(n)?.start()?;
        }
        self.wait_healed(n)?;
        println!("{sabotage:?} at node {n} is healed after {:?}", started.elapsed());
        Ok(())
    }

    fn damage(&mut self, sabotage: Sabotage, n: u8) -> Result<()> {
        let m = (n + self.random.below(usize::from(NODES) - 1) as u8) % NODES + 1;
        let node = self.lab.node(n);
        let on_device = |words: String| node.sh(&format!("{words} dev {DEVICE}")).map(drop);
        let link = |words: &str| node.sh(&format!("ip link {words}")).map(drop);
        let pins = self.lab.agent(n).and_then(Agent::pins)?;
        match sabotage {
            Sabotage::Device => link(&format!("del {DEVICE}")),
            Sabotage::DeviceDown => link(&format!("set {DEVICE} down")),
            Sabotage::UnderlayDown => {
                node.sysctl(&[(&format!("ipv6/conf/{UNDERLAY}/keep_addr_on_down"), "1")])?;
                link(&format!("set {UNDERLAY} down"))?;
                link(&format!("set {UNDERLAY} up"))?;
                // Carrier is noticed within a second, here and on the other side.
                let reached = |m| ping(node, underlay4(m), Ping::default()).is_ok_and(|r| r.all_answered());
                let all = || (1..=NODES).filter(|m| *m != n).all(reached);
                wait_until("the underlay is back", SOON, all)
            }
            Sabotage::Mac => link(&format!("set {DEVICE} address 0e:0e:0e:0e:0e:0e")),
            Sabotage::Mtu => link(&format!("set {DEVICE} mtu 1300")),
            Sabotage::Alias => node.cmd("ip", &["link", "set", DEVICE, "alias", ""]).map(drop),
            Sabotage::Address => on_device(format!("ip addr del 10.244.{n}.0/32")),
            Sabotage::Address6 => on_device(format!("ip addr del fd00:244:{n}::/128")),
            Sabotage::Addresses => on_device("ip addr flush".into()),
            Sabotage::Route => on_device(format!("ip route del 10.244.{m}.0/24")),
            Sabotage::Route6 => on_device(format!("ip route del fd00:244:{m}::/64")),
            Sabotage::Routes => {
                on_device("ip route flush".into())?;
                on_device("ip -6 route flush".into())
            }
            Sabotage::Neighbour => on_device(format!("ip neigh del 10.244.{m}.0")),
            Sabotage::Neighbour6 => on_device(format!("ip neigh del fd00:244:{m}::")),
            Sabotage::Neighbours => on_device("ip neigh flush nud permanent".into()),
            Sabotage::Fdb => on_device(format!("bridge fdb del {}", vtep_mac(m))),
            Sabotage::HeadRoom => {
                let links = node.sh("ip -o link show type vxlan")?;
                let name = links.split([' ', ':', '@']).find(|word| word.starts_with("vxr"));
                link(&format!("del {}", name.context("no head-room port")?))
            }
            Sabotage::Pins => remove_pins(&pins),
            Sabotage::Map => Ok(std::fs::remove_file(pins.join("VTEPS"))?),
            Sabotage::Programs => remove_pins(&pins.join("programs")),
            Sabotage::Links => remove_pins(&pins.join("links")),
            Sabotage::PodsLink => self.detach(n, &pins, &self.lab.pod(n, 1).host_veth),
            Sabotage::Table => self.delete_table(n),
            Sabotage::AllButPins => {
                self.delete_table(n)?;
                let devices = node.sh("ip -br link show type vxlan")?;
                // `flannel.1        UNKNOWN …`, `vxr6@eth0        DOWN …`
                let names = devices.lines().filter_map(|line| line.split([' ', '@']).next());
                names.map(|name| format!("del {name}")).try_for_each(|words| link(&words))
            }
            Sabotage::UnderlaysLink => self.detach(n, &pins, UNDERLAY),
        }
    }

    fn delete_table(&self, n: u8) -> Result<()> {
        let table = self.lab.agent(n)?.nft_table();
        self.lab.node(n).sh(&format!("nft delete table inet {table}")).map(drop)
    }

    /// Takes the programs off an interface: the filters, or else the pins that keep links.
    fn detach(&self, n: u8, pins: &Path, interface: &str) -> Result<()> {
        let node = self.lab.node(n);
        let index = node.run(|| nix::net::if_::if_nametoindex(interface))?;
        let index = index.to_string();
        let links = std::fs::read_dir(pins.join("links"))?.filter_map(Result::ok);
        let links = links.filter(|link| link.file_name().to_string_lossy().split('-').nth(1) == Some(&index));
        let (filters, links): (Vec<_>, Vec<_>) =
            links.map(|link| link.path()).partition(|link| link.is_dir());
        if !filters.is_empty() {
            node.sh(&format!("tc filter del dev {interface} ingress"))?;
        }
        links.iter().try_for_each(|link| Ok(std::fs::remove_file(link)?))
    }
}
