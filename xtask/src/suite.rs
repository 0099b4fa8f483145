//! The programs that the tests are: all built at once, and run as often as steps want.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::run::{output, workspace};
use crate::{before, ifupdown2, toolchain};

/// All host crates. Always together, because cargo builds what they depend on anew for every other set
/// of features, which every other choice of crates wants.
const CRATES: &[&str] = &["-p", "vxlan-ebpf-common", "-p", "vxlan-agent", "-p", "xtask", "-p", "vxlan-tests"];

/// Tests that have little to do with where on the underlay packets are taken out of the tunnel: the sources of state,
/// where packets leave to, how soon a pod's veth has its program, what rules mean, whose address it is within a node,
/// what metrics say of all that, how large tables get, what bridges know, and devices of others, beside which no XDP
/// is used. And such as only repeat at length what others of theirs show with XDP: `--suite xdp` has all of them.
pub(crate) const NOT_THE_UNDERLAYS: &[&str] = &[
    "e2e::accelerate::",
    "e2e::change::",
    "e2e::cni::",
    "e2e::connectivity::",
    "e2e::direct::",
    "e2e::doctor::",
    "e2e::etcd::",
    "e2e::floor::",
    "e2e::foreign::",
    "e2e::kubernetes::",
    "e2e::limits::",
    "e2e::listen::an_operator_is_told_of_flows",
    "e2e::metrics::",
    "e2e::networks::files_for_pods",
    "e2e::networks::many_networks",
    "e2e::notrack::",
    "e2e::operate::",
    "e2e::outlive::",
    "e2e::owner::",
    "e2e::pods::",
    "e2e::routing::",
    "e2e::ruleset::",
    "e2e::soak::",
    "e2e::table::",
    "e2e::trace::a_probe",
    "e2e::verified::arrivals::a_rule",
    "e2e::verified::limits::",
    "e2e::verified::policies::",
    "e2e::verified::policy::",
    "e2e::verified::returns::",
    "e2e::verified::services::",
    "segment::beside::",
    "segment::crowd::",
    "segment::dhcp::",
    "segment::evpn::",
    "segment::ifupdown2::",
    "segment::membership::",
    "segment::moves::a_host_that_moves_with",
    "segment::multicast::",
    "segment::neighbours::",
    "segment::networkd::",
    "segment::owner::",
    "segment::ports::",
    "segment::reach::hosts_of_eight",
    "segment::reach::hosts_of_three",
    "segment::stations::",
    "segment::streams::many_connections",
    "segment::tenants::what_a_tenant_sends",
    "segment::vlans::",
    "segments::",
];

/// Tests with root that run side by side. Each waits most of its time, so that one alone leaves CPUs idle; but labs share
/// the CPUs' receive queues, and tests count lost packets.
const LABS_AT_ONCE: usize = 2;

/// A program full of tests.
struct Program {
    file: PathBuf,
    /// Where cargo would run it.
    dir: PathBuf,
    /// Whether it needs root.
    rooted: bool,
}

/// All of them.
pub(crate) struct Programs(Vec<Program>);

impl Programs {
    /// Builds them without optimisation, so that overflows are checked and nothing is built twice.
    ///
    /// # Errors
    /// Something does not build.
    pub(crate) fn build() -> Result<Self> {
        let mut cargo = cargo()?;
        cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
        let messages = output(&mut cargo)?;
        let programs: Vec<_> = messages.lines().filter_map(program).collect();
        ensure!(programs.iter().any(|p| p.rooted), "cargo did not say where the test suite is");
        Ok(Self(programs))
    }

    /// The programs that run as any user, with the arguments `words`.
    pub(crate) fn unit<'a>(&'a self, words: &'a [String]) -> impl Iterator<Item = Command> + 'a {
        self.commands(false).map(move |mut command| {
            command.args(words);
            command
        })
    }

    /// The programs that need root, with the arguments `words`.
    pub(crate) fn with_root<'a>(&'a self, words: &'a [String]) -> impl Iterator<Item = Command> + 'a {
        self.commands(true).map(move |mut command| {
            command.arg(format!("--test-threads={LABS_AT_ONCE}")).args(words);
            let found = [(before::VARIABLE, before::built()), (ifupdown2::VARIABLE, ifupdown2::unpacked())];
            for (variable, file) in found {
                if let (Some(file), None) = (file, std::env::var_os(variable)) {
                    command.env(variable, file);
                }
            }
            command
        })
    }

    fn commands(&self, rooted: bool) -> impl Iterator<Item = Command> {
        self.0.iter().filter(move |program| program.rooted == rooted).map(|program| {
            let mut command = Command::new(&program.file);
            command.current_dir(&program.dir);
            command
        })
    }
}

/// `cargo test` of all host crates: the examples in their documentation.
///
/// # Errors
/// As [`toolchain::cargo`].
pub(crate) fn examples() -> Result<Command> {
    let mut cargo = cargo()?;
    cargo.arg("--doc");
    Ok(cargo)
}

/// libtest's arguments that leave out tests whose names contain one of `names`.
pub(crate) fn without(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]).collect()
}

fn cargo() -> Result<Command> {
    let mut cargo = toolchain::cargo()?;
    cargo.arg("test").args(CRATES);
    Ok(cargo)
}

/// The program that one of cargo's messages tells of, if it is one full of tests.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let file = PathBuf::from(message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?);
    let dir = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    let target = &message["target"];
    let lab = dir == workspace().join("tests") && target["kind"][0] == "lib";
    Some(Program { file, dir, rooted: lab || target["name"] == "suite" })
}
