//! A terminal of 100 columns and 30 rows that nobody sits at.

use std::process::Command;

use anyhow::Result;

use super::lab::Lab;
use crate::run::output;

/// A server of tmux's own, with one window on node 1; it ends with this.
pub(super) struct Terminal {
    socket: String,
}

impl Terminal {
    /// Runs the agent's command `word` in it, `behind` it what the shell does next.
    ///
    /// # Errors
    /// tmux fails.
    pub(super) fn open(lab: &Lab, word: &str, behind: &str) -> Result<Self> {
        let terminal = Self { socket: format!("vxlan-pictures-{}-{word}", std::process::id()) };
        let (program, config) = lab.agent_words();
        let line = format!("'{}' {word} {}{behind}", program.display(), config.join(" "));
        let mut tmux = lab.within("n1", "tmux");
        tmux.args(["-L", &terminal.socket, "-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30"]);
        let tmux = tmux.arg(line).env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
        output(tmux.env_remove("TMUX").env_remove("NO_COLOR"))?;
        Ok(terminal)
    }

    /// Presses a key.
    ///
    /// # Errors
    /// tmux fails, because what ran in it has ended.
    pub(super) fn press(&self, key: &str) -> Result<()> {
        output(self.tmux().args(["send-keys", key])).map(drop)
    }

    /// What is on it, colours among the text.
    ///
    /// # Errors
    /// As [`Terminal::press`].
    pub(super) fn screen(&self) -> Result<String> {
        output(self.tmux().args(["capture-pane", "-e", "-p"]))
    }

    fn tmux(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.args(["-L", &self.socket]).env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        tmux
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.tmux().arg("kill-server").output();
    }
}
