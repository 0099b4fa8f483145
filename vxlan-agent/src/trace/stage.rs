//! One program and one frame: the model's word, and that of a run of the program.

use anyhow::{Context as _, Result};
use vxlan_ebpf_common::flow::seen;
use vxlan_ebpf_common::maps::{Direction, Endpoint, Flow, LocalVtep, NetworkId, Station, Vtep};
use vxlan_ebpf_common::model::Frame;
use vxlan_ebpf_common::{Forward, Hook, Reason, Tables as _, hooks};

use super::report::ProgramStep;
use super::{describe, entries, frame};
use crate::datapath::{LookUp, Pins, Ran, Recorder, Rehearsal};

/// Where an IPv4 packet's identification is in its frame.
const IDENTIFICATION: usize = frame::ETHERNET + 4;

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Encapsulated for this VTEP, out of the underlay.
    Encapsulated(Vtep),
    /// Into this pod.
    Pod(Endpoint),
    /// Out of this station's port.
    Port(Station),
    /// Into the host stack behind the vxlan device of this end.
    Stack(LocalVtep),
    /// Up to TC, without its tunnel.
    Stripped,
    /// It is the kernel's.
    Kernel,
    /// It is dropped.
    Dropped,
}

impl Decision {
    const fn of(forward: &Forward<'_>) -> Self {
        match forward {
            Forward::Encapsulated(vtep) => Self::Encapsulated(**vtep),
            Forward::Decapsulated(pod)
            | Forward::Delivered(pod)
            | Forward::Routed(pod)
            | Forward::Switched(pod) => Self::Pod(**pod),
            Forward::Bridged(station, _) => Self::Port(**station),
            Forward::HandedOver(end) => Self::Stack(**end),
            Forward::Stripped => Self::Stripped,
        }
    }

    const fn verdict(&self) -> &'static str {
        match self {
            Self::Kernel | Self::Stack(_) => "kernel",
            Self::Dropped => "dropped",
            _ => "forwarded",
        }
    }

    const fn action(&self, hook: Hook) -> i32 {
        match (hook, self) {
            (Hook::UnderlayXdp, Self::Dropped) => XDP_DROP,
            (Hook::UnderlayXdp, _) => XDP_PASS,
            (_, Self::Dropped) => TC_ACT_SHOT,
            (_, Self::Kernel | Self::Stripped) => TC_ACT_UNSPEC,
            _ => TC_ACT_REDIRECT,
        }
    }
}

/// What the model made of a frame.
struct Modelled {
    network: NetworkId,
    reason: Reason,
    decision: Decision,
    after: Frame,
    looked_up: Vec<LookUp>,
}

/// The model of a node's programs, and copies of them.
pub(super) struct Stage<'p> {
    recorder: Recorder<'p>,
    copy: Rehearsal,
    /// Entries that the copy has.
    copied: Vec<(&'static str, String)>,
    /// The packet's flow hash, once the kernel has said it: it stays with the packet.
    hash: Option<u32>,
}

/// What came of a frame at a program.
pub(super) struct Outcome {
    /// What becomes of it.
    pub(super) decision: Decision,
    /// The network that it was taken for.
    pub(super) network: NetworkId,
    /// The frame afterwards.
    pub(super) after: Frame,
    /// For the report.
    pub(super) step: ProgramStep,
}

impl<'p> Stage<'p> {
    pub(super) fn new(pins: &'p Pins) -> Result<Self> {
        Ok(Self { recorder: pins.recorder(), copy: pins.rehearsal()?, copied: vec![], hash: None })
    }

    /// Lets the program of `hook` decide about `before`, at the interface of that name.
    pub(super) fn run(&mut self, hook: Hook, before: &Frame, interface: String) -> Result<Outcome> {
        let written = self.recorder.written();
        let before = &Frame { flow_hash: self.hash.unwrap_or(before.flow_hash), ..before.clone() };
        let mut modelled = self.model(hook, before)?;
        let (mut ran, mut not_run) = (None, cannot_run(hook));
        if not_run.is_none() {
            not_run = self.copy.differs(hook)?;
        }
        if not_run.is_none() {
            self.fill(&modelled.looked_up)?;
            let run = self.copy.run(hook, modelled.network, before)?;
            if let Some(again) = as_the_kernel_chose(&modelled, &run, before, self.hash) {
                self.recorder.rewind(written.clone());
                modelled = self.model(hook, &again)?;
            }
            ran = Some(run);
        }
        let port = self.recorder.network(modelled.network).map(|network| network.port().get());
        let name = self.recorder.network(modelled.network).and_then(|network| network.name());
        let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
        let _ = self.recorder.take();
        let differences = ran.as_ref().map(|ran| self.differences(hook, &modelled, ran));
        if differences.as_ref().is_some_and(Vec::is_empty) {
            self.learn_hash();
        }
        let changed = modelled.after.bytes != before.bytes;
        let step = ProgramStep {
            hook: hook.label(),
            interface,
            network: name,
            reason: modelled.reason.label(),
            meaning: modelled.reason.describe().trim(),
            verdict: modelled.decision.verdict(),
            looked_up: modelled.looked_up.iter().map(entries::looked_up).collect(),
            would_write: entries::changes(&written, &self.recorder.written()),
            before: describe::packet(&before.bytes, port),
            after: changed.then(|| describe::packet(&modelled.after.bytes, port)),
            agrees: differences.as_ref().map(Vec::is_empty),
            not_run,
            differences: differences.unwrap_or_default(),
        };
        let Modelled { network, decision, after, .. } = modelled;
        Ok(Outcome { decision, network, after, step })
    }

    /// The model's word.
    fn model(&self, hook: Hook, before: &Frame) -> Result<Modelled> {
        let first = self.model_once(hook, before)?;
        let interfaces = first.looked_up.iter().filter_map(|look_up| match look_up {
            LookUp::Endpoint(_, _, Some(endpoint)) => Some(endpoint.ifindex),
            LookUp::Station(_, Some(station)) if station.ifindex != 0 => Some(station.ifindex),
            _ => None,
        });
        // The engine looks whether they are still there.
        match interfaces.into_iter().find(|index| nix::net::if_::if_indextoname(*index).is_err()) {
            Some(gone) if before.gone != gone => self.model_once(hook, &Frame { gone, ..before.clone() }),
            _ => Ok(first),
        }
    }

    fn model_once(&self, hook: Hook, before: &Frame) -> Result<Modelled> {
        self.recorder.take().context("cannot read the maps")?;
        let mut after = before.clone();
        let verdict = hooks::run(hook, &mut after, &self.recorder);
        let (network, reason) = (verdict.network, verdict.reason());
        let decision = match &verdict.outcome {
            Ok(forward) => Decision::of(forward),
            Err(reason) => {
                let drops = self.recorder.network(network).is_some_and(|entry| entry.drops(hook, *reason));
                if drops || *reason == Reason::WriteFailed { Decision::Dropped } else { Decision::Kernel }
            }
        };
        let looked_up = self.recorder.take().context("cannot read the maps")?;
        Ok(Modelled { network, reason, decision, after, looked_up })
    }

    /// Copies entries that have not been copied yet; of others the copy's program may have changed its own.
    fn fill(&mut self, looked_up: &[LookUp]) -> Result<()> {
        for look_up in looked_up {
            let entry = entries::looked_up(look_up);
            let key = (entry.map, entry.key);
            if !self.copied.contains(&key) {
                self.copy.put(look_up)?;
                self.copied.push(key);
            }
        }
        Ok(())
    }

    /// Takes over the kernel's flow hash, which a program notes of a packet that the host stack is to see.
    fn learn_hash(&mut self) {
        for (key, flow) in self.recorder.written().flows {
            let (Some(mut flow), Some(copy)) = (flow, self.copy.flow(&key)) else { continue };
            for (way, copy) in [(&mut flow.egress, copy.egress), (&mut flow.ingress, copy.ingress)] {
                if way.state == seen::PENDING && way.hash != copy.hash {
                    way.hash = copy.hash;
                    self.hash = Some(copy.hash);
                }
            }
            self.recorder.insert_flow(&key, &flow);
        }
    }

    /// How a run of the program and the model of it differ.
    fn differences(&self, hook: Hook, model: &Modelled, ran: &Ran) -> Vec<String> {
        let mut all = vec![];
        let action = model.decision.action(hook);
        if ran.action != action {
            all.push(format!("it returned {}, the model {action}", ran.action));
        }
        let counted = (model.reason != Reason::NotVxlan).then_some((model.network, model.reason));
        if ran.counted != counted {
            let label = |counted: Option<(NetworkId, Reason)>| {
                counted
                    .map_or_else(|| "nothing".to_owned(), |(id, r)| format!("{} of network {id}", r.label()))
            };
            all.push(format!("it counted {}, the model {}", label(ran.counted), label(counted)));
        }
        if ran.bytes != model.after.bytes {
            let same = ran.bytes.iter().zip(&model.after.bytes).take_while(|(a, b)| a == b).count();
            let (its, models) = (ran.bytes.len(), model.after.bytes.len());
            all.push(format!(
                "its packet ({its} bytes) is not the model's ({models} bytes) from byte {same} on"
            ));
        }
        if ran.metadata != model.after.metadata() {
            all.push("it left something else with the packet".to_owned());
        }
        for (key, flow) in &self.recorder.written().flows {
            let copy = self.copy.flow(key);
            if copy.as_ref().map(lasting) != flow.as_ref().map(lasting) {
                let of =
                    |flow: Option<Flow>| flow.map_or_else(|| "none".to_owned(), |f| entries::of_flow(&f));
                let (its, models) = (of(copy), of(*flow));
                all.push(format!("its flow {} is {its}, the model's {models}", entries::of_flow_key(key)));
            }
        }
        all
    }
}

/// Why the program of `hook` cannot be run on a packet that is nowhere.
fn cannot_run(hook: Hook) -> Option<String> {
    (hook == Hook::StrippedIngress).then(|| {
        "a test run does not carry what XDP leaves with a packet; this is what the model of it says"
            .to_owned()
    })
}

/// What of a flow does not depend on when it was and on the kernel's hash.
fn lasting(flow: &Flow) -> (u32, u8, [(u8, bool); 2], u64) {
    let of = |way: &Direction| (way.state, way.checked != 0 && way.state == seen::VERIFIED);
    (flow.generation, flow.closing(), [of(&flow.egress), of(&flow.ingress)], flow.packets)
}

/// The frame with what only the kernel knows, if the program made something of that: the flow hash and a random
/// number, or that there is no room for other headers.
fn as_the_kernel_chose(model: &Modelled, ran: &Ran, before: &Frame, known: Option<u32>) -> Option<Frame> {
    if ran.counted.is_some_and(|(_, reason)| reason == Reason::NoRoom) && model.reason != Reason::NoRoom {
        return Some(Frame { rigid: true, ..before.clone() });
    }
    let Decision::Encapsulated(vtep) = model.decision else { return None };
    let local = model.looked_up.iter().find_map(|look_up| match look_up {
        LookUp::Network(id, network) if *id == model.network => {
            Some(if vtep.family == 4 { network.local4 } else { network.local6 })
        }
        _ => None,
    })?;
    let udp = frame::ETHERNET + if vtep.family == 4 { 20 } else { 40 };
    let port = u16::from_be_bytes(*ran.bytes.get(udp..)?.first_chunk()?);
    let word = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let random = word(&ran.bytes, IDENTIFICATION)?;
    let inner = if frame::is_ipv4(&before.bytes) { word(&before.bytes, IDENTIFICATION)? } else { 0 };
    // The outer identification is the inner one, shifted by the hash's low half.
    let low = if inner == 0 || vtep.family != 4 { 0 } else { random.wrapping_sub(inner) };
    let flow_hash = known.unwrap_or_else(|| hash_of(port, (local.port_min, local.port_max), low));
    Some(Frame { flow_hash, random: random.into(), ..before.clone() })
}

/// A flow hash with this low half that leads to a source port.
fn hash_of(port: u16, (min, max): (u16, u16), low: u16) -> u32 {
    let span = u64::from(max.wrapping_sub(min)).max(1);
    // The port's formula backwards, which mixes a hash with its low half first: the least that has that port, or
    // somewhat more, for the sake of the low half.
    let least = (u64::from(port.wrapping_sub(min)) << 32).div_ceil(span) as u32;
    let high = least >> 16;
    let high = if high << 16 | u32::from(low) < least { high + 1 } else { high };
    (high << 16 | u32::from(low)) ^ u32::from(low) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vxlan_ebpf_common::underlay::source_port;

    proptest! {
        #[test]
        fn the_hash_leads_to_port_and_low_half(hash: u32, min in 1024u16..40_000, span in 1u16..25_000) {
            let port = source_port(hash, min, min + span).get();
            let found = hash_of(port, (min, min + span), hash as u16);
            prop_assert_eq!(source_port(found, min, min + span).get(), port);
            prop_assert_eq!(found as u16, hash as u16);
        }
    }
}
