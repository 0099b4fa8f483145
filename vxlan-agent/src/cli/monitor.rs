//! `monitor`: what happens to packets now, line by line.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use vxlan_ebpf_common::listen::Head;
use vxlan_ebpf_common::maps::{FlowKey, NO_NETWORK, NetworkId};
use vxlan_ebpf_common::{Hook, Reason};

use super::{Subject, clock::Clock};
use crate::datapath::{Listener, Pins, Report, Wanted};
use crate::listen::fate::{self, Verdict};
use crate::listen::flows::{State, Tracker};
use crate::listen::headers::{Headers, Outer};
use crate::listen::run::{Limits, run};
use crate::listen::which::Which;
use crate::net::interface_name;

/// Bytes of a packet that its headers need: outer ones with a tag, inner ones with TCP's.
const HEADERS: u32 = 192;

/// The options of `monitor`.
#[derive(Args)]
pub(super) struct Monitor {
    #[command(flatten)]
    which: Which,
    /// Packets per second and CPU at most; 0: any number. What is more is counted.
    #[arg(long, value_name = "N", default_value = "1000")]
    rate: u32,
    /// Only what becomes of flows, not each packet.
    #[arg(long)]
    flows: bool,
}

/// A packet in JSON.
#[derive(Serialize)]
struct PacketLine<'a> {
    event: &'static str,
    time: String,
    network: Option<&'a str>,
    hook: &'static str,
    interface: String,
    verdict: Verdict,
    reason: &'static str,
    meaning: String,
    /// Bytes of the packet as it was found.
    length: u32,
    /// Payload bytes per segment of an aggregate.
    segment: Option<u32>,
    #[serde(flatten)]
    headers: Headers,
    /// The tunnel that it was found in, or put into.
    outer: Option<Outer>,
}

/// What is new of a flow in JSON.
#[derive(Serialize)]
struct FlowLine<'a> {
    event: &'static str,
    time: String,
    network: Option<&'a str>,
    state: State,
    meaning: &'static str,
    protocol_number: u8,
    local: std::net::IpAddr,
    local_port: u16,
    remote: std::net::IpAddr,
    remote_port: u16,
}

pub(super) fn show(subject: &Subject, options: &Monitor, json: bool) -> Result<()> {
    let pins = subject.pins()?;
    let which = &options.which;
    let wanted = Wanted {
        filter: subject.filter(&pins, which)?,
        before: HEADERS,
        after: HEADERS,
        untouched: HEADERS,
        sample: which.sample,
        rate: options.rate,
    };
    let mut listener = Listener::start(&subject.config.node.pins(), &wanted)?;
    let mut lines = Lines {
        out: BufWriter::new(std::io::stdout().lock()),
        clock: Clock::now()?,
        networks: subject.names(&pins)?,
        pins: &pins,
        flows: Tracker::default(),
        only_flows: options.flows,
        json,
    };
    let limits = Limits { count: which.count, seconds: which.seconds };
    let summary = run(&mut listener, limits, |reports| lines.tell(reports))?;
    super::listened(&summary, json, &mut lines.out)
}

struct Lines<'a, W: Write> {
    out: W,
    clock: Clock,
    networks: BTreeMap<NetworkId, String>,
    pins: &'a Pins,
    flows: Tracker,
    only_flows: bool,
    json: bool,
}

impl<W: Write> Lines<'_, W> {
    fn tell(&mut self, reports: &[Report]) -> Result<()> {
        for report in reports {
            if !self.only_flows {
                self.packet(report)?;
            }
            if let Some((key, state)) = self.flows.follow(self.pins, report) {
                self.flow(report, &key, state)?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn packet(&mut self, report: &Report) -> Result<()> {
        let event = &report.event;
        let (headers, outer) = told(report);
        let network = self.networks.get(&event.network).map(String::as_str);
        let hook = event.hook().map_or("?", Hook::label);
        let reason = event.reason().map_or("?", Reason::label);
        let (interface, meaning) = (interface_name(event.ifindex), fate::sentence(event));
        if !self.json {
            let time = self.clock.time_of_day(event.time);
            let outer = outer.map_or_else(String::new, |outer| format!(" in {outer}"));
            writeln!(
                self.out,
                "{time} {} {hook} {interface} {headers}{outer} {} B: {meaning} ({reason})",
                network.unwrap_or("-"),
                event.length,
            )?;
            return Ok(());
        }
        let line = PacketLine {
            event: "packet",
            time: self.clock.timestamp(event.time),
            network,
            hook,
            interface,
            verdict: Verdict::of(event),
            reason,
            meaning,
            length: event.length,
            segment: (event.segment != 0).then_some(event.segment),
            headers,
            outer,
        };
        Ok(writeln!(self.out, "{}", serde_json::to_string(&line)?)?)
    }

    fn flow(&mut self, report: &Report, key: &FlowKey, state: State) -> Result<()> {
        let network = self.networks.get(&report.event.network).map(String::as_str);
        let (local_port, remote_port) = (key.local_port.get(), key.remote_port.get());
        let (local, remote) = (key.local.into(), key.remote.into());
        if !self.json {
            let time = self.clock.time_of_day(report.event.time);
            let protocol = super::flows::protocol(key.protocol);
            let (local, remote) =
                (super::flows::end(local, local_port), super::flows::end(remote, remote_port));
            let network = network.unwrap_or("-");
            writeln!(self.out, "{time} {network} {local} <> {remote} {protocol}: {}", state.sentence())?;
            return Ok(());
        }
        let line = FlowLine {
            event: "flow",
            time: self.clock.timestamp(report.event.time),
            network,
            state,
            meaning: state.sentence(),
            protocol_number: key.protocol,
            local,
            local_port,
            remote,
            remote_port,
        };
        Ok(writeln!(self.out, "{}", serde_json::to_string(&line)?)?)
    }
}

/// The inner headers of a packet as it was found, and the tunnel that it came out of or goes into.
fn told(report: &Report) -> (Headers, Option<Outer>) {
    let event = &report.event;
    let found = match event.hook() {
        Some(Hook::UnderlayIngress | Hook::UnderlayXdp) => Head(&report.before).tunnel(),
        _ => None,
    };
    let made = match event.reason() {
        Some(Reason::Encapsulated) => Head(&report.after).tunnel(),
        _ => None,
    };
    let inner = found.map_or(0, |tunnel| tunnel.inner);
    let headers = Headers::of(report.before.get(inner..).unwrap_or_default());
    (headers, found.or(made).map(Outer::from))
}

impl Subject {
    /// What the programs compare packets with.
    pub(super) fn filter(&self, pins: &Pins, which: &Which) -> Result<vxlan_ebpf_common::listen::Filter> {
        let network = match (self.all, self.networks().next()) {
            (false, Some(name)) => Some(pins.network(name)?),
            _ => None,
        };
        // Who asks for no node can do without.
        let status = crate::status::read(&self.config.node.run_dir).ok().flatten();
        which.filter(network, status.as_ref())
    }

    /// Names of the networks in the maps.
    pub(super) fn names(&self, pins: &Pins) -> Result<BTreeMap<NetworkId, String>> {
        let mut names = BTreeMap::new();
        for name in pins.networks()? {
            let id = pins.network(&name)?;
            names.extend((id != NO_NETWORK).then_some((id, name)));
        }
        Ok(names)
    }
}
