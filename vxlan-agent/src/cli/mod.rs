//! The command line.

mod detach;
mod dump;
mod features;
mod flows;
mod status;
mod table;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::agent;
use crate::config::{Config, DEFAULT_PATH};
use crate::datapath::Pins;

/// VXLAN overlay of the kernel, short-cut by BPF.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Configuration file.
    #[arg(long, global = true, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in the foreground; on SIGTERM it ends and leaves everything in place.
    Run,
    /// Show what is running and what is wrong; works without a running agent too.
    Status,
    /// Show what the BPF maps hold.
    Dump {
        #[arg(value_enum)]
        what: What,
    },
    /// Let the fast path run, or leave every packet to the kernel. No packet is lost either way.
    Fastpath {
        #[arg(value_enum)]
        to: OnOff,
    },
    /// Look at the flows that bypass the host stack in mode `verified`, or send all of them back.
    Flows {
        #[command(subcommand)]
        what: Flows,
    },
    /// Show what this kernel offers to the fast path; needs no configuration.
    Features,
    /// Remove everything that is ours; stops the agent first if it runs.
    Detach,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Routes,
    Vteps,
    Macs,
    Endpoints,
    Counters,
}

#[derive(Clone, Copy, Subcommand)]
enum Flows {
    /// Every flow that the programs know: state, age, packets and bytes that bypassed the stack.
    List,
    /// Close all bypasses with one write: the next packet of every flow meets the host stack.
    Flush,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vxlan-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let json = cli.common.json;
    let config = || Config::read(&cli.common.config);
    match cli.command {
        Command::Features => features::show(json),
        Command::Run => {
            log_to_stderr(json);
            runtime()?.block_on(agent::run(config()?))
        }
        Command::Status => status::show(&config()?, json),
        Command::Dump { what } => dump::show(&Pins::open(&config()?.pins())?, what, json),
        Command::Fastpath { to } => switch(&config()?, to, json),
        Command::Flows { what: Flows::List } => flows::list(&Pins::open(&config()?.pins())?, json),
        Command::Flows { what: Flows::Flush } => flows::flush(&mut Pins::open(&config()?.pins())?, json),
        Command::Detach => {
            log_to_stderr(json);
            runtime()?.block_on(detach::run(&config()?, json))
        }
    }
}

fn switch(config: &Config, to: OnOff, json: bool) -> anyhow::Result<()> {
    let on = to == OnOff::On;
    Pins::open(&config.pins())?.switch(on)?;
    let network = config.network.name.as_str();
    if json {
        return print_json(&serde_json::json!({ "network": network, "switched_on": on }));
    }
    let how = if on { "on" } else { "off: every packet is the kernel's" };
    print(&format!("fast path of network {network} is {how}\n"))
}

/// Everything runs on this thread: programs are attached in its network namespace.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}

fn log_to_stderr(json: bool) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,netlink_proto=warn"));
    let colour = std::io::stderr().is_terminal() && !json;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Rows of one kind: as JSON, or as a table of their cells.
fn print_rows<R: Serialize, const N: usize>(
    json: bool,
    rows: &[R],
    head: [&str; N],
    cells: impl Fn(&R) -> [String; N],
) -> anyhow::Result<()> {
    if json {
        return print_json(&rows);
    }
    print(&table::table(head, &rows.iter().map(cells).collect::<Vec<_>>()))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_options_go_before_and_after_the_command() {
        for line in [["x", "--json", "status"], ["x", "status", "--json"]] {
            assert!(Cli::try_parse_from(line).expect("valid").common.json);
        }
    }
}
