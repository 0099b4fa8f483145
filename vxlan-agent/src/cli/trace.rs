//! `trace`: what would happen to a packet here.

use std::net::IpAddr;

use clap::ValueEnum;
use serde::Serialize;
use vxlan_ebpf_common::maps::NetworkId;

use super::{NotWell, Subject, print, print_json};
use crate::trace::probe::{self, Probe};
use crate::trace::{self, End, Flags, Question, Unanswerable};

/// Which packet.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Who sends it: an address of a pod, of this node or of another node's pod; in a bridged network a MAC.
    source: End,
    /// Who is to receive it.
    destination: End,
    /// What the IP packet carries.
    #[arg(long, value_enum, default_value = "icmp")]
    proto: Proto,
    /// Source port; of ICMP, the identifier of the echo request.
    #[arg(long, default_value_t = 40_000, value_name = "PORT")]
    sport: u16,
    /// Destination port.
    #[arg(long, default_value_t = 80, value_name = "PORT")]
    dport: u16,
    /// TCP flags, of syn, ack, fin and rst, with commas between them.
    #[arg(long, default_value = "syn")]
    flags: Flags,
    /// Length of the IP packet in bytes.
    #[arg(long, default_value_t = 84, value_name = "BYTES")]
    length: u16,
    /// TTL or hop limit with which it is sent.
    #[arg(long, default_value_t = 64)]
    ttl: u8,
    /// TOS or traffic class.
    #[arg(long, default_value_t = 0)]
    tos: u8,
    /// Let routers fragment it, as few hosts do.
    #[arg(long)]
    may_fragment: bool,
    /// The interface that it comes in by: the host side of a pod's veth, a port of a bridge, or the underlay; otherwise
    /// that where SRC is known to be.
    #[arg(long = "in", value_name = "INTERFACE")]
    interface: Option<String>,
    /// The VTEP that it comes from, if not that of SRC.
    #[arg(long, value_name = "ADDRESS")]
    vtep: Option<IpAddr>,
    /// Send packets, follow them to DST and back, and measure round trip and path MTU. SRC has to be an address of a pod
    /// here or of this node.
    #[arg(long)]
    probe: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Icmp,
}

impl Args {
    fn question(&self) -> Question {
        Question {
            source: self.source,
            destination: self.destination,
            protocol: match self.proto {
                Proto::Tcp => trace::Protocol::Tcp,
                Proto::Udp => trace::Protocol::Udp,
                Proto::Icmp => trace::Protocol::Icmp,
            },
            source_port: self.sport,
            destination_port: self.dport,
            flags: self.flags,
            length: self.length,
            ttl: self.ttl,
            tos: self.tos,
            may_fragment: self.may_fragment,
            interface: self.interface.clone(),
            vtep: self.vtep,
        }
    }
}

pub(super) async fn run(subject: &Subject, args: &Args, json: bool) -> anyhow::Result<()> {
    let pins = subject.pins()?;
    let networks: Vec<NetworkId> = subject.numbered(&pins)?.into_iter().map(|(_, id)| id).collect();
    if args.probe && args.proto != Proto::Icmp {
        return Err(Unanswerable("a probe is an echo request: leave --proto out".to_owned()).into());
    }
    let question = args.question();
    let trace = trace::run(&pins, &networks, &question).await?;
    let probe = args.probe.then(|| probe::run(&pins, &networks, &question, &trace)).transpose()?;
    if json {
        print_json(&Report { trace: &trace, probe: probe.as_ref() })?;
    } else {
        print(&(trace.text() + &probe.as_ref().map_or_else(String::new, Probe::text)))?;
    }
    let is_well = trace.agree && probe.as_ref().map_or_else(|| trace.is_well(), Probe::is_well);
    if is_well { Ok(()) } else { Err(NotWell.into()) }
}

/// For machines.
#[derive(Serialize)]
struct Report<'t> {
    #[serde(flatten)]
    trace: &'t trace::Trace,
    probe: Option<&'t Probe>,
}
