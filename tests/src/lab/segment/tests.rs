//! The lab itself: what it says about a segment is true for kernel overlays.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Card, SegmentSpec, TenantSpec};
use crate::lab::traffic::{Ping, ping};
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
fn eight_nodes_with_two_tenants_are_built_in_seconds() -> Result<()> {
    let start = Instant::now();
    let tenants = [TenantSpec::new("red", 100), TenantSpec::new("blue", 200).port(4790)];
    let lab = SegmentSpec::of(vec![Overlay::KernelVxlan; 8]).tenants(tenants).build()?;
    assert_eq!(lab.hosts("red").chain(lab.hosts("blue")).count(), 16);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    Ok(())
}
