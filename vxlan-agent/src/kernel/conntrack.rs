//! Conntrack's entries of connections whose end conntrack could not see.
//!
//! A connection that was up before it began to bypass the host stack is `ESTABLISHED` to conntrack,
//! and its FINs bypass too: the entry would stay for the five days that conntrack grants to silence.

use std::io;
use std::net::SocketAddr;
use std::sync::Once;

use futures_util::StreamExt as _;
use netlink_packet_netfilter::conntrack::ConntrackAttribute::{CtaTupleOrig, CtaTupleReply};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _};
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::{SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

use super::sysctl;

type Handle = ConnectionHandle<NetfilterMessage>;

/// `CTA_ID` of `nfnetlink_conntrack.h`: tells an entry from a later one of the same connection.
const ID: u16 = 12;

/// The two ends of a TCP connection, in either order.
pub type Ends = [SocketAddr; 2];

/// Deletes the entries of TCP connections that are over, unless they are translated: those are of
/// other connections, which only look the same from one side. Where nothing is tracked, does nothing;
/// where conntrack cannot be told, says so once and leaves the entries to their timeouts.
pub async fn forget(connections: &[Ends]) {
    static SAID: Once = Once::new();
    if connections.is_empty() || sysctl::tracked_connections() == 0 {
        return;
    }
    if let Err(error) = forget_all(connections).await {
        SAID.call_once(|| tracing::warn!("conntrack keeps connections that are over: {error}"));
    }
}

async fn forget_all(connections: &[Ends]) -> io::Result<()> {
    let (connection, mut handle, _) = new_connection(NETLINK_NETFILTER)?;
    tokio::spawn(connection);
    for ends in connections {
        forget_one(&mut handle, ends).await?;
    }
    Ok(())
}

async fn forget_one(handle: &mut Handle, &[one, other]: &Ends) -> io::Result<()> {
    let (there, back) = (tuple(one, other), tuple(other, one));
    // Finds the entry whichever of the two opened the connection.
    let wanted = CtaTupleOrig(there.clone());
    let Some(entry) = find(handle, one, wanted.clone()).await? else { return Ok(()) };
    let has = |original: &Vec<Tuple>, reply: &Vec<Tuple>| {
        entry.contains(&CtaTupleOrig(original.clone())) && entry.contains(&CtaTupleReply(reply.clone()))
    };
    if !has(&there, &back) && !has(&back, &there) {
        return Ok(());
    }
    let id = entry.into_iter().find(|attribute| attribute.kind() == ID);
    let wanted = [wanted].into_iter().chain(id).collect();
    request(handle, one, ConntrackMessage::Delete(wanted)).await.map(drop)
}

/// The entry that has `wanted`.
async fn find(
    handle: &mut Handle,
    family: SocketAddr,
    wanted: ConntrackAttribute,
) -> io::Result<Option<Vec<ConntrackAttribute>>> {
    let answers = request(handle, family, ConntrackMessage::Get(vec![wanted])).await?;
    Ok(answers.into_iter().find_map(|message| match message.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(entry)) => Some(entry),
        _ => None,
    }))
}

/// Sends a request and collects the answers: none if there is no such entry.
async fn request(
    handle: &mut Handle,
    family: SocketAddr,
    message: ConntrackMessage,
) -> io::Result<Vec<NetfilterMessage>> {
    let family = if family.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut answers = handle.request(request, NetlinkAddr::new(0, 0)).map_err(io::Error::other)?;
    let mut collected = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => collected.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                let error = error.to_io();
                let absent = error.raw_os_error() == Some(Errno::ENOENT as i32);
                return if absent { Ok(Vec::new()) } else { Err(error) };
            }
            _ => {}
        }
    }
    Ok(collected)
}

/// One direction, as conntrack writes it.
fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(from.ip()), IPTuple::DestinationAddress(to.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(from.port()),
            ProtoTuple::DestinationPort(to.port()),
        ]),
    ]
}
