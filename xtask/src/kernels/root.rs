//! The initial file system: all that a guest has.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::emulator::Emulator;
use super::modules;
use crate::host;
use crate::run::{output, run, target_dir};

/// Programs of this machine that the lab runs.
const TOOLS: &[&str] = &["ip", "bridge", "tc", "ss", "ethtool", "nft", "nstat", "setpriv", "dnsmasq"];

/// CNI plugins that the lab runs, and where it looks for them.
const PLUGINS: &[&str] = &["bridge", "host-local", "portmap"];
const PLUGIN_DIR: &str = "/usr/lib/cni";

/// What runs as process 1. Results go to the second serial line, everything to the first.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin VXLAN_AGENT=/usr/sbin/vxlan-agent
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
# As the init of a distribution leaves it to a service.
ulimit -n 65536
say() { echo "$@" | tee /dev/ttyS1; }
say "features $(vxlan-agent features --json | tr -d '\n')"
. /job
say end
poweroff -f
"#;

/// What a guest is booted for, by the program that does it.
pub(super) enum Job<'a> {
    /// To run tests.
    Test(&'a Path),
    /// To count instructions.
    Count(&'a Path),
}

impl Job<'_> {
    /// The program, and what it is called in the guest.
    fn program(&self) -> (&Path, &'static str) {
        match self {
            Self::Test(suite) => (suite, "bin/suite"),
            Self::Count(lab) => (lab, "bin/vxlan-lab"),
        }
    }

    /// What the guest's shell runs. The program's arguments are in a file.
    const fn script(&self) -> &'static str {
        match self {
            Self::Test(_) => "suite --test-threads=1 $(cat /arguments) 2>/dev/console | tee /dev/ttyS1\n",
            Self::Count(_) => {
                "cd /tmp\n\
                 vxlan-lab bench --instructions $(cat /arguments) --json numbers --svg chart 2>/dev/console \
                 | sed 's/^/told /' | tee /dev/ttyS1\n\
                 for file in numbers*; do [ ! -e \"$file\" ] || say \"$file $(tr -d '\\n' <\"$file\")\"; done\n"
            }
        }
    }
}

/// Builds the file system of one guest and returns it as an archive for `-initrd`. The guest does `job` with
/// these `arguments`.
///
/// # Errors
/// Something that belongs into it is missing.
pub(super) fn build(
    dir: &Path,
    emulator: &Emulator,
    unpacked: &Path,
    job: &Job<'_>,
    arguments: &[String],
) -> Result<PathBuf> {
    let root = dir.join("root");
    let _ = fs::remove_dir_all(&root);
    put_programs(&root, job.program())?;
    let busybox = emulator.busybox()?;
    copy(&busybox, &root.join("bin/busybox"))?;
    modules::extract(unpacked, &root.join("modules"), modules::LAB)?;
    fs::write(root.join("arguments"), arguments.join(" "))?;
    fs::write(root.join("job"), job.script())?;
    // A DHCP server asks who it is to be.
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    write_script(&root.join("init"), INIT)?;
    let image = dir.join("root.cpio");
    archive(&root, &busybox, &image)?;
    Ok(image)
}

/// What the job runs, the agent and the lab's tools, with the libraries that they need.
fn put_programs(root: &Path, (program, name): (&Path, &str)) -> Result<()> {
    let agent = target_dir().join("release/vxlan-agent");
    let mut programs =
        vec![(program.to_owned(), name.to_owned()), (agent, "usr/sbin/vxlan-agent".to_owned())];
    for tool in TOOLS {
        let file = host::find(tool).with_context(|| format!("no program {tool} on this machine"))?;
        programs.push((file, format!("usr/sbin/{tool}")));
    }
    for plugin in PLUGINS {
        let file = Path::new(PLUGIN_DIR).join(plugin);
        let to = file.strip_prefix("/")?.to_string_lossy().into_owned();
        programs.push((file, to));
    }
    let mut libraries = BTreeSet::new();
    for (from, to) in &programs {
        copy(from, &root.join(to))?;
        run(Command::new("strip").arg(root.join(to)))?;
        libraries.extend(needed(from)?);
    }
    libraries.iter().try_for_each(|library| copy(library, &root.join(library.strip_prefix("/")?)))
}

/// Writes a program of the shell.
pub(super) fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The shared libraries of a program, the dynamic loader included.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program))?;
    let words = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

/// Packs `root` in the format of an initial file system.
pub(super) fn archive(root: &Path, busybox: &Path, image: &Path) -> Result<()> {
    let mut find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("it was asked for")?;
    let file = fs::File::create(image).with_context(|| format!("cannot write {}", image.display()))?;
    let status = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(names)
        .stdout(file)
        .stderr(Stdio::null())
        .status()?;
    if !find.wait()?.success() || !status.success() {
        bail!("cannot pack {}", root.display());
    }
    Ok(())
}
