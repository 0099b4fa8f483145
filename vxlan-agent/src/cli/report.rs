//! `report`: one archive with everything that a maintainer needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use vxlan_ebpf_common::maps::LAYOUT_VERSION;

use super::status::Report;
use super::{Subject, What, dump, features, file, flows, json_text, print, print_json, runtime};
use crate::archive::{Archive, Secrets, kernel, settings, state_files};
use crate::config::SNIPPETS;
use crate::config::flannel::NET_CONF;
use crate::datapath::KernelFeatures;
use crate::ownership;
use crate::{node, preflight, status};

/// The longest file that is taken in, in bytes.
const LARGEST: u64 = 8 << 20;

/// Environment variables with secrets that flannel's configuration may come from.
const SECRET_VARIABLES: [&str; 2] = ["FLANNELD_ETCD_PASSWORD", "FLANNELD_ETCD_USERNAME"];

/// Writes the archive to `output`, or to standard output if that is `-`.
pub(super) fn write(
    subject: anyhow::Result<Subject>,
    given: Option<&Path>,
    output: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let to_stdout = output == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("the archive is not text: redirect standard output, or name a file with -o");
    }
    let archive = runtime()?.block_on(collect(subject, given));
    if to_stdout {
        return archive.write(std::io::stdout().lock());
    }
    write_file(&archive, output)?;
    if json {
        let (file, not_collected) = (output.display().to_string(), archive.failed());
        return print_json(
            &serde_json::json!({ "file": file, "parts": archive.names(), "not_collected": not_collected }),
        );
    }
    archive
        .failed()
        .iter()
        .for_each(|failed| _ = write!(std::io::stderr(), "vxlan-agent: warning: {failed}"));
    print(&format!("{}: {} files, secrets left out\n", output.display(), archive.names().len()))
}

/// For this user's eyes alone.
fn write_file(archive: &Archive, path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let context = || format!("cannot write {}", path.display());
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    archive.write(file.with_context(context)?).with_context(context)
}

async fn collect(subject: anyhow::Result<Subject>, given: Option<&Path>) -> Archive {
    let files = configuration_files(given);
    let mut secrets = Secrets::default();
    files.iter().filter_map(|(_, text)| text.as_ref().ok()).for_each(|text| secrets.learn(text));
    SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok()).for_each(|value| secrets.know(value));
    let mut archive = Archive::new(secrets);
    archive.add("versions.txt", versions());
    let texts: Vec<String> = files.iter().filter_map(|(_, text)| text.as_ref().ok().cloned()).collect();
    for (name, text) in files {
        archive.add(&format!("configuration/{name}"), text);
    }
    let base = file(given).and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    cluster(&mut archive, &base, &texts);
    let features = KernelFeatures::probe();
    archive.add("features.txt", features::text(&features));
    archive.add("features.json", json_text(&features));
    archive.add("sysctl.txt", Ok(settings()));
    archive.add("programs.txt", Ok(programs()));
    let tables = match &subject {
        Ok(subject) => of_subject(&mut archive, subject).await,
        Err(error) => {
            archive.add("status.txt", Err(anyhow::anyhow!("{error:#}")));
            vec![]
        }
    };
    kernel(&mut archive, &tables).await;
    archive
}

/// What status and pins show; the names of our nf_tables tables.
async fn of_subject(archive: &mut Archive, subject: &Subject) -> Vec<String> {
    let node = &subject.config.node;
    match Report::gather(subject).await {
        Ok(report) => {
            archive.add("status.txt", Ok(report.text(subject, false)));
            archive.add("status.json", report.json());
        }
        Err(error) => archive.add("status.txt", Err(error)),
    }
    let written = fs::read_to_string(status::file(&node.run_dir));
    archive.add("status-file.json", written.context("cannot read the status file"));
    for what in What::value_variants() {
        let name = what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        archive.add(&format!("maps/{name}.txt"), dump::text(subject, *what, false));
        archive.add(&format!("maps/{name}.json"), dump::text(subject, *what, true));
    }
    archive.add("maps/flows.txt", flows::text(subject, false));
    archive.add("maps/flows.json", flows::text(subject, true));
    archive.add("pins.txt", pins(&node.pin_dir));
    let named = node::named_tables().unwrap_or_default();
    let own = subject.networks().filter(|name| named.iter().any(|table| table == name));
    own.map(ownership::nft_table).chain([ownership::tunnel_table(&node.pin_dir)]).collect()
}

/// Files with cluster state, which have no secrets in them but what is left out of everything.
fn cluster(archive: &mut Archive, base: &Path, configuration: &[String]) {
    let paths: BTreeSet<PathBuf> = configuration.iter().flat_map(|text| state_files(text)).collect();
    for path in paths.iter().map(|path| base.join(path)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("cluster/{name}"), read(&path));
    }
}

fn versions() -> anyhow::Result<String> {
    Ok(format!(
        "vxlan-agent {}\nmap layout {LAYOUT_VERSION}\nLinux {}\nmachine {}\nCPUs {}\n",
        env!("CARGO_PKG_VERSION"),
        preflight::kernel_release()?,
        nix::sys::utsname::uname()?.machine().to_string_lossy(),
        std::thread::available_parallelism()?,
    ))
}

/// The configuration as it is now, by file name, refused or not.
fn configuration_files(given: Option<&Path>) -> Vec<(String, anyhow::Result<String>)> {
    let ours = file(given).unwrap_or_else(|| PathBuf::from(NET_CONF));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut files = vec![(name(&ours), read(&ours))];
    let snippets = ours.with_file_name(SNIPPETS);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&snippets).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    files.extend(paths.iter().map(|path| (format!("{SNIPPETS}/{}", name(path)), read(path))));
    files
}

/// A regular file of a bearable size.
fn read(path: &Path) -> anyhow::Result<String> {
    let about = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !about.is_file() || about.len() > LARGEST {
        bail!("{} is no regular file of at most {} MiB", path.display(), LARGEST >> 20);
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Everything that is pinned, of all versions.
fn pins(dir: &Path) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut below = vec![dir.to_owned()];
    while let Some(dir) = below.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            out += &format!("{}\n", path.display());
            if path.is_dir() && !path.is_symlink() {
                below.push(path);
            }
        }
    }
    Ok(out)
}

/// Programs at the edges of all interfaces as the kernel has them, ours and others'.
fn programs() -> String {
    use aya::programs::{SchedClassifier, TcAttachType};
    let mut out = String::new();
    for interface in nix::net::if_::if_nameindex().iter().flatten() {
        for (edge, kind) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            if let Ok((_, programs)) = SchedClassifier::query_tcx(interface.index(), kind) {
                let ids: Vec<String> = programs.iter().map(|program| program.id().to_string()).collect();
                if !ids.is_empty() {
                    let name = interface.name().to_string_lossy();
                    out += &format!("{name} {edge} tcx: programs {}\n", ids.join(", "));
                }
            }
        }
    }
    out + "XDP programs are in kernel/links.txt, filters in kernel/traffic-control.txt.\n"
}
