//! The pictures of the documentation: screens of the agent's commands, and queries of the dashboard,
//! of a lab with traffic.

mod graphs;
mod lab;
mod svg;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::host::{self, Tool};
use crate::run::{step, target_dir, workspace};
use graphs::Prometheus;
use lab::Lab;
use terminal::Terminal;

const TOOLS: &[Tool] = &[
    ("tmux", "tmux"),
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
    ("prometheus", "prometheus"),
    ("chromium-headless-shell", "chromium-headless-shell"),
    ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "fonts-dejavu-core"),
];
/// Views of `top`: the key, and the picture.
const VIEWS: [(&str, &str); 2] = [("3", "top.svg"), ("4", "top-reasons.svg")];
/// Panels of the dashboard, the picture of the first query of each, and its height, for a legend of few or many lines.
const PANELS: [(&str, &str, u32); 3] = [
    ("Share of the fast path", "share.png", 860),
    ("Packets into and out of the tunnel", "packets.png", 860),
    ("Why packets are left to the kernel", "reasons.png", 1130),
];
/// From here on `top` has rates to show.
const FLOWS: Duration = Duration::from_secs(10);
/// The fast path is switched off so long after the traffic begins,
const OFF: Duration = Duration::from_secs(35);
/// and on again,
const ON: Duration = Duration::from_secs(50);
/// and all that is what graphs show.
const SHOWN: Duration = Duration::from_secs(75);
/// How long `top` takes for another view.
const DRAWN: Duration = Duration::from_secs(3);

/// Somebody wants this to end.
static TOLD_TO_END: AtomicBool = AtomicBool::new(false);

#[derive(Args)]
pub(crate) struct PictureArgs {
    /// A `vxlan-lab` to use; without it, the lab and the agent are built
    #[arg(long)]
    lab: Option<PathBuf>,
    /// Where pictures are put
    #[arg(long, default_value = "docs/images")]
    to: PathBuf,
}

/// Makes all pictures anew.
///
/// # Errors
/// The machine cannot run a lab, something does not build, a tool fails, or somebody ended this. The
/// lab is taken down first.
pub(crate) fn make(args: &PictureArgs) -> Result<()> {
    host::prepare("pictures")?;
    host::install_tools(TOOLS)?;
    let binary = args.lab.clone().map_or_else(built, Ok)?;
    let to = workspace().join(&args.to);
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    end_in_order()?;
    let lab = Lab::up(&binary)?;
    let prometheus = Prometheus::start(&lab)?;
    let mut traffic = lab.traffic(SHOWN * 2)?;
    let begin = Instant::now();
    step("pictures of the terminal", || {
        wait_for(begin, FLOWS)?;
        screens(&lab, &to)
    })?;
    step("traffic while the fast path is on, off, and on", || {
        wait_for(begin, OFF)?;
        lab.agent(&["fastpath", "off"])?;
        wait_for(begin, ON)?;
        lab.agent(&["fastpath", "on"])?;
        wait_for(begin, SHOWN)
    })?;
    traffic.iter_mut().try_for_each(lab::Beside::still_runs)?;
    step("pictures of the dashboard's queries", || {
        PANELS
            .iter()
            .try_for_each(|(panel, file, height)| prometheus.draw(panel, SHOWN, *height, &to.join(file)))
    })
}

fn built() -> Result<PathBuf> {
    crate::lab::build_all()?;
    Ok(target_dir().join("release/vxlan-lab"))
}

/// `status`, and views of `top`.
fn screens(lab: &Lab, to: &Path) -> Result<()> {
    let status = Terminal::open(lab, "status", "; exec sleep 600")?;
    let top = Terminal::open(lab, "top", "")?;
    wait(DRAWN)?;
    svg::write(&to.join("status.svg"), "vxlan-agent status", &status.screen()?)?;
    VIEWS.iter().try_for_each(|(key, file)| {
        top.press(key)?;
        wait(DRAWN)?;
        svg::write(&to.join(file), "vxlan-agent top", &top.screen()?)
    })
}

/// Has SIGINT and SIGTERM end a wait with an error, so that all is cleaned up.
fn end_in_order() -> Result<()> {
    let note = SigAction::new(SigHandler::Handler(told), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic, which is safe in a signal handler.
        unsafe { sigaction(signal, &note) }?;
    }
    Ok(())
}

extern "C" fn told(_: c_int) {
    TOLD_TO_END.store(true, Ordering::Relaxed);
}

fn wait_for(begin: Instant, length: Duration) -> Result<()> {
    wait(length.saturating_sub(begin.elapsed()))
}

fn wait(length: Duration) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < length {
        ensure!(!TOLD_TO_END.load(Ordering::Relaxed), "ended by a signal");
        sleep(Duration::from_millis(100));
    }
    Ok(())
}
