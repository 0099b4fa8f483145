//! Services as kube-proxy writes them for nftables.

use std::fmt::Write as _;
use std::net::IpAddr;

use vxlan_tests::lab::{Family, Pod};

use super::{SERVICE4, SERVICE6};

/// A port of the service address, with one pod behind it that listens on the same port.
#[derive(Clone, Copy)]
pub(super) struct Service<'a> {
    pub(super) port: u16,
    pub(super) pod: &'a Pod,
    /// Also a port of every address of the node.
    pub(super) node_port: Option<NodePort>,
}

/// How a service is reached from outside.
#[derive(Clone, Copy)]
pub(super) enum NodePort {
    /// From the node's own address (`externalTrafficPolicy: Cluster`).
    Cluster(u16),
    /// From the client's (`externalTrafficPolicy: Local`).
    Local(u16),
}

/// The service address of a family.
pub(super) fn service_ip(family: Family) -> IpAddr {
    let text = if family == Family::V4 { SERVICE4 } else { SERVICE6 };
    text.parse().expect("an address")
}

/// The rules of a node for `services`.
pub(super) fn rules(services: &[Service], family: Family) -> String {
    let (ip, pods) = match family {
        Family::V4 => ("ip", "10.244.0.0/16"),
        Family::V6 => ("ip6", "fd00:244::/32"),
    };
    let (mut chains, mut ips, mut ports) = (String::new(), String::new(), String::new());
    for Service { port, pod, node_port } in services {
        let endpoint = match pod.ip(family) {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        };
        write!(
            chains,
            " chain endpoint-{port} {{\n  {ip} saddr {address} jump mark-for-masquerade\n  \
             meta l4proto tcp dnat to {endpoint}\n  meta l4proto udp dnat to {endpoint}\n }}\n \
             chain service-{port} {{\n  {ip} saddr != {pods} jump mark-for-masquerade\n  \
             numgen random mod 1 vmap {{ 0 : goto endpoint-{port} }}\n }}\n \
             chain external-{port} {{\n  jump mark-for-masquerade\n  goto service-{port}\n }}\n",
            address = pod.ip(family),
        )
        .expect("into a string");
        for protocol in ["tcp", "udp"] {
            write!(ips, "{} . {protocol} . {port} : goto service-{port}, ", service_ip(family))
                .expect("into a string");
            match node_port {
                Some(NodePort::Cluster(at)) => write!(ports, "{protocol} . {at} : goto external-{port}, "),
                Some(NodePort::Local(at)) => write!(ports, "{protocol} . {at} : goto endpoint-{port}, "),
                None => Ok(()),
            }
            .expect("into a string");
        }
    }
    format!(
        "table {ip} kube-proxy {{\n chain mark-for-masquerade {{\n  meta mark set meta mark or 0x4000\n }}\n \
         chain masquerading {{\n  meta mark and 0x4000 == 0 return\n  meta mark set meta mark xor 0x4000\n  \
         masquerade fully-random\n }}\n{chains} \
         map service-ips {{\n  type {family}_addr . inet_proto . inet_service : verdict\n  elements = {{ {ips} }}\n }}\n \
         map service-nodeports {{\n  type inet_proto . inet_service : verdict\n  elements = {{ {ports} }}\n }}\n \
         chain services {{\n  {ip} daddr . meta l4proto . th dport vmap @service-ips\n  \
         fib daddr type local meta l4proto . th dport vmap @service-nodeports\n }}\n \
         chain nat-prerouting {{\n  type nat hook prerouting priority dstnat; policy accept;\n  jump services\n }}\n \
         chain nat-output {{\n  type nat hook output priority -100; policy accept;\n  jump services\n }}\n \
         chain nat-postrouting {{\n  type nat hook postrouting priority srcnat; policy accept;\n  jump masquerading\n }}\n}}\n\
         table {ip} cni {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat; policy accept;\n  \
         {ip} saddr {pods} {ip} daddr != {pods} masquerade fully-random\n }}\n}}\n",
        family = if family == Family::V4 { "ipv4" } else { "ipv6" },
    )
}
