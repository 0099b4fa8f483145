//! The XDP program on an interface: a pinned link, in native mode.
//!
//! An interface has room for one. Somebody else's is never replaced: the kernel refuses a second.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};

use super::pins::remove_if_there;

/// Attaches `program`, or puts it in the place of an earlier one of ours.
pub(super) fn attach(program: &mut Xdp, ifindex: u32, pin: &Path) -> Result<()> {
    if pin.exists() && replace(program, pin).is_ok() {
        return Ok(());
    }
    // The interface that it was on is gone.
    remove_if_there(pin)?;
    let id = program.attach(ifindex, XdpMode::Driver).map_err(explain)?;
    // Dropping a link that cannot be pinned takes it off again.
    let link: FdLink = program.take_link(id)?.try_into().context("the kernel has no links for XDP")?;
    link.pin(pin).with_context(|| format!("cannot pin {}", pin.display()))?;
    Ok(())
}

/// Puts `program` in the place of the one that the link pinned at `pin` has.
fn replace(program: &mut Xdp, pin: &Path) -> Result<()> {
    let link: XdpLink = FdLink::from(PinnedLink::from_pin(pin)?).try_into()?;
    let id = program.attach_to_link(link)?;
    // Closing this descriptor leaves the pin, and with it the link.
    drop(FdLink::try_from(program.take_link(id)?));
    Ok(())
}

fn explain(error: ProgramError) -> anyhow::Error {
    let ProgramError::SyscallError(syscall) = &error else { return error.into() };
    let why = match syscall.io_error.raw_os_error() {
        Some(nix::libc::EBUSY | nix::libc::EEXIST) => {
            "the interface has an XDP program of somebody else, which stays: take it off, or set [node] xdp = \"off\""
        }
        Some(nix::libc::EOPNOTSUPP) => "its driver has no native XDP: set [node] xdp = \"off\" or \"auto\"",
        Some(nix::libc::EINVAL | nix::libc::ERANGE | nix::libc::E2BIG) => {
            "its driver takes no XDP program with its present MTU, queues or offloads"
        }
        _ => return error.into(),
    };
    anyhow::Error::new(io::Error::other(why))
}
