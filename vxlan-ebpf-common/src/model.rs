//! Packet and tables in plain memory: the engine's other half in tests.

extern crate std;

use core::cell::{RefCell, RefMut};
use core::ops::DerefMut;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::counters::{Hook, Reason};
use crate::headers::{Be16, Be32, Eth, Mac};
use crate::maps::{
    Addr, Endpoint, Family, Flow, FlowKey, Key4, Key6, LinkEntry, MacKey, NETWORK_BITS, Network, NetworkId,
    Node, Station, VniKey, Vtep, VtepId,
};
use crate::packet::{ETH_LEN, Packet, Wire};
use crate::tables::Tables;
use crate::testbed;
use crate::underlay;

/// A frame, and what the kernel knows about it besides its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frame {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// [`Packet::segment_size`].
    pub segment_size: u32,
    /// [`Packet::tagged`].
    pub tagged: bool,
    /// [`Packet::priority_tagged`]; [`tagged`](Self::tagged), too.
    pub priority_tagged: bool,
    /// [`Packet::fwmark`].
    pub fwmark: u32,
    /// [`Packet::stray`].
    pub stray: bool,
    /// [`Packet::ifindex`].
    pub ifindex: u32,
    /// [`Packet::arrived_by`].
    pub arrived_by: u32,
    /// [`Packet::flow_hash`].
    pub flow_hash: u32,
    /// [`Packet::random`].
    pub random: u32,
    /// [`Packet::mark`].
    pub mark: u64,
    /// [`Packet::kept`].
    pub kept: Option<Eth>,
    /// [`Packet::note`].
    pub note: u16,
    /// [`Packet::checksum_verified`].
    pub verified: bool,
    /// An interface that is not there.
    pub gone: u32,
    /// Whether [`Packet::make_room`] and [`Packet::remove_room`] refuse, as the kernel may.
    pub rigid: bool,
}

impl Frame {
    /// What an XDP program has left in front of the frame, as the kernel has it: the mark and, behind it, the Ethernet
    /// header, filled up to a multiple of four bytes.
    pub fn metadata(&self) -> Vec<u8> {
        let mark = if self.mark == 0 { &[][..] } else { &self.mark.to_ne_bytes() };
        let eth = self.kept.into_iter().flat_map(|Eth { dst: Mac(dst), src: Mac(src), ether_type }| {
            dst.into_iter().chain(src).chain([ether_type, Be16(0)])
        });
        mark.iter().copied().chain(eth.flat_map(|word| word.0.to_ne_bytes())).collect()
    }
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn linearize(&mut self, _len: usize) {}

    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..offset + size_of::<T>())?;
        // SAFETY: `bytes` has the length of `T`, which is valid for any bytes.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn store<T: Wire>(&mut self, offset: usize, value: &T) -> Option<()> {
        let bytes = self.bytes.get_mut(offset..offset + size_of::<T>())?;
        // SAFETY: `bytes` has the length of `T`, which has no padding.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(*value) };
        Some(())
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn tagged(&self) -> bool {
        self.tagged
    }

    fn priority_tagged(&self) -> bool {
        self.priority_tagged
    }

    fn fwmark(&self) -> u32 {
        self.fwmark
    }

    fn stray(&self) -> bool {
        self.stray
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn arrived_by(&self) -> u32 {
        self.arrived_by
    }

    fn has_interface(&self, ifindex: u32) -> bool {
        ifindex != self.gone
    }

    fn flow_hash(&self) -> u32 {
        self.flow_hash
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn checksum_verified(&self) -> bool {
        self.verified
    }

    fn make_room(&mut self, family: Family) -> Option<()> {
        // Not zero: what the engine leaves unwritten shows.
        let room = core::iter::repeat_n(0xa5, underlay::overhead(family) as usize);
        (!self.rigid).then(|| drop(self.bytes.splice(ETH_LEN..ETH_LEN, room)))
    }

    fn remove_room(&mut self, family: Family, _inner: Family) -> Option<()> {
        let end = ETH_LEN + underlay::overhead(family) as usize;
        (!self.rigid && self.bytes.len() >= end).then(|| drop(self.bytes.drain(ETH_LEN..end)))
    }

    fn note(&self) -> u16 {
        self.note
    }

    fn set_note(&mut self, note: u16) {
        self.note = note;
    }

    fn mark(&self) -> u64 {
        self.mark
    }

    fn set_mark(&mut self, mark: u64) -> Option<()> {
        self.mark = mark;
        Some(())
    }

    fn kept(&self) -> Option<Eth> {
        self.kept
    }

    fn keep(&mut self, mark: u64, eth: &Eth) -> Option<()> {
        (self.mark, self.kept) = (mark, Some(*eth));
        Some(())
    }

    fn address_to_host(&mut self) {}

    fn replace_in_sum(&mut self, _from: u32, _to: u32) {}
}

/// What a program notes of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It is elsewhere, or back.
    Moved(u8),
    /// The kernel was given a frame of it.
    Confirmed,
}

/// Packets and bytes by network, program and reason.
pub type Counted = BTreeMap<(NetworkId, Hook, Reason), (u64, u64)>;

/// The maps of a node. LPM is done by trying every prefix.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// NODE.
    pub node: Node,
    /// NETWORKS.
    pub networks: BTreeMap<NetworkId, Network>,
    /// VNIS.
    pub vnis: BTreeMap<VniKey, NetworkId>,
    /// LINKS.
    pub links: BTreeMap<u32, LinkEntry>,
    /// Whether SWITCH has the fast path of every network off.
    pub switched_off: bool,
    /// ROUTES4 by network, address and prefix length.
    pub routes4: BTreeMap<(Key4, u32), VtepId>,
    /// ROUTES6 by network, address and prefix length.
    pub routes6: BTreeMap<(Key6, u32), VtepId>,
    /// VTEPS.
    pub vteps: BTreeMap<VtepId, Vtep>,
    /// VTEPs that the host stack took a packet in from, as noted.
    pub heard: RefCell<Vec<Addr>>,
    /// VTEP_IDS.
    pub vtep_ids: BTreeMap<Key6, VtepId>,
    /// STATIONS.
    pub stations: BTreeMap<MacKey, Station>,
    /// What programs have noted of stations, by the rest of the entry.
    pub notes: RefCell<Vec<(Station, Note)>>,
    /// ENDPOINTS4.
    pub endpoints4: BTreeMap<Key4, Endpoint>,
    /// ENDPOINTS6.
    pub endpoints6: BTreeMap<Key6, Endpoint>,
    /// FLOWS.
    pub flows: RefCell<BTreeMap<FlowKey, Flow>>,
    /// Whether FLOWS takes no new entries.
    pub full: bool,
    /// The generation of every network in SWITCH.
    pub generation: u32,
    /// The time in nanoseconds.
    pub now: u64,
    /// Whether WATCH holds.
    pub watched: bool,
    /// COUNTERS.
    pub counters: RefCell<Counted>,
}

/// A free entry of VTEPS, as the kernel's array has it.
static FREE: Vtep = Vtep {
    addr: Addr([0; 16]),
    mac: [0; 6],
    family: 0,
    flags: 0,
    mtu: 0,
    ttl: 0,
    reserved: 0,
    heard: 0,
    generation: 0,
    ifindex: 0,
    next_hop: crate::maps::NextHop { family: 0, addr: [0; 16] },
};

/// Longest match of `address` among prefixes, whose lengths do not count the network.
fn longest<K, const N: usize>(
    routes: &BTreeMap<(K, u32), VtepId>,
    address: [u8; N],
    bytes: impl Fn(&K) -> [u8; N],
) -> Option<VtepId> {
    let covers = |prefix: [u8; N], bits: u32| {
        let bits = (NETWORK_BITS + bits) as usize;
        (0..bits).all(|bit| (prefix[bit / 8] ^ address[bit / 8]) & (0x80 >> (bit % 8)) == 0)
    };
    let matching = routes.iter().filter(|((prefix, bits), _)| covers(bytes(prefix), *bits));
    matching.max_by_key(|((_, bits), _)| *bits).map(|(_, id)| *id)
}

impl Maps {
    /// The network of the testbed.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn network(&self) -> Network {
        self.networks[&testbed::NETWORK]
    }

    /// The same, to be changed.
    pub fn network_mut(&mut self) -> Option<&mut Network> {
        self.networks.get_mut(&testbed::NETWORK)
    }
}

impl Tables for Maps {
    fn node(&self) -> Option<&Node> {
        Some(&self.node)
    }

    fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(&id).filter(|_| !self.switched_off)
    }

    fn network_of(&self, key: &VniKey) -> Option<NetworkId> {
        self.vnis.get(key).copied()
    }

    fn link(&self, ifindex: u32) -> LinkEntry {
        self.links.get(&ifindex).copied().unwrap_or_default()
    }

    // SUBNETS4 and SUBNETS6 find nothing else sooner.
    fn route4(&self, network: &Network, destination: Be32) -> Option<VtepId> {
        longest(&self.routes4, Key4::new(network.id, destination).bytes(), |key| key.bytes())
    }

    fn route6(&self, network: &Network, destination: [Be32; 4]) -> Option<VtepId> {
        longest(&self.routes6, Key6::new(network.id, Addr::v6(destination)).bytes(), |key| key.bytes())
    }

    fn vtep(&self, id: VtepId) -> Option<&Vtep> {
        self.vteps.get(&id).or((id < crate::maps::DEFAULT_VTEPS).then_some(&FREE))
    }

    fn note_heard(&self, vtep: &Vtep, _moment: u32, _generation: u32) {
        self.heard.borrow_mut().push(vtep.addr);
    }

    fn vtep_id(&self, network: NetworkId, address: &Addr) -> Option<VtepId> {
        self.vtep_ids.get(&Key6::new(network, *address)).copied()
    }

    fn station(&self, key: &MacKey) -> Option<&Station> {
        self.stations.get(key)
    }

    fn note_moved(&self, station: &Station, moved: u8) {
        self.notes.borrow_mut().push((station.written(), Note::Moved(moved)));
    }

    fn note_confirmed(&self, station: &Station, _now: u64) {
        self.notes.borrow_mut().push((station.written(), Note::Confirmed));
    }

    fn note_port_found(&self, _station: &Station, _tick: u32) {}

    fn note_tick(&self, _station: &Station, _tick: u32) {}

    fn endpoint4(&self, network: NetworkId, address: Be32) -> Option<&Endpoint> {
        self.endpoints4.get(&Key4::new(network, address))
    }

    fn endpoint6(&self, network: NetworkId, address: [Be32; 4]) -> Option<&Endpoint> {
        self.endpoints6.get(&Key6::new(network, Addr::v6(address)))
    }

    fn note_found(&self, _endpoint: &Endpoint, _tick: u32) {}

    fn flow(&self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow>> {
        RefMut::filter_map(self.flows.borrow_mut(), |flows| flows.get_mut(key)).ok()
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) {
        if !self.full {
            self.flows.borrow_mut().insert(*key, *flow);
        }
    }

    fn generation(&self, _network: NetworkId) -> u32 {
        self.generation
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn is_watched(&self) -> bool {
        self.watched
    }

    fn tick(&self) -> u64 {
        self.now
    }

    fn count(&self, network: NetworkId, hook: Hook, reason: Reason, bytes: u32) {
        let mut counters = self.counters.borrow_mut();
        let (packets, total) = counters.entry((network, hook, reason)).or_default();
        *packets += 1;
        *total += u64::from(bytes);
    }
}
