//! What an entry of FLOWS says, in words.

use vxlan_ebpf_common::flow::closing;
use vxlan_ebpf_common::maps::Flow;

/// Whose packets bypass the host stack.
pub const BYPASS: &str = "bypass";
const CLOSED: &str = "closed";

/// The name of an IP protocol.
pub fn protocol(number: u8) -> String {
    match number {
        0 => "any".to_owned(),
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Whether packets of a flow bypass the stack.
pub fn state(protocol: u8, flow: &Flow) -> &'static str {
    let verified = [flow.egress, flow.ingress].map(|way| way.checked != 0);
    let open = if protocol == 6 { verified == [true, true] } else { verified.contains(&true) };
    match flow.closing() {
        closing::CLOSED => CLOSED,
        _ if !open => "host stack",
        0 => BYPASS,
        _ => "closing",
    }
}

/// Whether a flow in `state` still counts so many seconds after its last packet. What is over keeps its place until
/// another needs it.
pub fn is_current(state: &str, idle: f64) -> bool {
    let lifetime = match state {
        BYPASS => 24.0 * 3600.0,
        CLOSED => 10.0,
        _ => 60.0,
    };
    idle <= lifetime
}
