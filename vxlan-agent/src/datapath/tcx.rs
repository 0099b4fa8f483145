//! TCX programs of others, and when they change.
//!
//! The kernel tells nobody of them (`tcx_prog_attach`, v6.18), so a thread asks for the revision of each
//! list of programs, ten times a second: a system call each, of less than a microsecond. Of thousands of
//! interfaces it asks less often, so that it takes no more than a hundredth of a CPU.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc as channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier};
use nix::libc;
use tokio::sync::mpsc;
use vxlan_ebpf_common::Hook;

use super::open::PROGRAMS;
use super::syscall::bpf;
use crate::kernel::{Edge, Foreign, What};
use crate::net::IfIndex;

/// How often revisions are asked for.
const EVERY: Duration = Duration::from_millis(100);
/// How many times as long as it takes to ask is waited at least.
const PAUSE: u32 = 100;
/// The longest that is waited. It may take long to ask because others hold the kernel's lock of networks, which
/// costs nothing, and is no reason to look away.
const AT_MOST: Duration = Duration::from_secs(5);
/// Programs that one edge of an interface has at most (`BPF_MPROG_MAX`).
const MOST: usize = 64;
/// A program's name has no more bytes (`BPF_OBJ_NAME_LEN` less the zero byte).
const NAME: usize = 15;

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// `union bpf_attr` of `BPF_PROG_QUERY`.
#[derive(Default)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Revisions of lists of programs; none where there never was a program.
type Revisions = BTreeMap<(IfIndex, Edge), Option<u64>>;

/// What others have attached, as last read.
pub struct Tcx {
    /// The directory with the pins of all networks.
    networks: PathBuf,
    read: BTreeMap<(IfIndex, Edge), (Option<u64>, Vec<Foreign>)>,
    /// Where the thread that watches hears what was read; none where the kernel has no TCX.
    watch: Option<channel::Sender<Revisions>>,
}

impl Tcx {
    /// Nothing read yet, and where it is told that something has changed since. `there`: whether the
    /// kernel has TCX. `pins`: the directory with the pins of a network.
    pub fn new(there: bool, pins: &Path) -> anyhow::Result<(Self, mpsc::Receiver<()>)> {
        let (changed, changes) = mpsc::channel(1);
        let watch = if there {
            let (tell, told) = channel::channel();
            let name = "tcx".to_owned();
            let thread = thread::Builder::new().name(name).spawn(move || watch(&told, &changed));
            thread.context("cannot start the thread that watches TCX programs")?;
            Some(tell)
        } else {
            None
        };
        let networks = pins.parent().unwrap_or(pins).to_owned();
        Ok((Self { networks, read: BTreeMap::new(), watch }, changes))
    }

    /// The programs of others on `interfaces`, in the order in which packets meet them. `links`: whether
    /// ours are among them; as filters they come behind all of them.
    pub fn read(&mut self, interfaces: &BTreeSet<IfIndex>, links: bool) -> Vec<Foreign> {
        let Some(watch) = &self.watch else { return vec![] };
        let edges =
            interfaces.iter().flat_map(|ifindex| [Edge::Entry, Edge::Exit].map(|edge| (*ifindex, edge)));
        let mut before = std::mem::take(&mut self.read);
        // Looked up once, and only if something is new.
        let pinned = OnceCell::new();
        self.read = edges
            .map(|at| {
                let now = revision(at);
                let known = before.remove(&at).filter(|(revision, _)| *revision == now);
                let pinned = || pinned.get_or_init(|| pinned_in(&self.networks));
                let read = || now.map_or_else(Vec::new, |_| programs(at, pinned));
                let read = known.unwrap_or_else(|| (now, read()));
                (at, read)
            })
            .collect();
        // If the thread has ended, so does the process.
        let _ = watch.send(self.read.iter().map(|(at, (revision, _))| (*at, *revision)).collect());
        let all = self.read.values().flat_map(|(_, programs)| programs);
        all.map(|program| Foreign { behind: program.behind && links, ..program.clone() }).collect()
    }
}

/// Says once that something has changed, until it is told what was read then.
fn watch(told: &channel::Receiver<Revisions>, changed: &mpsc::Sender<()>) {
    let (mut revisions, mut pause) = (Revisions::new(), EVERY);
    loop {
        let news = if revisions.is_empty() {
            told.recv().map_err(|_| channel::RecvTimeoutError::Disconnected)
        } else {
            told.recv_timeout(pause)
        };
        match news {
            Ok(news) => revisions = news,
            Err(channel::RecvTimeoutError::Disconnected) => return,
            Err(channel::RecvTimeoutError::Timeout) => {
                let begun = Instant::now();
                if revisions.iter().any(|(at, before)| revision(*at) != *before) {
                    revisions.clear();
                    let _ = changed.try_send(());
                }
                pause = (begun.elapsed() * PAUSE).clamp(EVERY, AT_MOST);
            }
        }
    }
}

/// The revision of the list of programs at one edge of an interface.
fn revision(at: (IfIndex, Edge)) -> Option<u64> {
    query(at, &mut []).map(|query| query.revision)
}

fn query((ifindex, edge): (IfIndex, Edge), programs: &mut [u32]) -> Option<Query> {
    let mut query = Query {
        ifindex: ifindex.0,
        attach_type: match edge {
            Edge::Entry => BPF_TCX_INGRESS,
            Edge::Exit => BPF_TCX_EGRESS,
        },
        programs: if programs.is_empty() { 0 } else { programs.as_mut_ptr().expose_provenance() as u64 },
        count: programs.len() as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `count` numbers to `programs`, which outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }.map(|_| query)
}

/// The programs of others at one edge of an interface.
fn programs<'p>(at: (IfIndex, Edge), pinned: impl FnOnce() -> &'p BTreeSet<u32>) -> Vec<Foreign> {
    let (ifindex, edge) = at;
    let mut ids = [0; MOST];
    let Some(query) = query(at, &mut ids) else { return vec![] };
    let ids = &ids[..MOST.min(query.count as usize)];
    if ids.is_empty() {
        return vec![];
    }
    let attach_type = match edge {
        Edge::Entry => TcAttachType::Ingress,
        Edge::Exit => TcAttachType::Egress,
    };
    // Names are for `CAP_SYS_ADMIN` alone; what is pinned is told by its number.
    let (_, named) = SchedClassifier::query_tcx(ifindex.0, attach_type).unwrap_or_default();
    let pinned = pinned();
    let programs: Vec<_> = ids
        .iter()
        .map(|id| {
            let name = named.iter().find(|program| program.id() == *id).and_then(ProgramInfo::name_as_str);
            let ours = pinned.contains(id) || name.is_some_and(is_called);
            (name.map_or_else(|| format!("number {id}"), str::to_owned), ours)
        })
        .collect();
    others(ifindex, edge, &programs)
}

/// Those that are not ours of programs in their order, with their names.
fn others(ifindex: IfIndex, edge: Edge, programs: &[(String, bool)]) -> Vec<Foreign> {
    let first = programs.iter().position(|(_, ours)| *ours);
    let others = programs.iter().enumerate().filter(|(_, (_, ours))| !ours);
    others
        .map(|(position, (name, _))| Foreign {
            ifindex,
            edge,
            what: What::Program,
            name: name.clone(),
            behind: first.is_none_or(|first| position > first),
        })
        .collect()
}

/// Numbers of the programs that are pinned below this directory. Links that networks are named by lead to the same.
fn pinned_in(networks: &Path) -> BTreeSet<u32> {
    let inside = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let directories = inside(networks).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let programs = directories.flat_map(|network| inside(&network.path().join(PROGRAMS)));
    programs.filter_map(|pin| Some(ProgramInfo::from_pin(pin.path()).ok()?.id())).collect()
}

/// Whether a program of ours, of whatever network, is called so; the kernel cuts long names off.
pub fn is_called(name: &str) -> bool {
    let cut = |label: &'static str| label.get(..NAME).unwrap_or(label);
    Hook::ALL.into_iter().any(|hook| hook.label() == name || cut(hook.label()) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_behind_or_in_front_of_it() {
        let programs = [("first", false), ("ours", true), ("last", false)].map(|(n, o)| (n.to_owned(), o));
        let found = others(IfIndex(7), Edge::Entry, &programs);
        let places: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.behind)).collect();
        assert_eq!(places, [("first", false), ("last", true)]);
        let alone = others(IfIndex(7), Edge::Entry, &programs[..1]);
        assert!(alone.iter().all(|f| f.behind), "ours is not there yet");
    }

    #[test]
    fn programs_of_ours_have_the_names_of_hooks_as_far_as_they_fit() {
        assert!(is_called("pod_egress") && is_called("underlay_ingres") && is_called("underlay_ingress"));
        assert!(!is_called("cil_from_netdev") && !is_called(""));
    }

    #[test]
    fn an_interface_that_is_not_there_has_none() {
        assert!(pinned_in(Path::new("/nowhere")).is_empty());
        assert_eq!(programs((IfIndex(u32::MAX >> 1), Edge::Entry), || panic!("not asked for")), []);
    }
}
