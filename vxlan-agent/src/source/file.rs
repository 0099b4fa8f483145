//! Cluster state from a TOML file that is the same on every node, watched with inotify.

mod sections;
mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Contact, Snapshot, Source};
use crate::cluster::Viewer;
use shared::Content;

pub use sections::{StateFile, parse_state};

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
}

impl Source for FileSource {
    fn contact(&self) -> Contact {
        Contact::made()
    }

    fn watch(self: Box<Self>) -> anyhow::Result<watch::Receiver<Snapshot>> {
        let mut contents = shared::follow(&self.path)?;
        let viewer = Arc::new(self.viewer);
        let (out, receiver) = watch::channel(seen(&contents.borrow_and_update(), &viewer));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = contents.changed() => if changed.is_err() { return },
                    () = out.closed() => return,
                }
                let (content, viewer) = (contents.borrow_and_update().clone(), Arc::clone(&viewer));
                // A long file keeps nobody waiting.
                let Ok(snapshot) = tokio::task::spawn_blocking(move || seen(&content, &viewer)).await else {
                    return;
                };
                if out.send(snapshot).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// What `viewer` sees in a file.
fn seen(content: &Content, viewer: &Viewer) -> Snapshot {
    let text = content.as_ref().map_err(Clone::clone)?;
    parse_state(text, viewer).map_err(|refused| refused.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    #[tokio::test]
    async fn many_networks_share_a_file() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, A).expect("write");
        // More than a user may have inotify instances.
        let source = || Box::new(FileSource::new(path.clone(), viewer())).watch().expect("watch");
        let mut receivers: Vec<_> = (0..500).map(|_| source()).collect();
        assert!(receivers.iter_mut().all(|receiver| receiver.borrow_and_update().is_ok()));
        std::fs::write(&path, "nonsense").expect("write");
        for receiver in &mut receivers {
            assert!(next(receiver).await.is_err());
        }
        // Once nobody follows it any more, it is read anew.
        drop(receivers);
        std::fs::write(&path, A).expect("write");
        assert!(
            tokio::time::timeout(Duration::from_secs(5), async {
                while source().borrow().is_err() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .is_ok()
        );
    }
}
