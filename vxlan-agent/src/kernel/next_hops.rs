//! Next hop objects (`ip nexthop`, Linux 5.3), to which routes may refer instead of saying themselves where they
//! lead.
//!
//! Read from the messages themselves, because the library has none for them. Layouts are those of
//! `linux/nexthop.h`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::libc;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::events::Touched;
use super::nft::attributes;
use super::paths::{Leads, Odd, Path};
use super::raw;
use super::tables::Tables;
use crate::net::IfIndex;

/// `RTM_NEWNEXTHOP`, `_DELNEXTHOP` and `_GETNEXTHOP` of `linux/rtnetlink.h`.
const NEW: u16 = 104;
const DELETE: u16 = 105;
const GET: u16 = 106;
/// `struct nhmsg`.
const HEADER: usize = 8;
/// `NHA_ID`, `NHA_GROUP`, `NHA_BLACKHOLE`, `NHA_OIF`, `NHA_GATEWAY` and `NHA_ENCAP_TYPE`.
const ID: u16 = 1;
const GROUP: u16 = 2;
const BLACKHOLE: u16 = 4;
const OIF: u16 = 5;
const GATEWAY: u16 = 6;
const ENCAPSULATION: u16 = 7;
/// `struct nexthop_grp`, which begins with the number of a member.
const MEMBER: usize = 8;

/// A next hop object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it leads.
    pub leads: Leads,
    /// Its interface.
    pub leg: Option<IfIndex>,
    /// Members, if it is a group.
    pub members: Vec<u32>,
}

/// All next hop objects in this thread's network namespace; none where the kernel knows no such thing.
///
/// # Errors
/// The kernel does not say.
pub(super) async fn objects() -> io::Result<BTreeMap<u32, Object>> {
    let mut objects = BTreeMap::new();
    let Some(socket) = raw::open(NETLINK_ROUTE)? else { return Ok(objects) };
    let read = raw::ask(&socket, GET, raw::DUMP, &[0; HEADER], |kind, content| {
        objects.extend((kind == NEW).then(|| object(content)).flatten());
    });
    match read.await {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
        read => read?,
    }
    Ok(objects)
}

/// The object that a message describes, and its number.
fn object(content: &[u8]) -> Option<(u32, Object)> {
    let mut id = None;
    let (mut leg, mut via, mut members, mut odd) = (None, None, vec![], None);
    let number = |value: &[u8]| Some(u32::from_ne_bytes(*value.first_chunk()?));
    for (kind, value) in attributes::list(content.get(HEADER..)?) {
        match kind {
            ID => id = number(value),
            OIF => leg = number(value).map(IfIndex),
            GATEWAY => via = address(value),
            GROUP => {
                members = value.as_chunks::<MEMBER>().0.iter().filter_map(|member| number(member)).collect();
                odd = Some(Odd::Group);
            }
            BLACKHOLE => odd = Some(Odd::Nowhere),
            ENCAPSULATION => odd = Some(Odd::Encapsulates),
            _ => {}
        }
    }
    let leads = odd.or(leg.is_none().then_some(Odd::Nowhere)).map_or(Leads::Plainly { via }, Leads::Oddly);
    Some((id?, Object { leads, leg, members }))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

impl Tables {
    /// Applies notifications about next hop objects.
    pub(super) fn notice_next_hops(&mut self, messages: &[u8], touched: &mut Touched) {
        touched.routing = true;
        if !self.wide {
            return;
        }
        for (kind, _, content) in raw::messages(messages) {
            let Some((id, object)) = object(content) else { continue };
            touched.changed |= match kind {
                NEW => self.next_hops.insert(id, object.clone()) != Some(object),
                DELETE => self.forget_next_hop(id),
                _ => false,
            };
        }
    }

    /// The kernel drops IPv4 routes to an object that goes without a word (`__remove_nexthop_fib`, v6.18).
    fn forget_next_hop(&mut self, id: u32) -> bool {
        self.paths.retain(|path| path.object != Some(id));
        self.next_hops.remove(&id).is_some()
    }

    /// Objects go with their interface, and when that goes down, without a word (`nexthop_flush_dev`).
    pub(super) fn drop_next_hops_of(&mut self, leg: IfIndex) {
        let gone: Vec<u32> =
            self.next_hops.iter().filter(|(_, object)| object.leg == Some(leg)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| _ = self.forget_next_hop(id));
    }

    /// `path` with what the object says that it refers to.
    pub fn resolved<'t>(&'t self, path: &'t Path) -> Cow<'t, Path> {
        let Some(id) = path.object else { return Cow::Borrowed(path) };
        let mut path = path.clone();
        let object = self.next_hops.get(&id);
        let members = object.iter().flat_map(|object| &object.members);
        let members = members.filter_map(|member| self.next_hops.get(member)?.leg);
        path.legs = object.and_then(|object| object.leg).into_iter().chain(members).collect();
        if let (Leads::Plainly { .. }, Some(object)) = (&path.leads, object) {
            path.leads = object.leads.clone();
        } else if object.is_none() {
            path.leads = Leads::Oddly(Odd::Nowhere);
        }
        Cow::Owned(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::MAIN;

    /// A message about an object with these attributes.
    fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; HEADER];
        for (kind, value) in attributes {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(16, 0);
        message.extend(body);
        message
    }

    fn tables() -> Tables {
        let mut tables = Tables { wide: true, ..Tables::default() };
        let (one, two, nine) = (1_u32.to_ne_bytes(), 2_u32.to_ne_bytes(), 9_u32.to_ne_bytes());
        let group = [one, [0; 4], two, [0; 4]].concat();
        let mut touched = Touched::default();
        let all = [
            message(NEW, &[(ID, &one), (OIF, &nine), (GATEWAY, &[10, 2, 0, 0])]),
            message(NEW, &[(ID, &two), (OIF, &two), (ENCAPSULATION, &[1, 0])]),
            message(NEW, &[(ID, &[3, 0, 0, 0]), (GROUP, &group)]),
        ]
        .concat();
        tables.notice_next_hops(&all, &mut touched);
        assert!(touched.changed && touched.routing);
        tables
    }

    fn path(object: u32) -> Path {
        let to = "10.2.0.0/24".parse().expect("a prefix");
        let (leads, legs) = (Leads::Plainly { via: None }, vec![]);
        Path { table: MAIN, to, priority: 0, leads, legs, src: None, object: Some(object) }
    }

    #[test]
    fn a_route_leads_where_its_object_does() {
        let tables = tables();
        let resolved = |id| tables.resolved(&path(id)).into_owned();
        let plain = resolved(1);
        assert_eq!(plain.leads, Leads::Plainly { via: Some([10, 2, 0, 0].into()) });
        assert_eq!(plain.legs, [IfIndex(9)]);
        assert_eq!(resolved(2).leads, Leads::Oddly(Odd::Encapsulates));
        let group = resolved(3);
        assert_eq!((group.leads, group.legs), (Leads::Oddly(Odd::Group), vec![IfIndex(9), IfIndex(2)]));
        assert_eq!(resolved(4).leads, Leads::Oddly(Odd::Nowhere), "nobody knows it");
        let odd = Path { leads: Leads::Oddly(Odd::Mtu), ..path(1) };
        assert_eq!(tables.resolved(&odd).leads, Leads::Oddly(Odd::Mtu));
    }

    #[test]
    fn routes_go_with_their_object_and_objects_with_their_interface() {
        let mut tables = tables();
        tables.paths.extend([path(1), path(2)]);
        tables.notice_next_hops(&message(DELETE, &[(ID, &1_u32.to_ne_bytes())]), &mut Touched::default());
        assert_eq!(tables.paths, [path(2)].into());
        tables.drop_next_hops_of(IfIndex(2));
        assert!(tables.paths.is_empty() && tables.next_hops.len() == 1, "{:?}", tables.next_hops);
    }
}
