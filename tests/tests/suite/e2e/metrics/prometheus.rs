//! The real Prometheus reads what agents say, and what `deploy/monitoring` asks it has an answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::{Lab, LabSpec, Netns, wait_until};

use super::scrape::{PORT, Scrape, get, scrape};
use super::{build, drop_one, metered, talk, warm_up};

/// Where Prometheus answers on its node.
const LISTEN: u16 = 9090;
const COMES_UP: Duration = Duration::from_secs(30);
const SCRAPED: Duration = Duration::from_secs(20);
/// What stands in queries for what Grafana fills in.
const VARIABLES: [(&str, &str); 3] = [("$__rate_interval", "10s"), ("$instance", ".*"), ("$network", ".*")];
const MONITORING: &str = "../deploy/monitoring";

fn monitoring(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(MONITORING).join(name)
}

/// Prometheus; it ends with this.
struct Prometheus<'l> {
    node: &'l Netns,
    child: Child,
}

impl<'l> Prometheus<'l> {
    /// Starts it on node 1, where it asks the agents of both nodes, four times a second.
    fn start(lab: &'l Lab) -> Self {
        let (node, dir) = (lab.node(1), lab.run_dir());
        let targets = [1, 2].map(|n| format!("\"{}:{PORT}\"", underlay4(n))).join(", ");
        let config = format!(
            "global: {{ scrape_interval: 250ms, evaluation_interval: 250ms }}\n\
             rule_files: [{:?}]\n\
             scrape_configs: [{{ job_name: vxlan-agent, static_configs: [{{ targets: [{targets}] }}] }}]\n",
            monitoring("alerts.yaml").canonicalize().expect("alerts"),
        );
        let path = dir.join("prometheus.yml");
        fs::write(&path, config).expect("written");
        let log = fs::File::create(dir.join("prometheus.log")).expect("a log");
        let child = node.run(|| {
            Command::new("prometheus")
                .arg(format!("--config.file={}", path.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{LISTEN}"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a log"))
                .stderr(log)
                .spawn()
        });
        let started = Self { node, child: child.expect("Prometheus is installed") };
        let ready = || get(node, LISTEN, "/-/ready").is_some();
        wait_until("Prometheus comes up", COMES_UP, ready)
            .inspect_err(|_| {
                eprintln!("{}", fs::read_to_string(dir.join("prometheus.log")).unwrap_or_default())
            })
            .expect("in time");
        started
    }

    /// The answer to a question to its API.
    fn ask(&self, path: &str) -> Value {
        let answer = get(self.node, LISTEN, path).unwrap_or_else(|| panic!("{path} is refused"));
        serde_json::from_str(&answer).expect("JSON")
    }

    /// The series that `query` results in.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<Value> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.ask(&format!("/api/v1/query?query={escaped}"));
        assert_eq!(answer["data"]["resultType"], "vector", "{query}: {answer}");
        answer["data"]["result"].as_array().expect("series").clone()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Queries of the dashboard, with their panels' titles.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring("dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let mut queries = vec![];
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().expect("a query").to_owned();
            VARIABLES.iter().for_each(|(variable, value)| query = query.replace(variable, value));
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    queries
}

/// Alerts and what they look for.
fn alerts() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring("alerts.yaml")).expect("alerts");
    let rules: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect()
}

/// Names of metrics in an expression.
fn metrics(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("vxlan_agent_") || *word == "up").collect()
}

/// Has the kernel, in all namespaces, measure how long programs run, until this is dropped.
struct Measured(String);

/// Its switch.
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Measured {
    fn begin() -> Self {
        let before = fs::read_to_string(BPF_STATS).expect("a setting");
        fs::write(BPF_STATS, "1").expect("measured");
        Self(before)
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let _ = fs::write(BPF_STATS, &self.0);
    }
}

/// `promtool check metrics` has nothing to say.
fn assert_checked(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    promtool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("read");
    let output = promtool.wait_with_output().expect("an end");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && said.concat().is_empty(), "{said:?}\n{text}");
}

/// Whoever looks a metric up in the documentation finds it.
fn assert_documented(text: &str) {
    let docs = fs::read_to_string(monitoring("../../docs/operate.md")).expect("documentation");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().expect("a name");
        assert!(docs.contains(&format!("`{name}`")), "{name} is not in the documentation");
    }
}

/// Programs take microseconds, also on a slow machine.
fn assert_measured(scraped: &Scrape) {
    let of = [("hook", "pod_egress")];
    let runs = scraped.value("vxlan_agent_program_runs_total", &of);
    let time = scraped.value("vxlan_agent_program_run_time_seconds_total", &of);
    assert!(runs >= 20.0 && (runs * 1e-8..runs * 1e-3).contains(&time), "{runs} runs took {time} s");
}

#[test]
fn prometheus_reads_them_and_the_dashboard_and_the_alerts_have_what_they_ask_for() {
    let lab = build(&LabSpec::pair(metered("verified"), metered("direct")));
    warm_up(&lab);
    drop_one(&lab);
    let measured = Measured::begin();
    let prometheus = Prometheus::start(&lab);
    let rates = || {
        talk(&lab);
        let rate = "rate(vxlan_agent_tunnel_packets_total{path=\"fast\",direction=\"in\"}[10s]) > 0";
        let runs = "rate(vxlan_agent_program_runs_total[10s]) > 0";
        prometheus.query(rate).len() == 2 && prometheus.query(runs).len() > 1
    };
    wait_until("Prometheus has rates of both", SCRAPED, rates).expect("in time");
    drop(measured);

    for (panel, query) in queries() {
        assert!(!prometheus.query(&query).is_empty(), "{panel}: nothing for {query}");
    }
    let known = alerts();
    assert!(known.len() > 10, "{known:?}");
    for (alert, expression) in &known {
        for metric in metrics(expression) {
            assert!(!prometheus.query(metric).is_empty(), "{alert}: there is no {metric}");
        }
        assert_eq!(prometheus.query(expression), Vec::<Value>::new(), "{alert}: all is well");
    }
    let loaded = prometheus.ask("/api/v1/rules");
    assert_eq!(loaded.to_string().matches("\"health\":\"ok\"").count(), known.len(), "{loaded}");

    let scraped = scrape(lab.node(1)).expect("metrics");
    assert_measured(&scraped);
    assert_checked(&scraped.text);
    assert_documented(&scraped.text);
}
