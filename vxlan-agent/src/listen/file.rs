//! Packets as pcapng, as tcpdump, tshark and Wireshark read it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness};
use vxlan_ebpf_common::listen::{Event, Head};
use vxlan_ebpf_common::{Hook, Reason};

use super::fate;
use crate::datapath::Report;
use crate::net::interface_name;

/// When of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// As a program found it.
    Before,
    /// As it left it.
    After,
}

impl Side {
    const fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// A file of packets, or a pipe.
pub(crate) struct PacketFile<W: Write> {
    writer: PcapNgWriter<W>,
    /// pcapng's interfaces: one for each hook of each of ours, before and after.
    interfaces: HashMap<(u8, u32, Side), u32>,
    /// Whether packets begin with their inner headers.
    inner: bool,
}

impl<W: Write> PacketFile<W> {
    /// Writes the file's head to `writer`.
    ///
    /// # Errors
    /// It cannot be written to.
    pub(crate) fn new(writer: W, inner: bool) -> Result<Self> {
        let program = concat!("vxlan-agent ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(writer, section).context("cannot write packets")?;
        Ok(Self { writer, interfaces: HashMap::new(), inner })
    }

    /// Writes one side of a packet of the network called `network`, heard of at `time` since 1970.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub(crate) fn write(&mut self, report: &Report, side: Side, time: Duration, network: &str) -> Result<()> {
        let event = &report.event;
        let (bytes, length) = match side {
            Side::Before => (&report.before, event.length),
            Side::After => (&report.after, event.length_after),
        };
        let cut = if self.inner { inner_frame(event, side, bytes) } else { 0 };
        let interface_id = self.interface(event, side)?;
        let bytes = bytes.get(cut..).unwrap_or_default();
        let original_len = u32::try_from(cut).map_or(length, |cut| length.saturating_sub(cut));
        let comment = comment(event, side, network);
        self.writer
            .write_pcapng_block(EnhancedPacketBlock {
                interface_id,
                timestamp: time,
                original_len: original_len.max(u32::try_from(bytes.len())?),
                data: Cow::Borrowed(bytes),
                options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(&comment))],
            })
            .context("cannot write packets")?;
        Ok(())
    }

    /// The number of pcapng's interface, which is described before it is first used.
    fn interface(&mut self, event: &Event, side: Side) -> Result<u32> {
        let key = (event.hook, event.ifindex, side);
        if let Some(id) = self.interfaces.get(&key) {
            return Ok(*id);
        }
        const NANOSECONDS: u8 = 9;
        let hook = event.hook().map_or("hook", Hook::label);
        let name = interface_name(event.ifindex);
        let description = format!("{hook} on {name}, {} the program", side.word());
        self.writer
            .write_pcapng_block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![
                    InterfaceDescriptionOption::IfName(format!("{name}:{hook}:{}", side.word()).into()),
                    InterfaceDescriptionOption::IfDescription(description.into()),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            })
            .context("cannot write packets")?;
        let id = u32::try_from(self.interfaces.len())?;
        self.interfaces.insert(key, id);
        Ok(id)
    }

    /// Passes on what has been written.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.writer.get_mut().flush().context("cannot write packets")
    }
}

/// Where the inner Ethernet header of one side of a packet is.
fn inner_frame(event: &Event, side: Side, bytes: &[u8]) -> usize {
    let in_tunnel = match (side, event.hook()) {
        (Side::After, _) if event.forwarded != 0 => event.reason() == Some(Reason::Encapsulated),
        (_, hook) => matches!(hook, Some(Hook::UnderlayIngress | Hook::UnderlayXdp)),
    };
    let tunnel = if in_tunnel { Head(bytes).tunnel() } else { None };
    tunnel.map_or(0, |tunnel| tunnel.inner).min(bytes.len())
}

/// What became of it: the verdict, and the reason as counters have it.
fn comment(event: &Event, side: Side, network: &str) -> String {
    let hook = event.hook().map_or("?", Hook::label);
    let reason = event.reason().map_or("?", Reason::label);
    let (side, fate) = (side.word(), fate::sentence(event));
    let mut text = format!("{side} {hook}, network {network}, {reason}: {fate}");
    if event.segment != 0 {
        text += &format!(" (aggregate of segments with {} bytes)", event.segment);
    }
    text
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    fn report() -> Report {
        let inner = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0inner";
        let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0][..], inner].concat();
        let mut outer = vec![];
        let eth = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        eth.udp(40_000, 8472).write(&mut outer, &vxlan).expect("a packet");
        let event = Event {
            ifindex: 999_999,
            length: inner.len() as u32,
            length_after: outer.len() as u32,
            hook: Hook::PodEgress as u8,
            reason: Reason::Encapsulated as u8,
            forwarded: 1,
            ..Event::default()
        };
        Report { event, before: inner.to_vec(), after: outer }
    }

    /// What a reader finds: each packet's interface, time, bytes and comment.
    fn written(inner: bool) -> Vec<(u32, Duration, Vec<u8>, String)> {
        let mut bytes = vec![];
        let mut file = PacketFile::new(&mut bytes, inner).expect("a file");
        for (side, second) in [(Side::Before, 1), (Side::After, 2), (Side::Before, 3)] {
            let time = Duration::new(second, 123_456_789);
            file.write(&report(), side, time, "pods").expect("written");
        }
        file.flush().expect("written");
        drop(file);
        let mut reader = PcapNgReader::new(bytes.as_slice()).expect("pcapng");
        let mut found = vec![];
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.expect("a block") {
                let comment = match packet.options.first() {
                    Some(EnhancedPacketOption::Comment(comment)) => comment.to_string(),
                    other => panic!("{other:?}"),
                };
                found.push((packet.interface_id, packet.timestamp, packet.data.to_vec(), comment));
            }
        }
        found
    }

    #[test]
    fn each_side_of_a_packet_has_its_interface_and_its_comment() {
        let all = written(false);
        let interfaces: Vec<u32> = all.iter().map(|(interface, ..)| *interface).collect();
        assert_eq!(interfaces, [0, 1, 0]);
        assert_eq!(all[0].1, Duration::new(1, 123_456_789));
        assert_eq!((&all[0].2, &all[1].2), (&report().before, &report().after));
        assert_eq!(
            all[1].3,
            "after pod_egress, network pods, encapsulated: forwarded: Encapsulated and sent out of the underlay"
        );
    }

    #[test]
    fn outer_headers_can_be_left_out() {
        let all = written(true);
        assert_eq!((&all[0].2, &all[1].2), (&report().before, &report().before));
    }
}
