//! The maps, and the engine's view of them.

use core::ops::DerefMut;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerfEventByteArray, ProgramArray,
};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use vxlan_ebpf_common::counters::{self, CELLS_PER_NETWORK};
use vxlan_ebpf_common::headers::Be32;
use vxlan_ebpf_common::listen::{Listen, Snapshot};
use vxlan_ebpf_common::maps::{
    Addr, CACHED, Cached, Cached4, Cached6, Counter, DEFAULT_FLOWS, DEFAULT_NETWORKS, DEFAULT_VTEPS,
    Endpoint, Flow, FlowKey, Key4, Key6, LinkEntry, MAX_ENDPOINTS, MAX_ROUTES, MacKey, NETWORK_BITS, Network,
    NetworkId, Node, SWITCH_GENERATION, SWITCH_OFF, Station, VniKey, Vtep, VtepId, Watch, subnet4, subnet6,
    switch,
};
use vxlan_ebpf_common::{Hook, Reason, Tables};

const NETWORKS_LEN: usize = DEFAULT_NETWORKS as usize;
const COUNTERS_LEN: usize = NETWORKS_LEN * CELLS_PER_NETWORK as usize;
/// Memory for entries that there are, not for places. For what only the agent adds to.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
const VTEPS_LEN: usize = DEFAULT_VTEPS as usize;
const ROUTES_LEN: usize = MAX_ROUTES as usize;
const ENDPOINTS_LEN: usize = MAX_ENDPOINTS as usize;
const CACHED_LEN: usize = CACHED as usize;

#[btf_map]
static NODE: Array<Node, 1> = Array::new();
#[btf_map]
static WATCH: Array<Watch, 1> = Array::new();
#[btf_map]
static NETWORKS: Array<Network, NETWORKS_LEN> = Array::new();
#[btf_map]
static SWITCH: Array<u32, { 2 * NETWORKS_LEN }> = Array::new();
#[btf_map]
static VNIS: HashMap<VniKey, NetworkId, NETWORKS_LEN> = HashMap::new();
#[btf_map]
static LINKS: HashMap<u32, LinkEntry, ENDPOINTS_LEN> = HashMap::new();
#[btf_map]
static ROUTES4: LpmTrie<[u8; 8], VtepId, ROUTES_LEN> = LpmTrie::new();
#[btf_map]
static ROUTES6: LpmTrie<[u8; 20], VtepId, ROUTES_LEN> = LpmTrie::new();
#[btf_map]
static SUBNETS4: HashMap<Key4, VtepId, ROUTES_LEN, ON_DEMAND> = HashMap::new();
#[btf_map]
static SUBNETS6: HashMap<Key6, VtepId, ROUTES_LEN, ON_DEMAND> = HashMap::new();
#[btf_map]
static VTEPS: Array<Vtep, VTEPS_LEN> = Array::new();
#[btf_map]
static VTEP_IDS: HashMap<Key6, VtepId, VTEPS_LEN> = HashMap::new();
#[btf_map]
static STATIONS: HashMap<MacKey, Station, VTEPS_LEN, ON_DEMAND> = HashMap::new();
#[btf_map]
static ENDPOINTS4: HashMap<Key4, Endpoint, ENDPOINTS_LEN> = HashMap::new();
#[btf_map]
static ENDPOINTS6: HashMap<Key6, Endpoint, ENDPOINTS_LEN> = HashMap::new();
#[btf_map]
static CACHED_SUBNETS4: PerCpuArray<Cached4<VtepId>, CACHED_LEN> = PerCpuArray::new();
#[btf_map]
static CACHED_SUBNETS6: PerCpuArray<Cached6<VtepId>, CACHED_LEN> = PerCpuArray::new();
#[btf_map]
static CACHED_ENDPOINTS4: PerCpuArray<Cached4<Endpoint>, CACHED_LEN> = PerCpuArray::new();
#[btf_map]
static CACHED_ENDPOINTS6: PerCpuArray<Cached6<Endpoint>, CACHED_LEN> = PerCpuArray::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, { DEFAULT_FLOWS as usize }> = LruHashMap::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, COUNTERS_LEN> = PerCpuArray::new();
#[btf_map]
pub(crate) static LISTEN: Array<Listen, 1> = Array::new();
#[btf_map]
pub(crate) static SNAPSHOT: PerCpuArray<Snapshot, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static EVENTS: PerfEventByteArray = PerfEventByteArray::new();
#[btf_map]
pub(crate) static REPORT: ProgramArray<1> = ProgramArray::new();
#[btf_map]
pub(crate) static REPORT_XDP: ProgramArray<1> = ProgramArray::new();

/// The node's maps. Entries may change while a program holds a reference: the agent writes
/// whole entries, and one packet seeing half of two generations goes to a place that either was
/// right a moment ago or will be in a moment.
pub(crate) struct Maps {
    node: Option<&'static Node>,
    /// [`Node::tables`] when the program began; 0: nothing is cached.
    tables: u32,
}

impl Maps {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        let node = NODE.get(0);
        // SAFETY: the entry lies in a map's memory. Volatile, so that it is read before what is cached under it.
        let tables = node.map_or(0, |node| unsafe { (&raw const node.tables).read_volatile() });
        Self { node, tables }
    }

    /// NETWORKS, whether the network's fast path is on or not.
    #[inline(always)]
    pub(crate) fn listed(&self, id: NetworkId) -> Option<&Network> {
        NETWORKS.get(id)
    }

    /// The subnet of `key`: its copy at `cached`, or what `look` finds, which is copied there.
    #[inline(always)]
    fn subnet<K: Copy + PartialEq>(
        &self,
        cached: Option<*mut Cached<K, VtepId>>,
        key: &K,
        look: impl FnOnce() -> Option<VtepId>,
    ) -> Option<VtepId> {
        let Some(cached) = cached else { return look() };
        // SAFETY: this CPU's cell; programs of one CPU do not interrupt each other.
        unsafe {
            if self.tables != 0 && (*cached).tables == self.tables && (*cached).key == *key {
                return Some((*cached).value);
            }
            let value = look()?;
            *cached = Cached { tables: self.tables, key: *key, value };
            Some(value)
        }
    }

    /// As [`subnet`](Self::subnet), of endpoints. What the program may still hold is not overwritten: a copy that
    /// counts stays.
    #[inline(always)]
    fn endpoint<K: Copy + PartialEq>(
        &self,
        cached: Option<*mut Cached<K, Endpoint>>,
        key: &K,
        look: impl FnOnce() -> Option<&'static Endpoint>,
    ) -> Option<&Endpoint> {
        let Some(cached) = cached else { return look() };
        // SAFETY: as above.
        unsafe {
            let counts = self.tables != 0 && (*cached).tables == self.tables;
            if counts && (*cached).key == *key {
                return Some(&(*cached).value);
            }
            let found = look()?;
            if !counts {
                *cached = Cached { tables: self.tables, key: *key, value: *found };
            }
            Some(found)
        }
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn node(&self) -> Option<&Node> {
        self.node
    }

    #[inline(always)]
    fn network(&self, id: NetworkId) -> Option<&Network> {
        if *SWITCH.get(switch(id, SWITCH_OFF))? != 0 {
            return None;
        }
        NETWORKS.get(id)
    }

    #[inline(always)]
    fn network_of(&self, key: &VniKey) -> Option<NetworkId> {
        // SAFETY: see `Maps`.
        unsafe { VNIS.get(key) }.copied()
    }

    #[inline(always)]
    fn link(&self, ifindex: u32) -> LinkEntry {
        // SAFETY: see `Maps`.
        unsafe { LINKS.get(&ifindex) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn route4(&self, network: &Network, destination: Be32) -> Option<VtepId> {
        if network.subnet4 != 0 {
            let key = subnet4(network.id, network.subnet4, destination);
            let cached = CACHED_SUBNETS4.get_ptr_mut(key.place());
            // SAFETY: see `Maps`.
            if let Some(id) = self.subnet(cached, &key, || unsafe { SUBNETS4.get(&key) }.copied()) {
                return Some(id);
            }
        }
        ROUTES4.get(&Key::new(NETWORK_BITS + 32, Key4::new(network.id, destination).bytes())).copied()
    }

    #[inline(always)]
    fn route6(&self, network: &Network, destination: [Be32; 4]) -> Option<VtepId> {
        if network.subnet6 != 0 {
            let key = subnet6(network.id, network.subnet6, destination);
            let cached = CACHED_SUBNETS6.get_ptr_mut(key.place());
            // SAFETY: see `Maps`.
            if let Some(id) = self.subnet(cached, &key, || unsafe { SUBNETS6.get(&key) }.copied()) {
                return Some(id);
            }
        }
        let key = Key6::new(network.id, Addr::v6(destination));
        ROUTES6.get(&Key::new(NETWORK_BITS + 128, key.bytes())).copied()
    }

    #[inline(always)]
    fn vtep(&self, id: VtepId) -> Option<&Vtep> {
        VTEPS.get(id)
    }

    #[inline(always)]
    fn note_heard(&self, vtep: &Vtep, moment: u32, generation: u32) {
        // SAFETY: the entry lies in a map's memory, which any program may write to; half a note counts for nothing.
        unsafe {
            (&raw const vtep.heard).cast_mut().write_volatile(moment);
            (&raw const vtep.generation).cast_mut().write_volatile(generation);
        }
    }

    #[inline(always)]
    fn vtep_id(&self, network: NetworkId, address: &Addr) -> Option<VtepId> {
        // SAFETY: see `Maps`.
        unsafe { VTEP_IDS.get(&Key6::new(network, *address)) }.copied()
    }

    #[inline(always)]
    fn station(&self, key: &MacKey) -> Option<&Station> {
        // SAFETY: see `Maps`.
        unsafe { STATIONS.get(key) }
    }

    #[inline(always)]
    fn note_moved(&self, station: &Station, moved: u8) {
        // SAFETY: the entry lies in a map's memory, which any program may write to; it is one byte.
        unsafe { (&raw const station.moved).cast_mut().write_volatile(moved) };
    }

    #[inline(always)]
    fn note_confirmed(&self, station: &Station, now: u64) {
        // SAFETY: as above; nobody relies on the word.
        unsafe { (&raw const station.confirmed).cast_mut().write_volatile(now) };
    }

    #[inline(always)]
    fn note_port_found(&self, station: &Station, tick: u32) {
        // SAFETY: as above.
        unsafe { (&raw const station.found).cast_mut().write_volatile(tick) };
    }

    #[inline(always)]
    fn note_tick(&self, station: &Station, tick: u32) {
        // SAFETY: as above.
        unsafe { (&raw const station.tick).cast_mut().write_volatile(tick) };
    }

    #[inline(always)]
    fn endpoint4(&self, network: NetworkId, address: Be32) -> Option<&Endpoint> {
        let key = Key4::new(network, address);
        // SAFETY: see `Maps`.
        self.endpoint(CACHED_ENDPOINTS4.get_ptr_mut(key.place()), &key, || unsafe { ENDPOINTS4.get(&key) })
    }

    #[inline(always)]
    fn endpoint6(&self, network: NetworkId, address: [Be32; 4]) -> Option<&Endpoint> {
        let key = Key6::new(network, Addr::v6(address));
        // SAFETY: see `Maps`.
        self.endpoint(CACHED_ENDPOINTS6.get_ptr_mut(key.place()), &key, || unsafe { ENDPOINTS6.get(&key) })
    }

    #[inline(always)]
    fn note_found(&self, endpoint: &Endpoint, tick: u32) {
        // SAFETY: the entry lies in a map's memory, which any program may write to; nobody relies on the word.
        unsafe { (&raw const endpoint.found).cast_mut().write_volatile(tick) };
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow>> {
        // SAFETY: the entry stays valid while the program runs. Another CPU may write to it at the
        // same time: its fields are independent words, and either's value is right.
        FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) {
        // A flow that finds no place stays with the host stack.
        let _ = FLOWS.insert(key, flow, 0);
    }

    #[inline(always)]
    fn generation(&self, network: NetworkId) -> u32 {
        SWITCH.get(switch(network, SWITCH_GENERATION)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    /// The clock is read once in a tick.
    #[inline(always)]
    fn is_watched(&self) -> bool {
        let Some(watch) = WATCH.get_ptr_mut(0) else { return false };
        let tick = self.tick() as u32;
        // SAFETY: the entry lies in a map's memory, which any program may write to; half a note is right again
        // with the next tick.
        unsafe {
            if (&raw const (*watch).tick).read_volatile() != tick {
                let holds = u32::from(self.now() < (*watch).until);
                (&raw mut (*watch).holds).write_volatile(holds);
                (&raw mut (*watch).tick).write_volatile(tick);
            }
            (&raw const (*watch).holds).read_volatile() != 0
        }
    }

    /// The verifier puts a load in place of the call (`do_misc_fixups`, v6.18).
    #[inline(always)]
    fn tick(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn count(&self, network: NetworkId, hook: Hook, reason: Reason, bytes: u32) {
        if reason == Reason::NotVxlan {
            return;
        }
        if let Some(counter) = COUNTERS.get_ptr_mut(counters::index(network, hook, reason)) {
            // SAFETY: this CPU's cell; programs of one CPU do not interrupt each other at one hook.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += u64::from(bytes);
            }
        }
    }
}
