//! The real programs under `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya_obj::programs::XdpAttachType;
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use vxlan_agent::datapath::{self, Datapath, DatapathState, Options, Pins, Sizes};
use vxlan_agent::net::IfIndex;
use vxlan_agent::ownership;
use vxlan_ebpf_common::maps::{
    Addr, Counter, DEFAULT_FLOWS, Flow, FlowKey, Key4, Key6, NO_NETWORK, NetworkId,
};
use vxlan_ebpf_common::model::{Frame, Maps};
use vxlan_ebpf_common::testbed::NETWORK;
use vxlan_ebpf_common::{Hook, Reason};

/// A loaded datapath that no interface leads to.
pub struct Kernel {
    /// The directory that an agent would be configured with.
    pin_dir: PathBuf,
    dir: PathBuf,
    datapath: Datapath,
    pins: Pins,
}

/// `CLOCK_MONOTONIC` as programs see it, in nanoseconds.
///
/// # Panics
///
/// If there is no such clock.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    Duration::from(now).as_nanos() as u64
}

/// What a program made of a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The return value.
    pub action: i32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// What an XDP program has left with it ([`Frame::metadata`]).
    pub metadata: Vec<u8>,
    /// Which counters of which network went up, and by how many packets and bytes.
    pub counted: Vec<(NetworkId, Hook, Reason, u64, u64)>,
}

impl Kernel {
    /// Loads the programs below a directory of their own.
    pub fn load() -> Self {
        Self::load_for(Sizes::of(1, 1, 1))
    }

    /// As [`Kernel::load`], with as much room in the maps as `sizes` says.
    pub fn load_for(sizes: Sizes) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/vxlan-tests-{}/{number}", std::process::id()));
        let dir = ownership::node_pin_dir(&pin_dir);
        let options = Options { dir: dir.clone(), clsact: false, xdp: true, flows: DEFAULT_FLOWS, sizes };
        let datapath =
            Datapath::open(&options).expect("the programs load (needs root and `cargo xtask build-ebpf`)");
        let pins = Pins::open(&dir).expect("the maps are pinned");
        Self { pin_dir, dir, datapath, pins }
    }

    /// Where its pins are.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Makes the maps say what `maps` says.
    pub fn fill(&mut self, maps: &Maps) {
        let mut desired = state(maps);
        desired.index_routes();
        self.datapath.watch(if maps.watched { u64::MAX } else { 0 }).expect("the maps can be written");
        let observed = self.datapath.observe().expect("the maps can be read").clone();
        let changes = datapath::diff(&observed, &desired);
        for alike in changes.chunk_by(datapath::Change::is_alike) {
            if !self.apply_together(alike) {
                alike.iter().for_each(|change| self.datapath.apply(change).expect("the maps can be written"));
            }
        }
    }

    /// Carries out changes that are alike in one call; whether that was possible.
    pub fn apply_together(&mut self, changes: &[datapath::Change]) -> bool {
        self.datapath.apply_together(changes)
    }

    /// What is in the kernel, read anew.
    pub fn read(&self) -> DatapathState {
        self.pins.state().expect("the maps can be read")
    }

    /// Its pins, as operators open them.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The flows that count, that is, of the current generation.
    pub fn flows(&self) -> BTreeMap<FlowKey, Flow> {
        let generation = self.pins.generation(NETWORK).expect("the maps can be read");
        self.pins.flows().into_iter().filter(|(_, flow)| flow.generation == generation).collect()
    }

    /// Forgets all flows.
    pub fn flush_flows(&mut self) {
        self.pins.flush_flows(NETWORK).expect("the maps can be written");
    }

    /// The shortest frame of any kind that a test run takes: the kernel (v6.18,
    /// `bpf_prog_test_run_skb`) refuses one that ends within its IP header.
    pub const SHORTEST: usize = 14 + 40;

    /// How long the program of `hook` takes for each of `frames`, as the kernel measures it.
    pub fn time<'f>(&self, hook: Hook, frames: impl IntoIterator<Item = &'f Frame>) -> Vec<Duration> {
        let program = self.program(hook);
        let time = |frame: &Frame| program.execute(frame).0.duration;
        frames.into_iter().map(time).collect()
    }

    fn counters(&self) -> BTreeMap<(NetworkId, Hook, Reason), Counter> {
        let of =
            |id| self.pins.counters(id).expect("counters").into_iter().map(move |(h, r, c)| ((id, h, r), c));
        [NO_NETWORK, NETWORK].into_iter().flat_map(of).collect()
    }

    fn program(&self, hook: Hook) -> Program {
        let pin = self.dir.join("programs").join(hook.label());
        match hook {
            Hook::UnderlayXdp => {
                Program::Xdp(Xdp::from_pin(pin, XdpAttachType::Interface).expect("a pinned program"))
            }
            _ => Program::Tc(SchedClassifier::from_pin(pin).expect("a pinned program")),
        }
    }

    /// Runs the program of `hook` on `frame`.
    pub fn run(&self, hook: Hook, frame: &Frame) -> Verdict {
        let before = self.counters();
        let (result, metadata, bytes) = self.program(hook).execute(frame);
        let after = self.counters();
        let counted = after.into_iter().filter_map(|((network, hook, reason), now)| {
            let was = before.get(&(network, hook, reason)).copied().unwrap_or_default();
            (now != was).then_some((network, hook, reason, now.packets - was.packets, now.bytes - was.bytes))
        });
        let action = result.return_value.cast_signed();
        Verdict { action, bytes, metadata, counted: counted.collect() }
    }
}

/// A program that can be run.
enum Program {
    Tc(SchedClassifier),
    Xdp(Xdp),
}

impl Program {
    /// One run: the result, the metadata in front of the frame, and the frame afterwards.
    fn execute(&self, frame: &Frame) -> (TestRunResult, Vec<u8>, Vec<u8>) {
        let mut out = vec![0; frame.bytes.len() + 256];
        let context = match self {
            Self::Tc(_) => skb_context(frame),
            Self::Xdp(_) => xdp_context(frame),
        };
        let mut context_out = vec![0; context.len()];
        let options = TestRunOptions {
            data_in: Some(&frame.bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            repeat: 1,
            ..TestRunOptions::new()
        };
        let result = match self {
            Self::Tc(program) => program.test_run(options),
            Self::Xdp(program) => program.test_run(options),
        }
        .expect("a frame that is not too short can be run");
        out.truncate(result.data_size_out as usize);
        let frame = match (self, context_out.first_chunk()) {
            (Self::Xdp(_), Some(begin)) => out.split_off(u32::from_ne_bytes(*begin) as usize),
            _ => std::mem::take(&mut out),
        };
        (result, out, frame)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = datapath::detach(&self.pin_dir) {
            eprintln!("cannot clean up {}: {error:#}", self.dir.display());
        }
        let _ = fs::remove_dir(format!("/sys/fs/bpf/vxlan-tests-{}", std::process::id()));
    }
}

/// `struct __sk_buff` with what a test may set: the interface and the segment size.
fn skb_context(frame: &Frame) -> Vec<u8> {
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; 192];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&frame.ifindex.to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&frame.segment_size.to_ne_bytes());
    context
}

/// `struct xdp_md`, which says where the metadata begins (0), where the frame does, and where it ends.
fn xdp_context(frame: &Frame) -> Vec<u8> {
    const DATA_END: usize = 4;
    let mut context = vec![0; 24];
    context[DATA_END..DATA_END + 4].copy_from_slice(&(frame.bytes.len() as u32).to_ne_bytes());
    context
}

/// The same tables as the agent holds them.
fn state(maps: &Maps) -> DatapathState {
    let of4 = |key: &Key4| (key.network, IpAddr::from(key.addr));
    let of6 = |key: &Key6| {
        let Addr(ip) = key.addr;
        (key.network, IpAddr::from(ip))
    };
    let prefix = |(id, ip): (NetworkId, IpAddr), bits| (id, network(ip, bits));
    let prefix4 = |((key, bits), id): (&(Key4, u32), &u32)| (prefix(of4(key), *bits), *id);
    let prefix6 = |((key, bits), id): (&(Key6, u32), &u32)| (prefix(of6(key), *bits), *id);
    let endpoints4 = maps.endpoints4.iter().map(|(key, endpoint)| (of4(key), *endpoint));
    let endpoints6 = maps.endpoints6.iter().map(|(key, endpoint)| (of6(key), *endpoint));
    DatapathState {
        node: maps.node,
        networks: maps.networks.clone(),
        vnis: maps.vnis.clone(),
        routes: maps.routes4.iter().map(prefix4).chain(maps.routes6.iter().map(prefix6)).collect(),
        vteps: maps.vteps.clone(),
        vtep_ids: maps.vtep_ids.clone(),
        stations: maps.stations.clone(),
        endpoints: endpoints4.chain(endpoints6).collect(),
        links: maps.links.iter().map(|(index, link)| (IfIndex(*index), *link)).collect(),
        ..DatapathState::default()
    }
}

fn network(ip: IpAddr, bits: u32) -> IpNetwork {
    IpNetwork::new(ip, bits as u8).expect("a prefix length")
}
