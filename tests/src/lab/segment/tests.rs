//! The lab itself: what it says about a segment is true for kernel overlays.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Card, SegmentSpec, TenantSpec};
use crate::lab::traffic::{Ping, inject, ping};
use crate::lab::{Family, Overlay};

#[test]
fn hosts_with_any_card_reach_each_other_over_any_underlay() -> Result<()> {
    for card in [Card::Veth, Card::Tap] {
        for family in [Family::V4, Family::V6] {
            let spec = SegmentSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan);
            let lab = spec.card(card).underlay(family).build()?;
            for ip in lab.host(2, "red", 1).ips() {
                let report = ping(lab.host(1, "red", 1), ip, Ping::default())?;
                assert!(report.all_answered(), "{card:?} over {family:?}: {report:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn hosts_of_a_node_without_an_overlay_reach_each_other() -> Result<()> {
    for card in [Card::Veth, Card::Tap] {
        let lab = SegmentSpec::alone().card(card).build()?;
        let report = ping(lab.host(1, "red", 1), lab.host(1, "red", 2).ip4, Ping::default())?;
        assert!(report.all_answered(), "{card:?}: {report:?}");
    }
    Ok(())
}

#[test]
fn frames_are_seen_where_they_come_by_and_nowhere_else() -> Result<()> {
    let tenants = [TenantSpec::new("red", 100), TenantSpec::new("blue", 200)];
    let lab = SegmentSpec::alone().tenants(tenants).build()?;
    let (payload, from) = (b"something to look for", lab.host(1, "red", 1));
    let frame = [&[0xff; 6], &from.mac[..], &[0x88, 0xb5], payload].concat();
    let seen = lab.frames_seen(["red", "blue"], payload, || inject(from, "eth0", &frame))?;
    assert_eq!(seen, [2, 0]);
    Ok(())
}

#[test]
fn eight_nodes_with_two_tenants_are_built_in_seconds() -> Result<()> {
    let start = Instant::now();
    let tenants = [TenantSpec::new("red", 100), TenantSpec::new("blue", 200).port(4790)];
    let lab = SegmentSpec::of(vec![Overlay::KernelVxlan; 8]).tenants(tenants).build()?;
    assert_eq!(lab.hosts("red").chain(lab.hosts("blue")).count(), 16);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    Ok(())
}
