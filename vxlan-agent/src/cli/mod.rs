//! The command line.

mod accelerate;
mod capture;
mod check;
mod clock;
mod connectivity;
mod detach;
mod doctor;
mod dump;
mod features;
mod flows;
mod init;
mod manual;
mod monitor;
mod report;
mod status;
mod subject;
mod table;
mod top;
mod trace;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::agent;
use crate::config::flannel::{Flannel, ThisMachine};
use crate::config::{Config, Fastpath};
use crate::listen::run::Summary;
use subject::{Subject, configuration, file};

/// VXLAN overlay of the kernel, short-cut by BPF.
#[derive(Parser)]
#[command(version, after_help = manual::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Configuration file; without it /etc/vxlan-agent/config.toml, or where there is none, flannel's.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this network, instead of all.
    #[arg(long, global = true, value_name = "NAME")]
    network: Option<String>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Look at this machine and write a configuration for it, with a list of nodes: underlay, MTU, subnets that are free
    /// here, everything else as a comment with its default. --network gives the network its name.
    #[command(after_help = manual::INIT)]
    Init(init::Init),
    /// Run the agent in the foreground; on SIGTERM it ends and leaves everything in place.
    #[command(after_help = manual::RUN)]
    Run,
    /// Show what is running and what is wrong; works without a running agent too.
    #[command(after_help = manual::STATUS)]
    Status {
        /// Show it again and again until Ctrl-C, every so many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = pause)]
        watch: Option<Duration>,
    },
    /// Show what the BPF maps hold.
    #[command(after_help = manual::DUMP)]
    Dump {
        #[arg(value_enum)]
        what: What,
    },
    /// Let the fast path run, or leave every packet to the kernel. No packet is lost either way.
    #[command(after_help = manual::FASTPATH)]
    Fastpath {
        #[arg(value_enum)]
        to: OnOff,
    },
    /// Look at the flows that bypass the host stack in mode `verified`, or send all of them back.
    #[command(after_help = manual::FLOWS)]
    Flows {
        #[command(subcommand)]
        what: Flows,
    },
    /// Show live what the programs make of packets, and why; one listener on a node at a time, with or without a
    /// running agent. It ends with Ctrl-C.
    #[command(after_help = manual::MONITOR)]
    Monitor(monitor::Monitor),
    /// Write packets that pass the programs to a file as pcapng, those that bypass the host stack, too. Each has the
    /// verdict and the reason as its comment. It ends with Ctrl-C.
    #[command(after_help = manual::CAPTURE)]
    Capture(capture::Capture),
    /// Show what this kernel offers to the fast path; needs no configuration.
    #[command(after_help = manual::FEATURES)]
    Features,
    /// Remove everything that is ours; stops the agent first if it runs.
    #[command(after_help = manual::DETACH)]
    Detach,
    /// Take the fast path off and leave the overlay to flanneld, which goes on with it as it is;
    /// stops the agent first if it runs.
    #[command(after_help = manual::RELEASE)]
    Release,
    /// Accelerate VXLAN devices that somebody else manages, in the foreground: packets take a short cut beside
    /// them, and nothing of theirs is touched. It needs no configuration file; of one that --config names, only what
    /// it says of the node counts.
    #[command(after_help = manual::ACCELERATE)]
    Accelerate {
        /// How much of the fast path runs.
        #[arg(long, value_enum, default_value = "verified")]
        fastpath: Mode,
        /// Every device of the node that can be, also those that come later; not an agent's own.
        #[arg(long, conflicts_with = "devices")]
        all: bool,
        /// Names of the devices; one that is not there yet is waited for.
        #[arg(required_unless_present = "all", value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// Watch what goes on, live: networks, nodes, flows, why packets end where they do. It needs no running agent.
    #[command(after_help = manual::TOP)]
    Top {
        /// Seconds from one look to the next.
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pause)]
        interval: Duration,
        /// With --json: end after so many looks.
        #[arg(long, value_name = "N", requires = "json")]
        count: Option<u32>,
    },
    /// Write one archive (tar.gz) with all that somebody needs who is to find out what is wrong. Secrets are left out.
    #[command(after_help = manual::REPORT)]
    Report {
        /// Where to write it; `-` is standard output.
        #[arg(short, long, value_name = "FILE", default_value = "vxlan-agent-report.tar.gz")]
        output: PathBuf,
    },
    /// Find what is wrong on this node, with evidence and the command that mends it; works without a running agent
    /// too. It ends with 0 if nothing is, with 1 if something is.
    #[command(after_help = manual::DOCTOR)]
    Doctor {
        /// Send packets to this node as well: its name or its VTEP address.
        #[arg(long, value_name = "NODE")]
        peer: Option<String>,
    },
    /// Say whether the configuration and the state files that it names will do: all mistakes at once, each with file
    /// and line; with --dry-run also what an agent would change now. It ends with 0 if they will, with 3 if not.
    #[command(after_help = manual::CHECK)]
    Check(check::Check),
    /// Probe every other node through the tunnel from this one: whether it answers, how soon, and the path MTU, by the
    /// fast path and by the kernel's. It ends with 1 if one does not answer.
    #[command(after_help = manual::CONNECTIVITY)]
    Connectivity,
    /// Print what a shell needs to complete this command line.
    #[command(after_help = manual::COMPLETIONS)]
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages, one for each command, to a directory.
    #[command(after_help = manual::MAN)]
    Man {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Show what would happen to a packet here, program by program and map entry by map entry; nothing is sent or
    /// changed. With --probe, send packets and see what does happen.
    #[command(after_help = manual::TRACE)]
    Trace(Box<trace::Args>),
    /// Run the agent with flanneld's flags, environment and net-conf.json. It does the same when
    /// it is called by the name flanneld.
    #[command(disable_help_flag = true)]
    Flannel {
        /// As flanneld has them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Routes,
    Vteps,
    /// Who has which MAC: VTEPs, and the stations of segments
    #[value(alias = "macs")]
    Stations,
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

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Flows bypass the host stack once it has been seen to pass them unchanged.
    Verified,
    /// All packets bypass it: for hosts without NAT or packet filter between pods.
    Direct,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

/// A number of seconds between a tenth and a day.
fn pause(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err(format!("{text} is not between 0.1 and 86400 seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let done = match as_flanneld(std::env::args_os()) {
        Some(flags) => run_as_flannel(&flags, false),
        None if std::env::args_os().len() < 2 => print(manual::START),
        None => dispatch(&Cli::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<crate::trace::Unanswerable>() => {
            let _ = writeln!(std::io::stderr(), "vxlan-agent: {error:#}");
            ExitCode::from(2)
        }
        Err(error) if error.is::<Unwell>() => ExitCode::FAILURE,
        Err(error) if error.is::<Invalid>() => ExitCode::from(3),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vxlan-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A command is done, and has shown that something is wrong: there is no more to say, but for the exit status.
#[derive(Debug, thiserror::Error)]
#[error("something is wrong")]
struct Unwell;

/// `check` has shown why the configuration will not do.
#[derive(Debug, thiserror::Error)]
#[error("the configuration will not do")]
struct Invalid;

/// Flanneld's flags, if this program was called by that name.
fn as_flanneld(mut words: impl Iterator<Item = OsString>) -> Option<Vec<String>> {
    let program = PathBuf::from(words.next()?);
    (program.file_name()? == "flanneld")
        .then(|| words.map(|word| word.to_string_lossy().into_owned()).collect())
}

fn run_as_flannel(flags: &[String], json: bool) -> anyhow::Result<()> {
    if let Some(help) = Flannel::help(flags) {
        return print(&help);
    }
    let flannel = Flannel::translate(flags.iter().cloned(), &ThisMachine).map_err(anyhow::Error::msg)?;
    if flannel.only_version {
        return print(&format!("vxlan-agent {}\n", env!("CARGO_PKG_VERSION")));
    }
    log_to_stderr(json);
    flannel.undone.iter().for_each(|undone| tracing::warn!("{undone}"));
    run(flannel.config.into(), None)
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let (json, name) = (cli.common.json, cli.common.network.as_deref());
    let given = cli.common.config.as_deref();
    let subject = || Subject::find(given, name).map(Subject::warned);
    // What one agent runs, it runs together.
    let whole = || match name {
        Some(_) => anyhow::bail!(
            "--network is for looking and switching: take a network out of the configuration to remove it"
        ),
        None => Ok(given),
    };
    match &cli.command {
        Command::Flannel { flags } => run_as_flannel(flags, json),
        Command::Features => features::show(json),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { directory } => manual::pages(directory),
        Command::Init(options) => init::run(options, given, name, json),
        Command::Run => {
            log_to_stderr(json);
            run(configuration(whole()?)?, file(given))
        }
        Command::Accelerate { fastpath, all, devices } => {
            log_to_stderr(json);
            let mode = match fastpath {
                Mode::Verified => Fastpath::Verified,
                Mode::Direct => Fastpath::Direct,
            };
            let devices = (!all).then_some(devices.as_slice());
            run(accelerate::configuration(given, devices, mode)?, None)
        }
        Command::Status { watch: None } => status::show(&subject()?, json),
        Command::Status { watch: Some(pause) } => status::watch(|| Subject::find(given, name), json, *pause),
        Command::Top { interval, count } => top::run(&subject()?, json, *interval, *count),
        Command::Report { output } => report::write(subject(), given, output, json),
        Command::Connectivity => connectivity::show(given, name, json),
        Command::Check(options) => check::show(options, given, name, json),
        Command::Doctor { peer } => doctor::show(given, name, peer.as_deref(), json),
        Command::Dump { what } => dump::show(&subject()?, *what, json),
        Command::Fastpath { to } => switch(&subject()?, *to, json),
        Command::Trace(args) => runtime()?.block_on(trace::run(&subject()?, args, json)),
        Command::Flows { what: Flows::List } => flows::list(&subject()?, json),
        Command::Flows { what: Flows::Flush } => flows::flush(&subject()?, json),
        Command::Monitor(options) => monitor::show(&subject()?, options, json),
        Command::Capture(options) => capture::write(&subject()?, options, json),
        Command::Detach => {
            log_to_stderr(json);
            runtime()?.block_on(detach::run(&subject::whole(whole()?)?, json))
        }
        Command::Release => {
            log_to_stderr(json);
            runtime()?.block_on(detach::release(&subject::whole(whole()?)?, json))
        }
    }
}

fn switch(subject: &Subject, to: OnOff, json: bool) -> anyhow::Result<()> {
    let (on, mut pins) = (to == OnOff::On, subject.pins()?);
    let how = if on { "on" } else { "off: every packet is the kernel's" };
    let (mut lines, mut report) = (String::new(), vec![]);
    for (network, id) in subject.numbered(&pins)? {
        pins.switch(id, on)?;
        lines += &format!("fast path of network {network} is {how}\n");
        report.push(serde_json::json!({ "network": network, "switched_on": on }));
    }
    match report.as_slice() {
        _ if !json => print(&lines),
        [one] => print_json(one),
        several => print_json(&several),
    }
}

/// Says at the end of `monitor` and `capture` what was heard: as JSON in `out`, else on standard error.
fn listened(summary: &Summary, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        #[derive(Serialize)]
        struct Line<'a> {
            event: &'static str,
            #[serde(flatten)]
            summary: &'a Summary,
        }
        let line = Line { event: "summary", summary };
        return Ok(writeln!(out, "{}", serde_json::to_string(&line)?).and_then(|()| out.flush())?);
    }
    Ok(writeln!(std::io::stderr(), "{}", summary.sentence())?)
}

/// Runs the agent, which follows the configuration at `path`, if there is one, and does not wait for a file that
/// somebody reads for it.
fn run(config: Config, path: Option<PathBuf>) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let ended = runtime.block_on(agent::run(config, path));
    runtime.shutdown_background();
    ended
}

/// Everything runs on this thread: programs are attached in its network namespace.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}

fn log_to_stderr(json: bool) {
    // What goes wrong on the way to the Kubernetes API is said by its source, and only once.
    let usual = || EnvFilter::new("info,netlink_proto=warn,kube_client=off");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
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
    print(&json_text(value)?)
}

fn json_text(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// A row, and the network that it is about.
#[derive(Serialize)]
struct Of<R> {
    network: String,
    #[serde(flatten)]
    row: R,
}

/// Rows of one kind: as JSON, or as a table of their cells. The table says which network a row is about if there
/// are several.
fn rows_text<R: Serialize, const N: usize>(
    subject: &Subject,
    json: bool,
    rows: &[Of<R>],
    head: [&str; N],
    cells: impl Fn(&R) -> [String; N],
) -> anyhow::Result<String> {
    if json {
        return json_text(&rows);
    }
    let several = subject.networks().count() > 1;
    let line = |row: &Of<R>| {
        let network = several.then(|| row.network.clone());
        network.into_iter().chain(cells(&row.row)).collect::<Vec<_>>()
    };
    let head: Vec<&str> = several.then_some("network").into_iter().chain(head).collect();
    Ok(table::table(&head, &rows.iter().map(line).collect::<Vec<_>>()))
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
    fn called_flanneld_it_takes_flanneld_s_flags() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter();
        let flags = as_flanneld(words("/opt/bin/flanneld --ip-masq --kube-subnet-mgr")).expect("flanneld");
        assert_eq!(flags, ["--ip-masq", "--kube-subnet-mgr"]);
        assert_eq!(as_flanneld(words("/usr/bin/vxlan-agent run")), None);
        let cli = Cli::try_parse_from(["x", "flannel", "--ip-masq", "-v=5"]).expect("valid");
        assert!(matches!(cli.command, Command::Flannel { flags } if flags == ["--ip-masq", "-v=5"]));
    }

    #[test]
    fn common_options_go_before_and_after_the_command() {
        for line in [["x", "--json", "status"], ["x", "status", "--json"]] {
            assert!(Cli::try_parse_from(line).expect("valid").common.json);
        }
    }
}
