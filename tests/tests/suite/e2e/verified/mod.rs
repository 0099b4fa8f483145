//! Bypass next to NAT and packet filters, written the way kube-proxy and policies write them.

mod arrivals;
mod bypass;
mod closing;
mod crowd;
mod kube_proxy;
mod limits;
mod policies;
pub(super) mod policy;
mod returns;
mod services;
mod unfiltered;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::{Counters, Lab, LabSpec, Overlay};

use super::{build, warm_up};

const MIB: u64 = 1 << 20;
/// A service address that no node has.
const SERVICE4: &str = "10.96.0.10";
const SERVICE6: &str = "fd00:96::10";

/// Conntrack on, as everywhere where services are; packets that it does not understand are dropped.
pub(super) const FILTER: &str = "table inet guard {\n chain forward {\n  type filter hook forward priority filter;\n  \
    ct state invalid drop\n  ct state established,related accept\n }\n}\n";

/// What conntrack of node `n` follows, a line each.
pub(super) fn conntrack(lab: &Lab, n: u8) -> Vec<String> {
    let listed = lab.node(n).sh("cat /proc/net/nf_conntrack").expect("conntrack");
    listed.lines().map(str::to_owned).collect()
}

fn verified() -> LabSpec {
    LabSpec::pair(Overlay::verified(), Overlay::verified())
}

fn guarded(spec: &LabSpec) -> Lab {
    let lab = build(spec);
    for n in [1, 2] {
        nft(&lab, n, FILTER);
    }
    warm_up(&lab);
    lab
}

pub(super) fn nft(lab: &Lab, n: u8, rules: &str) {
    lab.node(n).feed("nft", &["-f", "-"], rules).expect("nftables takes the rules");
}

/// Translates the service's addresses to pod 1 of node 2, on node 1.
fn service(lab: &Lab, to4: IpAddr, to6: IpAddr) {
    nft(
        lab,
        1,
        &format!(
            "table inet services {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
             ip daddr {SERVICE4} dnat ip to {to4}\n  ip6 daddr {SERVICE6} dnat ip6 to {to6}\n }}\n \
             chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade\n }}\n}}\n"
        ),
    );
}

/// Bytes that bypassed the stack from the pods of a node.
fn bypassed(node: &Counters) -> u64 {
    node.get("pod_egress", "encapsulated").bytes
}

/// Rules of a service on node 1: `prerouting` and `postrouting` of a `nat` table.
fn nat(lab: &Lab, prerouting: &str, postrouting: &str) {
    nft(
        lab,
        1,
        &format!(
            "table inet services {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
             {prerouting}\n }}\n chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
             {postrouting}\n }}\n}}\n"
        ),
    );
}

/// A connection from a given port, or any for 0.
fn from_port(port: u16, to: SocketAddr) -> TcpStream {
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&any(to.ip(), port).into()).expect("a port");
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).expect("an option");
    stream
}

/// No address of the family of `ip`, with a port.
fn any(ip: IpAddr, port: u16) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

pub(super) fn exchange(from: &mut TcpStream, to: &mut TcpStream, value: u8) {
    from.write_all(&[value; 100]).expect("sent");
    let mut got = [0; 100];
    to.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    to.read_exact(&mut got).expect("received");
    assert_eq!(got, [value; 100]);
}
