//! A virtual machine for the tests of bridged segments: emulator, kernel and initial file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::Archive;
use super::emulator::{self, Emulator};
use super::{dir, guest, modules, root};
use crate::host;
use crate::run::step;

/// The kernel's series: one that stays in the archive for long, with a driver for the card.
const SERIES: &str = "6.1";

/// What runs as process 1: the lines that come over the port of the virtual console.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=90% tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module; done
ip link set lo up
until port=$(ls /dev/vport*p1 2>/dev/null); do sleep 0.1; done
exec 3<> "$port"
echo ready >&3
cat <&3 | sh >&3 2>&1
poweroff -f
"#;

/// What `udhcpc` runs when it has a lease.
const ON_LEASE: &str = "#!/bin/sh\n[ \"$1\" = bound ] && ip addr add \"$ip/16\" dev \"$interface\"\nexit 0\n";

/// Makes a directory with the programs `qemu`, `kernel` and `initrd`, and returns it.
///
/// # Errors
/// The emulator or a kernel cannot be had.
pub(crate) fn prepare() -> Result<PathBuf> {
    host::install_tools(&[("xz", "xz-utils")])?;
    let emulator = emulator::find(&dir())?;
    let unpacked = step("a kernel for virtual machines", || {
        let archive = Archive::open(&dir())?;
        let releases = archive.releases()?;
        let newest = releases.into_iter().filter(|release| release.series() == SERIES).max();
        archive.unpacked(&newest.with_context(|| format!("the archive has no kernel {SERIES}"))?)
    })?;
    let machine = dir().join("machine");
    let _ = fs::remove_dir_all(&machine);
    fs::create_dir_all(&machine)?;
    root::write_script(&machine.join("qemu"), &script(&emulator.program()?))?;
    root::copy(&guest::kernel(&unpacked)?, &machine.join("kernel"))?;
    make_root(&emulator, &unpacked, &machine)?;
    Ok(machine)
}

/// The initial file system: busybox and the card's modules.
fn make_root(emulator: &Emulator, unpacked: &Path, machine: &Path) -> Result<()> {
    let root = machine.join("root");
    let busybox = emulator.busybox()?;
    root::copy(&busybox, &root.join("bin/busybox"))?;
    modules::extract(unpacked, &root.join("modules"), modules::MACHINE)?;
    root::write_script(&root.join("init"), INIT)?;
    root::write_script(&root.join("on-lease"), ON_LEASE)?;
    root::archive(&root, &busybox, &machine.join("initrd"))
}

/// A shell script that becomes `command`, with further arguments.
fn script(command: &Command) -> String {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let set = set.map(|(name, value)| format!("export {}={}\n", name.to_string_lossy(), quoted(value)));
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    format!("#!/bin/sh\n{}exec {} \"$@\"\n", set.collect::<String>(), words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_becomes_the_command() {
        let mut command = Command::new("nice");
        command.args(["-n", "15", "/a b/qemu"]).env("LD_LIBRARY_PATH", "/lib:/usr/lib");
        let expected =
            "#!/bin/sh\nexport LD_LIBRARY_PATH='/lib:/usr/lib'\nexec 'nice' '-n' '15' '/a b/qemu' \"$@\"\n";
        assert_eq!(script(&command), expected);
    }
}
