//! Agents of a lab: configuration, process, command line.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use vxlan_agent::config::SNIPPETS;
use vxlan_agent::ownership::{node_pin_dir, tunnel_table};

use super::agent_files::{Place, etcd_section, file_section, node_lines, write_flannel_files};
use super::cmd::{self, wait_until};
use super::site::Site;
use super::{Counters, DEVICE, Lab, LabSpec, Netns, PORT, UNDERLAY, VNI, addr, etcd, kubernetes};

const READY_WITHIN: Duration = Duration::from_secs(20);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);

/// Set to `native`, every agent of a lab that is not told otherwise attaches its XDP program, on a veth,
/// too: so the same tests run over both ways of decapsulation.
pub const XDP: &str = "VXLAN_LAB_XDP";

/// Name of the network in the agents' configuration.
pub const NETWORK: &str = "pods";

/// How an agent is told which devices of somebody else's to accelerate.
#[derive(Clone, Debug)]
pub enum Beside {
    /// By its configuration.
    Configured(Vec<&'static str>),
    /// By its command line, in the foreground.
    CommandLine(Vec<&'static str>),
}

/// How an agent is configured.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The network's `fastpath` mode.
    pub fastpath: String,
    /// Runs it with flannel's configuration file, flannel's flags and these.
    pub flannel: Option<Vec<String>>,
    /// Further lines of the `[node]` section.
    pub node: String,
    /// Further lines of the `[[network]]` section.
    pub network: String,
    /// Further sections.
    pub sections: String,
    /// A command that runs the agent in its place, with the agent's command line behind it.
    pub wrapper: Vec<String>,
    /// Another agent than [`agent_binary`].
    pub program: Option<PathBuf>,
    /// Has it accelerate devices of somebody else's, instead of running a network.
    pub beside: Option<Beside>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            fastpath: "direct".into(),
            flannel: None,
            node: String::new(),
            network: String::new(),
            sections: String::new(),
            wrapper: vec![],
            program: None,
            beside: None,
        }
    }
}

impl AgentOptions {
    /// The fast path in mode `verified`.
    pub fn verified() -> Self {
        Self { fastpath: "verified".into(), ..Self::default() }
    }

    /// What accelerates `device` of somebody else's.
    pub fn beside(fastpath: &str, device: &'static str) -> Self {
        let beside = Some(Beside::Configured(vec![device]));
        Self { fastpath: fastpath.into(), beside, ..Self::default() }
    }
}

/// What [`XDP`] asks for.
pub fn xdp() -> Option<String> {
    std::env::var(XDP).ok()
}

/// An agent of a node; its process may be running or not.
pub struct Agent {
    node: String,
    ns: Netns,
    config: PathBuf,
    /// What it is started with.
    command: Vec<String>,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
    pin_dir: PathBuf,
    /// Pods whose addresses the fast path has to know before the agent counts as ready; 0 with the
    /// fast path off.
    pods: usize,
    wrapper: Vec<String>,
    program: Option<PathBuf>,
    child: Option<Child>,
}

impl Agent {
    /// Writes the configuration for node `n`; starts nothing.
    pub(super) fn new(lab: &Lab, spec: &LabSpec, n: u8, options: &AgentOptions) -> Result<Self> {
        let node = format!("n{n}");
        let place = Place::of(&lab.site, &node)?;
        let state = match (&lab.kubernetes, &lab.etcd) {
            (Some(kubernetes), _) => {
                format!("source = \"kubernetes\"\nkubeconfig = {:?}\n", kubernetes.kubeconfig())
            }
            (None, Some(etcd)) => {
                // It has had its subnet before.
                std::fs::write(place.run_dir.join("subnet.env"), etcd::subnet_file(n))?;
                etcd_section(etcd, &place.run_dir)
            }
            (None, None) => file_section(&lab.site),
        };
        // In Kubernetes and etcd the agent finds its addresses, and gives the devices flannel's names.
        let address = match (&lab.kubernetes, &lab.etcd) {
            (None, None) => Some(addr::underlay(spec.underlay, n)),
            _ => None,
        };
        let text = format!(
            "{section}\n\
             [[network]]\nname = \"{network}\"\nkind = \"l3\"\nvni = {VNI}\nport = {PORT}\n\
             mtu = \"auto\"\ndevice = \"{DEVICE}\"\nfastpath = \"{mode}\"\n{extra}\n\
             [state]\n{state}\n{sections}",
            section = place.node_section(address, options),
            mode = options.fastpath,
            extra = options.network,
            sections = options.sections,
            network = if options.flannel.is_some() { "flannel" } else { NETWORK },
        );
        let text = match &options.beside {
            Some(beside) => place.node_section(None, options) + &sections_of(beside, options),
            None => text,
        };
        let mut agent = Self::with_config(&lab.site, place, &text, options)?;
        if let Some(Beside::CommandLine(devices)) = &options.beside {
            agent.accelerate(devices, &options.fastpath);
        }
        agent.pods = if options.fastpath == "off" { 0 } else { lab.node(n).pods.len() };
        if let Some(flags) = &options.flannel {
            agent.run_as_flannel(lab, options, flags)?;
        }
        Ok(agent)
    }

    /// Writes the configuration `text` for the node at `place`; starts nothing.
    pub(super) fn with_config(site: &Site, place: Place, text: &str, options: &AgentOptions) -> Result<Self> {
        let Place { node, run_dir: _, pin_dir } = place;
        // In a directory of its own, for further networks.
        let config = site.run_dir().join(format!("{node}.d")).join("config.toml");
        std::fs::create_dir_all(config.with_file_name(SNIPPETS))?;
        std::fs::write(&config, text)?;
        Ok(Self {
            ns: site.namespace(&node)?,
            command: vec!["run".into(), "--config".into(), config.display().to_string()],
            environment: vec![],
            log: site.run_dir().join(format!("{node}.log")),
            pods: 0,
            wrapper: options.wrapper.clone(),
            program: options.program.clone(),
            child: None,
            node,
            config,
            pin_dir,
        })
    }

    /// Has its command line say which devices it accelerates.
    fn accelerate(&mut self, devices: &[&str], fastpath: &str) {
        let devices = devices.iter().map(|device| (*device).to_owned());
        let words = ["accelerate", "--fastpath", fastpath].map(str::to_owned).into_iter();
        let config = ["--config".to_owned(), self.config.display().to_string()];
        self.command = words.chain(devices).chain(config).collect();
    }

    /// Makes it start with flannel's configuration file and flags, where there is a cluster for that.
    fn run_as_flannel(&mut self, lab: &Lab, options: &AgentOptions, flags: &[String]) -> Result<()> {
        let run_dir = lab.run_dir().join(&self.node);
        let net_conf = run_dir.join("net-conf.json");
        let more = node_lines(options);
        let usual = match (&lab.kubernetes, &lab.etcd) {
            (Some(kubernetes), _) => {
                write_flannel_files(&run_dir, &self.pin_dir, &options.fastpath, &more)?;
                // As flannel's manifest has it: which node this is, the API server has to say.
                kubernetes.run_pod(&self.node)?;
                self.environment.push(("POD_NAMESPACE", kubernetes::NAMESPACE.to_owned()));
                self.environment.push(("POD_NAME", format!("{}{}", kubernetes::POD_PREFIX, self.node)));
                vec![
                    "--kube-subnet-mgr".into(),
                    format!("--kubeconfig-file={}", kubernetes.kubeconfig().display()),
                ]
            }
            (None, Some(etcd)) => {
                write_flannel_files(&run_dir, &self.pin_dir, &options.fastpath, &more)?;
                std::fs::remove_file(&net_conf)?;
                self.environment.push(("FLANNELD_ETCD_ENDPOINTS", etcd.endpoint()));
                vec![format!("--subnet-file={}", run_dir.join("subnet.env").display())]
            }
            (None, None) => return Ok(()),
        };
        self.command = vec!["flannel".into(), format!("--net-config-path={}", net_conf.display())];
        self.command.push(format!("--iface={UNDERLAY}"));
        self.command.extend(usual);
        self.command.extend_from_slice(flags);
        Ok(())
    }

    /// Runs another agent from the next start on; `None`: [`agent_binary`].
    pub fn set_program(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// Ends this agent and has another one take its place; `None`: [`agent_binary`].
    ///
    /// # Errors
    /// As [`Agent::stop`] and [`Agent::start`].
    pub fn replace(&mut self, program: Option<PathBuf>) -> Result<()> {
        self.stop()?;
        self.set_program(program);
        self.start()
    }

    fn program(&self) -> Result<PathBuf> {
        self.program.clone().map_or_else(agent_binary, Ok)
    }

    /// Starts the process and returns at once.
    ///
    /// # Errors
    /// It runs already, or there is no agent to run.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent of {} runs already", self.node);
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let program = self.program()?;
        // From a thread inside the namespace: `ip netns exec` would hide bpffs. In a process group
        // of its own: Ctrl-C is for the lab, which then ends its agents.
        let child = self.ns.run(|| {
            let program = program.display().to_string();
            let mut words = self.wrapper.iter().chain([&program]).chain(&self.command);
            Command::new(words.next().unwrap_or(&program))
                .args(words)
                .envs(self.environment.iter().cloned())
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(errors)
                .process_group(0)
                .spawn()
        });
        self.child = Some(child.with_context(|| format!("cannot start {}", program.display()))?);
        Ok(())
    }

    /// Waits until this process has planned and has nothing left to try again, and until the fast
    /// path, unless it is off, is attached everywhere and knows all pods.
    ///
    /// # Errors
    /// It did not get there in time; its status and log are printed.
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("the agent of {} is ready", self.node);
        wait_until(&what, READY_WITHIN, || self.is_ready()).inspect_err(|_| {
            eprintln!("{}", self.cli(&["status"]).unwrap_or_else(|error| format!("{error:#}")));
            self.print_log();
        })
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::spawn`] and [`Agent::wait_ready`].
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Ends the process with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It does not run, ends with an error, or does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let mut child = self.child.take().context("it ran a moment ago")?;
        let mut status = None;
        let ended = wait_until("the agent ends on SIGTERM", STOPPED_WITHIN, || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended?;
        match status {
            Some(status) if !status.success() => bail!("the agent of {} ended with {status}", self.node),
            _ => Ok(()),
        }
    }

    /// Replaces `from` in its configuration; one that runs takes it in, but for the section `[node]`.
    ///
    /// # Errors
    /// It is not there, or the file cannot be written.
    pub fn reconfigure(&self, from: &str, to: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        ensure!(text.contains(from), "there is no {from} in the configuration of {}", self.node);
        replace(&self.config, &text.replace(from, to))
    }

    /// Puts the snippet `name` with further networks beside its configuration, which an agent that runs takes in.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add_snippet(&self, name: &str, text: &str) -> Result<()> {
        replace(&self.snippet(name), text)
    }

    /// Removes the snippet `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_snippet(&self, name: &str) -> Result<()> {
        let path = self.snippet(name);
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn snippet(&self, name: &str) -> PathBuf {
        self.config.with_file_name(SNIPPETS).join(name).with_extension("toml")
    }

    /// [`Agent::stop`], then [`Agent::start`].
    ///
    /// # Errors
    /// As those.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Ends the process with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.reap();
        Ok(())
    }

    /// Runs a subcommand of the agent's command line with this agent's configuration and returns
    /// what it printed: `agent.cli(&["fastpath", "off"])`.
    ///
    /// # Errors
    /// It ends with a status other than zero: the error quotes what it said.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let program = self.program()?;
        self.ns.run(|| cmd::run(Command::new(program).args(args).arg("--config").arg(&self.config)))
    }

    /// As [`Agent::cli`] with `--json`, parsed, of a command that shows what it has found and then ends with 1 if
    /// something is wrong: whether nothing is, and what it printed. `wrapper` is a command that runs it.
    ///
    /// # Errors
    /// It ends otherwise, or the output is not JSON.
    pub fn judged(&self, wrapper: &[&str], args: &[&str]) -> Result<(bool, serde_json::Value)> {
        let program = self.program()?.display().to_string();
        let config = self.config.display().to_string();
        let words = wrapper.iter().copied().chain([program.as_str()]).chain(args.iter().copied());
        let words: Vec<&str> = words.chain(["--json", "--config", &config]).collect();
        let output = self.ns.run(|| Command::new(words[0]).args(&words[1..]).output())?;
        let (said, printed) =
            (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        let well = match output.status.code() {
            Some(code @ (0 | 1)) => code == 0,
            _ => bail!("{args:?} ended with {}: {said}", output.status),
        };
        let value = serde_json::from_str(&printed);
        Ok((well, value.with_context(|| format!("{args:?} printed no JSON: {printed}{said}"))?))
    }

    /// As [`Agent::cli`] with `--json`, parsed.
    ///
    /// # Errors
    /// As [`Agent::cli`], or the output is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.cli(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} printed no JSON: {text}"))
    }

    /// What the programs counted so far.
    ///
    /// # Errors
    /// As [`Agent::json`].
    pub fn counters(&self) -> Result<Counters> {
        Counters::parse(&self.json(&["dump", "counters"])?)
    }

    /// As [`Agent::counters`], of one network.
    ///
    /// # Errors
    /// As [`Agent::json`].
    pub fn counters_of(&self, network: &str) -> Result<Counters> {
        Counters::parse(&self.json(&["dump", "counters", "--network", network])?)
    }

    /// The file with its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The directory that its configuration names for pins.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The name of the nf_tables table of its networks' tunnels.
    pub fn nft_table(&self) -> String {
        tunnel_table(&self.pin_dir)
    }

    /// The directory of its network's pins: maps by name, links.
    ///
    /// # Errors
    /// There is no such directory (yet).
    pub fn pins(&self) -> Result<PathBuf> {
        let pins = node_pin_dir(&self.pin_dir);
        ensure!(pins.join("NODE").exists(), "nothing is pinned at {}", pins.display());
        Ok(pins)
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Prints its log to standard error.
    pub fn print_log(&self) {
        eprintln!("--- log of the agent of {} ---\n{}---", self.node, self.log());
    }

    /// Kills the process, if it runs, and waits for it.
    pub(super) fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn is_ready(&self) -> bool {
        let Ok(status) = self.json(&["status"]) else { return false };
        let nothing_to_retry = |all: &serde_json::Value| all.as_array().is_none_or(Vec::is_empty);
        // An older agent says of its network what it tries again.
        let planned = |network: &serde_json::Value| {
            network["plan_error"].is_null() && nothing_to_retry(&network["retrying"])
        };
        let programmed = status["running"] == true
            && status["pid"].as_u64() == self.pid().map(u64::from)
            && status["networks"].as_array().is_some_and(|all| !all.is_empty() && all.iter().all(planned))
            && status["networks"][0]["pending"].is_null()
            && nothing_to_retry(&status["retrying"]);
        let fastpath = &status["fastpath"];
        let attached = fastpath["attachments"].as_array().map_or(0, Vec::len);
        // One program per pod, two on the device, one on the underlay; two addresses per pod.
        let complete = self.pods == 0
            || (attached >= self.pods + 3
                && fastpath["endpoints"].as_u64() >= u64::try_from(2 * self.pods).ok());
        programmed && complete
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("the agent of {} does not run", self.node))?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).context("cannot signal the agent")
    }
}

/// The networks of an agent that accelerates devices of somebody else's.
fn sections_of(beside: &Beside, options: &AgentOptions) -> String {
    let Beside::Configured(devices) = beside else { return String::new() };
    let section = |device: &&str| {
        let (mode, extra) = (&options.fastpath, &options.network);
        format!("[[network]]\nkind = \"accelerate\"\ndevice = {device:?}\nfastpath = {mode:?}\n{extra}\n")
    };
    devices.iter().map(section).collect()
}

/// Replaces the file at `path` in one step.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let replaced = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
    replaced.with_context(|| format!("cannot write {}", path.display()))
}

/// The agent to run: `$VXLAN_AGENT`, or the release build of this workspace.
///
/// # Errors
/// There is none: the error says which command builds it.
pub fn agent_binary() -> Result<PathBuf> {
    let path = match std::env::var_os("VXLAN_AGENT") {
        Some(path) => PathBuf::from(path),
        None => target_dir()?.join("release/vxlan-agent"),
    };
    ensure!(File::open(&path).is_ok(), "no agent at {}: run `cargo xtask build`", path.display());
    Ok(path)
}

/// The target directory that this program was built into: `<target>/<profile>/[deps/]<program>`.
fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find out what this program is")?;
    let profile = own.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    let target = profile.and_then(Path::parent).context("this program is in no target directory")?;
    Ok(target.to_owned())
}
