//! Loading, pinning and adopting a datapath.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapInfo, ProgramArray};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::Serialize;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{NetworkId, names};

use super::attach::{self, Backend, Links};
use super::maps::Maps;
use super::pins::remove_if_there;
use super::sizes::Sizes;
use super::state::{Attachment, Change, DatapathState};
use crate::ownership;

/// The object made by `cargo xtask build-ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("VXLAN_EBPF_OBJECT"));

/// Where bpffs belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// Directory of the programs below a network's directory.
pub(super) const PROGRAMS: &str = "programs";
/// Directory of the links below a network's directory.
pub(super) const LINKS: &str = "links";

/// Where a datapath lives.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the pins, on bpffs.
    pub dir: PathBuf,
    /// Use clsact even where the kernel has TCX.
    pub clsact: bool,
    /// Load the XDP program.
    pub xdp: bool,
    /// Places in FLOWS.
    pub flows: u32,
    /// Places for nodes and prefixes, at least.
    pub sizes: Sizes,
}

/// What the kernel offers, as found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Features {
    /// TCX links (Linux 6.6); clsact filters otherwise.
    pub tcx: bool,
}

/// A loaded, pinned datapath.
pub struct Datapath {
    dir: PathBuf,
    sizes: Sizes,
    programs: Ebpf,
    links: Links,
    maps: Maps,
    state: DatapathState,
    features: Features,
    no_xdp: Option<String>,
    /// Networks that links to the pins are named after, as far as known.
    named: Option<BTreeSet<String>>,
}

impl Datapath {
    /// Loads the programs, over the maps that are pinned already if there are any.
    ///
    /// Programs that an earlier agent left on interfaces are replaced one by one, each
    /// atomically; their maps stay, so they never stop forwarding.
    pub fn open(options: &Options) -> Result<Self> {
        let dir = &options.dir;
        ensure_bpffs(dir)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        retire_xdp(dir)?;
        let mut programs = load(dir, options.flows, options.sizes)?;
        let no_xdp = if options.xdp { load_xdp(&mut programs, dir) } else { Ok(()) };
        let no_xdp = no_xdp.err().map(|error| format!("{error:#}"));
        let features = Features { tcx: !options.clsact && attach::has_tcx() };
        let backend = if features.tcx { Backend::Tcx } else { Backend::Clsact(attach::clsact_handle(dir)) };
        let links = Links::new(dir.join(LINKS), backend)?;
        links.retire_other_backend(attach::clsact_handle(dir))?;
        let attachments = links.in_place()?;
        for attachment in &attachments {
            let program = program(&mut programs, attachment.hook)?;
            // An XDP program that is not wanted any more stays until it is detached.
            if program.fd().is_ok() {
                let Attachment { hook, ifindex } = attachment;
                let context = || format!("cannot attach {} to interface {ifindex}", hook.label());
                links.attach(program, *attachment).with_context(context)?;
            }
        }
        let mut maps = Maps::open(dir)?;
        // An agent that was killed may not have come to it.
        maps.renumber().context("cannot write NODE")?;
        let mut state = maps.read().context("cannot read the maps")?;
        state.attachments = attachments;
        Ok(Self {
            dir: dir.clone(),
            sizes: options.sizes,
            programs,
            links,
            maps,
            state,
            features,
            no_xdp,
            named: None,
        })
    }

    /// What is in the maps and on the interfaces. The maps are ours alone to write, so their
    /// content is known; interfaces come and go, so attachments are looked up.
    pub fn observe(&mut self) -> Result<&DatapathState> {
        self.state.attachments = self.links.in_place()?;
        Ok(&self.state)
    }

    /// As [`observe`](Self::observe) found it last.
    pub const fn state(&self) -> &DatapathState {
        &self.state
    }

    /// Where its pins lie, and the links that networks are named by.
    pub fn directories(&self) -> Vec<PathBuf> {
        let dir = &self.dir;
        let names = dir.parent().map(Path::to_owned);
        [dir.clone(), dir.join(PROGRAMS), dir.join(LINKS)].into_iter().chain(names).collect()
    }

    /// Has what the networks are named by looked at anew.
    pub fn doubt_names(&mut self) {
        self.named = None;
    }

    /// What its maps have room for.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Whether everything is still pinned that has to be, so that the next agent finds it and links can be
    /// pinned. A link without its pin is gone, and is missed as an attachment.
    pub fn is_pinned(&self) -> bool {
        let dir = &self.dir;
        let (programs, links) = (dir.join(PROGRAMS), dir.join(LINKS));
        let mut hooks = Hook::ALL.into_iter().filter(|hook| *hook != Hook::UnderlayXdp);
        links.is_dir()
            && names::ALL.iter().all(|name| dir.join(name).exists())
            && hooks.all(|hook| programs.join(hook.label()).exists())
    }

    /// Carries out one change. The error does not say which.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        match *change {
            Change::Attach(attachment) => {
                self.links.attach(program(&mut self.programs, attachment.hook)?, attachment)?;
            }
            Change::Detach(attachment) => self.links.detach(attachment)?,
            _ => self.maps.write(change)?,
        }
        self.state.record(change);
        Ok(())
    }

    /// Carries out changes that are [alike](Change::is_alike) in one call; whether that was possible. If
    /// not, some may have been carried out, and nothing is recorded: [`apply`](Self::apply) each.
    pub fn apply_together(&mut self, changes: &[Change]) -> bool {
        let done = self.maps.write_together(changes);
        if done {
            changes.iter().for_each(|change| self.state.record(change));
        }
        done
    }

    /// Has [`BY_ADDRESS`](vxlan_ebpf_common::maps::BY_ADDRESS) count until then, `CLOCK_MONOTONIC` in nanoseconds.
    pub fn watch(&mut self, until: u64) -> Result<()> {
        self.maps.watch(until)
    }

    /// Closes all bypasses of a network: the next packet of every flow meets the host stack.
    pub fn flush_flows(&mut self, network: NetworkId) -> Result<()> {
        self.maps.flush_flows(network)
    }

    /// Removes what agents with other map layouts have left, once this datapath does their work: their programs
    /// come first on each interface, and ours see what those leave. Names the networks' pins by links to these,
    /// so that `bpftool` finds them, and so does an agent of before, which takes them off before it begins.
    pub fn settle(&mut self) -> Result<()> {
        let wanted: BTreeSet<String> =
            self.state.networks.values().filter_map(|network| Some(network.name()?.to_owned())).collect();
        if self.named.as_ref() == Some(&wanted) {
            return Ok(());
        }
        for other in other_layouts(&self.dir)? {
            tracing::info!(pins = %other.display(), "what another version has pinned is replaced");
            detach_dir(&other)?;
        }
        let Some(parent) = self.dir.parent() else { return Ok(()) };
        let context = || format!("cannot name networks in {}", parent.display());
        for entry in fs::read_dir(parent).with_context(context)? {
            let entry = entry.with_context(context)?;
            let is_wanted = entry.file_name().to_str().is_some_and(|name| wanted.contains(name));
            if !is_wanted && entry.file_type().with_context(context)?.is_symlink() {
                fs::remove_file(entry.path()).with_context(context)?;
            }
        }
        for name in &wanted {
            let link = parent.join(name);
            if link.symlink_metadata().is_err() {
                symlink(Path::new(ownership::NODE_PINS), &link).with_context(context)?;
            }
        }
        self.named = Some(wanted);
        Ok(())
    }

    /// What the programs have to say, which is next to nothing: to be flushed when readable. The
    /// first caller gets it.
    pub fn logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.programs).context("cannot listen to the programs")
    }

    /// Why the XDP program that was asked for is not loaded, if it is not.
    pub fn no_xdp(&self) -> Option<&str> {
        self.no_xdp.as_deref()
    }

    /// What the kernel offers.
    pub const fn features(&self) -> Features {
        self.features
    }
}

/// Removes all programs, links and maps below `pin_dir`, of whatever version, with or without an agent;
/// whether there were any.
pub fn detach(pin_dir: &Path) -> Result<bool> {
    if !pin_dir.is_dir() {
        return Ok(false);
    }
    let layouts = directories(pin_dir)?;
    for layout in &layouts {
        directories(layout)?.iter().try_for_each(|pins| detach_dir(pins))?;
        if layout.is_dir() {
            fs::remove_dir_all(layout).with_context(|| format!("cannot remove {}", layout.display()))?;
        }
    }
    // It may be somebody's who put more there.
    let _ = fs::remove_dir(pin_dir);
    Ok(!layouts.is_empty())
}

/// Removes the programs, links and maps in `dir`.
fn detach_dir(dir: &Path) -> Result<()> {
    let links = dir.join(LINKS);
    if links.is_dir() {
        attach::detach_all(&links, attach::clsact_handle(dir))?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let Some(layout) = dir.parent() else { return Ok(()) };
    // Names of networks that lead nowhere now.
    for entry in fs::read_dir(layout).into_iter().flatten().flatten() {
        let name = entry.path();
        if name.is_symlink() && !name.exists() {
            remove_if_there(&name)?;
        }
    }
    // Its layout's directory goes with the last network.
    let _ = fs::remove_dir(layout);
    Ok(())
}

fn is_on_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Refuses a directory for pins that is not below the root of a bpffs, or of the place where one belongs.
pub fn check_pin_dir(dir: &Path) -> Result<()> {
    let advice = format!("choose a directory below {BPFFS}, or below another place where bpffs is mounted");
    let above = dir.ancestors().skip(1).find(|path| path.exists());
    let within = |path: &Path| path.starts_with(BPFFS) || is_on_bpffs(path);
    if !above.is_some_and(within) {
        bail!("pin_dir {} is not inside a bpffs: {advice}", dir.display());
    }
    Ok(())
}

/// Whether pins can lie in `dir` as things are.
///
/// # Errors
/// There is no bpffs; one sentence.
pub fn check_bpffs(dir: &Path) -> Result<()> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !is_on_bpffs(existing) {
        bail!("{} is not on bpffs: choose a pin_dir below {BPFFS}, or mount bpffs there", dir.display());
    }
    Ok(())
}

/// Makes sure that `dir` will be on bpffs, mounting it at its usual place if nobody has.
///
/// # Errors
/// It cannot be mounted, or is not where it belongs.
pub fn ensure_bpffs(dir: &Path) -> Result<()> {
    let checked = check_bpffs(dir);
    if checked.is_ok() || !dir.starts_with(BPFFS) {
        return checked;
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
        format!(
            "cannot mount bpffs at {BPFFS}: mount it (`mount -t bpf bpf {BPFFS}`) or run with CAP_SYS_ADMIN"
        )
    })
}

fn load(dir: &Path, flows: u32, sizes: Sizes) -> Result<Ebpf> {
    forget_flows_of_another_size(dir, flows)?;
    make_room(dir, sizes)?;
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(names::FLOWS, flows);
    for (name, places) in sizes.places() {
        loader.map_max_entries(name, places);
    }
    for name in [names::REPORT, names::REPORT_XDP] {
        // It takes programs only of the kind that it had first, which depends on settings of the kernel, too.
        remove_if_there(&dir.join(name))?;
    }
    for name in names::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    let mut programs = loader.load(OBJECT).map_err(explain_load).context("cannot load the BPF object")?;
    let pins = dir.join(PROGRAMS);
    fs::create_dir_all(&pins).with_context(|| format!("cannot create {}", pins.display()))?;
    for hook in Hook::ALL.into_iter().filter(|hook| *hook != Hook::UnderlayXdp) {
        load_program(&mut programs, hook, &pins)?;
    }
    load_report(&mut programs, names::REPORT)?;
    Ok(programs)
}

/// Loads what tells a [`Listener`](super::Listener) of packets, where programs make their tail calls to.
fn load_report(programs: &mut Ebpf, table: &'static str) -> Result<()> {
    let name = if table == names::REPORT { "report_event" } else { "report_event_xdp" };
    let program =
        programs.program_mut(name).with_context(|| format!("the BPF object has no program {name}"))?;
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => bail!("{name} is of type {:?}", other.prog_type()),
    }
    .map_err(explain_program)
    .with_context(|| format!("cannot load {name}"))?;
    let fd = program.fd().with_context(|| format!("{name} is not loaded"))?.try_clone()?;
    let map = programs.map_mut(table).with_context(|| format!("the BPF object has no map {table}"))?;
    let mut map = ProgramArray::try_from(map).with_context(|| format!("{table} is of another type"))?;
    map.set(0, &fd, 0).with_context(|| format!("cannot have programs report to {name}"))
}

/// Makes way for larger tables, and for tables in the place of those that somebody has removed. Programs are
/// detached first: to those that find nobody in the tables every node is a stranger. Until they are attached
/// again the kernel has every packet.
fn make_room(dir: &Path, sizes: Sizes) -> Result<()> {
    let (mut tables, links) = (sizes.places().map(|(name, _)| dir.join(name)).into_iter(), dir.join(LINKS));
    let exceeded = sizes.exceeded(dir)?;
    if links.is_dir() && (!exceeded.is_empty() || tables.any(|table| !table.exists())) {
        tracing::info!("there will be new tables: the kernel has every packet meanwhile");
        attach::detach_all(&links, attach::clsact_handle(dir))?;
    }
    exceeded.into_iter().try_for_each(|name| remove_if_there(&dir.join(name)))
}

/// Makes way for a table of the size that is asked for. Programs that are attached go on with theirs
/// until they are replaced; flows that the new table does not know go through the host stack.
fn forget_flows_of_another_size(dir: &Path, flows: u32) -> Result<()> {
    let pin = dir.join(names::FLOWS);
    let known = pin.exists().then(|| MapInfo::from_pin(&pin)).transpose();
    if known.context("cannot read FLOWS")?.is_some_and(|map| map.max_entries() != flows) {
        tracing::info!(flows, "FLOWS gets another size: every flow is verified anew");
        remove_if_there(&pin)?;
    }
    Ok(())
}

/// Loads what needs more of the kernel than the rest (packets of several buffers, Linux 5.18).
fn load_xdp(programs: &mut Ebpf, dir: &Path) -> Result<()> {
    load_program(programs, Hook::UnderlayXdp, &dir.join(PROGRAMS))?;
    load_report(programs, names::REPORT_XDP)
}

fn load_program(programs: &mut Ebpf, hook: Hook, pins: &Path) -> Result<()> {
    let program = program(programs, hook)?;
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => bail!("{} is of type {:?}", hook.label(), other.prog_type()),
    };
    loaded.map_err(explain_program).with_context(|| format!("cannot load {}", hook.label()))?;
    let pin = pins.join(hook.label());
    remove_if_there(&pin)?;
    program.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))
}

pub(super) fn program(programs: &mut Ebpf, hook: Hook) -> Result<&mut Program> {
    let found = programs.program_mut(hook.label());
    found.with_context(|| format!("the BPF object has no program {}", hook.label()))
}

/// What agents with other map layouts have pinned beside `dir`: a directory for each network.
fn other_layouts(dir: &Path) -> Result<Vec<PathBuf>> {
    let Some((own, versions)) = dir.parent().and_then(|own| Some((own, own.parent()?))) else {
        return Ok(vec![]);
    };
    let is_layout = |name: &str| name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
    let mut found = vec![];
    for layout in directories(versions)? {
        if layout != own && layout.file_name().and_then(|name| name.to_str()).is_some_and(is_layout) {
            found.extend(directories(&layout)?);
        }
    }
    Ok(found)
}

/// The directories in `dir`, without links to such.
fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list {}", dir.display());
    let mut found = vec![];
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_type().with_context(context)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Takes XDP programs of agents with other map layouts off their interfaces: there is place for one. TC has
/// every packet meanwhile.
fn retire_xdp(dir: &Path) -> Result<()> {
    for other in other_layouts(dir)? {
        attach::detach_xdp(&other.join(LINKS))?;
    }
    Ok(())
}

/// The last line of a verifier log before its statistics says why.
pub(super) fn explain_program(error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = &error else { return error.into() };
    let log = verifier_log.to_string();
    let statistics = ["processed ", "verification time ", "stack depth "];
    let says_why = |line: &&str| !statistics.iter().any(|start| line.starts_with(start)) && !line.is_empty();
    let reason = log.lines().rev().find(says_why).unwrap_or("no verifier log");
    anyhow::anyhow!("the kernel refused the program ({io_error}): {reason}")
}

fn explain_load(error: EbpfError) -> anyhow::Error {
    let hint = "the agent needs root or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and Linux 5.15 or later";
    anyhow::Error::new(error).context(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    use aya_obj::Object;
    use aya_obj::generated::bpf_insn;

    /// How deep a function reaches into its stack, as kernels before 6.6 count it
    /// (`check_max_stack_depth`).
    fn depth(instructions: &[bpf_insn]) -> i32 {
        const FRAME: u8 = 10;
        let mut deepest = 1;
        let mut copy = None;
        for instruction in instructions {
            let (to, from) = (instruction.dst_reg(), instruction.src_reg());
            match instruction.code {
                // r = r10
                0xbf if from == FRAME => copy = Some(to),
                // r += imm
                0x07 if copy == Some(to) => deepest = deepest.max(-instruction.imm),
                code => {
                    let based = match code & 0x07 {
                        0x01 => from == FRAME,
                        0x02 | 0x03 => to == FRAME,
                        _ => false,
                    };
                    if based {
                        deepest = deepest.max(-i32::from(instruction.off));
                    }
                }
            }
        }
        (deepest + 31) / 32 * 32
    }

    /// Names of all programs: those of hooks, and those that they make tail calls to.
    fn programs() -> Vec<&'static str> {
        let hooks = Hook::ALL.into_iter().map(Hook::label);
        hooks.chain(["report_event", "report_event_xdp"]).collect()
    }

    #[test]
    fn every_program_fits_the_stack_of_old_kernels() {
        const STACK: i32 = 512;
        let object = Object::parse(OBJECT).expect("the programs");
        let is_program = |name: &str| programs().contains(&name);
        let functions = || object.functions.values().map(|f| (f.name.as_str(), depth(&f.instructions)));
        let called = functions().filter(|(name, _)| !is_program(name)).map(|(_, depth)| depth).max();
        let deepest: Vec<_> = functions().filter(|(name, _)| is_program(name)).collect();
        assert_eq!(deepest.len(), programs().len());
        for (name, depth) in deepest {
            let whole = depth + called.unwrap_or_default();
            assert!(whole <= STACK, "{name} needs {whole} bytes of stack");
        }
    }

    #[test]
    fn what_makes_tail_calls_calls_no_functions() {
        // Both in one program need Linux 6.0 on arm64 (`bpf_jit_supports_subprog_tailcalls`).
        const CALL: u8 = 0x85;
        const FUNCTION: u8 = 1;
        let object = Object::parse(OBJECT).expect("the programs");
        for hook in Hook::ALL {
            let program = object.functions.values().find(|f| f.name == hook.label()).expect("a program");
            let calls = |i: &&bpf_insn| i.code == CALL && i.src_reg() == FUNCTION;
            assert_eq!(program.instructions.iter().filter(calls).count(), 0, "{}", hook.label());
        }
    }

    #[test]
    fn pins_have_their_place_below_the_root_of_a_bpffs() {
        assert!(check_pin_dir(Path::new("/sys/fs/bpf/vxlan-agent")).is_ok());
        assert!(check_pin_dir(Path::new("/sys/fs/bpf/lab/n1")).is_ok());
        for outside in ["/", "/sys", "/sys/fs/bpf", "/sys/fs/bpf/", "/tmp/bpf", "/proc/1/bpf"] {
            let refused = check_pin_dir(Path::new(outside)).expect_err(outside).to_string();
            assert!(refused.contains("choose a directory below"), "{refused}");
        }
    }
}
