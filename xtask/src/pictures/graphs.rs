//! Queries of the dashboard, drawn by Prometheus.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::{Beside, Lab};
use crate::run::{output, target_dir, workspace};

/// Where Prometheus answers, on node 1.
const LISTEN: &str = "127.0.0.1:9090";
const CONFIG: &str = "\
global: { scrape_interval: 1s }
scrape_configs:
  - job_name: vxlan-agent
    static_configs: [{ targets: ['192.0.2.1:9469', '192.0.2.2:9469'] }]
";
/// What queries have in place of what Grafana fills in: all nodes and networks, and an interval.
const FILLED_IN: [(&str, &str); 6] = [
    ("instance=~\"$instance\",", ""),
    ("instance=~\"$instance\"", ""),
    ("network=~\"$network\",", ""),
    ("network=~\"$network\"", ""),
    ("{}", ""),
    ("$__rate_interval", "10s"),
];
/// The most bytes that a picture may have.
const LARGEST: u64 = 150_000;

/// Prometheus on node 1, which asks the agents of both nodes; it ends with this, and its files go.
pub(super) struct Prometheus<'l> {
    lab: &'l Lab,
    files: PathBuf,
    /// Dropped before `files` are removed, because it writes them.
    process: Option<Beside>,
}

impl<'l> Prometheus<'l> {
    /// Starts it.
    ///
    /// # Errors
    /// Its files cannot be written, or it cannot be started.
    pub(super) fn start(lab: &'l Lab) -> Result<Self> {
        let files = target_dir().join("pictures");
        fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
        let mut prometheus = Self { lab, files, process: None };
        let config = prometheus.files.join("prometheus.yml");
        fs::write(&config, CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = lab.within("n1", "prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", prometheus.files.join("data").display()));
        command.arg(format!("--web.listen-address={LISTEN}"));
        prometheus.process = Some(Beside::start(&mut command)?);
        Ok(prometheus)
    }

    /// Draws the first query of a panel, as it was for `length` up to now.
    ///
    /// # Errors
    /// The dashboard has no such panel, the browser fails, or the picture is too large.
    pub(super) fn draw(&self, panel: &str, length: Duration, height: u32, to: &Path) -> Result<()> {
        let query = query(panel)?;
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let page = format!(
            "http://{LISTEN}/graph?g0.expr={escaped}&g0.tab=0&g0.step_input=1&g0.range_input={}s",
            length.as_secs()
        );
        let mut browser = self.lab.within("n1", "chromium-headless-shell");
        browser.args(["--no-sandbox", "--hide-scrollbars"]).arg(format!("--window-size=1000,{height}"));
        browser.arg("--virtual-time-budget=15000");
        browser.arg(format!("--user-data-dir={}", self.files.join("browser").display()));
        output(browser.arg(format!("--screenshot={}", to.display())).arg(page))?;
        let size = fs::metadata(to).with_context(|| format!("there is no {}", to.display()))?.len();
        ensure!(size <= LARGEST, "{} has {size} bytes, more than {LARGEST}", to.display());
        Ok(())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        self.process = None;
        if let Err(error) = fs::remove_dir_all(&self.files) {
            eprintln!("cannot remove {}: {error}", self.files.display());
        }
    }
}

/// The first query of a panel of the dashboard.
fn query(panel: &str) -> Result<String> {
    let path = workspace().join("deploy/monitoring/dashboard.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let mut panels = dashboard["panels"].as_array().into_iter().flatten();
    let found = panels.find(|candidate| candidate["title"] == panel);
    let query = found.and_then(|panel| panel["targets"][0]["expr"].as_str());
    let query = query.with_context(|| format!("the dashboard has no panel “{panel}”"))?;
    Ok(FILLED_IN.iter().fold(query.to_owned(), |query, (from, to)| query.replace(from, to)))
}

#[cfg(test)]
mod tests {
    use super::super::PANELS;
    use super::query;

    #[test]
    fn panels_that_are_drawn_are_in_the_dashboard() {
        for (panel, ..) in PANELS {
            let query = query(panel).expect("a query");
            assert!(!query.contains('$') && query.contains("[10s]"), "{query}");
        }
    }
}
