//! Netlink groups of which it is enough to know that something happened: IPsec policies, next hop
//! objects, traffic control and rules of nf_tables, whose messages the library does not read, or not all
//! of.

use futures_util::FutureExt as _;
use nix::libc;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// `XFRMNLGRP_POLICY` of `linux/xfrm.h`.
const POLICY: u32 = 4;
/// `RTNLGRP_TC` and `RTNLGRP_NEXTHOP` of `linux/rtnetlink.h`.
const TRAFFIC: u32 = 4;
const NEXT_HOP: u32 = 32;

/// Room for notifications of rules, in bytes.
const RULES_BUFFER: i32 = 16 << 10;

/// A socket that hears of changes.
pub(super) struct Bell(Option<TokioSocket>);

impl Bell {
    /// Hears of IPsec policies, in this thread's network namespace; of nothing where the kernel has none.
    pub(super) fn of_policies() -> Self {
        Self(open(NETLINK_XFRM, POLICY))
    }

    /// Hears of next hop objects (Linux 5.3).
    pub(super) fn of_next_hops() -> Self {
        Self(open(NETLINK_ROUTE, NEXT_HOP))
    }

    /// Hears of queueing disciplines and filters.
    pub(super) fn of_traffic() -> Self {
        Self(open(NETLINK_ROUTE, TRAFFIC))
    }

    /// Hears of rules of nf_tables. One transaction may bring thousands of messages: what does not find
    /// room is lost, which costs less than to receive it.
    pub(super) fn of_rules() -> Self {
        let socket = open(NETLINK_NETFILTER, libc::NFNLGRP_NFTABLES as u32);
        if let Some(socket) = &socket {
            // Nothing depends on it.
            let _ = socket.socket_ref().set_rx_buf_sz(RULES_BUFFER);
        }
        Self(socket)
    }

    /// Whether nothing is heard.
    pub(super) const fn is_deaf(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there was a change since last asked.
    pub(super) fn has_rung(&mut self) -> bool {
        let mut rung = false;
        while self.rung().now_or_never().is_some() {
            rung = true;
        }
        rung
    }

    /// Waits for a change. A message that was lost in a storm was one, too.
    pub(super) async fn rung(&mut self) {
        self.heard().await;
    }

    /// Waits for a change, and returns its messages; `None`: lost.
    pub(super) async fn heard(&mut self) -> Option<Vec<u8>> {
        match &self.0 {
            Some(socket) => socket.recv_from_full().await.ok().map(|(messages, _)| messages),
            None => std::future::pending().await,
        }
    }
}

fn open(protocol: isize, group: u32) -> Option<TokioSocket> {
    let mut socket = TokioSocket::new(protocol).ok()?;
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, 0)).ok()?;
    inner.add_membership(group).ok()?;
    Some(socket)
}
