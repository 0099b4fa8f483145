//! Tests, lints, formatting, documentation.

use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::run::{output, run, step};
use crate::{apiserver, before, ebpf, host, kernels, lab, toolchain};

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only this suite; may be given more than once
    #[arg(long, value_enum)]
    suite: Vec<Suite>,
    /// Only tests whose names contain one of these
    filter: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Unit and property tests of all host crates
    Unit,
    /// What needs root: the real programs on packets, and end to end in network namespaces
    E2e,
    /// The same end to end with XDP on every underlay, though it is a veth
    Xdp,
    /// Virtual machines on bridged segments, in software emulation; only if it is named
    Vm,
    /// Unit tests of the packet engine, interpreted
    Miri,
}

/// Host crates, without the suite that needs root.
const HOST_CRATES: &[&str] = &["-p", "vxlan-ebpf-common", "-p", "vxlan-agent", "-p", "xtask"];

/// Runs the tests that `args` select, by default all.
///
/// # Errors
/// The machine cannot run them, something does not build, or a test fails: the failing step's name.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let wants = |suite| args.suite.is_empty() || args.suite.contains(&suite);
    let machines = args.suite.contains(&Suite::Vm);
    let rooted = wants(Suite::E2e) || wants(Suite::Xdp) || machines;
    if rooted {
        host::prepare("test")?;
        host::install_tools(host::TEST_TOOLS)?;
    }
    if wants(Suite::Unit) || rooted {
        lab::build_all()?;
    }
    if wants(Suite::Unit) {
        unit(&args.filter)?;
    }
    if wants(Suite::E2e) {
        let name = "packet tests on the real programs, end-to-end tests in namespaces";
        step(name, || run(&mut with_root(&args.filter)?))?;
        real_api(&args.filter)?;
    }
    if wants(Suite::Xdp) {
        let filter = if args.filter.is_empty() { vec!["e2e::".to_owned()] } else { args.filter.clone() };
        step("end-to-end tests with XDP", || run(with_root(&filter)?.env("VXLAN_LAB_XDP", "native")))?;
    }
    if machines {
        let machine = kernels::machine::prepare()?;
        let filter =
            if args.filter.is_empty() { vec!["segment::vm".to_owned()] } else { args.filter.clone() };
        let mut tests = with_root(&filter)?;
        tests.args(["--ignored", "--nocapture"]).env("VXLAN_VM", machine);
        step("virtual machines on bridged segments", || run(&mut tests))?;
    }
    if args.suite.contains(&Suite::Miri) || args.suite.is_empty() && leaves_engine_tests(&args.filter)? {
        miri(&args.filter)?;
    }
    Ok(())
}

/// Everything that has to pass before a change goes in.
///
/// # Errors
/// The failing step's name.
pub(crate) fn ci() -> Result<()> {
    host::prepare("ci")?;
    step("formatting (cargo fmt --check)", || run(toolchain::cargo()?.args(["fmt", "--all", "--check"])))?;
    ebpf::build()?;
    ebpf::clippy()?;
    step("clippy on the host crates", || {
        run(host_wide("clippy")?.args(["--all-targets", "--", "-D", "warnings"]))
    })?;
    step("documentation without warnings", || {
        run(host_wide("doc")?
            .args(["--no-deps", "--document-private-items"])
            // Private items are documented too, so links to them lead somewhere.
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
    })?;
    test(&TestArgs { suite: Vec::new(), filter: Vec::new() })
}

fn unit(filter: &[String]) -> Result<()> {
    let mut cargo = toolchain::cargo()?;
    cargo.arg("test").args(HOST_CRATES);
    with_filter(&mut cargo, filter);
    step("unit and property tests of the host crates", || run(&mut cargo))?;
    // Here and not only with the suite that needs root, because overflows are checked here.
    let mut cargo = toolchain::cargo()?;
    cargo.args(["test", "-p", "vxlan-tests", "--test", "replay", "--test", "deploy"]);
    with_filter(&mut cargo, filter);
    step("replay of what fuzzing has found, checks of deploy/", || run(&mut cargo))
}

/// The suite that needs root. One test at a time: labs share the CPUs' receive queues, and tests count
/// lost packets.
fn with_root(filter: &[String]) -> Result<Command> {
    let mut cargo = toolchain::cargo()?;
    cargo.args(["test", "--release", "-p", "vxlan-tests", "--", "--test-threads=1"]).args(filter);
    if let (Some(agent), None) = (before::built(), std::env::var_os(before::VARIABLE)) {
        cargo.env(before::VARIABLE, agent);
    }
    Ok(cargo)
}

/// The Kubernetes part of the suite once more, on the API server that `cargo xtask kube-apiserver` has
/// built; what the user names has been used already.
fn real_api(filter: &[String]) -> Result<()> {
    let words: Vec<String> = match filter {
        [] => vec!["e2e::kubernetes".to_owned()],
        words => words.iter().filter(|word| word.contains("kubernetes")).cloned().collect(),
    };
    let (Some(server), None) = (apiserver::built(), std::env::var_os("KUBE_APISERVER")) else {
        return Ok(());
    };
    if words.is_empty() {
        return Ok(());
    }
    host::install_tools(apiserver::RUN_TOOLS)?;
    let etcd = host::find("etcd").context("the package etcd-server has no etcd")?;
    step("end-to-end tests on a real Kubernetes API server", || {
        run(with_root(&words)?.env("KUBE_APISERVER", server).env("ETCD", etcd))
    })
}

/// Whether there is anything for miri, which takes minutes to get ready.
fn leaves_engine_tests(filter: &[String]) -> Result<bool> {
    if filter.is_empty() {
        return Ok(true);
    }
    let mut cargo = toolchain::cargo()?;
    cargo.args(["test", "-q", "-p", "vxlan-ebpf-common", "--lib", "--", "--list"]).args(filter);
    Ok(output(&mut cargo)?.contains(": test"))
}

fn miri(filter: &[String]) -> Result<()> {
    let mut cargo = toolchain::nightly_cargo()?;
    cargo
        .args(["miri", "test", "-p", "vxlan-ebpf-common", "--lib", "--target-dir"])
        .arg(crate::run::target_dir().join("miri"))
        // The interpreter is some hundred times slower: fewer random cases.
        .env("PROPTEST_CASES", "8")
        .env("MIRIFLAGS", "-Zmiri-disable-isolation");
    with_filter(&mut cargo, filter);
    step("tests of the packet engine under miri", || run(&mut cargo))
}

fn host_wide(command: &str) -> Result<Command> {
    let mut cargo = toolchain::cargo()?;
    cargo.args([command, "--workspace", "--exclude", "vxlan-ebpf"]);
    Ok(cargo)
}

fn with_filter(cargo: &mut Command, filter: &[String]) {
    if !filter.is_empty() {
        cargo.arg("--").args(filter);
    }
}
