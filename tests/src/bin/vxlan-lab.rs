//! `vxlan-lab`: what `cargo xtask demo` and `cargo xtask bench` run.

use clap::{Parser, Subcommand};
use vxlan_tests::bench::{self, BenchArgs};
use vxlan_tests::demo::{self, DemoArgs};
use vxlan_tests::lab::cleanup;

#[derive(Parser)]
#[command(about = "A cluster in network namespaces", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a cluster, its traffic and the way it takes
    Demo(DemoArgs),
    /// Measure no overlay, kernel VXLAN and ours side by side
    Bench(BenchArgs),
    /// Take down labs that were kept
    Down,
}

fn main() -> std::process::ExitCode {
    let result: anyhow::Result<()> = match Cli::parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Down => {
            for lab in cleanup::remove_kept() {
                println!("took down lab {lab}");
            }
            Ok(())
        }
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
