//! The lab itself: what it says about traffic is true for a kernel overlay, and it leaves nothing.

use std::time::Duration;

use anyhow::Result;

use super::traffic::{self, Capture, Ping, PingError, UdpStream};
use super::{Attach, Family, Lab, LabSpec, Overlay, PORT, UNDERLAY, cleanup};

const KERNEL: Overlay = Overlay::KernelVxlan;

fn everything_arrives(lab: &Lab) -> Result<()> {
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    for ip in server.ips() {
        let pings = traffic::ping(client, ip, Ping { count: 3, ..Ping::default() })?;
        assert!(pings.all_answered(), "{ip}: {pings:?}");
        assert_eq!(traffic::tcp_bulk(client, server, ip, 3 << 20)?.bytes, 3 << 20);
        assert!(traffic::udp_echo(client, server, ip, [1, 100, 1400, 4000])?.all_intact());
        let stream = UdpStream::start(client, server, ip, 1000, 64)?;
        std::thread::sleep(Duration::from_millis(300));
        let seen = stream.stop()?;
        assert!(seen.lost == 0 && seen.sent > 100, "{seen:?}");
    }
    Ok(())
}

#[test]
fn traffic_crosses_every_kind_of_lab() -> Result<()> {
    for overlay in [Overlay::None, KERNEL] {
        for attach in [Attach::Bridge, Attach::Ptp] {
            for underlay in [Family::V4, Family::V6] {
                let spec = LabSpec::pair(overlay.clone(), overlay.clone());
                everything_arrives(&spec.attach(attach).underlay(underlay).build()?)?;
            }
        }
    }
    Ok(())
}

#[test]
fn three_nodes_reach_each_other_over_a_bridge() -> Result<()> {
    let lab = LabSpec::of(vec![KERNEL, KERNEL, KERNEL]).pods(2).gro().build()?;
    everything_arrives(&lab)?;
    let host = traffic::ping(lab.node(3), lab.pod(2, 2).ip4, Ping::default())?;
    assert!(host.all_answered(), "{host:?}");
    traffic::tcp_concurrent(lab.pod(3, 1), lab.pod(1, 2), lab.pod(1, 2).ip6.into(), 50, 20_000)
}

#[test]
fn a_packet_that_does_not_fit_into_the_tunnel_is_reported_with_the_path_mtu() -> Result<()> {
    let lab = LabSpec::pair(KERNEL, KERNEL).pod_mtu(1500).build()?;
    for ip in lab.pod(2, 1).ips() {
        let large = Ping { payload: 1440, dont_fragment: true, ..Ping::default() };
        let report = traffic::ping(lab.pod(1, 1), ip, large)?;
        assert_eq!(report.errors, [PingError::TooBig { mtu: 1450 }], "{ip}");
    }
    Ok(())
}

#[test]
fn an_unreachable_target_is_reported() -> Result<()> {
    let lab = LabSpec::pair(KERNEL, KERNEL).build()?;
    let gone = Ping { timeout: Duration::from_secs(5), ..Ping::default() };
    let report = traffic::ping(lab.pod(1, 1), std::net::Ipv4Addr::new(203, 0, 113, 1), gone)?;
    assert_eq!(report.errors, [PingError::Icmp { kind: 3, code: 0 }]);
    let short = Ping { ttl: 1, ..Ping::default() };
    let report = traffic::ping(lab.pod(1, 1), lab.pod(2, 1).ip4, short)?;
    assert_eq!(report.errors, [PingError::Icmp { kind: 11, code: 0 }]);
    Ok(())
}

#[test]
fn a_capture_on_the_underlay_shows_the_tunnel() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let lab = LabSpec::pair(KERNEL, KERNEL).underlay(family).build()?;
        let capture = Capture::start(lab.node(1), UNDERLAY)?;
        traffic::ping(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default())?;
        let vxlan = capture
            .drain(Duration::from_millis(100), |frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT))?;
        assert_eq!(vxlan.len(), 2, "request and reply: {vxlan:?}");
        traffic::inject(lab.node(2), UNDERLAY, &vxlan[1].0)?;
        let seen = capture.next(Duration::from_secs(1), |frame| frame == &vxlan[1])?;
        assert!(seen.is_some(), "the injected frame did not come");
    }
    Ok(())
}

#[test]
fn dropping_a_lab_leaves_nothing() -> Result<()> {
    let lab = LabSpec::pair(KERNEL, KERNEL).build()?;
    let (prefix, run_dir) = (lab.prefix().to_owned(), lab.run_dir());
    assert!(run_dir.exists());
    drop(lab);
    assert!(!run_dir.exists() && !cleanup::pin_dir(&prefix).exists());
    let left = std::fs::read_dir("/run/netns")?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{prefix}-")));
    assert!(!left, "namespaces of {prefix} are left");
    Ok(())
}
