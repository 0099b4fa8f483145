//! Where the stations of a bridged network are, by what bridge and vxlan device know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::tables::{Remote, Tables, Vlan};
use crate::net::{IfIndex, Mac};

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Behind a port of the bridge that is not the vxlan device.
    Port(IfIndex),
    /// Behind a VTEP.
    Vtep(IpAddr),
}

/// The stations of the network whose vxlan device is `device`, a port of `bridge`.
///
/// The bridge's word counts: what it has at a port is there, what it has at the vxlan device or not at all is
/// behind the VTEP that the device has for it. A MAC of the host, which bridge or port have or somebody has
/// entered as such, is no station, even where the device has a VTEP for it. Neither is one that a locked
/// port has not let in, nor one whose entry names a port, a VNI or a next hop object. What is only the
/// device's has the VLAN 0.
pub fn stations(tables: &Tables, device: IfIndex, bridge: IfIndex) -> BTreeMap<(Mac, Vlan), Place> {
    let mut stations = BTreeMap::new();
    let mut known = BTreeSet::new();
    let vtep = |mac| tables.remotes.get(&(device, mac)).and_then(plain_vtep);
    for (mac, vlan, entry) in tables.fdb_of(bridge) {
        known.insert(mac);
        if entry.permanent || entry.locked || entry.port == bridge {
            continue;
        }
        let place = match entry.port == device {
            true => vtep(mac).map(Place::Vtep),
            false => Some(Place::Port(entry.port)),
        };
        stations.extend(place.map(|place| ((mac, vlan), place)));
    }
    let others = tables.remotes_of(device).filter(|(mac, _)| !known.contains(mac));
    stations.extend(others.filter_map(|(mac, remote)| Some(((mac, 0), Place::Vtep(plain_vtep(remote)?)))));
    stations
}

/// The VTEP of an entry that names nothing else.
fn plain_vtep(remote: &Remote) -> Option<IpAddr> {
    remote.vtep.filter(|vtep| remote.plain && !vtep.is_multicast() && !vtep.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::FdbEntry;

    const BRIDGE: IfIndex = IfIndex(5);
    const DEVICE: IfIndex = IfIndex(6);
    const PORT: IfIndex = IfIndex(7);

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn far(n: u8) -> Remote {
        Remote { vtep: Some(vtep(n)), plain: true, ages: true }
    }

    fn at(port: IfIndex) -> FdbEntry {
        FdbEntry { port, ages: true, ..FdbEntry::default() }
    }

    /// Where station 1 is if the bridge knows `entry` of it, and the device that it is behind VTEP 2.
    fn place(entry: Option<FdbEntry>, remote: Option<Remote>) -> Option<Place> {
        let mut tables = Tables::default();
        tables.fdb.extend(entry.map(|entry| ((BRIDGE, mac(1), 0), entry)));
        tables.remotes.extend(remote.map(|remote| ((DEVICE, mac(1)), remote)));
        // Of others, on either side in the order of keys.
        for other in [BRIDGE.0 - 1, DEVICE.0 + 1].map(IfIndex) {
            tables.fdb.insert((other, mac(9), 0), at(PORT));
            tables.remotes.insert((other, mac(9)), far(9));
        }
        let stations = stations(&tables, DEVICE, BRIDGE);
        assert!(stations.keys().all(|key| *key == (mac(1), 0)), "{stations:?}");
        stations.get(&(mac(1), 0)).copied()
    }

    #[test]
    fn a_station_is_where_the_bridge_has_it() {
        assert_eq!(place(Some(at(PORT)), None), Some(Place::Port(PORT)));
        assert_eq!(place(Some(at(PORT)), Some(far(2))), Some(Place::Port(PORT)), "it has moved here");
        assert_eq!(place(Some(at(DEVICE)), Some(far(2))), Some(Place::Vtep(vtep(2))));
        assert_eq!(place(Some(at(DEVICE)), None), None, "flooded");
        assert_eq!(place(None, Some(far(2))), Some(Place::Vtep(vtep(2))));
        assert_eq!(place(None, None), None);
    }

    #[test]
    fn a_mac_of_the_host_is_no_station() {
        let own = FdbEntry { permanent: true, ..at(PORT) };
        for entry in [own.clone(), FdbEntry { port: DEVICE, ..own.clone() }, at(BRIDGE)] {
            assert_eq!(place(Some(entry), Some(far(2))), None);
        }
        assert_eq!(place(Some(FdbEntry { locked: true, ..at(PORT) }), Some(far(2))), None, "not let in");
    }

    #[test]
    fn an_entry_that_is_not_plain_is_no_place() {
        let odd = [
            Remote { plain: false, ..far(2) },
            Remote { vtep: None, ..far(2) },
            Remote { vtep: Some(IpAddr::from([239, 1, 1, 1])), ..far(2) },
        ];
        for remote in odd {
            assert_eq!(place(Some(at(DEVICE)), Some(remote.clone())), None);
            assert_eq!(place(None, Some(remote)), None);
        }
    }

    #[test]
    fn the_same_mac_in_two_vlans_is_two_stations() {
        let mut tables = Tables::default();
        tables.fdb.insert((BRIDGE, mac(1), 10), at(PORT));
        tables.fdb.insert((BRIDGE, mac(1), 20), at(DEVICE));
        tables.remotes.insert((DEVICE, mac(1)), far(2));
        let expected = [((mac(1), 10), Place::Port(PORT)), ((mac(1), 20), Place::Vtep(vtep(2)))];
        assert_eq!(stations(&tables, DEVICE, BRIDGE), expected.into());
    }
}
