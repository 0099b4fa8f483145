//! `top`: what goes on, live, from the pins alone.
//!
//! ```text
//! pins → sample (Reader) ┐
//!        sample before   ┴ rates → table → app (keys) → draw
//! ```
//!
//! A [`sample`] is what was counted until a moment; two of them are [`rates`]; a [`table`] is how a view shows those,
//! sorted and filtered; [`app`] is what somebody looks at. All of that is pure; [`draw`] alone knows the terminal.

mod app;
mod draw;
mod rates;
mod routes;
mod sample;
mod table;

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use crossterm::event::{Event, KeyEventKind, read};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::terminal::Screen;
use app::{App, Next};
use rates::Rates;
pub(crate) use sample::Reader;
use sample::Sample;

/// How long after the first sample the second one is taken: nobody wants to wait for numbers.
const SOON: Duration = Duration::from_millis(200);

/// Shows it every `pause` until somebody ends it.
///
/// # Errors
/// Standard output is no terminal, or nothing can be read of the pins at first.
pub(crate) async fn run(mut reader: Reader, pause: Duration) -> anyhow::Result<()> {
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        bail!("top needs a terminal: elsewhere take `vxlan-agent top --json`, or `status --watch`");
    }
    let mut ends = Ends::new()?;
    let mut before = reader.read()?;
    let _screen = Screen::enter_raw()?;
    let mut terminal =
        Terminal::new(CrosstermBackend::new(std::io::stdout())).context("cannot use the terminal")?;
    let (mut app, mut keys) = (App::default(), events()?);
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset_after(SOON.min(pause));
    loop {
        terminal.draw(|frame| draw::draw(frame, &app)).context("cannot write to the terminal")?;
        tokio::select! {
            () = ends.any() => return Ok(()),
            event = keys.recv() => match event {
                // Whoever was looking is gone.
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if app.press(key) == Next::Quit {
                        return Ok(());
                    }
                }
                Some(_) => {}
            },
            _ = ticks.tick() => {
                let rates = next(&mut reader, &mut before);
                app.take(rates.map_err(|error| format!("{error:#}")));
            }
        }
    }
}

/// Prints rates as JSON every `pause`, `count` times if that is given.
///
/// # Errors
/// Nothing can be read of the pins, or standard output cannot be written to.
pub(crate) async fn print(
    mut reader: Reader,
    pause: Duration,
    count: Option<u32>,
    out: impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut ends = Ends::new()?;
    let mut before = reader.read()?;
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        tokio::select! {
            () = ends.any() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        let rates = next(&mut reader, &mut before)?;
        out(&format!("{}\n", serde_json::to_string_pretty(&rates)?))?;
        printed += 1;
    }
    Ok(())
}

/// What has gone on since `before`, which becomes what is now.
fn next(reader: &mut Reader, before: &mut Sample) -> anyhow::Result<Rates> {
    let now = reader.read()?;
    let rates = Rates::between(before, &now);
    *before = now;
    Ok(rates)
}

/// Keys and changes of the terminal's size. The thread ends with the process, or with the terminal.
fn events() -> anyhow::Result<mpsc::UnboundedReceiver<Event>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listen = move || {
        while let Ok(event) = read() {
            if sender.send(event).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(listen).context("cannot listen for keys")?;
    Ok(receiver)
}

/// Signals that end it.
struct Ends([Signal; 3]);

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
