//! IPsec policies (xfrm), as far as they may concern the tunnel's packets.
//!
//! Encapsulating past the host stack would send in clear what a policy wants encrypted or blocked, and
//! decapsulating there would let clear text in. Layouts are those of `linux/xfrm.h`.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;
use rtnetlink::sys::protocols::NETLINK_XFRM;

use super::nft::attributes;
use super::raw;

/// `XFRM_MSG_NEWPOLICY`, `_GETPOLICY` and `_GETDEFAULT`.
const NEW_POLICY: u16 = 0x13;
const GET_POLICY: u16 = 0x15;
const GET_DEFAULT: u16 = 0x28;
/// `struct xfrm_userpolicy_id`, `struct xfrm_userpolicy_info`.
const ID: usize = 64;
const INFO: usize = 168;
/// `XFRMA_TMPL` and `XFRMA_IF_ID`.
const TEMPLATES: u16 = 5;
const INTERFACE: u16 = 31;
/// `XFRM_USERPOLICY_BLOCK` of the default policies.
const BLOCKED: u8 = 1;

/// The way that a policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into this node.
    In,
    /// Out of it.
    Out,
    /// Through it.
    Forward,
}

/// A policy that encrypts or blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    way: Way,
    from: IpNetwork,
    to: IpNetwork,
    /// IP protocol number; 0: any.
    protocol: u8,
    /// UDP destination port and the bits of it that count.
    port: (u16, u16),
}

impl Policy {
    /// Whether it may concern UDP from `from` to port `port` of `to`.
    pub fn concerns(&self, way: Way, from: IpAddr, to: IpAddr, port: u16) -> bool {
        let (wanted, mask) = self.port;
        self.way == way
            && self.from.contains(from)
            && self.to.contains(to)
            && matches!(self.protocol, 0 | 17)
            && port & mask == wanted & mask
    }

    /// Whatever goes this way, over IPv4 and IPv6.
    pub fn everything(way: Way) -> [Self; 2] {
        [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|ip| {
            let all = IpNetwork::from(ip);
            let all = IpNetwork::new(all.ip(), 0).unwrap_or(all);
            Self { way, from: all, to: all, protocol: 0, port: (0, 0) }
        })
    }
}

/// All policies that encrypt or block; none where the kernel has no IPsec.
pub async fn policies() -> io::Result<Vec<Policy>> {
    let Some(socket) = raw::open(NETLINK_XFRM)? else { return Ok(vec![]) };
    let mut found = vec![];
    raw::ask(&socket, GET_POLICY, raw::DUMP, &[0; ID], |kind, content| {
        found.extend((kind == NEW_POLICY).then(|| policy(content)).flatten());
    })
    .await?;
    // Kernels before 5.15 have no default policies and refuse.
    let defaults = raw::ask(&socket, GET_DEFAULT, raw::ONE, &[0; 4], |kind, content| {
        if let (GET_DEFAULT, [inward, through, outward, ..]) = (kind, content) {
            let defaults = [(inward, Way::In), (through, Way::Forward), (outward, Way::Out)];
            let blocked = defaults.into_iter().filter(|(default, _)| **default == BLOCKED);
            found.extend(blocked.flat_map(|(_, way)| Policy::everything(way)));
        }
    });
    let _ = defaults.await;
    Ok(found)
}

/// The policy that a message describes, if it restricts what this node sends, receives or passes on.
fn policy(bytes: &[u8]) -> Option<Policy> {
    let info = bytes.first_chunk::<INFO>()?;
    let way = match info[160] {
        0 => Way::In,
        1 => Way::Out,
        2 => Way::Forward,
        _ => return None,
    };
    let (mut encrypts, mut interface) = (false, false);
    for (kind, value) in attributes::list(&bytes[INFO..]) {
        encrypts |= kind == TEMPLATES;
        interface |= kind == INTERFACE && value.iter().any(|byte| *byte != 0);
    }
    let blocks = info[161] != 0;
    let v6 = u16::from_ne_bytes([info[40], info[41]]) == libc::AF_INET6 as u16;
    let port = |at: usize| u16::from_be_bytes([info[at], info[at + 1]]);
    let policy = Policy {
        way,
        to: network(info.first_chunk()?, info[42], v6)?,
        from: network(info[16..].first_chunk()?, info[43], v6)?,
        protocol: info[44],
        port: (port(32), port(34)),
    };
    // One of an xfrm interface concerns only what is routed there.
    ((encrypts || blocks) && !interface).then_some(policy)
}

fn network(address: &[u8; 16], prefix: u8, v6: bool) -> Option<IpNetwork> {
    let [a, b, c, d, ..] = *address;
    let ip = if v6 { IpAddr::from(*address) } else { IpAddr::from([a, b, c, d]) };
    IpNetwork::new(ip, prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    /// A policy from 192.0.2.1 to 192.0.2.0/24 with a template, as the kernel writes it.
    fn message_with(protocol: u8, port: u16, interface: u32) -> Vec<u8> {
        let mut bytes = vec![0; INFO];
        bytes[..4].copy_from_slice(&[192, 0, 2, 0]);
        bytes[16..20].copy_from_slice(&[192, 0, 2, 1]);
        bytes[32..34].copy_from_slice(&port.to_be_bytes());
        bytes[34..36].copy_from_slice(&if port == 0 { 0_u16 } else { 0xffff }.to_be_bytes());
        bytes[40..42].copy_from_slice(&2_u16.to_ne_bytes());
        (bytes[42], bytes[43], bytes[44], bytes[160]) = (24, 32, protocol, 1);
        for (kind, value) in [(TEMPLATES, 7), (INTERFACE, interface)] {
            bytes.extend(8_u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(u32::to_ne_bytes(value));
        }
        bytes
    }

    #[test]
    fn a_policy_concerns_what_its_selector_takes() {
        let concerns = |bytes: &[u8], to: &str| {
            let policy = policy(bytes);
            policy.is_some_and(|p| p.concerns(Way::Out, from("192.0.2.1"), from(to), 8472))
        };
        assert!(concerns(&message_with(0, 0, 0), "192.0.2.2"));
        assert!(concerns(&message_with(17, 8472, 0), "192.0.2.2"));
        assert!(!concerns(&message_with(0, 0, 0), "198.51.100.2"), "another address");
        assert!(!concerns(&message_with(0, 0, 0), "2001:db8::2"), "another IP version");
        assert!(!concerns(&message_with(6, 0, 0), "192.0.2.2"), "TCP");
        assert!(!concerns(&message_with(17, 4789, 0), "192.0.2.2"), "another port");
        assert!(!concerns(&message_with(0, 0, 9), "192.0.2.2"), "an xfrm interface's");
        assert!(!concerns(&message_with(0, 0, 0)[..INFO], "192.0.2.2"), "allowed in clear");
        assert!(!concerns(&[0; 20], "192.0.2.2"), "cut off");
    }

    #[test]
    fn a_default_that_blocks_concerns_everything() {
        for (ip, policy) in ["192.0.2.2", "2001:db8::2"].into_iter().zip(Policy::everything(Way::In)) {
            assert!(policy.concerns(Way::In, from(ip), from(ip), 8472));
            assert!(!policy.concerns(Way::Out, from(ip), from(ip), 8472));
        }
    }
}
