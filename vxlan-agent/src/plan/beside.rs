//! The fast path beside a device that somebody else manages.

use vxlan_ebpf_common::maps::{KERNEL_VTEP, Mode, PARTIAL};

use super::{BridgeFilters, Desired, Input, SegmentInput};
use crate::config::{Fastpath, Flood, Segment};
use crate::mirror::Mirror;

/// Without it, packets that return to conntrack from a bypass are invalid to it.
const NOT_TAKEN_BACK: &str = "TCP connections meet the host stack, because conntrack would not take them back: \
                              set net.netfilter.nf_conntrack_tcp_be_liberal to 1, which only you may";

impl Input<'_> {
    /// As [`Input::plan`], for a device that somebody else manages: nothing is desired of the kernel. `mirror` is
    /// what the device does, or why nothing of it can be done here.
    pub fn plan_beside(&self, mirror: &Result<Mirror, String>, filters: BridgeFilters) -> Desired {
        let bridge = mirror.as_ref().ok().and_then(|mirror| mirror.bridge.as_deref());
        let mut desired = match (bridge, self.sides.first()) {
            (Some(bridge), Some(side)) => {
                let segment = &owners_segment(bridge);
                SegmentInput { input: self, segment, side, filters, held: None }.plan()
            }
            _ => self.plan(),
        };
        desired.kernel.clear();
        let path = &mut desired.datapath;
        match mirror {
            Ok(mirror) => {
                path.routes.extend(mirror.holes.iter().map(|to| ((self.id, *to), KERNEL_VTEP)));
                if !(mirror.holes.is_empty() && mirror.left.is_empty()) {
                    // What has no place in the tables has one in the kernel's.
                    path.networks.values_mut().for_each(|network| network.flags |= PARTIAL);
                }
                desired.left.extend(mirror.left.iter().cloned());
                let gaps = bridge.is_none()
                    && self.config.network.fastpath == Fastpath::Verified
                    && !self.takes_back;
                desired.left.extend(gaps.then(|| NOT_TAKEN_BACK.to_owned()));
            }
            Err(reason) => {
                path.vnis.clear();
                path.networks.values_mut().for_each(|network| network.mode = Mode::Off as u8);
                desired.left.push(reason.clone());
            }
        }
        if !self.is_fast() {
            desired.left.clear();
        }
        desired
    }
}

/// A segment on a bridge that somebody else manages: nothing is asked of it.
fn owners_segment(bridge: &str) -> Segment {
    let (bridge, addresses, flood) = (bridge.to_owned(), vec![], Flood::default());
    Segment { bridge, addresses, flood, learning: true, suppress: false }
}
