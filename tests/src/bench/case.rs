//! What is measured, and in which unit it is reported.

use std::time::Duration;

use anyhow::Result;

use super::course::End;
use super::cpu::{Pair, Placement};
use super::measure::{rr, stream, udp};

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

impl Better {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
        }
    }
}

/// One line of the table.
pub(super) struct Case {
    /// Its name in the JSON file.
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) measurement: Measurement,
}

/// What a case's value becomes where the clock counts instructions, one a nanosecond: thousands of them per
/// transaction, or for each KiB of a stream. `None` for cases that say nothing then.
pub(super) fn in_instructions(name: &str, value: f64) -> Option<f64> {
    const BITS_OF_KIB: f64 = 8192.0;
    match name {
        // Gigabits per second are bits per nanosecond, and microseconds thousands of instructions.
        "tcp_stream_1" if value > 0.0 => Some(BITS_OF_KIB / value / 1000.0),
        "tcp_rr" | "tcp_crr" | "udp_rr" => Some(value),
        _ => None,
    }
}

/// One run of traffic; it yields the value of one case or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    Stream1,
    Stream8,
    TcpRr,
    TcpCrr,
    UdpRate,
    UdpRr,
}

/// All cases, in the order of the table.
pub(super) const CASES: &[Case] = &[
    case("tcp_stream_1", "TCP, one stream", "Gb/s", Better::Higher, Measurement::Stream1),
    case("tcp_stream_8", "TCP, eight streams", "Gb/s", Better::Higher, Measurement::Stream8),
    case("tcp_rr", "TCP 64 B request/response", "µs", Better::Lower, Measurement::TcpRr),
    case("tcp_crr", "TCP connect/request/response", "µs", Better::Lower, Measurement::TcpCrr),
    case("udp_rate", "UDP 64 B one way", "kpps", Better::Higher, Measurement::UdpRate),
    case("udp_loss", "UDP 64 B one way: lost", "%", Better::Lower, Measurement::UdpRate),
    case("udp_rr", "UDP 64 B request/response", "µs", Better::Lower, Measurement::UdpRr),
    case("cpu_per_gb", "CPU per GB of TCP", "s", Better::Lower, Measurement::Stream1),
    case("cpu_per_mpkt", "CPU per million packets of UDP", "s", Better::Lower, Measurement::UdpRate),
];

/// Printed, but not part of the JSON file's agreed list of cases.
pub(super) const NOT_IN_JSON: &str = "udp_loss";

const fn case(
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    measurement: Measurement,
) -> Case {
    Case { name, title, unit, better, measurement }
}

impl Measurement {
    pub(super) const ALL: [Self; 6] =
        [Self::Stream1, Self::Stream8, Self::TcpRr, Self::TcpCrr, Self::UdpRate, Self::UdpRr];

    /// Those that say most, in the order of the table: for a glance, and for bridged segments.
    pub(super) const FEW: [Self; 4] = [Self::Stream1, Self::TcpRr, Self::UdpRate, Self::UdpRr];

    /// Those that say something if both ends take turns on one CPU whose clock counts instructions.
    pub(super) const COUNTED: [Self; 4] = [Self::Stream1, Self::TcpRr, Self::TcpCrr, Self::UdpRr];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Stream1 => "tcp_stream_1",
            Self::Stream8 => "tcp_stream_8",
            Self::TcpRr => "tcp_rr",
            Self::TcpCrr => "tcp_crr",
            Self::UdpRate => "udp_rate",
            Self::UdpRr => "udp_rr",
        }
    }

    /// Where client and server run, and what carries their frames if they have taps.
    ///
    /// Request and response take turns, so one CPU is never waited for; on two, the wake-up of an
    /// idle one would be most of what is measured. Streams keep both ends busy at the same time.
    pub(super) fn placement(self) -> Placement {
        match self {
            Self::TcpRr | Self::TcpCrr | Self::UdpRr => Placement::Together,
            Self::Stream1 | Self::Stream8 | Self::UdpRate => Placement::Apart,
        }
    }

    /// Runs the traffic from the first of two ends to the second and returns values by case name.
    pub(super) fn run(
        self,
        [client, server]: [End<'_>; 2],
        cpus: Pair,
        duration: Duration,
    ) -> Result<Vec<(&'static str, f64)>> {
        let cpus = cpus.place(self.placement());
        client.bind_to_cpu(cpus.client)?;
        server.bind_to_cpu(cpus.server)?;
        Ok(match self {
            Self::Stream1 => {
                let seen = stream::tcp(client, server, 1, cpus, duration)?;
                vec![("tcp_stream_1", seen.gigabits_per_second), ("cpu_per_gb", seen.cpu_per_gigabyte)]
            }
            Self::Stream8 => {
                vec![("tcp_stream_8", stream::tcp(client, server, 8, cpus, duration)?.gigabits_per_second)]
            }
            Self::TcpRr => vec![("tcp_rr", rr::tcp(client, server, cpus, duration)?)],
            Self::TcpCrr => vec![("tcp_crr", rr::tcp_connect(client, server, cpus, duration)?)],
            Self::UdpRr => vec![("udp_rr", rr::udp(client, server, cpus, duration)?)],
            Self::UdpRate => {
                let seen = udp::one_way(client, server, cpus, duration)?;
                vec![
                    ("udp_rate", seen.delivered_kpps),
                    ("udp_loss", seen.lost_percent),
                    ("cpu_per_mpkt", seen.cpu_per_million),
                ]
            }
        })
    }
}
