//! Runs of programs on packets that are nowhere (`BPF_PROG_TEST_RUN`).
//!
//! What runs is a copy of the program that is attached, over maps of its own, so that no counter, flow or station of
//! the node changes. That it is a copy says the tag, which the kernel makes of a program's instructions.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramInfo, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use vxlan_ebpf_common::maps::{Flow, FlowKey, NO_NETWORK, NetworkId, names};
use vxlan_ebpf_common::model::Frame;
use vxlan_ebpf_common::{Hook, Reason};

use super::maps::Maps;
use super::open::{OBJECT, PROGRAMS};
use super::recorder::LookUp;

/// Places in each map whose entries are few in a copy.
const PLACES: u32 = 1024;
/// Maps whose keys are numbers: a copy has the same ones.
const NUMBERED: [&str; 4] = [names::NETWORKS, names::SWITCH, names::VTEPS, names::COUNTERS];
/// The shortest frame that a test run takes: the kernel (v6.18, `bpf_prog_test_run_skb`) refuses one that ends within
/// its IP header.
const SHORTEST: usize = 14 + 40;
/// Room for what a program puts in front of a frame.
const ROOM: usize = 256;

/// Programs and maps of nobody's, which go when this is dropped.
pub struct Rehearsal {
    dir: PathBuf,
    programs: Ebpf,
    maps: Maps,
}

/// What a program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What it returned.
    pub action: i32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// What an XDP program has left with it ([`Frame::metadata`]).
    pub metadata: Vec<u8>,
    /// What it counted the packet as, and of which network; nothing if it did not count it.
    pub counted: Option<(NetworkId, Reason)>,
}

impl Rehearsal {
    /// Beside what is pinned in `dir`. Maps are empty, programs are loaded when they are first run.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in names::ALL.into_iter().filter(|name| !matches!(*name, names::NODE | names::WATCH)) {
            let pin = dir.join(name);
            let pinned = MapInfo::from_pin(&pin).with_context(|| format!("cannot read {}", pin.display()))?;
            let same = NUMBERED.contains(&name);
            loader.map_max_entries(name, if same { pinned.max_entries() } else { PLACES });
        }
        let mut programs = loader.load(OBJECT).context("cannot load a copy of the programs")?;
        let taken = |name: &'static str| {
            programs.take_map(name).with_context(|| format!("the programs have no map {name}"))
        };
        let maps = Maps::of(taken)?;
        Ok(Self { dir: dir.to_owned(), programs, maps })
    }

    /// Puts into its maps what a look-up has found.
    pub fn put(&mut self, look_up: &LookUp) -> Result<()> {
        self.maps.put_found(look_up).context("cannot copy an entry of a map")
    }

    /// An entry of its FLOWS.
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.maps.flows.get(key, 0).ok()
    }

    /// Why what a run of the copy shows says nothing of the program that is pinned, if so.
    ///
    /// # Errors
    /// The copy cannot be loaded.
    pub fn differs(&mut self, hook: Hook) -> Result<Option<String>> {
        let copy = info(self.loaded(hook)?)?.tag();
        let pin = self.dir.join(PROGRAMS).join(hook.label());
        let pinned = match ProgramInfo::from_pin(&pin) {
            Ok(pinned) => pinned.tag(),
            Err(error) => return Ok(Some(format!("{} cannot be opened: {error}", pin.display()))),
        };
        Ok((copy != pinned).then(|| {
            format!(
                "the program at this hook is not that of this vxlan-agent (tag {pinned:016x}, not {copy:016x}): \
                 trace with the version that the agent has"
            )
        }))
    }

    /// Runs the program of `hook`.
    ///
    /// # Errors
    /// It cannot be loaded, or the kernel refuses the frame.
    pub fn run(&mut self, hook: Hook, network: NetworkId, frame: &Frame) -> Result<Ran> {
        if frame.bytes.len() < SHORTEST {
            bail!(
                "the kernel runs programs on frames of {SHORTEST} bytes and more: choose a larger --length"
            );
        }
        self.loaded(hook)?;
        let before = self.counted(network, hook)?;
        let ran = execute(self.loaded(hook)?, frame);
        let (action, metadata, bytes) = ran.with_context(|| format!("cannot run {}", hook.label()))?;
        let after = self.counted(network, hook)?;
        let counted = before.iter().zip(&after).find(|(before, after)| before.2 != after.2);
        let counted = counted.map(|(_, (network, reason, _))| (*network, *reason));
        Ok(Ran { action, bytes, metadata, counted })
    }

    /// The cells of a hook, of a network and of none.
    fn counted(&self, network: NetworkId, hook: Hook) -> Result<Vec<(NetworkId, Reason, u64)>> {
        let mut all = vec![];
        for id in [network, NO_NETWORK] {
            let cells = self.maps.counted(id, hook).context("cannot read COUNTERS")?;
            all.extend(cells.into_iter().map(|(reason, packets)| (id, reason, packets)));
        }
        Ok(all)
    }

    fn loaded(&mut self, hook: Hook) -> Result<&Program> {
        let program = super::open::program(&mut self.programs, hook)?;
        if program.fd().is_err() {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                other => bail!("{} is of type {:?}", hook.label(), other.prog_type()),
            }
            .map_err(super::open::explain_program)
            .with_context(|| format!("cannot load a copy of {}", hook.label()))?;
        }
        Ok(program)
    }
}

fn info(program: &Program) -> Result<ProgramInfo> {
    match program {
        Program::SchedClassifier(program) => Ok(program.info()?),
        Program::Xdp(program) => Ok(program.info()?),
        other => bail!("a program of type {:?} is at no hook", other.prog_type()),
    }
}

/// One run: what it returned, and metadata and frame afterwards.
fn execute(program: &Program, frame: &Frame) -> Result<(i32, Vec<u8>, Vec<u8>)> {
    let is_xdp = matches!(program, Program::Xdp(_));
    let context = if is_xdp { xdp_context(frame) } else { skb_context(frame) };
    let mut out = vec![0; frame.bytes.len() + ROOM];
    let mut context_out = vec![0; context.len()];
    let options = TestRunOptions {
        data_in: Some(&frame.bytes),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ctx_out: Some(&mut context_out),
        ..TestRunOptions::new()
    };
    let result = match program {
        Program::SchedClassifier(program) => program.test_run(options)?,
        Program::Xdp(program) => program.test_run(options)?,
        other => bail!("a program of type {:?} is at no hook", other.prog_type()),
    };
    out.truncate(result.data_size_out as usize);
    // The kernel puts metadata in front of the frame, and says in the context's first word how long they are.
    let begin = context_out.first_chunk().filter(|_| is_xdp).copied().map_or(0, u32::from_ne_bytes);
    let after = out.split_off((begin as usize).min(out.len()));
    Ok((result.return_value.cast_signed(), out, after))
}

/// `struct __sk_buff` with what the kernel lets a test run set of it.
fn skb_context(frame: &Frame) -> Vec<u8> {
    const MARK: usize = 8;
    const ARRIVED_BY: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = vec![0; 192];
    for (at, value) in [(MARK, frame.fwmark), (ARRIVED_BY, frame.arrived_by), (IFINDEX, frame.ifindex)] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

/// `struct xdp_md`, which says where the metadata begins (0), where the frame does, and where it ends.
fn xdp_context(frame: &Frame) -> Vec<u8> {
    const DATA_END: usize = 4;
    let mut context = vec![0; 24];
    let length = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
    context[DATA_END..DATA_END + 4].copy_from_slice(&length.to_ne_bytes());
    context
}
