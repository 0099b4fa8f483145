//! `status --watch`: again and again, in place on a terminal.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::Report;
use crate::cli::{Subject, print, runtime};
use crate::terminal::{self, Screen};

/// Shows it every `pause` until SIGINT or SIGTERM. Where standard output is no terminal, one block follows another.
pub(in crate::cli) fn watch(
    subject: impl Fn() -> anyhow::Result<Subject>,
    json: bool,
    pause: Duration,
) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let in_place = !json && std::io::stdout().is_terminal();
        let mut screen = in_place.then(Screen::enter).transpose()?;
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = ticks.tick() => {}
            }
            // The configuration may be another by now.
            let subject = subject()?;
            let report = Report::gather(&subject).await?;
            match &mut screen {
                Some(screen) => screen.show(&report.text(&subject, terminal::has_colour()))?,
                None if json => print(&report.json()?)?,
                None => {
                    let gap = if first { "" } else { "\n" };
                    print(&format!("{gap}{}", report.text(&subject, false)))?;
                }
            }
            first = false;
        }
    })
}
