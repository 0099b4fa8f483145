//! Tests, lints, formatting, documentation.

use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};

use crate::run::{output, run, step};
use crate::suite::{self, Programs};
use crate::{apiserver, deny, ebpf, host, ifupdown2, kernels, lab, miri, took, toolchain};

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

/// Runs the tests that `args` select, by default all, and prints how long each step took.
///
/// # Errors
/// The machine cannot run them, something does not build, or a test fails: the failing step's name.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    took::with_table(|| test_suites(args))
}

fn test_suites(args: &TestArgs) -> Result<()> {
    let wants = |suite| args.suite.is_empty() || args.suite.contains(&suite);
    let machines = args.suite.contains(&Suite::Vm);
    let rooted = wants(Suite::E2e) || wants(Suite::Xdp) || machines;
    if rooted {
        host::prepare("test")?;
        host::install_tools(host::TEST_TOOLS)?;
        ifupdown2::unpack();
    }
    if wants(Suite::Unit) || rooted {
        let programs = build(rooted)?;
        if wants(Suite::Unit) {
            unit(&programs, &args.filter)?;
        }
        if wants(Suite::E2e) {
            e2e(&programs, &args.filter)?;
        }
        if wants(Suite::Xdp) {
            xdp(&programs, args)?;
        }
        if machines {
            virtual_machines(&programs, &args.filter)?;
        }
    }
    if args.suite.contains(&Suite::Miri) || args.suite.is_empty() && leaves_engine_tests(&args.filter)? {
        miri::test(&args.filter)?;
    }
    Ok(())
}

/// Builds the tests, and beside them the agent in release that those with root run.
fn build(agent: bool) -> Result<Programs> {
    ebpf::build()?;
    thread::scope(|scope| {
        let agent = agent.then(|| scope.spawn(lab::build_release_agent));
        let programs = step("building the tests", Programs::build);
        if let Some(agent) = agent {
            agent.join().map_err(|_| anyhow!("building the agent panicked"))??;
        }
        programs
    })
}

/// Everything that has to pass before a change goes in.
///
/// # Errors
/// The failing step's name.
pub(crate) fn ci() -> Result<()> {
    host::prepare("ci")?;
    step("formatting (cargo fmt --check)", || run(toolchain::cargo()?.args(["fmt", "--all", "--check"])))?;
    // Its build takes longer than all lints together.
    if deny::is_built() {
        deny::check(&deny::DenyArgs::default())?;
    }
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

fn unit(programs: &Programs, filter: &[String]) -> Result<()> {
    step("unit and property tests, replay of what fuzzing has found, checks of deploy/", || {
        programs.unit(filter).try_for_each(|mut command| run(&mut command))
    })?;
    step("examples in the documentation", || run(with_filter(&mut suite::examples()?, filter)))
}

/// What needs root.
fn e2e(programs: &Programs, filter: &[String]) -> Result<()> {
    step("packet tests on the real programs, end-to-end tests in namespaces", || {
        programs.with_root(filter).try_for_each(|mut command| run(&mut command))
    })?;
    real_api(programs, filter)
}

/// The Kubernetes part of the suite once more, on the API server that `cargo xtask kube-apiserver` has
/// built; what the user names has been used already.
fn real_api(programs: &Programs, filter: &[String]) -> Result<()> {
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
        programs
            .with_root(&words)
            .try_for_each(|mut command| run(command.env("KUBE_APISERVER", &server).env("ETCD", &etcd)))
    })
}

/// The end-to-end tests with XDP on every underlay: all if this is what is asked for, otherwise those
/// that the place where packets are taken out of the tunnel can make a difference to.
fn xdp(programs: &Programs, args: &TestArgs) -> Result<()> {
    let mut words = if args.filter.is_empty() {
        ["e2e::", "segment::"].map(str::to_owned).to_vec()
    } else {
        args.filter.clone()
    };
    if !args.suite.contains(&Suite::Xdp) {
        words.extend(suite::without(suite::NOT_THE_UNDERLAYS));
    }
    step("end-to-end tests with XDP", || {
        programs.with_root(&words).try_for_each(|mut command| run(command.env("VXLAN_LAB_XDP", "native")))
    })
}

fn virtual_machines(programs: &Programs, filter: &[String]) -> Result<()> {
    let machine = kernels::machine::prepare()?;
    let mut words = if filter.is_empty() { vec!["segment::vm".to_owned()] } else { filter.to_vec() };
    words.extend(["--ignored", "--nocapture"].map(str::to_owned));
    step("virtual machines on bridged segments", || {
        programs.with_root(&words).try_for_each(|mut command| run(command.env("VXLAN_VM", &machine)))
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

fn host_wide(command: &str) -> Result<Command> {
    let mut cargo = toolchain::cargo()?;
    cargo.args([command, "--workspace", "--exclude", "vxlan-ebpf"]);
    Ok(cargo)
}

fn with_filter<'a>(cargo: &'a mut Command, filter: &[String]) -> &'a mut Command {
    if !filter.is_empty() {
        cargo.arg("--").args(filter);
    }
    cargo
}
