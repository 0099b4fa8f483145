//! Nodes without an agent: the kernel's vxlan devices, which learn and flood.

use std::fmt::Write as _;

use anyhow::Result;

use super::SegmentLab;
use crate::lab::addr;

/// What an entry in a vxlan device's table floods: broadcasts, multicasts and unknown MACs.
const FLOOD: &str = "00:00:00:00:00:00";

/// Makes the vxlan devices of node `n`, as ports of the tenants' bridges, with an entry per other node.
pub(super) fn set_up(lab: &SegmentLab, n: u8) -> Result<()> {
    let node = lab.node(n);
    let (local, mtu) = (node.underlay, lab.spec.host_mtu());
    let (mut batch, mut fdb) = (String::new(), String::new());
    for tenant in &lab.spec.tenants {
        let (device, bridge) = (tenant.device(), tenant.bridge());
        let _ = writeln!(
            batch,
            "link add {device} mtu {mtu} type vxlan id {vni} local {local} dstport {port}\n\
             link set {device} master {bridge} up",
            vni = tenant.vni,
            port = tenant.port,
        );
        for other in lab.others(n) {
            let _ = writeln!(fdb, "fdb append {FLOOD} dev {device} dst {other}");
        }
    }
    node.ip(&batch)?;
    node.feed("bridge", &["-batch", "-"], &fdb).map(|_| ())
}

/// Lets node `n` flood to node `other`.
pub(super) fn learn_node(lab: &SegmentLab, n: u8, other: u8) -> Result<()> {
    let remote = addr::underlay(lab.spec.underlay, other);
    let lines =
        lab.spec.tenants.iter().map(|t| format!("fdb append {FLOOD} dev {} dst {remote}\n", t.device()));
    lab.node(n).feed("bridge", &["-batch", "-"], &lines.collect::<String>()).map(|_| ())
}

/// Lets node `n` forget node `other`: the entry that floods to it, and what was learnt from it.
pub(super) fn forget_node(lab: &SegmentLab, n: u8, other: u8) -> Result<()> {
    let remote = addr::underlay(lab.spec.underlay, other);
    for device in lab.spec.tenants.iter().map(super::TenantSpec::device) {
        // Of the device, not of the bridge: those have a destination.
        let shown = lab.node(n).sh(&format!("bridge fdb show dev {device}"))?;
        let suffix = format!(" dst {remote} ");
        let behind = shown.lines().filter(|line| format!("{line} ").contains(&suffix));
        let macs = behind.filter_map(|line| line.split_whitespace().next());
        let lines: String = macs.map(|mac| format!("fdb del {mac} dev {device} dst {remote}\n")).collect();
        lab.node(n).feed("bridge", &["-batch", "-"], &lines)?;
    }
    Ok(())
}
