//! `check`: whether a configuration and its state files will do, before an agent reads them.

mod dry_run;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use super::{Invalid, print, print_json, runtime};
use crate::agent::survey;
use crate::cluster::ClusterState;
use crate::config::{Config, DEFAULT_PATH, Examination, StateConfig, View};
use crate::report::source;
use crate::source::StateFile;
use crate::text::{Refused, Text};
use dry_run::Plan;

/// What to check.
#[derive(Args)]
pub(super) struct Check {
    /// The configuration; without it that of --config, or /etc/vxlan-agent/config.toml.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Look at this machine, too: whether the networks can run on it, and what an agent would change in the kernel's
    /// tables now, as a diff. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    file: PathBuf,
    valid: bool,
    /// Name of this node, where it is known.
    node: Option<String>,
    problems: Vec<Problem>,
    networks: Vec<Line>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
}

/// Something that is wrong.
#[derive(Clone, Serialize)]
struct Problem {
    file: PathBuf,
    line: Option<usize>,
    reason: String,
    mend: Option<&'static str>,
}

/// A network that nothing is wrong with in the configuration.
#[derive(Serialize)]
struct Line {
    name: String,
    kind: &'static str,
    vni: Option<u32>,
    port: Option<u16>,
    source: &'static str,
    state_file: Option<PathBuf>,
    /// How many other nodes its state file has.
    nodes: Option<usize>,
}

/// The networks of a configuration and their clusters, as far as nothing is wrong with them.
struct Checked {
    path: PathBuf,
    config: Option<Config>,
    /// By network.
    clusters: BTreeMap<String, ClusterState>,
    problems: Vec<Problem>,
}

/// Says whether the configuration will do.
///
/// # Errors
/// [`Invalid`] if it will not.
pub(super) fn show(
    options: &Check,
    config: Option<&Path>,
    network: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    ensure!(network.is_none(), "a configuration is checked as a whole: leave --network out");
    let path = options.file.as_deref().or(config).unwrap_or(Path::new(DEFAULT_PATH));
    let mut checked = Checked::read(path);
    let plan = match options.dry_run {
        true => Some(runtime()?.block_on(dry_run::compare(&mut checked))?),
        false => None,
    };
    let report = Report { plan, ..checked.report() };
    if json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    if report.valid { Ok(()) } else { Err(Invalid.into()) }
}

impl Checked {
    /// Reads and checks the configuration at `path` and all files that it names.
    fn read(path: &Path) -> Self {
        let Examination { config, refused } = Config::examine(path);
        let path = path.to_owned();
        let problems = refused.into_iter().map(Problem::from).collect();
        let mut checked = Self { path, config, clusters: BTreeMap::new(), problems };
        checked.read_states();
        checked.compare_networks();
        checked
    }

    fn read_states(&mut self) {
        let (mut texts, mut refused) = (BTreeMap::new(), vec![]);
        for view in self.config.iter().flat_map(|config| &config.networks) {
            refused.extend(credentials(&view.state).into_iter().filter_map(unreadable));
            let StateConfig::File(path) = &view.state else { continue };
            match texts.entry(path).or_insert_with(|| Text::read(path)) {
                Ok(text) => {
                    let (cluster, wrong) = StateFile::examine(text, &survey::viewer(view));
                    refused.extend(wrong);
                    self.clusters.extend(cluster.map(|cluster| (view.network.name.clone(), cluster)));
                }
                Err(error) => refused.push(error.clone()),
            }
        }
        // Networks that share a file share its mistakes.
        let mut told: Vec<Refused> = vec![];
        for refused in refused {
            if !told.contains(&refused) {
                told.push(refused);
            }
        }
        self.problems.extend(told.into_iter().map(Problem::from));
    }

    /// Networks that cannot run side by side.
    fn compare_networks(&mut self) {
        let with_cluster = |view: &View| Some((view.clone(), self.clusters.get(&view.network.name)?.clone()));
        let networks = self.config.iter().flat_map(|config| &config.networks).filter_map(with_cluster);
        let collisions = survey::collisions(networks.collect());
        let problem = |reason| Problem { file: self.path.clone(), line: None, reason, mend: None };
        self.problems.extend(collisions.into_iter().map(problem).collect::<Vec<_>>());
    }

    fn report(&self) -> Report {
        let networks = self.config.iter().flat_map(|config| &config.networks).map(|view| self.line(view));
        Report {
            file: self.path.clone(),
            valid: self.problems.is_empty(),
            node: self.config.as_ref().map(|config| config.node.name.clone()),
            problems: self.problems.clone(),
            networks: networks.collect(),
            plan: None,
        }
    }

    fn line(&self, view: &View) -> Line {
        let network = &view.network;
        let known = !network.is_accelerated();
        Line {
            name: network.name.clone(),
            kind: network.kind.word(),
            vni: known.then(|| network.vni.get()),
            port: known.then_some(network.port),
            source: source(&view.state),
            state_file: match &view.state {
                StateConfig::File(path) => Some(path.clone()),
                _ => None,
            },
            nodes: self.clusters.get(&network.name).map(ClusterState::remote_nodes),
        }
    }
}

/// Files that a source needs to log in.
fn credentials(state: &StateConfig) -> Vec<&Path> {
    match state {
        StateConfig::File(_) | StateConfig::Device => vec![],
        StateConfig::Kubernetes(kubernetes) => kubernetes.kubeconfig.iter().map(PathBuf::as_path).collect(),
        StateConfig::Etcd(etcd) => {
            let own = etcd.access.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
            own.chain(&etcd.access.ca_file).map(PathBuf::as_path).collect()
        }
    }
}

fn unreadable(path: &Path) -> Option<Refused> {
    let error = File::open(path).err()?;
    Some(Refused { path: path.to_owned(), line: None, reason: format!("cannot be read: {error}") })
}

impl From<Refused> for Problem {
    fn from(Refused { path, line, reason }: Refused) -> Self {
        let mend = mend(&reason);
        Self { file: path, line, reason, mend }
    }
}

/// What to do, where the reason itself does not say it.
fn mend(reason: &str) -> Option<&'static str> {
    let all = [
        (
            "cannot be read",
            "make the file, or correct the path to it; it has to be readable for the agent's user",
        ),
        (
            "unknown field",
            "correct the key, or move it to the section that it belongs to: docs/configuration.md lists all keys",
        ),
        ("missing field", "add the key to the section that begins there"),
        ("duplicate key", "leave one of the two out"),
    ];
    all.into_iter().find(|(begin, _)| reason.starts_with(begin)).map(|(_, mend)| mend)
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for Problem { file, line, reason, mend } in &report.problems {
        let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
        let _ = writeln!(out, "{}{line}: {reason}", file.display());
        let _ = mend.map(|mend| writeln!(out, "    {mend}"));
    }
    let file = report.file.display();
    if !report.valid {
        let count = report.problems.len();
        let s = if count == 1 { "" } else { "s" };
        let _ = writeln!(
            out,
            "{file} will not do: {count} mistake{s}. No agent starts with it; one that runs goes on as it is"
        );
        return out;
    }
    let node = report.node.as_deref().unwrap_or_default();
    let _ = writeln!(out, "{file} will do, on node {node}");
    for Line { name, kind, vni, port, source, state_file, nodes } in &report.networks {
        let _ = write!(out, "  network {name}: {kind}");
        let _ = vni.map(|vni| write!(out, ", VNI {vni}"));
        let _ = port.map(|port| write!(out, ", port {port}"));
        let _ = match (state_file, nodes) {
            (Some(file), Some(nodes)) => writeln!(out, ", {nodes} other nodes in {}", file.display()),
            _ => writeln!(out, ", its nodes come from: {source}"),
        };
    }
    out += &report.plan.as_ref().map(Plan::text).unwrap_or_default();
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CONFIG: &str = "[node]\nname = \"a\"\n[state]\nsource = \"file\"\npath = \"state.toml\"\n\
                          [[network]]\nname = \"pods\"\nvni = 1\n";
    const STATE: &str = "[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\nsubnets = [\"10.1.0.0/24\"]\n\
                         [[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nsubnets = [\"10.2.0.0/24\"]\n";

    fn check(config: &str, state: Option<&str>) -> Report {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("config.toml"), config).expect("written");
        if let Some(state) = state {
            fs::write(dir.path().join("state.toml"), state).expect("written");
        }
        Checked::read(&dir.path().join("config.toml")).report()
    }

    #[track_caller]
    fn assert_told(report: &Report, expected: &[(&str, Option<usize>, &str)]) {
        let told = text(report);
        assert_eq!(report.problems.len(), expected.len(), "{told}");
        for (problem, (file, line, word)) in report.problems.iter().zip(expected) {
            let is_it =
                problem.file.ends_with(file) && problem.line == *line && problem.reason.contains(word);
            assert!(is_it, "{file} {line:?} {word}: {told}");
        }
        assert_eq!(report.valid, expected.is_empty());
    }

    #[test]
    fn a_configuration_that_will_do_is_told_with_its_networks() {
        let report = check(CONFIG, Some(STATE));
        assert_told(&report, &[]);
        let told = text(&report);
        assert!(told.contains("will do, on node a"), "{told}");
        assert!(told.contains("network pods: l3, VNI 1, port 8472, 1 other nodes in "), "{told}");
    }

    #[test]
    fn mistakes_of_configuration_and_state_file_are_told_together() {
        let config = format!("{CONFIG}flow = 9\n[[network]]\nname = \"red\"\nvni = 2\n");
        let report = check(&config, Some(&STATE.replace("192.0.2.2", "192.0.2.1")));
        assert_told(
            &report,
            &[("config.toml", Some(9), "unknown field `flow`"), ("state.toml", Some(5), "same VTEP address")],
        );
        assert!(text(&report).contains("2 mistakes. No agent starts with it"), "{}", text(&report));
        assert!(report.problems[0].mend.is_some());
    }

    #[test]
    fn files_that_are_missing_are_named() {
        assert_told(&check(CONFIG, None), &[("state.toml", None, "cannot be read")]);
        let kubernetes =
            CONFIG.replace("\"file\"\npath = \"state.toml\"", "\"kubernetes\"\nkubeconfig = \"kube\"");
        assert_told(&check(&kubernetes, None), &[("kube", None, "cannot be read")]);
        assert_told(
            &Checked::read(Path::new("/none/c.toml")).report(),
            &[("c.toml", None, "cannot be read")],
        );
    }

    #[test]
    fn networks_that_share_a_file_share_its_mistakes_and_no_subnets() {
        let two = format!("{CONFIG}[[network]]\nname = \"red\"\nvni = 2\n");
        assert_told(&check(&two, Some("[[node]\n")), &[("state.toml", Some(1), "")]);
        assert_told(&check(&two, Some(STATE)), &[("config.toml", None, "10.1.0.0/24")]);
    }
}
