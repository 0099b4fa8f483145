//! What to type while a lab is up.

use anyhow::Result;

use crate::lab::{Agent, Netns, agent, cleanup};

/// What there is to look at.
pub(super) struct Look<'a> {
    /// The lab's prefix.
    pub(super) prefix: &'a str,
    /// Node 1.
    pub(super) node: &'a Netns,
    /// Its agent.
    pub(super) agent: &'a Agent,
    /// What agents follow.
    pub(super) change: String,
    /// A command that sends something.
    pub(super) command: String,
    /// Subcommands of the agent.
    pub(super) words: &'a [&'a str],
    /// One of its maps.
    pub(super) map: &'a str,
}

impl Look<'_> {
    /// Prints the commands.
    ///
    /// # Errors
    /// There is no agent, or it has pinned nothing.
    pub(super) fn print(&self) -> Result<()> {
        let program = agent::agent_binary()?;
        let cli = format!("nsenter --net=/run/netns/{} {}", self.node.namespace(), program.display());
        let config = self.agent.config().display();
        println!("\nThe lab stays up, agents running. Look round:");
        println!("  {}", self.command);
        for words in self.words {
            println!("  {cli} {words} --config {config}");
        }
        println!("  bpftool map dump pinned {}/{}", self.agent.pins()?.display(), self.map);
        println!("  less {}", cleanup::run_dir(self.prefix).join("n1.log").display());
        println!("Change {} and the agents follow.", self.change);
        println!("Take it down with: cargo xtask demo --down");
        Ok(())
    }
}
