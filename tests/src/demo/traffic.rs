//! Traffic from one end to another, a line for each address.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::lab::Netns;
use crate::lab::traffic::{Ping, ping, tcp_bulk, udp_echo};

/// The line above the lines of [`pair`].
pub(super) fn head() {
    println!("  {:<14} {:<15} {:>10} {:>12}   UDP 1 B … 4 kB", "from → to", "address", "ping", "TCP");
}

/// Echo requests, a transfer and datagrams to each of the server's addresses.
///
/// # Errors
/// Something was lost or damaged.
pub(super) fn pair(name: &str, client: &Netns, server: &Netns, addresses: [IpAddr; 2]) -> Result<()> {
    for address in addresses {
        one(name, client, server, address).with_context(|| format!("{name} ({address})"))?;
    }
    Ok(())
}

fn one(name: &str, client: &Netns, server: &Netns, address: IpAddr) -> Result<()> {
    let pings = ping(client, address, Ping { count: 20, ..Ping::default() })?;
    ensure!(pings.all_answered(), "pings were lost: {:?}", pings.errors);
    let tcp = tcp_bulk(client, server, address, 256 << 20)?;
    let udp = udp_echo(client, server, address, [1, 64, 512, 1400, 4000])?;
    ensure!(udp.all_intact(), "UDP datagrams were lost or damaged: {udp:?}");
    println!(
        "  {name:<14} {:<15} {:>7} µs {:>7.1} Gb/s   {} of {} back",
        address.to_string(),
        pings.median().as_micros(),
        tcp.gigabits_per_second(),
        udp.intact,
        udp.sent
    );
    Ok(())
}
