//! `status`: the agent's status file, its lock, the pins, and who answers of the next hops.

mod fastpath;
mod network;
mod peers;
mod text;
mod verdict;
mod watch;

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::{Subject, print, print_json, runtime};
use crate::kernel::{Netlink, Reach};
use crate::status::{self, Status};
use fastpath::FastpathReport;
use verdict::Verdict;

pub(super) use watch::watch;

#[derive(Serialize)]
pub(super) struct Report {
    /// Whether all is well, in words.
    health: Verdict,
    /// Why the configuration as it is now is refused, and this is about what runs.
    configuration_refused: Option<String>,
    /// Whether the agent lives.
    running: bool,
    /// Its process id as seen from here; JSON has the one that the agent wrote down.
    #[serde(skip)]
    pid: Option<i32>,
    /// What it last wrote; absent if it never ran.
    #[serde(flatten)]
    status: Option<Status>,
    /// The fast path as it is now, of all networks together.
    fastpath: FastpathReport,
    /// The same of each network.
    fastpath_of: BTreeMap<String, FastpathReport>,
}

impl Report {
    /// How things are now.
    pub(super) async fn gather(subject: &Subject) -> anyhow::Result<Self> {
        let node = &subject.config.node;
        let holder = status::holder(&node.run_dir)?;
        let mut status = status::read(&node.run_dir)?;
        let is_asked_for = |name: &str| subject.all || subject.networks().any(|network| network == name);
        if let Some(status) = &mut status {
            status.networks.retain(|network| is_asked_for(&network.name));
            status.every.take_if(|_| !subject.all);
        }
        // Whoever may not ask the kernel sees the rest.
        let reach = match Netlink::open() {
            Ok(netlink) => netlink.reach().await.unwrap_or_default(),
            Err(_) => Reach::default(),
        };
        let (fastpath, mut fastpath_of) = fastpath::read(&node.pins(), &reach);
        fastpath_of.retain(|name, _| is_asked_for(name));
        let pid = holder.as_ref().and_then(|holder| holder.pid);
        let health = Verdict::default();
        let mut report = Self {
            health,
            configuration_refused: subject.refused.clone(),
            running: holder.is_some(),
            pid,
            status,
            fastpath,
            fastpath_of,
        };
        report.health = Verdict::of(&report);
        Ok(report)
    }

    /// As a person reads it, with colours or without.
    pub(super) fn text(&self, subject: &Subject, colour: bool) -> String {
        text::text(&subject.config.node.run_dir, self, colour)
    }

    /// As a program reads it.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(self).context("cannot write JSON")?))
    }
}

pub(super) fn show(subject: &Subject, json: bool) -> anyhow::Result<()> {
    let report = runtime()?.block_on(Report::gather(subject))?;
    if json { print_json(&report) } else { print(&report.text(subject, crate::terminal::has_colour())) }
}
