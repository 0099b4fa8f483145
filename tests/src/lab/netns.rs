//! Named network namespaces, and running code inside them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::cmd;

/// A named network namespace, as `ip netns` knows it. Removed with its lab.
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Opens the namespace `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// The name that `ip netns` lists.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside this namespace and returns its result. Sockets opened and
    /// processes spawned there stay in the namespace.
    ///
    /// # Panics
    /// `work` panicked, or the thread cannot enter the namespace (not root).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("cannot enter namespace {}: {error}", self.name));
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a program inside and returns what it printed. Unlike `ip netns exec` this leaves
    /// `/sys` as it is, bpffs included.
    ///
    /// # Errors
    /// It cannot be started or ends with a status other than zero: the error quotes what it said.
    pub fn cmd(&self, program: &str, args: &[&str]) -> Result<String> {
        self.feed(program, args, "")
    }

    /// As [`Netns::cmd`], for a line with words between blanks: `ns.sh("ip -s link show dev eth0")`.
    ///
    /// # Errors
    /// As [`Netns::cmd`].
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.cmd(program, &words.collect::<Vec<_>>())
    }

    /// Runs `ip -batch` inside, one command per line, without the leading `ip`.
    ///
    /// # Errors
    /// The first line that `ip` refused.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch).map(|_| ())
    }

    /// As [`Netns::cmd`], with `input` on standard input.
    ///
    /// # Errors
    /// As [`Netns::cmd`].
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        self.run(|| cmd::feed(Command::new(program).args(args), input))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Whether `interface` can have VLAN interfaces, which some kernels are built without. Says so on
    /// standard error if it cannot: a test that needs them is left out.
    pub fn has_vlans(&self, interface: &str) -> bool {
        let tried = "link add link {} name vlan0 type vlan id 9\nlink del vlan0\n".replace("{}", interface);
        let added = self.ip(&tried);
        if let Err(error) = &added {
            eprintln!("SKIPPED, because this kernel has no VLAN interfaces: {error:#}");
        }
        added.is_ok()
    }

    /// Writes settings below `/proc/sys/net`, for example `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// The kernel has no such setting or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                std::fs::write(format!("/proc/sys/net/{name}"), value)
                    .with_context(|| format!("cannot set net/{name} to {value} in {}", self.name))
            })
        })
    }

    /// Has nobody asked again for known neighbours on `interface` while a test counts packets.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn trust_neighbours(&self, interface: &str) -> Result<()> {
        let names =
            ["ipv4", "ipv6"].map(|family| format!("{family}/neigh/{interface}/delay_first_probe_time"));
        self.sysctl(&names.each_ref().map(|name| (name.as_str(), "600")))
    }
}
