//! Settings below `/proc/sys/net`, which shows those of the reader's network namespace.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

const ROOT: &str = "/proc/sys/net";
const LIBERAL: &str = "netfilter/nf_conntrack_tcp_be_liberal";
/// Of both IP versions, unless somebody has set another.
const DEFAULT_TTL: u8 = 64;
/// Where a container may write them: runtimes make its own `/proc/sys` read-only.
const HOST_ROOT: &str = "/host/proc/sys/net";

fn root() -> &'static Path {
    let host = Path::new(HOST_ROOT);
    if host.is_dir() { host } else { Path::new(ROOT) }
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(root().join(name)).ok()?.trim().to_owned())
}

/// The setting `name` below `net/`; `None` where this network namespace has none of that name.
pub fn setting(name: &str) -> Option<String> {
    read(name)
}

fn write(name: &str, value: &str) -> anyhow::Result<()> {
    let path = root().join(name);
    fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))
}

/// Whether bridges pass IP packets to iptables or ip6tables; not where `br_netfilter` is not loaded.
pub fn bridges_call_netfilter() -> bool {
    let settings = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    settings.into_iter().any(|name| read(name).is_some_and(|value| value != "0"))
}

/// Whether this kernel has IPv6 switched on at all.
pub fn has_ipv6() -> bool {
    root().join("ipv6").is_dir()
}

/// First and last of the UDP source ports that the kernel's vxlan device chooses from
/// (`udp_flow_src_port`); its defaults where the setting cannot be read.
pub fn source_ports() -> (u16, u16) {
    let range = read("ipv4/ip_local_port_range").and_then(|text| {
        let mut numbers = text.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    range.unwrap_or((32_768, 60_999))
}

/// TTL of packets on a way that has none of its own.
pub fn default_ttl() -> u8 {
    read("ipv4/ip_default_ttl").and_then(|ttl| ttl.parse().ok()).unwrap_or(DEFAULT_TTL)
}

/// Hop limit of packets that leave by `interface` on a way that has none of its own.
pub fn hop_limit(interface: &str) -> u8 {
    let own = read(&format!("ipv6/conf/{interface}/hop_limit"));
    own.and_then(|limit| limit.parse().ok()).unwrap_or(DEFAULT_TTL)
}

/// Switches IPv4 forwarding on, and says so.
pub fn forward_ipv4() -> anyhow::Result<()> {
    switch_on("ipv4/ip_forward")
}

/// Switches IPv6 forwarding on, and says so. A forwarding host ignores router advertisements unless
/// told otherwise: `underlay` goes on listening to them if it did before.
pub fn forward_ipv6(underlay: &str) -> anyhow::Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    let accept = format!("ipv6/conf/{}/accept_ra", underlay);
    if read(ALL).as_deref() == Some("0") && read(&accept).as_deref() == Some("1") {
        write(&accept, "2")?;
        tracing::info!(interface = underlay, "going on to accept router advertisements while forwarding");
    }
    switch_on(ALL)
}

/// Has the host make no addresses and routes of what routers on `interface` advertise.
pub fn ignore_advertisements(interface: &str) -> anyhow::Result<()> {
    let setting = format!("ipv6/conf/{interface}/accept_ra");
    match read(&setting).as_deref() {
        // Without IPv6 nobody listens.
        None | Some("0") => Ok(()),
        Some(_) => write(&setting, "0"),
    }
}

/// Lets conntrack accept packets outside of the windows it has seen, and says so. A connection that
/// has bypassed the host stack and returns to it, after a flush, would otherwise be "invalid".
pub fn tolerate_gaps() -> anyhow::Result<()> {
    if read(LIBERAL).as_deref() != Some("0") {
        return Ok(());
    }
    write(LIBERAL, "1")?;
    tracing::info!(setting = LIBERAL, "conntrack accepts connections that return from the fast path");
    Ok(())
}

/// Whether conntrack takes TCP connections back that have bypassed it: packets outside of the windows
/// that it has seen are "invalid" to it otherwise. Where there is no conntrack, nothing minds.
pub fn takes_back() -> bool {
    read(LIBERAL).as_deref() != Some("0")
}

/// Has the host take packets over IPv4 from `interface` whose answers leave by another, if it would drop them.
pub fn loosen_reverse_path(interface: &str) -> anyhow::Result<()> {
    let own = format!("ipv4/conf/{interface}/rp_filter");
    let strict = [own.as_str(), "ipv4/conf/all/rp_filter"].into_iter().filter_map(read).max();
    if strict.as_deref() != Some("1") {
        return Ok(());
    }
    write(&own, "2")?;
    tracing::info!(
        interface,
        "the reverse path filter is loose here, since answers may leave without a tunnel"
    );
    Ok(())
}

fn switch_on(name: &str) -> anyhow::Result<()> {
    if read(name).as_deref() != Some("0") {
        return Ok(());
    }
    write(name, "1")?;
    tracing::info!(setting = name, "switched on forwarding");
    Ok(())
}
