//! Watches the configuration and reads it anew when it changes.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::config::{Config, SNIPPETS};

/// How long changed directories are left to settle: editors write, rename and remove in a row.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the configuration is read anew, in case a notification was missed.
const ANYHOW: Duration = Duration::from_secs(60);

/// A configuration, or one sentence why what there is was refused.
pub(super) type Read = Result<Config, String>;

/// Follows the configuration file at `path` and the snippets beside it. What is received differs from what came
/// before, which was `known` at first.
pub(super) fn follow(path: PathBuf, known: Config) -> mpsc::Receiver<Read> {
    let (out, received) = mpsc::channel(1);
    tokio::spawn(keep_reading(path, Ok(known), out));
    received
}

/// Reads and checks the configuration at `path`, as an agent that starts does.
fn read(path: &Path) -> Read {
    Config::read(path).map_err(|refused| refused.to_string())
}

async fn keep_reading(path: PathBuf, mut seen: Read, out: mpsc::Sender<Read>) {
    let (poke, mut changed) = mpsc::channel(1);
    let (mut watched, mut watcher) = (BTreeSet::new(), None);
    loop {
        // Watch before reading, so that a change in between is not missed.
        let places = places(&path);
        if watcher.is_none() || places != watched {
            let begun = watch(&path, &places, poke.clone());
            watcher = begun.inspect_err(|error| tracing::warn!("{error:#}")).ok();
            watched = places;
        }
        // A slow file system keeps nobody waiting.
        let file = path.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || read(&file)).await else { return };
        if now != seen {
            seen = now.clone();
            if out.send(now).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = changed.recv() => {}
            () = tokio::time::sleep(ANYHOW) => {}
            () = out.closed() => return,
        }
        tokio::time::sleep(SETTLE).await;
        while changed.try_recv().is_ok() {}
    }
}

/// A directory. One that is removed and made again is another one.
type Place = (PathBuf, u64, u64);

/// The directories in which the configuration may change: that of the file, because an editor replaces it, and
/// the one with snippets; where one of the files is a symbolic link, that of its target, too.
fn places(path: &Path) -> BTreeSet<Place> {
    let base = parent(path);
    let snippets = base.join(SNIPPETS);
    let files = snippets.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.chain([path.to_owned(), snippets.clone()]);
    let targets: Vec<PathBuf> = files.filter_map(|file| Some(parent(&file.canonicalize().ok()?))).collect();
    let place = |directory: PathBuf| {
        let found = directory.metadata().ok().filter(std::fs::Metadata::is_dir)?;
        Some((directory, found.dev(), found.ino()))
    };
    targets.into_iter().chain([base, snippets]).filter_map(place).collect()
}

fn parent(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

fn watch(
    path: &Path,
    places: &BTreeSet<Place>,
    poke: mpsc::Sender<()>,
) -> anyhow::Result<RecommendedWatcher> {
    let own: Vec<OsString> = [path.to_owned(), path.canonicalize().unwrap_or_default()]
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_owned()))
        .collect();
    let told = move |event: notify::Result<notify::Event>| {
        // A full channel already says all there is to say.
        if event.is_ok_and(|event| is_news(&event, &own)) {
            let _ = poke.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(told)
        .context("cannot watch the configuration: inotify is not available")?;
    for (directory, ..) in places {
        let context = || format!("cannot watch the configuration in {}", directory.display());
        watcher.watch(directory, RecursiveMode::NonRecursive).with_context(context)?;
    }
    Ok(watcher)
}

/// Whether the configuration may be another one. What is written to other files beside it is nobody's business
/// here; `own` are the names of the configuration file.
fn is_news(event: &notify::Event, own: &[OsString]) -> bool {
    let is_ours = |path: &PathBuf| {
        path.extension() == Some(OsStr::new("toml"))
            || path.file_name().is_some_and(|name| own.iter().any(|known| known == name))
    };
    match event.kind {
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => event.paths.iter().any(is_ours),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn network(name: &str, vni: u32) -> String {
        format!(
            "[[network]]\nname = \"{name}\"\nvni = {vni}\nfastpath = \"off\"\n\
             [network.state]\nsource = \"file\"\npath = \"/s.toml\"\n"
        )
    }

    /// Follows a new configuration in `dir`, by way of `path`.
    fn follow_new(path: PathBuf) -> mpsc::Receiver<Read> {
        let known = read(&path).expect("valid");
        follow(path, known)
    }

    async fn names(received: &mut mpsc::Receiver<Read>) -> Result<Vec<String>, String> {
        let next = tokio::time::timeout(Duration::from_secs(5), received.recv()).await;
        let config = next.expect("in time").expect("alive")?;
        Ok(config.networks.iter().map(|view| view.network.name.clone()).collect())
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_is_followed() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("config.toml");
        fs::write(&path, network("a", 1)).expect("written");
        let mut received = follow_new(path.clone());
        let snippets = dir.path().join(SNIPPETS);
        for _ in 0..2 {
            fs::create_dir(&snippets).expect("made");
            tokio::time::sleep(SETTLE * 5).await;
            fs::write(snippets.join("b.toml"), network("b", 2)).expect("written");
            assert_eq!(names(&mut received).await.expect("valid"), ["a", "b"]);
            fs::write(snippets.join("b.toml"), network("b", 0)).expect("written");
            let refused = names(&mut received).await.expect_err("no VNI");
            assert!(refused.contains("b.toml") && refused.contains("out of range"), "{refused}");
            fs::remove_dir_all(&snippets).expect("removed");
            assert_eq!(names(&mut received).await.expect("valid"), ["a"]);
        }
        let new = dir.path().join("new");
        fs::write(&new, network("c", 3)).and_then(|()| fs::rename(&new, &path)).expect("replaced");
        assert_eq!(names(&mut received).await.expect("valid"), ["c"]);
    }

    #[tokio::test]
    async fn a_config_map_that_is_swapped_is_read_anew() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", network("a", 1)), ("..2", network("b", 2))] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("config.toml"), text).expect("written");
        }
        symlink("..1", at("..data")).expect("a link");
        symlink("..data/config.toml", at("config.toml")).expect("a link");
        let mut received = follow_new(at("config.toml"));
        tokio::time::sleep(SETTLE * 5).await;
        symlink("..2", at("..tmp")).and_then(|()| fs::rename(at("..tmp"), at("..data"))).expect("a swap");
        assert_eq!(names(&mut received).await.expect("valid"), ["b"]);
    }

    #[tokio::test]
    async fn what_is_written_beside_the_configuration_is_no_news() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("config.toml");
        fs::write(&path, network("a", 1)).expect("written");
        let written = notify::Event::new(EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any)));
        let own = [OsString::from("agent.conf")];
        assert!(!is_news(&written.clone().add_path(dir.path().join("agent.log")), &own));
        assert!(is_news(&written.clone().add_path(dir.path().join("agent.conf")), &own));
        assert!(is_news(&written.add_path(path), &own));
    }
}
