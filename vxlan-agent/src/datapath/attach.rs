//! Programs on interfaces: TCX links where the kernel has them, clsact filters elsewhere, and an XDP
//! link.
//!
//! An attachment is recorded in `links/` as `<hook>-<ifindex>`: the pinned link itself, or, for
//! clsact, which has no such object, a directory `<hook>-<ifindex>-clsact`. (bpffs refuses dots.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttach, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType};
use vxlan_ebpf_common::Hook;

use super::pins::remove_if_there;
use super::state::Attachment;
use super::xdp;
use super::{filter, link};
use crate::ownership;

/// Priority of our clsact filters: behind those that say they come first, before the default.
const PRIORITY: u16 = 0x4000;
/// The lowest priority that a filter of ours has.
pub const FIRST_PRIORITY: u16 = PRIORITY - 1;
const CLSACT: &str = "-clsact";

/// The priority of a hook's clsact filter.
const fn priority(hook: Hook) -> u16 {
    match hook {
        // Whoever writes to a packet before it may lose what XDP has left with it.
        Hook::StrippedIngress => FIRST_PRIORITY,
        _ => PRIORITY,
    }
}

/// The direction a hook looks in.
const fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::TunnelEgress | Hook::PodIngress => TcAttachType::Egress,
        Hook::PodEgress
        | Hook::UnderlayIngress
        | Hook::TunnelIngress
        | Hook::StrippedIngress
        | Hook::UnderlayXdp
        | Hook::PortIngress => TcAttachType::Ingress,
    }
}

/// `TC_H_CLSACT` with the direction, `TC_H_MIN_INGRESS` or `TC_H_MIN_EGRESS`.
const fn parent(hook: Hook) -> u32 {
    match direction(hook) {
        TcAttachType::Egress => 0xffff_fff3,
        _ => 0xffff_fff2,
    }
}

/// How programs are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// Links, replaced atomically and found again through their pins (Linux 6.6).
    Tcx,
    /// Filters of a clsact qdisc, found again by priority and this handle.
    Clsact(u32),
}

/// The attachments of one network.
pub(super) struct Links {
    dir: PathBuf,
    backend: Backend,
}

impl Links {
    /// Links recorded in `dir`.
    pub(super) fn new(dir: PathBuf, backend: Backend) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, backend })
    }

    fn path(&self, attachment: Attachment) -> PathBuf {
        let Attachment { hook, ifindex } = attachment;
        let suffix = match self.backend {
            Backend::Clsact(_) if hook != Hook::UnderlayXdp => CLSACT,
            Backend::Tcx | Backend::Clsact(_) => "",
        };
        self.dir.join(format!("{}-{ifindex}{suffix}", hook.label()))
    }

    /// Attaches `program`, or puts it in the place of an earlier one. The error does not say which program
    /// was to be attached where.
    pub(super) fn attach(&self, program: &mut Program, attachment: Attachment) -> Result<()> {
        match (program, self.backend) {
            (Program::Xdp(program), _) => xdp::attach(program, attachment.ifindex, &self.path(attachment)),
            (Program::SchedClassifier(program), Backend::Tcx) => self.attach_tcx(program, attachment),
            (Program::SchedClassifier(program), Backend::Clsact(handle)) => {
                self.attach_clsact(program, attachment, handle)
            }
            (other, _) => bail!("a program of type {:?} is attached nowhere", other.prog_type()),
        }
    }

    fn attach_tcx(&self, program: &mut SchedClassifier, attachment: Attachment) -> Result<()> {
        let path = self.path(attachment);
        if path.exists() {
            if is_on(attachment, &path) && replace(program, &path).is_ok() {
                return Ok(());
            }
            // The interface that it was on is gone.
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let order = match attachment.hook {
            // Whoever writes to a packet before it may lose what XDP has left with it.
            Hook::StrippedIngress => LinkOrder::first(),
            _ => LinkOrder::default(),
        };
        let at = TcAttach::Tcx { attach_type: direction(attachment.hook), order };
        let id = program.attach(attachment.ifindex, at)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(())
    }

    fn attach_clsact(
        &self,
        program: &mut SchedClassifier,
        attachment: Attachment,
        handle: u32,
    ) -> Result<()> {
        let interface = attachment.ifindex;
        // The kernel says EEXIST if somebody was first, and that is fine.
        let _ = qdisc_add_clsact(interface);
        let id = match self.filter(attachment, handle).and_then(|link| Ok(program.attach_to_link(link)?)) {
            Ok(id) => id,
            Err(_) => {
                let options = NlOptions {
                    priority: priority(attachment.hook),
                    handle: TcHandle::from(handle),
                    classid: None,
                };
                let parent = direction(attachment.hook).into();
                program.attach(interface, TcAttach::Netlink { parent, options })?
            }
        };
        // The filter outlives us.
        std::mem::forget(program.take_link(id)?);
        let path = self.path(attachment);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))
    }

    fn filter(&self, attachment: Attachment, handle: u32) -> Result<SchedClassifierLink> {
        let parent = TcHandle::from(direction(attachment.hook));
        let priority = priority(attachment.hook);
        Ok(SchedClassifierLink::attached(attachment.ifindex, parent, priority, TcHandle::from(handle), None)?)
    }

    /// Takes a program off an interface, which may be gone already.
    pub(super) fn detach(&self, attachment: Attachment) -> Result<()> {
        let path = self.path(attachment);
        if let (Backend::Clsact(handle), true) = (self.backend, attachment.hook != Hook::UnderlayXdp) {
            // Dropping a link removes its filter.
            drop(self.filter(attachment, handle));
        }
        remove_if_there(&path)
    }

    /// Takes off what an agent that attached programs the other way has left: each packet would meet both.
    /// `handle` is that of this network's clsact filters.
    pub(super) fn retire_other_backend(&self, handle: u32) -> Result<()> {
        let backend = match self.backend {
            Backend::Tcx => Backend::Clsact(handle),
            Backend::Clsact(_) => Backend::Tcx,
        };
        let other = Self { dir: self.dir.clone(), backend };
        let left = |attachment: &Attachment| {
            attachment.hook != Hook::UnderlayXdp && other.path(*attachment).exists()
        };
        recorded(&self.dir)?.into_iter().filter(left).try_for_each(|attachment| other.detach(attachment))
    }

    fn is_in_place(&self, attachment: Attachment) -> bool {
        let path = self.path(attachment);
        match (attachment.hook, self.backend) {
            (Hook::UnderlayXdp, _) | (_, Backend::Tcx) => is_on(attachment, &path),
            (hook, Backend::Clsact(handle)) => {
                let there = || filter::is_there(attachment.ifindex, parent(hook), priority(hook), handle);
                // Whoever cannot be asked is believed.
                path.exists() && there().unwrap_or(true)
            }
        }
    }

    /// What is recorded and still in place. The records of what is not, because its interface is
    /// gone, are removed.
    pub(super) fn in_place(&self) -> Result<BTreeSet<Attachment>> {
        let (alive, dead): (BTreeSet<_>, BTreeSet<_>) =
            recorded(&self.dir)?.into_iter().partition(|attachment| self.is_in_place(*attachment));
        dead.into_iter().try_for_each(|attachment| self.detach(attachment))?;
        Ok(alive)
    }
}

/// What `dir` records, in place or not. A load that failed half-way has not made it.
pub(super) fn recorded(dir: &Path) -> Result<BTreeSet<Attachment>> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| parse(&name)).collect())
}

/// The attachment that a record of this name stands for.
fn parse(name: &str) -> Option<Attachment> {
    let (label, ifindex) = name.strip_suffix(CLSACT).unwrap_or(name).rsplit_once('-')?;
    let hook = Hook::ALL.into_iter().find(|hook| hook.label() == label)?;
    Some(Attachment { hook, ifindex: ifindex.parse().ok()? })
}

/// Whether the link pinned at `path` is still on the interface, not just on a deleted one that had
/// the same index.
fn is_on(attachment: Attachment, path: &Path) -> bool {
    link::interface_of(path) == Some(attachment.ifindex)
}

/// Puts `program` in the place of the one that the link pinned at `path` has.
fn replace(program: &mut SchedClassifier, path: &Path) -> Result<()> {
    let link: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(path)?).try_into()?;
    let id = program.attach_to_link(link)?;
    // Closing this descriptor leaves the pin, and with it the link.
    drop(FdLink::try_from(program.take_link(id)?));
    Ok(())
}

/// Whether the kernel has TCX.
pub(super) fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    match SchedClassifier::query_tcx(LOOPBACK, TcAttachType::Ingress) {
        Ok(_) => true,
        // It lists programs, and only `CAP_SYS_ADMIN` may look at them.
        Err(ProgramError::SyscallError(error)) => error.call != "bpf_prog_query",
        Err(_) => false,
    }
}

/// A handle for the clsact filters of those whose pins are in `dir`, so that several agents can share an
/// interface: FNV-1a of the configured directory, or, as before layout 5, of the network's name.
pub(super) fn clsact_handle(dir: &Path) -> u32 {
    let configured = || dir.parent().and_then(Path::parent).unwrap_or(dir).as_os_str();
    let name = dir.file_name().unwrap_or_default();
    let name = if name == ownership::NODE_PINS { configured() } else { name }.as_encoded_bytes();
    let hash =
        name.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash & 0x7fff_ffff | 1
}

/// Takes the XDP programs recorded in `dir` off their interfaces.
pub(super) fn detach_xdp(dir: &Path) -> Result<()> {
    let links = Links { dir: dir.to_owned(), backend: Backend::Tcx };
    let recorded = recorded(dir)?.into_iter().filter(|at| at.hook == Hook::UnderlayXdp);
    recorded.into_iter().try_for_each(|attachment| links.detach(attachment))
}

/// Takes everything recorded in `dir` off its interfaces, XDP first.
pub(super) fn detach_all(dir: &Path, handle: u32) -> Result<()> {
    for attachment in recorded(dir)?.into_iter().rev() {
        for backend in [Backend::Tcx, Backend::Clsact(handle)] {
            Links { dir: dir.to_owned(), backend }.detach(attachment)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_named_after_hook_and_interface() {
        let expected = Some(Attachment { hook: Hook::PodEgress, ifindex: 12 });
        assert_eq!(parse("pod_egress-12"), expected);
        assert_eq!(parse("pod_egress-12-clsact"), expected);
        assert_eq!(parse("pod_egress"), None);
        assert_eq!(parse("elsewhere-12"), None);
    }

    #[test]
    fn agents_have_handles_of_their_own() {
        assert_ne!(clsact_handle(Path::new("/a/v4/blue")), clsact_handle(Path::new("/a/v4/green")));
        assert_eq!(clsact_handle(Path::new("/a/v4/blue")), clsact_handle(Path::new("/b/v4/blue")));
        assert_ne!(clsact_handle(Path::new("/a/v5/@node")), clsact_handle(Path::new("/b/v5/@node")));
        assert_eq!(clsact_handle(Path::new("/a/v5/@node")), clsact_handle(Path::new("/a/v6/@node")));
    }
}
