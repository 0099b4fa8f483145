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
  vxlan-agent run                            the agent, as a service manager runs it
  vxlan-agent status                         what runs here and what is wrong
  vxlan-agent doctor                         faults, and what mends them
  vxlan-agent connectivity                   whether all other nodes answer
  vxlan-agent dump counters                  which way packets took, and why
  vxlan-agent flows list --network pods      what bypasses the host stack
  vxlan-agent monitor --drops                what is dropped now, and why
  vxlan-agent fastpath off                   kernel VXLAN alone, from the next packet on
  vxlan-agent detach                         everything of the agent's off this node

Exit status:
  0  it is done; `doctor`: nothing is wrong; `connectivity`: all answer
  1  it failed, and standard error says why; `doctor`: something is wrong; `connectivity`: somebody does not answer
  2  the command line is wrong";

pub(super) const DUMP: &str = "\
Examples:
  vxlan-agent dump counters
  vxlan-agent dump routes --network pods --json";

pub(super) const DOCTOR: &str = "\
Examples:
  vxlan-agent doctor
  vxlan-agent doctor --peer n2
  vxlan-agent doctor --json";

pub(super) const CONNECTIVITY: &str = "\
Examples:
  vxlan-agent connectivity
  vxlan-agent connectivity --network pods --json";

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

pub(super) const ACCELERATE: &str = "\
Examples:
  vxlan-agent accelerate flannel.1
  vxlan-agent accelerate --fastpath direct vxlan.calico";

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

    use super::*;

    #[test]
    fn examples_are_valid() {
        let all = [EXAMPLES, DUMP, DOCTOR, CONNECTIVITY, MONITOR, CAPTURE, ACCELERATE, COMPLETIONS, MAN];
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
        assert_eq!(count, 33);
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
