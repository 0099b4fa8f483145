//! What the agent needs of the machine, checked before anything is touched.

use std::fs;

use anyhow::{Context as _, bail};

/// Oldest kernel whose verifier and helpers the programs are made for.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Fails with one sentence if this process may not program the network.
pub fn check_privileges() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read the own capabilities")?;
    let effective =
        effective_capabilities(&status).context("cannot find the own capabilities in /proc/self/status")?;
    let has = |capability: u32| effective & 1 << capability != 0;
    if !has(CAP_NET_ADMIN) || !(has(CAP_BPF) || has(CAP_SYS_ADMIN)) {
        bail!("not permitted: run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON");
    }
    Ok(())
}

/// Fails with one sentence if the fast path cannot run on this kernel.
pub fn check_kernel() -> anyhow::Result<()> {
    too_old(&kernel_release()?).map_or(Ok(()), |reason| bail!(reason))
}

/// Why the fast path cannot run on the kernel of this release, if it is too old.
pub fn too_old(release: &str) -> Option<String> {
    let (major, minor) = OLDEST_KERNEL;
    version(release).is_some_and(|found| found < OLDEST_KERNEL).then(|| {
        format!(
            "Linux {release} is too old for the fast path: it needs {major}.{minor}; set fastpath = \"off\" to run on the kernel alone"
        )
    })
}

/// Whether the kernel of this release counts maps as locked memory of whoever makes them (before 5.11).
pub fn locks_memory(release: &str) -> bool {
    version(release).is_some_and(|found| found < (5, 11))
}

/// As `uname -r`.
pub fn kernel_release() -> anyhow::Result<String> {
    let name = nix::sys::utsname::uname().context("cannot ask for the kernel's release")?;
    Ok(name.release().to_string_lossy().into_owned())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_distributions_are_understood() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0-30-amd64"), Some((5, 10)));
        assert_eq!(version("6.1+deb"), Some((6, 1)));
        assert!(version("5.9.1") < Some(OLDEST_KERNEL));
    }

    #[test]
    fn capabilities_are_found_in_the_process_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
