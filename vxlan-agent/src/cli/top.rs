//! `top`: what goes on, live.

use std::time::Duration;

use super::{Subject, print, runtime};
use crate::top::{self, Reader};

pub(super) fn run(
    subject: &Subject,
    json: bool,
    interval: Duration,
    count: Option<u32>,
) -> anyhow::Result<()> {
    let node = &subject.config.node;
    let only = (!subject.all).then(|| subject.networks().map(str::to_owned).collect());
    let reader = Reader::new(node.pins(), node.run_dir.clone(), only);
    if json {
        return runtime()?.block_on(top::print(reader, interval, count, print));
    }
    let runtime = runtime()?;
    let ended = runtime.block_on(top::run(reader, interval));
    // The thread that waits for keys is not waited for.
    runtime.shutdown_background();
    ended
}
