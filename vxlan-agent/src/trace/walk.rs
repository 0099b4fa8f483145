//! The way of a packet of a routed network, from program to kernel to program.

use std::net::IpAddr;

use anyhow::Result;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Kind, NetworkId, link};
use vxlan_ebpf_common::model::Frame;

use super::frame;
use super::host::Host;
use super::locate::Start;
use super::question::{Protocol, Question};
use super::report::{Ended, Fact, Step, Trace};
use super::stage::{Decision, Stage};
use super::{End, entries};
use crate::datapath::{Attachment, DatapathState, Pins};
use crate::kernel::{Routed, Routing};
use crate::net::IfIndex;

/// More places than a packet can come by without going in a circle.
const MOST_STEPS: usize = 32;

/// Where the packet is.
pub(super) enum Place {
    /// At TC ingress of a pod's veth.
    PodEgress(IfIndex, Frame),
    /// In the host stack, to be routed; it came by this interface, or this host sends it.
    Stack(Option<IfIndex>, Vec<u8>),
    /// Routed to the vxlan device.
    Tunnel(IfIndex, Frame),
    /// In the kernel's vxlan device, to be encapsulated.
    Device(IfIndex, Vec<u8>),
    /// At XDP of the underlay.
    Xdp(IfIndex, Frame),
    /// At TC ingress of the underlay, decapsulated by XDP.
    Stripped(IfIndex, Frame),
    /// At TC ingress of the underlay.
    Underlay(IfIndex, Frame),
    /// In the kernel's vxlan device, to be decapsulated.
    DeviceIn(NetworkId, Vec<u8>),
    /// Decapsulated by the kernel, at TC ingress of its vxlan device.
    TunnelIn(IfIndex, Frame),
    /// Passed by the host stack to a pod's veth.
    PodIngress(IfIndex, Frame),
    /// At TC ingress of a port of a segment's bridge.
    Port(IfIndex, Frame),
    /// In a segment's bridge; it came by this interface.
    Bridge(IfIndex, Vec<u8>),
    /// At TC egress of a port, or of the vxlan device, of a segment's bridge; it came by the second.
    BridgePort(IfIndex, IfIndex, Frame),
    /// It has left.
    End(Ended, String),
}

/// See the [module](self).
pub(super) struct Walk<'p> {
    stage: Stage<'p>,
    pub(super) host: Host,
    pub(super) state: DatapathState,
    pub(super) question: &'p Question,
    steps: Vec<Step>,
    agree: bool,
    in_stack: bool,
}

impl<'p> Walk<'p> {
    pub(super) fn new(
        pins: &'p Pins,
        host: Host,
        state: DatapathState,
        question: &'p Question,
    ) -> Result<Self> {
        let stage = Stage::new(pins)?;
        Ok(Self { stage, host, state, question, steps: vec![], agree: true, in_stack: false })
    }

    /// Follows the packet from where it comes in.
    pub(super) async fn from(mut self, start: Start) -> Result<Trace> {
        let mut place = match start {
            Start::Pod { ifindex, bytes } => Place::PodEgress(ifindex, at(ifindex, bytes)),
            Start::Host => Place::Stack(None, vec![]),
            Start::Underlay { ifindex, bytes } => Place::Xdp(ifindex, at(ifindex, bytes)),
            Start::Port { ifindex, bytes } => Place::Port(ifindex, at(ifindex, bytes)),
        };
        for _ in 0..MOST_STEPS {
            if let Place::End(ended, summary) = place {
                return Ok(self.finish(ended, summary));
            }
            place = self.next(place).await?;
        }
        Ok(self.finish(Ended::Dropped, "It goes round in a circle on this node.".to_owned()))
    }

    fn finish(self, ended: Ended, summary: String) -> Trace {
        let mut notes =
            vec!["The trace has sent nothing, and changed no entry and no counter of this node.".to_owned()];
        if self.in_stack {
            notes.push(
                "The kernel does not tell what packet filters, NAT and bridge filters would do with it."
                    .to_owned(),
            );
        }
        if let End::Mac(_) = self.question.source {
            notes.push(
                "Its IP addresses are of no network (192.0.2.1 to 192.0.2.2): nobody looks at them."
                    .to_owned(),
            );
        }
        Trace { packet: self.question.clone(), steps: self.steps, ended, summary, agree: self.agree, notes }
    }

    async fn next(&mut self, place: Place) -> Result<Place> {
        match place {
            Place::PodEgress(veth, frame) => self.pod_egress(veth, &frame),
            Place::Stack(by, bytes) => self.stack(by, bytes).await,
            Place::Tunnel(device, frame) => self.tunnel(device, &frame).await,
            Place::Device(device, bytes) => self.device(device, &bytes).await,
            Place::Xdp(underlay, frame) => self.xdp(underlay, frame),
            Place::Stripped(underlay, frame) => self.stripped(underlay, &frame),
            Place::Underlay(underlay, frame) => self.underlay(underlay, &frame),
            Place::DeviceIn(network, bytes) => Ok(self.device_in(network, &bytes)),
            Place::TunnelIn(device, frame) => self.tunnel_in(device, &frame),
            Place::PodIngress(veth, frame) => self.pod_ingress(veth, &frame),
            Place::Port(port, frame) => self.port(port, &frame),
            Place::Bridge(by, bytes) => Ok(self.bridge(by, &bytes)),
            Place::BridgePort(port, by, frame) => self.bridge_port(port, by, &frame),
            Place::End(..) => Ok(place),
        }
    }

    pub(super) fn say(&mut self, what: impl Into<String>, facts: Vec<Fact>) {
        self.steps.push(Step::kernel(what, facts));
    }

    pub(super) fn is_attached(&self, hook: Hook, ifindex: IfIndex) -> bool {
        self.state.attachments.contains(&Attachment { hook, ifindex: ifindex.0 })
    }

    /// Lets a program decide; `None` if it is not attached there.
    pub(super) fn program(
        &mut self,
        hook: Hook,
        ifindex: IfIndex,
        frame: &Frame,
        what: &str,
    ) -> Result<Option<(Decision, Frame, NetworkId)>> {
        let name = entries::interface(ifindex.0);
        if !self.is_attached(hook, ifindex) {
            self.say(format!("{what}. No {} program is attached to {name}.", hook.label()), vec![]);
            return Ok(None);
        }
        let outcome = self.stage.run(hook, frame, name.clone())?;
        let counts = outcome.step.agrees != Some(false);
        // A program that is attached, and not the one that this agent has, cannot be vouched for.
        let excused = outcome.step.agrees.is_some() || hook == Hook::StrippedIngress;
        self.agree &= counts && excused;
        let what = format!("{what}. The program {} at {name} looks at it.", hook.label());
        self.steps.push(Step { what, program: Some(Box::new(outcome.step)), kernel: vec![] });
        Ok(Some((outcome.decision, outcome.after, outcome.network)))
    }

    fn pod_egress(&mut self, veth: IfIndex, frame: &Frame) -> Result<Place> {
        let what = format!("The pod behind {} sends it", entries::interface(veth.0));
        let decided = self.program(Hook::PodEgress, veth, frame, &what)?;
        let by = self.host.bridge_of(veth);
        let left = |bytes: Vec<u8>| match by {
            Some(bridge) if frame::macs(&bytes).is_none_or(|(_, to)| to != self.host.mac(bridge)) => {
                Place::Bridge(veth, bytes)
            }
            _ => Place::Stack(Some(by.unwrap_or(veth)), bytes),
        };
        Ok(match decided {
            Some((Decision::Kernel, after, _)) => left(after.bytes),
            None => left(frame.bytes.clone()),
            Some((decision, after, _)) => self.decided(decision, after),
        })
    }

    /// Where a program's decision leads, if it is not the kernel's.
    pub(super) fn decided(&mut self, decision: Decision, after: Frame) -> Place {
        match decision {
            Decision::Encapsulated(vtep) => {
                let hop = entries::next_hop(&vtep.next_hop).unwrap_or_else(|| vtep.addr.into());
                self.leaves(IfIndex(vtep.ifindex), hop, vtep.addr.into(), "The program's packet")
            }
            Decision::Pod(pod) => {
                let name = entries::interface(pod.ifindex);
                Place::End(Ended::Delivered, format!("It would be delivered to the pod behind {name}."))
            }
            Decision::Port(station) => {
                let name = entries::interface(station.ifindex);
                Place::End(Ended::Delivered, format!("It would be delivered to the station behind {name}."))
            }
            Decision::Stack(end) => Place::Stack(Some(IfIndex(end.device)), after.bytes),
            Decision::Dropped => {
                let step = self.steps.last().and_then(|step| step.program.as_ref());
                let (hook, reason) = step.map_or(("?", "?"), |step| (step.hook, step.reason));
                Place::End(Ended::Dropped, format!("It would be dropped by {hook}, as {reason}."))
            }
            Decision::Kernel | Decision::Stripped => Place::Stack(None, after.bytes),
        }
    }

    /// The underlay takes it to the next hop.
    fn leaves(&mut self, underlay: IfIndex, hop: IpAddr, vtep: IpAddr, whose: &str) -> Place {
        let (mac, fact) = self.host.neighbour(underlay, hop);
        let name = entries::interface(underlay.0);
        let to = mac.map_or_else(|| hop.to_string(), |mac| format!("{hop} ({mac})"));
        self.say(
            format!("{whose} leaves by {name} to the next hop {to}, on its way to the VTEP {vtep}."),
            vec![fact],
        );
        Place::End(Ended::Sent, format!("It would leave on the underlay for the VTEP {vtep}."))
    }

    fn asked(&self, by: Option<IfIndex>) -> Result<Routed> {
        let (from, to) = frame::addresses(self.question)?;
        let protocol = self.question.protocol;
        let has_ports = protocol != Protocol::Icmp;
        Ok(Routed {
            from: Some(from),
            to,
            arrived_by: by,
            protocol: protocol.number(to.is_ipv6()),
            ports: has_ports.then_some((self.question.source_port, self.question.destination_port)),
            tos: self.question.tos,
        })
    }

    async fn stack(&mut self, by: Option<IfIndex>, bytes: Vec<u8>) -> Result<Place> {
        self.in_stack = true;
        let asked = self.asked(by)?;
        let (routing, fact) = self.host.routing(&asked).await?;
        let what = if by.is_some() { "The host stack routes it" } else { "This host sends it" };
        let (ifindex, via, mtu) = match routing {
            Routing::Local => {
                self.say(format!("{what}: it is for this host."), vec![fact]);
                return Ok(Place::End(Ended::Host, "This host would take it itself.".to_owned()));
            }
            Routing::Nowhere(why) => {
                self.say(format!("{what}: {why}."), vec![fact]);
                return Ok(Place::End(Ended::Dropped, format!("The kernel would drop it: {why}.")));
            }
            Routing::Out { ifindex, via, mtu, .. } => (ifindex, via, mtu),
        };
        if by.is_some() && frame::ttl(&bytes) <= 1 {
            self.say(format!("{what}: its hops are used up."), vec![fact]);
            return Ok(Place::End(Ended::Dropped, "The kernel would answer: time exceeded.".to_owned()));
        }
        let most = mtu.or_else(|| self.host.mtu(ifindex)).unwrap_or(u32::MAX);
        if u32::from(self.question.length) > most && (asked.to.is_ipv6() || !self.question.may_fragment) {
            let name = entries::interface(ifindex.0);
            self.say(format!("{what}: it is larger than the {most} bytes that {name} takes."), vec![fact]);
            return Ok(Place::End(Ended::Dropped, format!("The kernel would answer: too big, MTU {most}.")));
        }
        let (mac, neighbour) = self.host.neighbour(ifindex, via.unwrap_or(asked.to));
        let facts = vec![fact, neighbour];
        let Some(mac) = mac else {
            return Ok(self.unresolved(what, ifindex, via.unwrap_or(asked.to), facts));
        };
        let macs = (self.host.mac(ifindex), mac);
        let bytes = match by {
            Some(_) => frame::passed_on(bytes, macs, true),
            None => frame::build(self.question, macs, 0)?,
        };
        let name = entries::interface(ifindex.0);
        self.say(format!("{what}: out of {name}."), facts);
        Ok(self.out_of(ifindex, bytes))
    }

    /// The kernel does not know a MAC: on a vxlan device it has to, elsewhere it asks.
    fn unresolved(&mut self, what: &str, ifindex: IfIndex, ip: IpAddr, facts: Vec<Fact>) -> Place {
        let name = entries::interface(ifindex.0);
        self.say(format!("{what}: out of {name}, whose neighbour {ip} is not known."), facts);
        if self.host.tables.vxlan(ifindex).is_some() {
            return Place::End(
                Ended::Dropped,
                format!("The kernel would drop it: {name} has no neighbour {ip}."),
            );
        }
        let summary = format!(
            "It would leave by {name} as soon as {ip} says which MAC it has; nobody has heard of it."
        );
        Place::End(Ended::Elsewhere, summary)
    }

    /// What the host stack has routed out of an interface.
    fn out_of(&mut self, ifindex: IfIndex, bytes: Vec<u8>) -> Place {
        if self.host.tables.vxlan(ifindex).is_some() {
            return Place::Tunnel(ifindex, at(ifindex, bytes));
        }
        let port = match self.host.tables.bridges.contains_key(&ifindex) {
            false => Some(ifindex),
            true => {
                let to = frame::macs(&bytes).map(|(_, to)| self.host.port(ifindex, to));
                to.and_then(|(port, fact)| {
                    self.say("The bridge looks where that MAC is.", vec![fact]);
                    port
                })
            }
        };
        let known = |port: &IfIndex| {
            self.is_attached(Hook::PodEgress, *port)
                || self.state.endpoints.values().any(|endpoint| endpoint.ifindex == port.0)
        };
        match port.filter(known) {
            Some(port) => Place::PodIngress(port, at(port, bytes)),
            None => {
                let name = entries::interface(port.unwrap_or(ifindex).0);
                if let Some(vtep) = self.direct_vtep(ifindex) {
                    let summary = format!("It would leave by {name} for the node {vtep}, without a tunnel.");
                    return Place::End(Ended::Sent, summary);
                }
                Place::End(Ended::Elsewhere, format!("It would leave by {name}, outside of the overlay."))
            }
        }
    }

    /// The node that it gets to without a tunnel, being on the link of the interface that it leaves by.
    fn direct_vtep(&self, out: IfIndex) -> Option<IpAddr> {
        let (_, to) = frame::addresses(self.question).ok()?;
        let mut routes = self.host.tables.routes_past_tunnels();
        routes.find(|route| route.oif == Some(out) && route.to.contains(to)).and_then(|route| route.via)
    }

    async fn tunnel(&mut self, device: IfIndex, frame: &Frame) -> Result<Place> {
        let what = format!("It gets to the vxlan device {}", entries::interface(device.0));
        let Some((decision, after, _)) = self.program(Hook::TunnelEgress, device, frame, &what)? else {
            return Ok(Place::Device(device, frame.bytes.clone()));
        };
        match decision {
            Decision::Kernel => Ok(Place::Device(device, after.bytes)),
            // A packet that the host routed brings its route along, so the kernel looks for the next hop itself.
            Decision::Encapsulated(vtep) => {
                self.underlay_to(device, vtep.addr.into(), "The program's packet").await
            }
            other => Ok(self.decided(other, after)),
        }
    }

    /// The kernel's own way to a VTEP.
    async fn underlay_to(&mut self, device: IfIndex, vtep: IpAddr, whose: &str) -> Result<Place> {
        let vxlan = self.host.tables.vxlan(device);
        let source = vxlan.and_then(|vxlan| vxlan.local).filter(|ip| !ip.is_unspecified());
        let port = vxlan.map_or(0, |vxlan| vxlan.port);
        let asked = Routed {
            from: source,
            to: vtep,
            arrived_by: None,
            protocol: Protocol::Udp.number(false),
            ports: Some((0, port)).filter(|(_, port)| *port != 0),
            tos: 0,
        };
        let asked = Routed { ports: asked.ports.map(|(_, to)| (to, to)), ..asked };
        let (routing, fact) = self.host.routing(&asked).await?;
        match routing {
            Routing::Out { ifindex, via, .. } => {
                self.say(format!("The underlay leads to the VTEP {vtep}."), vec![fact]);
                Ok(self.leaves(ifindex, via.unwrap_or(vtep), vtep, whose))
            }
            Routing::Local => {
                self.say(format!("The underlay leads to the VTEP {vtep}: that is this host."), vec![fact]);
                Ok(Place::End(Ended::Dropped, "The kernel would send it to itself.".to_owned()))
            }
            Routing::Nowhere(why) => {
                self.say(format!("The underlay does not lead to the VTEP {vtep}: {why}."), vec![fact]);
                Ok(Place::End(Ended::Dropped, format!("The kernel would drop it: no way to {vtep}.")))
            }
        }
    }

    async fn device(&mut self, device: IfIndex, bytes: &[u8]) -> Result<Place> {
        let name = entries::interface(device.0);
        let Some((_, to)) = frame::macs(bytes) else {
            return Ok(Place::End(Ended::Dropped, format!("{name} takes no such frame.")));
        };
        let (remote, fact) = self.host.remote(device, to);
        let vtep = remote.and_then(|remote| remote.vtep);
        match vtep {
            Some(vtep) => {
                self.say(
                    format!("The kernel's device {name} encapsulates it for the VTEP {vtep}."),
                    vec![fact],
                );
                self.underlay_to(device, vtep, "The kernel's packet").await
            }
            None => Ok(self.flooded(device, fact)),
        }
    }

    /// The vxlan device has no entry for a MAC.
    fn flooded(&mut self, device: IfIndex, fact: Fact) -> Place {
        let name = entries::interface(device.0);
        let all: Vec<_> = self.host.tables.flood_of(device).map(|flood| flood.vtep.to_string()).collect();
        if all.is_empty() {
            self.say(format!("The kernel's device {name} knows no VTEP with that MAC."), vec![fact]);
            return Place::End(
                Ended::Dropped,
                format!("The kernel would drop it: {name} has no FDB entry for it."),
            );
        }
        self.say(format!("The kernel's device {name} floods it to {}.", all.join(", ")), vec![fact]);
        Place::End(Ended::Flooded, "It would be flooded to all VTEPs of the segment.".to_owned())
    }

    fn xdp(&mut self, underlay: IfIndex, frame: Frame) -> Result<Place> {
        if !self.is_attached(Hook::UnderlayXdp, underlay) {
            return Ok(Place::Underlay(underlay, frame));
        }
        let what = format!("It arrives on the underlay, at {}", entries::interface(underlay.0));
        Ok(match self.program(Hook::UnderlayXdp, underlay, &frame, &what)? {
            Some((Decision::Stripped, after, _)) => Place::Stripped(underlay, after),
            Some((Decision::Dropped, after, _)) => self.decided(Decision::Dropped, after),
            _ => Place::Underlay(underlay, frame),
        })
    }

    fn stripped(&mut self, underlay: IfIndex, frame: &Frame) -> Result<Place> {
        let what = "XDP has taken it out of its tunnel";
        Ok(match self.program(Hook::StrippedIngress, underlay, frame, what)? {
            Some((Decision::Kernel, after, _)) => Place::Stack(Some(underlay), after.bytes),
            Some((decision, after, _)) => self.decided(decision, after),
            None => Place::Stack(Some(underlay), frame.bytes.clone()),
        })
    }

    fn underlay(&mut self, underlay: IfIndex, frame: &Frame) -> Result<Place> {
        let what = format!("It arrives on the underlay, at {}", entries::interface(underlay.0));
        let decided = self.program(Hook::UnderlayIngress, underlay, frame, &what)?;
        let in_device = |network: NetworkId| Place::DeviceIn(network, frame.bytes.clone());
        Ok(match decided {
            Some((Decision::Kernel, _, network)) => in_device(network),
            None => in_device(self.state.node.only),
            Some((decision, after, _)) => self.decided(decision, after),
        })
    }

    /// The vxlan device of a network.
    fn device_of(&self, network: NetworkId) -> Option<IfIndex> {
        let links = self.state.links.iter();
        let device = links.filter(|(_, entry)| entry.network == network && entry.flags & link::DEVICE != 0);
        let marked = device.map(|(index, _)| *index).next();
        let entry = self.state.networks.get(&network);
        let named =
            entry.map(|entry| entry.local4.device.max(entry.local6.device)).filter(|index| *index != 0);
        marked.or(named.map(IfIndex)).or_else(|| {
            let vni = entry?.vni;
            let mut links = self.host.tables.links.values();
            let has = |index| self.host.tables.vxlan(index).and_then(|vxlan| vxlan.vni);
            links.find(|link| has(link.index).is_some_and(|known| known.get() == vni)).map(|link| link.index)
        })
    }

    fn device_in(&mut self, network: NetworkId, bytes: &[u8]) -> Place {
        let Some(device) = self.device_of(network) else {
            self.say("No vxlan device of this host has its VNI.", vec![]);
            return Place::End(Ended::Dropped, "The kernel would drop it: nobody has its VNI.".to_owned());
        };
        let name = entries::interface(device.0);
        let Some(inner) = frame::inside(bytes).map(<[u8]>::to_vec) else {
            return Place::End(Ended::Dropped, format!("{name} takes no such packet."));
        };
        self.in_stack = true;
        let is_routed = self.state.networks.get(&network).is_some_and(|entry| entry.kind == Kind::L3 as u8);
        let own = self.host.mac(device);
        if is_routed && frame::macs(&inner).is_none_or(|(_, to)| to != own) {
            self.say(
                format!("The kernel's device {name} takes it out of its tunnel: the MAC in it is not {own}."),
                vec![],
            );
            return Place::End(
                Ended::Dropped,
                "The kernel would drop it: its inner MAC is another host's.".to_owned(),
            );
        }
        self.say(format!("The kernel's device {name} takes it out of its tunnel."), vec![]);
        Place::TunnelIn(device, at(device, inner))
    }

    fn tunnel_in(&mut self, device: IfIndex, frame: &Frame) -> Result<Place> {
        let what = format!("It comes out of the vxlan device {}", entries::interface(device.0));
        let decided = self.program(Hook::TunnelIngress, device, frame, &what)?;
        let bridged = self.host.bridge_of(device).is_some();
        let left =
            |bytes| if bridged { Place::Bridge(device, bytes) } else { Place::Stack(Some(device), bytes) };
        Ok(match decided {
            Some((Decision::Kernel, after, _)) => left(after.bytes),
            None => left(frame.bytes.clone()),
            Some((decision, after, _)) => self.decided(decision, after),
        })
    }

    fn pod_ingress(&mut self, veth: IfIndex, frame: &Frame) -> Result<Place> {
        let name = entries::interface(veth.0);
        if self.is_attached(Hook::PodIngress, veth) {
            self.program(Hook::PodIngress, veth, frame, "The host stack passes it to the pod")?;
        }
        let summary = format!("It would be delivered to the pod behind {name}, by the host stack.");
        Ok(Place::End(Ended::Delivered, summary))
    }
}

/// A frame at an interface.
pub(super) fn at(ifindex: IfIndex, bytes: Vec<u8>) -> Frame {
    Frame { bytes, ifindex: ifindex.0, ..Frame::default() }
}
