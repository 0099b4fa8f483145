//! Files that several networks read: each is watched and read once. A user has few inotify instances.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use crate::text::Text;

/// How long a changed directory is left to settle: editors write, rename and remove in a row.
const SETTLE: Duration = Duration::from_millis(20);

/// What is in a file, or one sentence why it cannot be read.
pub(super) type Content = Result<Arc<Text>, String>;

/// Files that are followed.
static FOLLOWED: Mutex<BTreeMap<PathBuf, Weak<watch::Sender<Content>>>> = Mutex::new(BTreeMap::new());

/// The content of the file at `path` now, then every other that it gets. Slow receivers see the newest only.
pub(super) fn follow(path: &Path) -> anyhow::Result<watch::Receiver<Content>> {
    let mut followed = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(content) = followed.get(path).and_then(Weak::upgrade) {
        return Ok(content.subscribe());
    }
    let (poke, changed) = mpsc::channel(1);
    // Watch before reading, so that a change in between is not missed.
    let watcher = watch_directories(path, poke)?;
    let (out, receiver) = watch::channel(read(path));
    let out = Arc::new(out);
    followed.insert(path.to_owned(), Arc::downgrade(&out));
    tokio::spawn(keep_reading(path.to_owned(), changed, out, watcher));
    Ok(receiver)
}

fn read(path: &Path) -> Content {
    Text::read(path).map(Arc::new).map_err(|refused| refused.to_string())
}

/// Sends the content whenever it differs, until nobody follows the file any more.
async fn keep_reading(
    path: PathBuf,
    mut changed: mpsc::Receiver<()>,
    out: Arc<watch::Sender<Content>>,
    watcher: RecommendedWatcher,
) {
    let _keep_watching = watcher;
    loop {
        tokio::select! {
            told = changed.recv() => if told.is_none() { break },
            () = out.closed() => {
                let mut followed = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
                if out.is_closed() {
                    followed.remove(&path);
                    return;
                }
                continue;
            }
        }
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
        // A slow file system keeps nobody waiting.
        let at = path.clone();
        let Ok(content) = tokio::task::spawn_blocking(move || read(&at)).await else { break };
        out.send_if_modified(|before| {
            let differs = !is_same(before, &content);
            *before = content;
            differs
        });
    }
    FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
}

fn is_same(a: &Content, b: &Content) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => a.content() == b.content(),
        (Err(a), Err(b)) => a == b,
        _ => false,
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
