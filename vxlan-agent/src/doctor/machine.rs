//! What the machine lacks.

use super::{Check, Facts, Finding};
use crate::preflight;

pub(super) const CHECKS: &[Check] = &[old_kernel, bpffs, locked_memory, unread];

/// Bytes of locked memory that the maps need at least, where the kernel counts them so.
const MAPS: u64 = 64 << 20;

fn old_kernel(facts: &Facts) -> Vec<Finding> {
    let reason = preflight::too_old(&facts.kernel).filter(|_| facts.is_fast);
    let finding = |reason| {
        Finding::warning("kernel-old", reason)
            .seen(format!("uname -r: {}", facts.kernel))
            .mend("boot a newer kernel, or set fastpath = \"off\"")
    };
    reason.map(finding).into_iter().collect()
}

fn bpffs(facts: &Facts) -> Vec<Finding> {
    let reason = facts.no_bpffs.as_ref().filter(|_| facts.is_fast);
    let finding = |reason: &String| {
        Finding::warning("bpffs-missing", "there is no BPF file system where the fast path is to be pinned")
            .seen(reason.clone())
            .mend("mount -t bpf bpf /sys/fs/bpf")
    };
    reason.map(finding).into_iter().collect()
}

fn locked_memory(facts: &Facts) -> Vec<Finding> {
    let counts = facts.is_fast && preflight::locks_memory(&facts.kernel);
    let limit = facts.memlock.filter(|limit| counts && *limit < MAPS);
    let finding = |limit| {
        Finding::warning("memlock", "the agent may not lock enough memory for its maps on this kernel")
            .seen(format!("Max locked memory {limit} bytes, Linux {}", facts.kernel))
            .mend("add LimitMEMLOCK=infinity to the unit: systemctl edit vxlan-agent")
    };
    limit.map(finding).into_iter().collect()
}

fn unread(facts: &Facts) -> Vec<Finding> {
    let finding = |what: &String| {
        Finding::warning(
            "unreadable",
            "part of the kernel's state cannot be read, so checks of it say nothing",
        )
        .seen(what.clone())
        .mend("run it as root, in the host's network namespace")
    };
    facts.unread.iter().map(finding).collect()
}
