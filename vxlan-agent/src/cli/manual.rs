//! What the command line says of itself: examples, completions for shells, manual pages.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, print};

pub(super) const EXAMPLES: &str = "\
Examples:
  vxlan-agent features                       what this kernel lacks, if anything
  vxlan-agent init -o config.toml            a configuration for this machine
  vxlan-agent check                          whether the configuration will do
  vxlan-agent run                            the agent, as a service manager runs it
  vxlan-agent status                         what runs here and what is wrong
  vxlan-agent top                            what goes on, live
  vxlan-agent doctor                         faults, and what mends them
  vxlan-agent connectivity                   whether all other nodes answer
  vxlan-agent dump counters                  which way packets took, and why
  vxlan-agent flows list --network pods      what bypasses the host stack
  vxlan-agent monitor --drops                what is dropped now, and why
  vxlan-agent trace 10.244.1.2 10.244.2.2    what would happen to this packet here
  vxlan-agent fastpath off                   kernel VXLAN alone, from the next packet on
  vxlan-agent detach                         everything of the agent's off this node

Exit status:
  0  it is done; `doctor`: nothing is wrong; `connectivity`: all answer
  1  it failed, and standard error says why; `doctor`: something is wrong; `connectivity`: somebody does not answer
  2  the command line is wrong
  3  `check`: the configuration, or a file that it names, will not do";

/// What there is to read without a command.
pub(super) const START: &str = "\
vxlan-agent keeps a VXLAN overlay of the kernel, and short-cuts it by BPF. Where to begin:

  A cluster with Kubernetes     kubectl apply -k deploy/base, or `vxlan-agent flannel` in flanneld's place
  A device that is there        vxlan-agent accelerate flannel.1     somebody else's: nothing of it is changed
  Hosts without a cluster       vxlan-agent init -o /etc/vxlan-agent/config.toml, then: vxlan-agent run

On a node where it runs:  vxlan-agent status  says whether it is well,  vxlan-agent top  shows what goes on.
All commands:  vxlan-agent --help
";

pub(super) const INIT: &str = "\
Examples:
  vxlan-agent init                                    to read, and nothing is written
  vxlan-agent init -o /etc/vxlan-agent/config.toml    and nodes.toml next to it
  vxlan-agent init --kind l2 --network vms --underlay eth1
  vxlan-agent init --json";

pub(super) const RUN: &str = "\
Examples:
  vxlan-agent run
  vxlan-agent run --config /etc/vxlan-agent/config.toml";

pub(super) const FASTPATH: &str = "\
Examples:
  vxlan-agent fastpath off
  vxlan-agent fastpath on --network pods";

pub(super) const FLOWS: &str = "\
Examples:
  vxlan-agent flows list --network pods
  vxlan-agent flows flush";

pub(super) const FEATURES: &str = "\
Examples:
  vxlan-agent features
  vxlan-agent features --json";

pub(super) const DETACH: &str = "\
Examples:
  vxlan-agent detach
  vxlan-agent detach --json";

pub(super) const RELEASE: &str = "\
Examples:
  vxlan-agent release";

pub(super) const STATUS: &str = "\
Examples:
  vxlan-agent status
  vxlan-agent status --watch 5
  vxlan-agent status --json --network pods";

pub(super) const TOP: &str = "\
Examples:
  vxlan-agent top
  vxlan-agent top --interval 5 --network pods
  vxlan-agent top --json --count 1";

pub(super) const REPORT: &str = "\
Examples:
  vxlan-agent report -o /tmp/node1.tar.gz
  vxlan-agent report -o - > node1.tar.gz";

pub(super) const DUMP: &str = "\
Examples:
  vxlan-agent dump counters
  vxlan-agent dump routes --network pods --json";

pub(super) const MONITOR: &str = "\
Examples:
  vxlan-agent monitor --drops                          what is dropped, and why
  vxlan-agent monitor --address 10.244.1.2 --port 80   what becomes of these packets at each hook
  vxlan-agent monitor --node n2 --count 20             the next twenty packets from and to that node
  vxlan-agent monitor --flows                          which flows begin to bypass the host stack
  vxlan-agent monitor --hook underlay_ingress --sample 100 --json

Times are UTC.";

pub(super) const CAPTURE: &str = "\
Examples:
  vxlan-agent capture -w packets.pcapng --address 10.244.1.2
  vxlan-agent capture -w packets.pcapng --drops --seconds 60
  vxlan-agent capture -w packets.pcapng --before --after --hook pod_egress
  vxlan-agent capture -w - | wireshark -k -i -
  vxlan-agent capture -w - | tcpdump -r - 'tcp[tcpflags] & tcp-rst != 0'";

pub(super) const DOCTOR: &str = "\
Examples:
  vxlan-agent doctor
  vxlan-agent doctor --peer n2
  vxlan-agent doctor --json";

pub(super) const CHECK: &str = "\
Examples:
  vxlan-agent check
  vxlan-agent check /etc/vxlan-agent/config.toml.new
  vxlan-agent check --dry-run                    and what an agent would change now
  vxlan-agent check --json

Exit status:
  0  it will do
  1  it could not be checked, and standard error says why
  2  the command line is wrong
  3  it will not do";

pub(super) const CONNECTIVITY: &str = "\
Examples:
  vxlan-agent connectivity
  vxlan-agent connectivity --network pods --json";

pub(super) const ACCELERATE: &str = "\
Examples:
  vxlan-agent accelerate flannel.1
  vxlan-agent accelerate --fastpath direct vxlan.calico";

pub(super) const TRACE: &str = "\
Examples:
  vxlan-agent trace 10.244.1.2 10.244.2.2
  vxlan-agent trace 10.244.1.2 10.244.2.2 --proto tcp --dport 443 --flags ack
  vxlan-agent trace 10.244.1.9 10.244.2.2 --in veth1             a pod uses another's address
  vxlan-agent trace 10.244.2.2 10.244.1.2                        what arrives from another node
  vxlan-agent trace 02:00:00:00:00:01 02:00:00:00:00:02 --network red
  vxlan-agent trace 10.244.1.2 10.244.2.2 --probe                packets are sent

Exit status:
  0  it gets on: to its receiver, or on the underlay to another node; with --probe: all was answered
  1  it is dropped, or program and model of it disagree; with --probe: no answer, or not at full length; or it failed
  2  the command line is wrong, or nobody is known by SRC";

pub(super) const COMPLETIONS: &str = "\
Examples:
  vxlan-agent completions bash > /etc/bash_completion.d/vxlan-agent
  vxlan-agent completions zsh > /usr/local/share/zsh/site-functions/_vxlan-agent
  vxlan-agent completions fish > /etc/fish/completions/vxlan-agent.fish";

pub(super) const MAN: &str = "\
Examples:
  vxlan-agent man /usr/local/share/man/man1";

/// Prints what `shell` needs to complete the command line.
pub(super) fn completions(shell: Shell) -> anyhow::Result<()> {
    let (mut command, mut script) = (Cli::command(), vec![]);
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a manual page for each command to `directory`, which is made.
pub(super) fn pages(directory: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot write manual pages to {}", directory.display());
    fs::create_dir_all(directory).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(context)
}

#[cfg(test)]
mod tests {
    use clap::{Parser as _, ValueEnum as _};

    use crate::config::flannel::Flannel;

    use super::*;

    #[test]
    fn examples_are_valid() {
        let all = [
            EXAMPLES,
            INIT,
            RUN,
            STATUS,
            TOP,
            REPORT,
            DUMP,
            FASTPATH,
            FLOWS,
            MONITOR,
            CAPTURE,
            TRACE,
            DOCTOR,
            CHECK,
            CONNECTIVITY,
            FEATURES,
            DETACH,
            RELEASE,
            ACCELERATE,
            COMPLETIONS,
            MAN,
        ];
        let lines = all.iter().flat_map(|text| text.lines()).map(str::trim_start);
        let mut count = 0;
        for line in lines.filter(|line| line.starts_with("vxlan-agent ")) {
            let command = line
                .split("  ")
                .next()
                .and_then(|line| line.split(" > ").next()?.split(" | ").next())
                .expect("a command");
            let parsed = Cli::try_parse_from(command.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().expect("refused"));
            count += 1;
        }
        assert_eq!(count, 70);
    }

    #[test]
    fn every_command_s_help_has_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut count = 0;
        for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let name = command.get_name().to_owned();
            let help = match name.as_str() {
                // It answers for itself.
                "flannel" => Flannel::help(&["--help".to_owned()]).expect("a help"),
                _ => command.render_long_help().to_string(),
            };
            assert!(help.contains(&format!("Examples:\n  vxlan-agent {name}")), "{name}: {help}");
            count += 1;
        }
        assert!(count > 10, "{count}");
    }

    #[test]
    fn where_to_begin_is_short_and_names_commands_that_exist() {
        assert!(START.lines().count() < 12 && START.lines().all(|line| line.len() < 120), "{START}");
        let names: Vec<_> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for word in START.split("vxlan-agent ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next())
        {
            let is_known = names.iter().any(|name| name == word) || ["keeps", "--help"].contains(&word);
            assert!(is_known, "{word}");
        }
    }

    #[test]
    fn every_shell_and_every_page_knows_every_command() {
        let directory = tempfile::tempdir().expect("a directory");
        pages(directory.path()).expect("written");
        let mut command = Cli::command();
        command.build();
        let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert!(names.len() > 10, "{names:?}");
        for shell in Shell::value_variants() {
            let mut script = vec![];
            clap_complete::generate(*shell, &mut Cli::command(), "vxlan-agent", &mut script);
            let script = String::from_utf8(script).expect("text");
            names.iter().for_each(|name| assert!(script.contains(name.as_str()), "{shell} lacks {name}"));
        }
        for name in names.iter().filter(|name| *name != "help") {
            let page = fs::read_to_string(directory.path().join(format!("vxlan-agent-{name}.1")));
            assert!(page.expect("a page").contains(".SH SYNOPSIS"), "{name}");
        }
        let main = fs::read_to_string(directory.path().join("vxlan-agent.1")).expect("a page");
        assert!(main.contains("Exit status:"), "{main}");
    }
}
