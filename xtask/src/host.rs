//! What the machine must offer: root, a kernel with BPF, a few programs of the distribution.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::geteuid;

use crate::run::{run, step};

const BPFFS: &str = "/sys/fs/bpf";
/// The oldest kernel that the fast path runs on.
pub(crate) const KERNEL_FLOOR: (u32, u32) = (5, 15);

/// A program, and the Debian package that has it.
pub(crate) type Tool = (&'static str, &'static str);

/// What the lab runs.
const LAB_TOOLS: &[Tool] = &[
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("ethtool", "ethtool"),
    ("bpftool", "bpftool"),
    ("nft", "nftables"),
];

/// What only the tests run.
pub(crate) const TEST_TOOLS: &[Tool] = &[
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("openssl", "openssl"),
    ("iptables-nft-restore", "iptables"),
    ("dnsmasq", "dnsmasq-base"),
    ("/usr/lib/frr/bgpd", "frr"),
    ("/lib/systemd/systemd-networkd", "systemd"),
    ("udhcpc", "udhcpc"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("tshark", "tshark"),
];

/// Makes the machine ready for a lab: checks what must be there, installs and mounts the rest.
///
/// # Errors
/// One sentence that says what is missing.
pub(crate) fn prepare(command: &str) -> Result<()> {
    if !geteuid().is_root() {
        bail!("`cargo xtask {command}` makes network namespaces and loads BPF programs: run it as root");
    }
    check_kernel(nix::sys::utsname::uname()?.release().to_string_lossy().as_ref())?;
    check_bpf()?;
    mount_bpffs()?;
    install_tools(LAB_TOOLS)
}

fn check_kernel(release: &str) -> Result<()> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("cannot make out the version of this kernel, `{release}`");
    };
    if (major, minor) < KERNEL_FLOOR {
        let (major, minor) = KERNEL_FLOOR;
        bail!("this kernel is {release}; Linux {major}.{minor} or newer is needed");
    }
    Ok(())
}

/// Creates a BPF map, the least that every command needs.
fn check_bpf() -> Result<()> {
    // `union bpf_attr` of BPF_MAP_CREATE: array, key and value of 4 bytes, one entry, no flags.
    let attr: [u32; 5] = [2, 4, 4, 1, 0];
    // SAFETY: the kernel reads `size_of_val(&attr)` bytes from `attr`, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 0, attr.as_ptr(), size_of_val(&attr)) };
    if fd >= 0 {
        // SAFETY: `fd` was returned by the call above and belongs to nobody else.
        unsafe { libc::close(i32::try_from(fd).unwrap_or(-1)) };
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS) => bail!("this kernel has no BPF (CONFIG_BPF_SYSCALL)"),
        Some(libc::EPERM) => bail!("this process may not use BPF: it lacks CAP_BPF or CAP_SYS_ADMIN"),
        _ => bail!("this kernel refuses to create a BPF map: {error}"),
    }
}

fn mount_bpffs() -> Result<()> {
    fs::create_dir_all(BPFFS).with_context(|| format!("cannot make {BPFFS}"))?;
    if statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    step(&format!("mounting bpffs at {BPFFS}"), || {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("no bpffs at {BPFFS}, and it cannot be mounted"))
    })
}

/// Installs the packages of those tools that are missing.
///
/// # Errors
/// They cannot be installed: the packages' names.
pub(crate) fn install_tools(tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<&str> =
        tools.iter().filter(|(tool, _)| !in_path(tool)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !in_path("apt-get") {
        bail!("please install these packages of your distribution first: {list}");
    }
    step(&format!("installing packages with apt-get: {list}"), || {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get")
            .args(["install", "-qq", "-y", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    })
    .map_err(|error| {
        anyhow!("please install these packages first: {list} (apt-get failed: {})", error.root_cause())
    })
}

fn in_path(program: &str) -> bool {
    find(program).is_some()
}

/// The file of a program of this machine.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::check_kernel;

    #[test]
    fn kernels_below_the_floor_are_refused_by_name() {
        let refusal = check_kernel("5.10.0-28-amd64").expect_err("5.10 is too old").to_string();
        assert!(refusal.contains("5.10.0-28-amd64") && refusal.contains("5.15"), "{refusal}");
    }

    #[test]
    fn kernels_from_the_floor_on_are_accepted() {
        for release in ["5.15.0", "6.1.0-13-amd64", "6.18.44-fc", "10.0-rc1"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
    }
}
