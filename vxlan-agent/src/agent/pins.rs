//! Notices that somebody takes pins of ours away: bpffs tells inotify, like any file system.

use std::path::Path;

use anyhow::Context as _;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// A watch over the pins of the datapath that is loaded.
pub(super) struct PinWatch {
    poke: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
}

impl PinWatch {
    /// A watch over nothing yet, and where it tells that something is gone.
    pub(super) fn new() -> (Self, mpsc::Receiver<()>) {
        let (poke, gone) = mpsc::channel(1);
        (Self { poke, watcher: None }, gone)
    }

    /// Watches `directories`, and no others any more.
    pub(super) fn follow<P: AsRef<Path>>(&mut self, directories: &[P]) -> anyhow::Result<()> {
        let poke = self.poke.clone();
        let told = move |event: notify::Result<notify::Event>| {
            let removes =
                |kind| matches!(kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
            // A full channel already says all there is to say.
            if event.is_ok_and(|event| removes(event.kind)) {
                let _ = poke.try_send(());
            }
        };
        let mut watcher =
            notify::recommended_watcher(told).context("cannot watch the pins: inotify is not available")?;
        for directory in directories {
            let context = || format!("cannot watch the pins in {}", directory.as_ref().display());
            watcher.watch(directory.as_ref(), RecursiveMode::NonRecursive).with_context(context)?;
        }
        self.watcher = Some(watcher);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_made_is_no_news_but_what_is_removed_is() {
        let dir = tempfile::tempdir().expect("directory");
        let (mut watch, mut gone) = PinWatch::new();
        watch.follow(&[dir.path()]).expect("a watch");
        let pin = dir.path().join("MAP");
        std::fs::write(&pin, "").expect("made");
        std::fs::remove_file(&pin).expect("removed");
        assert_eq!(gone.recv().await, Some(()));
        assert!(gone.try_recv().is_err(), "told once, of the removal");
    }
}
