//! Whether neighbours answer.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_DUMP, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourMessage, NeighbourState};

use super::{Netlink, decode, message};
use crate::net::IfIndex;

/// What the kernel knows of neighbours that it has asked for their MAC; whom it has not asked is not there.
pub type Reach = BTreeMap<(IfIndex, IpAddr), bool>;

impl Netlink {
    /// Neighbours, and whether the kernel knows their MAC. One that it has just begun to ask does not count as known.
    ///
    /// # Errors
    /// The kernel does not say.
    pub async fn reach(&self) -> io::Result<Reach> {
        let mut reach = Reach::new();
        for family in message::IP_FAMILIES {
            for answer in self.request((message::neighbours(family), NLM_F_DUMP)).await? {
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) =
                    &answer.payload
                {
                    note(neighbour, &mut reach);
                }
            }
        }
        Ok(reach)
    }
}

fn note(message: &NeighbourMessage, reach: &mut Reach) {
    let asked = !matches!(message.header.state, NeighbourState::None);
    if let Some((key, known)) = decode::neighbour(message).filter(|_| asked) {
        reach.insert(key, known.is_some());
    }
}
