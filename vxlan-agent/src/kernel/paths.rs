//! All routes, as a short cut beside somebody else's device has to know them: those that it can take, and those
//! that lead packets elsewhere.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};

use super::decode;
use crate::net::IfIndex;

/// The routing table that packets meet unless a rule leads them elsewhere.
pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The routing table of the host's own addresses (`RT_TABLE_LOCAL`).
pub const LOCAL: u32 = 255;

/// A route of any table but that of the host's own addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// Number of its table.
    pub table: u32,
    /// Where to.
    pub to: IpNetwork,
    /// Metric: the lowest wins. IPv6 replaces 0 by 1024.
    pub priority: u32,
    /// How it leads there.
    pub leads: Leads,
    /// Interfaces that it leads out of.
    pub legs: Vec<IfIndex>,
    /// Preferred source.
    pub src: Option<IpAddr>,
    /// The next hop object that says where it leads, and out of which interfaces; see [`Tables::resolved`].
    ///
    /// [`Tables::resolved`]: super::Tables::resolved
    pub object: Option<u32>,
}

impl Path {
    /// The one that stands in front of all others of `table` to `to`: it leads nowhere yet.
    pub const fn first(table: u32, to: IpNetwork) -> Self {
        let leads = Leads::Plainly { via: None };
        Self { table, to, priority: 0, leads, legs: vec![], src: None, object: None }
    }
}

/// How a route leads to where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leads {
    /// Out of the only one of its interfaces.
    Plainly {
        /// The gateway; `None`: whoever is addressed is on the link.
        via: Option<IpAddr>,
    },
    /// Otherwise.
    Oddly(Odd),
}

/// What about a route a short cut cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Odd {
    /// It has several next hops.
    Several,
    /// It leads nowhere.
    Nowhere,
    /// Packets get another header on the way (`lwtunnel`).
    Encapsulates,
    /// It leads to a group of next hop objects.
    Group,
    /// It is for packets of one source, or one class of service.
    Choosy,
    /// It has an MTU of its own.
    Mtu,
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Several => "it has several next hops",
            Self::Nowhere => "it leads nowhere",
            Self::Encapsulates => "it encapsulates packets itself",
            Self::Group => "it leads to a group of next hop objects",
            Self::Choosy => "it is for packets of one source or class of service",
            Self::Mtu => "it has an MTU of its own",
        })
    }
}

/// The route that a message describes; none for an entry that the kernel made for one destination, nor for the
/// host's own addresses.
pub(super) fn path(message: &RouteMessage) -> Option<Path> {
    let header = &message.header;
    let mut path = Path::first(u32::from(header.table), decode::destination(message)?);
    let mut odd = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => path.table = *number,
            RouteAttribute::Priority(priority) => path.priority = *priority,
            RouteAttribute::Oif(index) => path.legs.push(IfIndex(*index)),
            RouteAttribute::PrefSource(address) => path.src = decode::ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                path.leads = Leads::Plainly { via: decode::gateway(attribute) };
            }
            RouteAttribute::MultiPath(hops) => {
                path.legs.extend(hops.iter().map(|hop| IfIndex(hop.interface_index)));
                odd = Some(Odd::Several);
            }
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => odd = Some(Odd::Encapsulates),
            RouteAttribute::NhId(id) => path.object = Some(*id),
            RouteAttribute::Metrics(metrics) if metrics.iter().any(|m| matches!(m, RouteMetric::Mtu(_))) => {
                odd = Some(Odd::Mtu);
            }
            _ => {}
        }
    }
    if path.object.is_some() {
        // What the message says of that besides is the object's, and left out where the host asks for it
        // (`nexthop_compat_mode`).
        path.legs.clear();
        path.leads = Leads::Plainly { via: None };
        odd = odd.filter(|odd| *odd == Odd::Mtu);
    }
    let goes_on = !path.legs.is_empty() || odd.is_some() || path.object.is_some();
    let leads_nowhere = header.kind != RouteType::Unicast || !goes_on;
    let is_choosy = header.tos != 0 || header.source_prefix_length != 0;
    odd = leads_nowhere.then_some(Odd::Nowhere).or(is_choosy.then_some(Odd::Choosy)).or(odd);
    path.leads = odd.map_or(path.leads, Leads::Oddly);
    let made = header.flags.contains(RouteFlags::Cloned) || header.protocol == RouteProtocol::IcmpRedirect;
    (path.table != LOCAL && !made).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;

    fn message(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 24;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        let to = RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 2, 0, 0)));
        message.attributes = [vec![to], attributes].concat();
        message
    }

    fn via(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 2, 0, last)))
    }

    #[test]
    fn a_route_by_way_of_a_gateway_leads_plainly() {
        let path = path(&message(vec![RouteAttribute::Oif(9), via(1)])).expect("a route");
        assert_eq!((path.table, path.to.to_string().as_str()), (MAIN, "10.2.0.0/24"));
        assert_eq!(path.leads, Leads::Plainly { via: Some([10, 2, 0, 1].into()) });
        assert_eq!(path.legs, [IfIndex(9)]);
    }

    #[test]
    fn what_a_short_cut_cannot_do_is_odd() {
        let mut hop = RouteNextHop::default();
        hop.interface_index = 9;
        let oif = || RouteAttribute::Oif(9);
        for (attributes, odd) in [
            (vec![RouteAttribute::MultiPath(vec![hop.clone(), hop])], Odd::Several),
            (vec![oif(), RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)])], Odd::Mtu),
            (vec![], Odd::Nowhere),
        ] {
            let path = path(&message(attributes)).expect("a route");
            assert_eq!(path.leads, Leads::Oddly(odd));
        }
        let object = path(&message(vec![oif(), via(1), RouteAttribute::NhId(7)])).expect("a route");
        assert_eq!(
            (object.object, object.legs, object.leads),
            (Some(7), vec![], Leads::Plainly { via: None })
        );
        let mut choosy = message(vec![oif()]);
        choosy.header.tos = 8;
        assert_eq!(path(&choosy).map(|path| path.leads), Some(Leads::Oddly(Odd::Choosy)));
        let mut blackhole = message(vec![]);
        blackhole.header.kind = RouteType::BlackHole;
        assert_eq!(path(&blackhole).map(|path| path.leads), Some(Leads::Oddly(Odd::Nowhere)));
    }

    #[test]
    fn the_hosts_own_addresses_are_no_routes() {
        let mut local = message(vec![RouteAttribute::Oif(9)]);
        local.header.table = 255;
        assert_eq!(path(&local), None);
        let far = message(vec![RouteAttribute::Oif(9), RouteAttribute::Table(1000)]);
        assert_eq!(path(&far).map(|path| path.table), Some(1000));
    }
}
