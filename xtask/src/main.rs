//! Developer commands: `cargo xtask <command>`.
//!
//! This crate builds with any recent stable Rust. It installs the pinned toolchain, the BPF linker
//! and the distribution's packages that a command needs, and runs everything else with those.

mod apiserver;
mod apt;
mod before;
mod checks;
mod deny;
mod ebpf;
mod fuzz;
mod host;
mod ifupdown2;
mod kernels;
mod lab;
mod linker;
mod miri;
mod package;
mod pictures;
mod release;
mod run;
mod sbom;
mod suite;
mod took;
mod toolchain;
mod tools;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, try, measure and check the overlay", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lay out a lab of network namespaces, run one agent per node and show what it does (root)
    Demo(lab::DemoArgs),
    /// Measure no overlay, kernel VXLAN and ours side by side (root)
    Bench(lab::BenchArgs),
    /// Run all tests, including those that need root
    Test(checks::TestArgs),
    /// Run the tests on older and newer kernels, in an emulator
    TestKernels(kernels::KernelArgs),
    /// Build a Kubernetes API server, against which the tests then run too
    KubeApiserver,
    /// Build the agent of the release before, which the tests then replace by this one and put back
    AgentBefore,
    /// What has to pass before a change goes in: format, clippy, documentation, tests
    Ci,
    /// Check the licences, duplicates and sources of all crates against deny.toml; with a database, vulnerabilities too
    Deny(deny::DenyArgs),
    /// Look for inputs that break a promise of the packet engine or the agent's parsers
    Fuzz(fuzz::FuzzArgs),
    /// Make the pictures of the documentation anew, of a lab with traffic (root)
    Pictures(pictures::PictureArgs),
    /// Build the BPF programs into target/bpf/vxlan-ebpf.o
    BuildEbpf,
    /// Build the agent with the BPF programs inside it: target/release/vxlan-agent
    Build,
    /// Build the agent as it is shipped, the same bytes wherever it is built: target/ship/release/vxlan-agent
    Ship,
    /// Build packages of it: Debian, RPM and a tarball, with bills of materials and checksums, into target/package
    Package(package::PackageArgs),
    /// Make commit and tag of a release, or say what they would be
    Release(release::ReleaseArgs),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => lab::demo(&args),
        Command::Bench(args) => lab::bench(&args),
        Command::Test(args) => checks::test(&args),
        Command::TestKernels(args) => kernels::test(&args),
        Command::KubeApiserver => apiserver::build(),
        Command::AgentBefore => before::build(),
        Command::Ci => checks::ci(),
        Command::Deny(args) => deny::check(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Pictures(args) => pictures::make(&args),
        Command::BuildEbpf => ebpf::build(),
        Command::Build => lab::build_agent(),
        Command::Ship => lab::ship_agent(),
        Command::Package(args) => package::build(&args),
        Command::Release(args) => release::release(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
