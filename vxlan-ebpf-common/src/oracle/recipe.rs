//! From a fuzzer's bytes to a frame and tables.
//!
//! The format is our own, so that committed inputs keep their meaning and seeds can be written:
//! sixteen bytes of head (see [`Recipe`]), four bytes per change of the tables, and the rest. The rest
//! is the frame itself, or four bytes per change to a valid frame from the testbed. Whatever is
//! missing at the end is zero, so every input means something.

use std::vec::Vec;

use super::std;
use crate::counters::Hook;
use crate::maps::{Addr, DEFAULT_VTEPS, Key6, LinkEntry, LocalVtep, Mode, NO_NETWORK, endpoint};
use crate::model::{Frame, Maps};
use crate::testbed::{self, Inner, NETWORK, Outer, POD_IFINDEX, key4, key6, pod4, pod6};

/// Length of the head in bytes.
const HEAD: usize = 16;
/// Length of one change in bytes.
const CHANGE: usize = 4;
/// Most bytes in the innermost payload on the way in, which the testbed can encapsulate.
const MAX_LEN_IN: usize = 65_400;
/// Most bytes in the innermost payload on the way out: more than can be encapsulated.
const MAX_LEN_OUT: usize = 65_480;

/// Which hooks a recipe is for: says which frames [`Recipe::base`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the tunnel.
    Out,
    /// Out of the tunnel.
    In,
}

/// A frame and the tables that it meets, on the base of the [testbed].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// Byte 0: number of a valid frame; from [`Recipe::bases`] on, the rest is the frame.
    pub base: u8,
    /// Byte 1: of the constants below.
    pub flags: u8,
    /// Bytes 2 and 3, low byte first like all that follow: [`Frame::segment_size`].
    pub segment_size: u16,
    /// Bytes 4 and 5: bytes in the innermost payload.
    pub len: u16,
    /// Byte 6: inner TTL or hop limit.
    pub ttl: u8,
    /// Byte 7: inner TOS or traffic class.
    pub tos: u8,
    /// Byte 8: outer TOS or traffic class.
    pub outer_tos: u8,
    /// Bytes 9 to 12: [`Frame::flow_hash`].
    pub flow_hash: u32,
    /// Bytes 13 and 14: [`Frame::random`].
    pub random: u16,
    /// Byte 15, the low three bits, says how many: changes of the tables.
    pub tables: Vec<Edit>,
    /// The frame's bytes, or changes of them.
    pub rest: Vec<u8>,
}

/// One change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Byte 0: what is changed.
    pub what: u8,
    /// Byte 1: which of several.
    pub which: u8,
    /// Bytes 2 and 3: to what.
    pub value: u16,
}

impl Recipe {
    /// [`Frame::tagged`].
    pub const TAGGED: u8 = 1;
    /// [`Frame::rigid`].
    pub const RIGID: u8 = 2;
    /// The frame comes from an interface other than the first pod's.
    pub const ELSEWHERE: u8 = 4;
    /// IPv4 header checksums are computed after the changes.
    pub const REPAIRED: u8 = 8;
    /// `len` counts as it is, instead of modulo 2048.
    pub const LARGE: u8 = 16;
    /// [`Frame::verified`].
    pub const VERIFIED: u8 = 32;
    /// [`Frame::stray`].
    pub const STRAY: u8 = 64;

    /// Makes sense of any bytes.
    pub fn read(data: &[u8]) -> Self {
        let mut head = [0; HEAD];
        let known = data.len().min(HEAD);
        head[..known].copy_from_slice(&data[..known]);
        let [base, flags, s0, s1, l0, l1, ttl, tos, outer_tos, h0, h1, h2, h3, r0, r1, count] = head;
        let data = &data[known..];
        let (tables, rest) = data.split_at(data.len().min(CHANGE * usize::from(count & 7)));
        Self {
            base,
            flags,
            segment_size: u16::from_le_bytes([s0, s1]),
            len: u16::from_le_bytes([l0, l1]),
            ttl,
            tos,
            outer_tos,
            flow_hash: u32::from_le_bytes([h0, h1, h2, h3]),
            random: u16::from_le_bytes([r0, r1]),
            tables: Edit::read_all(tables),
            rest: rest.to_vec(),
        }
    }

    /// What [`read`](Self::read) reads; at most seven changes of the tables.
    pub fn write(&self) -> Vec<u8> {
        let mut data = std::vec![self.base, self.flags];
        data.extend(self.segment_size.to_le_bytes());
        data.extend(self.len.to_le_bytes());
        data.extend([self.ttl, self.tos, self.outer_tos]);
        data.extend(self.flow_hash.to_le_bytes());
        data.extend(self.random.to_le_bytes());
        data.push(self.tables.len().min(7) as u8);
        self.tables.iter().take(7).for_each(|edit| data.extend(edit.write()));
        data.extend(&self.rest);
        data
    }

    /// How many valid frames there are.
    pub fn bases(way: Way) -> u8 {
        let frames = match way {
            Way::Out => testbed::outbound().len(),
            Way::In => testbed::inbound().len(),
        };
        frames as u8
    }

    /// The frame and its tables.
    pub fn cook(&self, way: Way) -> (Frame, Maps) {
        let mut maps = testbed::maps();
        self.tables.iter().for_each(|edit| edit.change_tables(&mut maps));
        (self.frame(way), maps)
    }

    /// The frame.
    pub fn frame(&self, way: Way) -> Frame {
        let mut bytes = match way {
            _ if self.base >= Self::bases(way) => self.rest.clone(),
            Way::Out => self.changed(self.outbound().build()),
            Way::In => self.changed(self.inbound()),
        };
        if self.has(Self::REPAIRED) {
            repair(&mut bytes);
        }
        Frame {
            bytes,
            segment_size: u32::from(self.segment_size),
            tagged: self.has(Self::TAGGED),
            stray: self.has(Self::STRAY),
            ifindex: POD_IFINDEX + u32::from(self.has(Self::ELSEWHERE)),
            flow_hash: self.flow_hash,
            random: u32::from(self.random),
            mark: 0,
            verified: self.has(Self::VERIFIED),
            rigid: self.has(Self::RIGID),
            ..Frame::default()
        }
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What a pod sends or the host routes.
    fn outbound(&self) -> Inner {
        let (_, inner) = testbed::outbound().swap_remove(self.base.into());
        self.inner(inner, MAX_LEN_OUT)
    }

    /// What arrives on the underlay or comes out of the kernel's device.
    fn inbound(&self) -> Vec<u8> {
        let (hook, id, inner) = testbed::inbound().swap_remove(self.base.into());
        let inner = self.inner(inner, MAX_LEN_IN).build();
        match hook {
            Hook::UnderlayIngress => Outer { tos: self.outer_tos, ..Outer::from_remote(id, inner) }.build(),
            _ => inner,
        }
    }

    fn inner(&self, inner: Inner, max_len: usize) -> Inner {
        let len = usize::from(self.len);
        let len = if self.has(Self::LARGE) { len.min(max_len) } else { len % 2048 };
        Inner { len, ttl: self.ttl, tos: self.tos, ..inner }
    }

    fn changed(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        Edit::read_all(&self.rest).iter().for_each(|edit| edit.change_bytes(&mut bytes));
        bytes
    }
}

impl Edit {
    fn read_all(data: &[u8]) -> Vec<Self> {
        let (edits, _) = data.as_chunks::<CHANGE>();
        let read = |&[what, which, low, high]: &[u8; CHANGE]| Self {
            what,
            which,
            value: u16::from_le_bytes([low, high]),
        };
        edits.iter().map(read).collect()
    }

    /// The bytes that stand for this change.
    pub fn write(&self) -> [u8; CHANGE] {
        let [low, high] = self.value.to_le_bytes();
        [self.what, self.which, low, high]
    }

    /// Changes the frame at offset `value`: to, or by, `which`.
    fn change_bytes(&self, bytes: &mut Vec<u8>) {
        let at = usize::from(self.value);
        if at >= bytes.len() {
            return;
        }
        match self.what % 8 {
            5 => bytes.truncate(at),
            6 => drop(bytes.splice(at..at, std::iter::repeat_n(0x5a, self.which.into()))),
            7 => drop(bytes.drain(at..bytes.len().min(at + usize::from(self.which)))),
            4 => bytes[at] ^= self.which,
            _ => bytes[at] = self.which,
        }
    }

    /// Changes what an agent writes: never to a VNI of more than 24 bits.
    fn change_tables(&self, maps: &mut Maps) {
        let pod = self.which % 4;
        let node = self.which / 4 % 4;
        match self.what % 16 {
            0 if self.which & 1 == 0 => maps.networks.clear(),
            // Interface and VNI say which network it is, and nothing else changes.
            0 => maps.node.only = NO_NETWORK,
            1..=7 => self.change_network(maps),
            8 => drop(maps.routes4.insert((key4(pod4(node, 0)), 24), self.id())),
            9 => drop(maps.routes6.insert((key6(pod6(node, 0)), 64), self.id())),
            10 => drop(maps.routes4.insert((key4(pod4(node, pod + 6)), 32), self.id())),
            11 => maps.vteps.values_mut().for_each(|vtep| vtep.family = self.value as u8),
            12 => drop(maps.vtep_ids.remove(&Key6::new(NETWORK, self.address()))),
            13 => {
                maps.vtep_ids.insert(Key6::new(NETWORK, self.address()), self.id());
                maps.vteps.entry(self.id()).and_modify(|vtep| vtep.addr = self.address());
            }
            14 => self.change_pod(maps, pod),
            _ => drop(maps.endpoints4.remove(&key4(pod4(1, pod)))),
        }
    }

    fn change_network(&self, maps: &mut Maps) {
        let Some(network) = maps.network_mut() else { return };
        let local = if self.which & 1 == 0 { &mut network.local4 } else { &mut network.local6 };
        match self.what % 16 {
            1 => network.vni = u32::from(self.which) << 16 | u32::from(self.value),
            2 => network.port = self.value.to_be_bytes(),
            3 if self.which & 2 == 0 => local.mtu = self.value,
            3 => {
                let value = u32::from(self.value);
                (local.flags, local.label, local.tos, local.ttl) = (value, value, self.which, self.which);
            }
            4 => *local = LocalVtep::default(),
            5 => (local.port_min, local.port_max) = (self.value, self.value ^ u16::from(self.which)),
            6 => network.flags = u32::from(self.value),
            _ if self.value & 1 == 0 => network.mode = Mode::Off as u8,
            _ => local.mac = [2, self.which, 0, 0, 0, self.value as u8],
        }
    }

    /// An id: of a VTEP, of a free entry, or of none.
    fn id(&self) -> u32 {
        match self.value % 8 {
            7 => DEFAULT_VTEPS,
            id => u32::from(id),
        }
    }

    /// The underlay address of a node.
    fn address(&self) -> Addr {
        if self.which & 1 == 0 {
            testbed::addr(testbed::node4(self.which / 2 % 4))
        } else {
            testbed::addr(testbed::node6(self.which / 2 % 4))
        }
    }

    fn change_pod(&self, maps: &mut Maps, pod: u8) {
        if self.which / 4 % 8 == 5 {
            maps.links.insert(u32::from(pod), LinkEntry { network: NETWORK, flags: u32::from(self.value) });
        }
        let four = maps.endpoints4.get_mut(&key4(pod4(1, pod)));
        for endpoint in four.into_iter().chain(maps.endpoints6.get_mut(&key6(pod6(1, pod)))) {
            match self.which / 4 % 8 {
                0 => endpoint.mtu = self.value,
                1 => endpoint.bridge = u32::from(self.value),
                2 => endpoint.ifindex = u32::from(self.value),
                3 => endpoint.gateway_mac[5] = self.value as u8,
                4 => endpoint.flags ^= endpoint::DISPUTED,
                _ => {}
            }
        }
    }
}

/// Computes the checksum of every IPv4 header at one of the usual offsets, options left out.
fn repair(bytes: &mut [u8]) {
    for at in [14, 14 + 50, 14 + 70] {
        let Some(header) = bytes.get_mut(at - 2..at + 20) else { continue };
        if header[..2] != [8, 0] || header[2] >> 4 != 4 {
            continue;
        }
        header[12..14].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&header[2..]);
        header[12..14].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_recipe_is_read_as_it_was_written(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let recipe = Recipe::read(&data);
            prop_assert_eq!(Recipe::read(&recipe.write()), recipe);
        }
    }

    #[test]
    fn a_repaired_header_has_a_right_checksum() {
        let dscp = Edit { what: 0, which: 0xb8, value: 15 };
        let recipe =
            Recipe { ttl: 64, flags: Recipe::REPAIRED, rest: dscp.write().into(), ..Recipe::default() };
        let frame = recipe.frame(Way::Out).bytes;
        let (header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
        assert_eq!((frame[15], header.header_checksum), (0xb8, header.calc_header_checksum()));
    }

    #[test]
    fn the_valid_frames_are_all_different() {
        for way in [Way::Out, Way::In] {
            let frame = |base| Recipe { base, ttl: 64, len: 40, ..Recipe::default() }.frame(way).bytes;
            let frames: std::collections::BTreeSet<_> = (0..Recipe::bases(way)).map(frame).collect();
            assert_eq!(frames.len(), usize::from(Recipe::bases(way)));
        }
    }
}
