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
use vxlan_agent::datapath::{self, Datapath, DatapathState, Options, Pins, Sizes};
use vxlan_agent::net::IfIndex;
use vxlan_ebpf_common::maps::{Config, DEFAULT_FLOWS, Flow, FlowKey, Mode};
use vxlan_ebpf_common::model::{Frame, Maps};
use vxlan_ebpf_common::{Hook, Reason};

/// A loaded datapath that no interface leads to.
pub struct Kernel {
    dir: PathBuf,
    datapath: Datapath,
    pins: Pins,
}

/// What a program made of a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The return value.
    pub action: i32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// What an XDP program has left with it.
    pub mark: u32,
    /// Which counters went up, and by how many packets and bytes.
    pub counted: Vec<(Hook, Reason, u64, u64)>,
}

impl Kernel {
    /// Loads the programs below a directory of their own.
    pub fn load() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/sys/fs/bpf/vxlan-tests-{}/v1/{number}", std::process::id()));
        let options = Options {
            dir: dir.clone(),
            clsact: false,
            xdp: true,
            flows: DEFAULT_FLOWS,
            sizes: Sizes::of(1, 1),
        };
        let datapath =
            Datapath::open(&options).expect("the programs load (needs root and `cargo xtask build-ebpf`)");
        let pins = Pins::open(&dir).expect("the maps are pinned");
        Self { dir, datapath, pins }
    }

    /// Makes the maps say what `maps` says.
    pub fn fill(&mut self, maps: &Maps) {
        let desired = state(maps);
        let observed = self.datapath.observe().expect("the maps can be read").clone();
        for change in datapath::diff(&observed, &desired) {
            self.datapath.apply(&change).expect("the maps can be written");
        }
    }

    /// What is in the kernel, read anew.
    pub fn read(&self) -> DatapathState {
        self.pins.state().expect("the maps can be read")
    }

    /// The flows that count, that is, of the current generation.
    pub fn flows(&self) -> BTreeMap<FlowKey, Flow> {
        let (flows, generation) = self.pins.flows().expect("the maps can be read");
        flows.into_iter().filter(|(_, flow)| flow.generation == generation).collect()
    }

    /// Forgets all flows.
    pub fn flush_flows(&mut self) {
        self.pins.flush_flows().expect("the maps can be written");
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
        let before = self.pins.counters().expect("counters");
        let (result, bytes, mark) = self.program(hook).execute(frame);
        let after = self.pins.counters().expect("counters");
        let counted = after.into_iter().filter_map(|(hook, reason, now)| {
            let was = before
                .iter()
                .find(|(h, r, _)| (*h, *r) == (hook, reason))
                .map(|(_, _, c)| *c)
                .unwrap_or_default();
            (now != was).then_some((hook, reason, now.packets - was.packets, now.bytes - was.bytes))
        });
        Verdict { action: result.return_value.cast_signed(), bytes, mark, counted: counted.collect() }
    }
}

/// A program that can be run.
enum Program {
    Tc(SchedClassifier),
    Xdp(Xdp),
}

impl Program {
    /// One run: the result, the frame afterwards, and its mark.
    fn execute(&self, frame: &Frame) -> (TestRunResult, Vec<u8>, u32) {
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
        let mark = match self {
            Self::Xdp(_) if context_out[..4] != [0; 4] => {
                let mark = out.drain(..4).as_slice().try_into().expect("four bytes");
                u32::from_ne_bytes(mark)
            }
            _ => 0,
        };
        (result, out, mark)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = datapath::detach(&self.dir) {
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
    let prefix4 = |((ip, bits), id): (&([u8; 4], u32), &u32)| (network((*ip).into(), *bits), *id);
    let prefix6 = |((ip, bits), id): (&([u8; 16], u32), &u32)| (network((*ip).into(), *bits), *id);
    let endpoints4 = maps.endpoints4.iter().map(|(ip, endpoint)| (IpAddr::from(*ip), *endpoint));
    let endpoints6 = maps.endpoints6.iter().map(|(ip, endpoint)| (IpAddr::from(*ip), *endpoint));
    DatapathState {
        config: maps.config.unwrap_or(Config { mode: Mode::Off as u8, ..Config::default() }),
        routes: maps.routes4.iter().map(prefix4).chain(maps.routes6.iter().map(prefix6)).collect(),
        vteps: maps.vteps.clone(),
        vtep_ids: maps.vtep_ids.clone(),
        macs: maps.macs.clone(),
        endpoints: endpoints4.chain(endpoints6).collect(),
        veths: maps.veths.iter().map(|(index, veth)| (IfIndex(*index), *veth)).collect(),
        ..DatapathState::default()
    }
}

fn network(ip: IpAddr, bits: u32) -> IpNetwork {
    IpNetwork::new(ip, bits as u8).expect("a prefix length")
}
