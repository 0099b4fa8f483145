//! What the kernel would do with a packet, as far as it answers (`RTM_GETROUTE`).

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};

use super::decode;
use super::message;
use super::netlink::Netlink;
use crate::net::IfIndex;

/// A packet that is to be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// Source; none: the kernel chooses one.
    pub from: Option<IpAddr>,
    /// Destination.
    pub to: IpAddr,
    /// The interface that it arrived by; none: this host sends it.
    pub arrived_by: Option<IfIndex>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port, where the protocol has ports.
    pub ports: Option<(u16, u16)>,
    /// TOS, of IPv4.
    pub tos: u8,
}

/// Where the kernel routes a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// To this host.
    Local,
    /// Out of an interface.
    Out {
        /// Which.
        ifindex: IfIndex,
        /// The gateway; none: the destination is on-link.
        via: Option<IpAddr>,
        /// The address that the host sends from.
        source: Option<IpAddr>,
        /// The route's MTU, set or learnt; none: the interface's.
        mtu: Option<u32>,
    },
    /// Nowhere, and why.
    Nowhere(&'static str),
}

impl Netlink {
    /// Asks where the kernel would route a packet. It does not say what packet filters would do with it.
    ///
    /// # Errors
    /// The kernel does not answer the question.
    pub async fn routing(&self, packet: &Routed) -> io::Result<Routing> {
        let answers = match self.request(message::query_routing(packet)).await {
            Err(error) => return refused(&error).map(Routing::Nowhere).ok_or(error),
            Ok(answers) => answers,
        };
        let route = answers.iter().find_map(|answer| match &answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Some(route),
            _ => None,
        });
        Ok(route.map_or(Routing::Nowhere("the kernel knows no route"), routing))
    }
}

/// What an error of the kernel says of a route (`fib_props`, `__fib_validate_source`, v6.18).
fn refused(error: &io::Error) -> Option<&'static str> {
    use nix::errno::Errno;
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::ENETUNREACH => Some("the kernel has no route"),
        Errno::EHOSTUNREACH => Some("the kernel has an unreachable route, or does not forward"),
        Errno::EACCES => Some("a route prohibits it"),
        Errno::EXDEV => {
            Some("the reverse path filter (rp_filter) expects its source behind another interface")
        }
        Errno::EINVAL => Some("a blackhole route, or an address that cannot be a source or destination"),
        _ => None,
    }
}

fn routing(route: &RouteMessage) -> Routing {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Routing::Local,
        RouteType::BlackHole => return Routing::Nowhere("a blackhole route"),
        RouteType::Prohibit => return Routing::Nowhere("a route prohibits it"),
        _ => return Routing::Nowhere("the kernel has no route"),
    }
    let (mut ifindex, mut via, mut source, mut mtu) = (None, None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(IfIndex(*index)),
            RouteAttribute::PrefSource(address) => source = decode::ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = decode::gateway(attribute),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => Routing::Out { ifindex, via, source, mtu },
        None => Routing::Nowhere("the kernel has no route"),
    }
}
