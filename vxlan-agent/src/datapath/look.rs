//! Single entries of the maps, to be read as programs look them up, and to be copied.

use std::net::IpAddr;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use ipnetwork::IpNetwork;
use vxlan_ebpf_common::headers::Be32;
use vxlan_ebpf_common::maps::{
    Addr, Endpoint, NETWORK_BITS, NetworkId, SWITCH_GENERATION, SWITCH_OFF, VtepId, subnet4, subnet6, switch,
};
use vxlan_ebpf_common::{Hook, Reason, counters};

use super::maps::{Maps, key4, key6, prefix_in};
use super::recorder::LookUp;
use super::state::Change;

impl Maps {
    /// Whether SWITCH has the fast path of a network off.
    pub(super) fn is_off(&self, network: NetworkId) -> Result<bool, MapError> {
        Ok(self.switch.get(&switch(network, SWITCH_OFF), 0)? != 0)
    }

    /// The generation of a network's flows that count.
    pub(super) fn generation_of(&self, network: NetworkId) -> Result<u32, MapError> {
        self.switch.get(&switch(network, SWITCH_GENERATION), 0)
    }

    /// Of SUBNETS4 or SUBNETS6 the entry of the subnet of `length` bits that `address` is in. There is none of
    /// length 0.
    pub(super) fn subnet(&self, network: NetworkId, length: u8, address: IpAddr) -> Result<VtepId, MapError> {
        match address {
            _ if length == 0 => Err(MapError::KeyNotFound),
            IpAddr::V4(ip) => self.subnets4.get(&subnet4(network, length, Be32::from_bytes(ip.octets())), 0),
            IpAddr::V6(ip) => self.subnets6.get(&subnet6(network, length, Addr(ip.octets()).as_v6()), 0),
        }
    }

    /// Of ROUTES4 or ROUTES6 the entry with the longest prefix that `address` is in. The kernel says where it leads,
    /// and not how long it is, so that is looked for among all.
    pub(super) fn longest_route(
        &self,
        network: NetworkId,
        address: IpAddr,
    ) -> Result<Option<(IpNetwork, VtepId)>, MapError> {
        let found = match address {
            IpAddr::V4(ip) => self.routes4.get(&Key::new(NETWORK_BITS + 32, key4(network, ip).bytes()), 0),
            IpAddr::V6(ip) => self.routes6.get(&Key::new(NETWORK_BITS + 128, key6(network, ip).bytes()), 0),
        };
        let id = match found {
            Err(MapError::KeyNotFound) => return Ok(None),
            id => id?,
        };
        let mut longest = None::<IpNetwork>;
        let mut consider = |found: Option<(NetworkId, IpNetwork)>| {
            let holds = found.filter(|(of, prefix)| *of == network && prefix.contains(address));
            if let Some((_, prefix)) = holds.filter(|(_, p)| longest.is_none_or(|l| l.prefix() < p.prefix()))
            {
                longest = Some(prefix);
            }
        };
        match address {
            IpAddr::V4(_) => {
                for key in self.routes4.keys() {
                    consider(prefix_in::<8, 4>(&key?));
                }
            }
            IpAddr::V6(_) => {
                for key in self.routes6.keys() {
                    consider(prefix_in::<20, 16>(&key?));
                }
            }
        }
        Ok(longest.map(|prefix| (prefix, id)))
    }

    /// Of ENDPOINTS4 or ENDPOINTS6 the entry of `address`.
    pub(super) fn endpoint(&self, network: NetworkId, address: IpAddr) -> Result<Endpoint, MapError> {
        match address {
            IpAddr::V4(ip) => self.endpoints4.get(&key4(network, ip), 0),
            IpAddr::V6(ip) => self.endpoints6.get(&key6(network, ip), 0),
        }
    }

    /// Writes what a look-up has found, programs' notes included.
    pub(super) fn put_found(&mut self, look_up: &LookUp) -> Result<(), MapError> {
        let change = match *look_up {
            LookUp::Node(node) => Change::SetNode(node),
            LookUp::Off(id, off) => return self.switch.set(switch(id, SWITCH_OFF), &u32::from(off), 0),
            LookUp::Generation(id, number) => {
                return self.switch.set(switch(id, SWITCH_GENERATION), &number, 0);
            }
            LookUp::Watch(watch) => return self.watch.set(0, &watch, 0),
            LookUp::Network(id, network) => Change::PutNetwork(id, network),
            LookUp::Vni(key, Some(id)) => Change::PutVni(key, id),
            LookUp::Link(index, Some(link)) => Change::PutLink(crate::net::IfIndex(index), link),
            LookUp::Subnet(network, prefix, Some(id)) => Change::PutSubnet((network, prefix), id),
            LookUp::Route(network, _, Some((prefix, id))) => Change::PutRoute((network, prefix), id),
            LookUp::Vtep(id, Some(vtep)) => Change::PutVtep(id, vtep),
            LookUp::VtepId(key, Some(id)) => Change::PutVtepId(key, id),
            LookUp::Station(key, Some(station)) => Change::PutStation(key, station),
            LookUp::Endpoint(network, ip, Some(endpoint)) => Change::PutEndpoint((network, ip), endpoint),
            LookUp::Flow(key, Some(flow)) => return self.flows.insert(&key, &flow, 0),
            LookUp::Vni(_, None)
            | LookUp::Link(_, None)
            | LookUp::Subnet(_, _, None)
            | LookUp::Route(_, _, None)
            | LookUp::Vtep(_, None)
            | LookUp::VtepId(_, None)
            | LookUp::Station(_, None)
            | LookUp::Endpoint(_, _, None)
            | LookUp::Flow(_, None) => return Ok(()),
        };
        self.write(&change)
    }

    /// How many packets were counted at `hook`, by reason.
    pub(super) fn counted(&self, network: NetworkId, hook: Hook) -> Result<Vec<(Reason, u64)>, MapError> {
        let packets = |reason: &Reason| {
            let per_cpu = self.counters.get(&counters::index(network, hook, *reason), 0)?;
            Ok((*reason, per_cpu.iter().map(|cpu| cpu.packets).sum()))
        };
        Reason::ALL.iter().map(packets).collect()
    }
}
