//! `doctor`: what is wrong here, and what mends it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::subject::{Subject, configuration, file};
use super::{Unwell, print, print_json, runtime};
use crate::config::NodeConfig;
use crate::doctor::{self, Asked, Facts, Finding};
use crate::ownership::{DEFAULT_PIN_DIR, default_run_dir};
use crate::preflight;

#[derive(Serialize)]
struct Report {
    node: String,
    /// How many checks were made.
    checks: usize,
    findings: Vec<Finding>,
}

pub(super) fn show(
    config: Option<&Path>,
    network: Option<&str>,
    peer: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let asked = asked(config, network)?;
    let report = runtime()?.block_on(examine(&asked, peer))?;
    if json {
        print_json(&report)?
    } else {
        print(&text(&report))?
    }
    if report.findings.is_empty() { Ok(()) } else { Err(Unwell.into()) }
}

/// A configuration that is refused is a finding.
pub(super) fn asked(config: Option<&Path>, network: Option<&str>) -> anyhow::Result<Asked> {
    let network = network.map(str::to_owned);
    match configuration(config) {
        Ok(_) => {
            // The name has to be one of them.
            let subject = Subject::find(config, network.as_deref())?;
            Ok(Asked { node: Arc::clone(&subject.config.node), config: Ok(subject.config), network })
        }
        Err(refused) => {
            let node = file(config).and_then(|path| NodeConfig::salvage(&path).ok());
            let usual = || {
                let run_dir = default_run_dir(Path::new(DEFAULT_PIN_DIR));
                NodeConfig { run_dir, ..NodeConfig::default() }
            };
            let node = Arc::new(node.unwrap_or_else(usual));
            Ok(Asked { config: Err(format!("{refused:#}")), node, network })
        }
    }
}

async fn examine(asked: &Asked, peer: Option<&str>) -> anyhow::Result<Report> {
    let facts = Facts::read(asked).await?;
    let mut findings = doctor::examine(&facts);
    if let Some(peer) = peer {
        findings.extend(doctor::probe(&facts, peer).await?);
        findings = doctor::in_order(findings);
    }
    Ok(Report { node: asked.node.name.clone(), checks: doctor::checks(), findings })
}

fn text(report: &Report) -> String {
    let node = if report.node.is_empty() { "this node" } else { &report.node };
    let count = report.findings.len();
    if count == 0 {
        return format!("{node} is well: {} checks found nothing\n", report.checks);
    }
    let mut out = format!("{node}: {count} finding{}\n", if count == 1 { "" } else { "s" });
    for finding in &report.findings {
        let network = finding.network.as_ref().map(|name| format!(", network {name}")).unwrap_or_default();
        let _ = writeln!(out, "\n{:<8} {}{network}", finding.severity.word(), finding.id);
        let _ = writeln!(out, "         {}", finding.what);
        for (label, text) in [("seen", &finding.evidence), ("mend", &finding.mend)] {
            if !text.is_empty() {
                let _ = writeln!(out, "{label:<8} {text}");
            }
        }
    }
    out
}
