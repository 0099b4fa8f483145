//! Cluster state from a TOML file that is the same on every node, watched with inotify.

mod sections;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use super::{Snapshot, Source};
use crate::cluster::Viewer;
use crate::text::Text;

pub use sections::{StateFile, parse_state};

/// How long a changed directory is left to settle: editors write, rename and remove in a row.
const SETTLE: Duration = Duration::from_millis(20);

/// A state file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    viewer: Viewer,
}

impl FileSource {
    /// The file at `path`, seen by `viewer`.
    pub fn new(path: PathBuf, viewer: Viewer) -> Self {
        Self { path, viewer }
    }

    fn read(&self) -> (Option<String>, Snapshot) {
        let text = match Text::read(&self.path) {
            Ok(text) => text,
            Err(refused) => return (None, Err(refused.to_string())),
        };
        let snapshot = parse_state(&text, &self.viewer).map_err(|refused| refused.to_string());
        (Some(text.content().to_owned()), snapshot)
    }

    /// Sends a snapshot whenever the file's content differs from `seen`.
    async fn follow(
        self,
        mut seen: Option<String>,
        mut changed: mpsc::Receiver<()>,
        out: watch::Sender<Snapshot>,
        watcher: RecommendedWatcher,
    ) {
        let _keep_watching = watcher;
        let source = Arc::new(self);
        loop {
            tokio::select! {
                told = changed.recv() => if told.is_none() { return },
                () = out.closed() => return,
            }
            tokio::time::sleep(SETTLE).await;
            while changed.try_recv().is_ok() {}
            // A slow file system or a long file keeps nobody waiting.
            let source = Arc::clone(&source);
            let Ok((content, snapshot)) = tokio::task::spawn_blocking(move || source.read()).await else {
                return;
            };
            if content == seen {
                continue;
            }
            seen = content;
            if out.send(snapshot).is_err() {
                return;
            }
        }
    }
}

impl Source for FileSource {
    fn watch(self: Box<Self>) -> anyhow::Result<watch::Receiver<Snapshot>> {
        let (poke, changed) = mpsc::channel(1);
        // Watch before reading, so that a change in between is not missed.
        let watcher = watch_directories(&self.path, poke)?;
        let (content, snapshot) = self.read();
        let (out, receiver) = watch::channel(snapshot);
        tokio::spawn(self.follow(content, changed, out, watcher));
        Ok(receiver)
    }
}

/// Watches the file's directory, because an editor replaces the file; where the file is a symbolic
/// link, that of its target too.
fn watch_directories(path: &Path, poke: mpsc::Sender<()>) -> anyhow::Result<RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        // A full channel already says all there is to say; that somebody read the file says nothing.
        if !event.is_ok_and(|e| e.kind.is_access()) {
            let _ = poke.try_send(());
        }
    };
    let mut watcher =
        notify::recommended_watcher(told).context("cannot watch files: inotify is not available")?;
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut directories: Vec<PathBuf> =
        [path, &real].iter().filter_map(|p| p.parent()).map(Path::to_owned).collect();
    directories.dedup();
    for directory in directories {
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let context = || format!("cannot watch the state file's directory {}", directory.display());
        watcher.watch(&directory, RecursiveMode::NonRecursive).with_context(context)?;
    }
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Vni;

    fn viewer() -> Viewer {
        Viewer {
            node: "a".into(),
            network: "pods".into(),
            l2: false,
            vni: Vni::try_from(1).expect("in range"),
        }
    }

    const A: &str =
        "[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\nsubnets = [\"10.1.0.0/24\", \"fd00:1::/64\"]\n";

    async fn next(receiver: &mut watch::Receiver<Snapshot>) -> Snapshot {
        tokio::time::timeout(Duration::from_secs(5), receiver.changed())
            .await
            .expect("in time")
            .expect("alive");
        receiver.borrow_and_update().clone()
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_read_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, A).expect("write");
        let mut receiver = Box::new(FileSource::new(path.clone(), viewer())).watch().expect("watch");
        assert!(receiver.borrow_and_update().is_ok());

        std::fs::write(&path, "nonsense").expect("write");
        assert!(next(&mut receiver).await.expect_err("nonsense").contains("line 1"));

        let temporary = dir.path().join(".cluster.toml.swp");
        std::fs::write(&temporary, format!("{A}[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\n"))
            .expect("write");
        std::fs::rename(&temporary, &path).expect("rename");
        assert_eq!(next(&mut receiver).await.expect("valid").remotes.len(), 1);

        std::fs::remove_file(&path).expect("remove");
        assert!(next(&mut receiver).await.expect_err("gone").contains("cannot be read"));
    }
}
