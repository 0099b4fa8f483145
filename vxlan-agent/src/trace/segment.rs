//! The way of a frame of a bridged network: ports and their programs, the kernel's bridge.

use anyhow::Result;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::model::Frame;

use super::report::Ended;
use super::stage::Decision;
use super::walk::{Place, Walk, at};
use super::{entries, frame};
use crate::net::IfIndex;

impl Walk<'_> {
    /// What a station behind `port` sends.
    pub(super) fn port(&mut self, port: IfIndex, frame: &Frame) -> Result<Place> {
        let what = format!("The station behind {} sends it", entries::interface(port.0));
        Ok(match self.program(Hook::PortIngress, port, frame, &what)? {
            Some((Decision::Kernel, after, _)) => Place::Bridge(port, after.bytes),
            None => Place::Bridge(port, frame.bytes.clone()),
            Some((decision, after, _)) => self.decided(decision, after),
        })
    }

    /// What the kernel's bridge does with a frame that came by the interface `by`.
    pub(super) fn bridge(&mut self, by: IfIndex, bytes: &[u8]) -> Place {
        let (Some(bridge), Some((_, to))) = (self.host.bridge_of(by), frame::macs(bytes)) else {
            let name = entries::interface(by.0);
            self.say(format!("{name} is no port of a bridge."), vec![]);
            return Place::End(
                Ended::Dropped,
                format!("The kernel would drop it: {name} is no port of a bridge."),
            );
        };
        let name = entries::interface(bridge.0);
        if to == self.host.mac(bridge) {
            self.say(format!("The bridge {name} passes it to this host, whose MAC it has."), vec![]);
            return Place::End(Ended::Host, "This host would take it itself.".to_owned());
        }
        let (port, fact) = self.host.port(bridge, to);
        match port {
            Some(port) if port == by => {
                self.say(
                    format!("The bridge {name} knows {to} behind the port that it came by."),
                    vec![fact],
                );
                Place::End(
                    Ended::Dropped,
                    "The bridge would not send it back to where it came from.".to_owned(),
                )
            }
            Some(port) => {
                let out = entries::interface(port.0);
                self.say(format!("The bridge {name} sends it out of {out}."), vec![fact]);
                Place::BridgePort(port, by, Frame { arrived_by: by.0, ..at(port, bytes.to_vec()) })
            }
            None => {
                self.say(
                    format!("The bridge {name} does not know {to}, and floods it to all its ports."),
                    vec![fact],
                );
                Place::End(
                    Ended::Flooded,
                    "It would be flooded to all ports and VTEPs of the segment.".to_owned(),
                )
            }
        }
    }

    /// What the kernel's bridge sends out of a port.
    pub(super) fn bridge_port(&mut self, port: IfIndex, by: IfIndex, frame: &Frame) -> Result<Place> {
        let name = entries::interface(port.0);
        if self.is_attached(Hook::TunnelEgress, port) {
            let from = entries::interface(by.0);
            let what = format!("The bridge's frame from {from} leaves by {name}");
            self.program(Hook::TunnelEgress, port, frame, &what)?;
        }
        if self.host.tables.vxlan(port).is_some() {
            return Ok(Place::Device(port, frame.bytes.clone()));
        }
        if self.is_attached(Hook::PodIngress, port) {
            return Ok(Place::PodIngress(port, at(port, frame.bytes.clone())));
        }
        Ok(Place::End(
            Ended::Delivered,
            format!("It would be delivered out of {name}, by the kernel's bridge."),
        ))
    }
}
