//! Whether all is well, in a word and a few sentences.

use serde::Serialize;

use super::Report;
use crate::config::Fastpath;
use crate::status::{NetworkStatus, Status};

/// How well it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// Everything is as it is configured.
    #[default]
    Healthy,
    /// Packets go on, but somebody should look.
    Attention,
    /// Something that is configured does not work.
    Unwell,
}

impl Grade {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Attention => "attention",
            Self::Unwell => "unwell",
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Verdict {
    pub(super) grade: Grade,
    /// Why it is no better: a sentence each, the worst first.
    pub(super) reasons: Vec<String>,
}

impl Verdict {
    pub(super) fn of(report: &Report) -> Self {
        let mut found = vec![];
        match &report.status {
            None => found.push((Grade::Unwell, "no agent has run on this node".to_owned())),
            Some(status) => of_status(status, report, &mut found),
        }
        if let Some(error) = &report.fastpath.error {
            found.push((Grade::Unwell, format!("the pins cannot be read: {error}")));
        }
        let is_said = report.status.as_ref().is_some_and(|status| status.config_error.is_some());
        if let Some(reason) = report.configuration_refused.as_ref().filter(|_| !(report.running && is_said)) {
            found.push((Grade::Attention, format!("the configuration as it is now is refused: {reason}")));
        }
        if !report.running {
            found.push((Grade::Attention, "the agent is not running, what it set up goes on".to_owned()));
        }
        found.sort_by_key(|(grade, _)| std::cmp::Reverse(*grade));
        let grade = found.first().map(|(grade, _)| *grade).unwrap_or_default();
        Self { grade, reasons: found.into_iter().map(|(_, reason)| reason).collect() }
    }
}

fn of_status(status: &Status, report: &Report, found: &mut Vec<(Grade, String)>) {
    use Grade::{Attention, Unwell};
    if status.error.is_some() {
        found.push((Unwell, "the agent is stuck".to_owned()));
    }
    if let Some(count) = Some(status.retrying.len()).filter(|count| *count != 0) {
        found.push((Unwell, format!("{count} of the agent's changes fail and are tried again")));
    }
    if status.config_error.is_some() {
        found.push((Attention, "the configuration is refused, the one before is in force".to_owned()));
    }
    for network in &status.networks {
        of_network(network, report, found);
    }
}

fn of_network(network: &NetworkStatus, report: &Report, found: &mut Vec<(Grade, String)>) {
    use Grade::{Attention, Unwell};
    let name = &network.name;
    let wrong = [
        (network.plan_error.is_some(), Unwell, "cannot be planned as the cluster asks for"),
        (network.pending.is_some(), Unwell, "waits for its cluster state"),
        (network.reload_error.is_some(), Attention, "has refused the newest cluster state"),
        (network.bridge.iter().any(|b| !b.cautions.is_empty()), Attention, "has a bridge with something odd"),
        (
            network.mode != Fastpath::Off && network.attach.is_none() && network.pending.is_none(),
            Unwell,
            "has no fast path, its programs are not loaded",
        ),
    ];
    for (_, grade, what) in wrong.into_iter().filter(|(is_wrong, ..)| *is_wrong) {
        found.push((grade, format!("network {name} {what}")));
    }
    let Some(fastpath) = report.fastpath_of.get(name) else { return };
    if fastpath.switched_on == Some(false) {
        found.push((Attention, format!("the fast path of network {name} is switched off by hand")));
    }
    if !fastpath.disputed.is_empty() {
        found.push((Attention, format!("pods of network {name} claim the same address")));
    }
    if !fastpath.peers.unreachable.is_empty() {
        let silent = fastpath.peers.silent();
        found.push((Attention, format!("next hops of network {name} do not answer: {silent}")));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::fastpath::FastpathReport;
    use super::*;
    use crate::status::RetryStatus;
    use crate::status::tests::{network, status};

    fn verdict(change: impl FnOnce(&mut Report)) -> (Grade, String) {
        let fastpath =
            || FastpathReport { pinned: true, switched_on: Some(true), ..FastpathReport::default() };
        let mut report = Report {
            health: Verdict::default(),
            configuration_refused: None,
            running: true,
            pid: None,
            status: Some(Status { networks: vec![network("pods")], ..status() }),
            fastpath: fastpath(),
            fastpath_of: BTreeMap::from([("pods".to_owned(), fastpath())]),
        };
        change(&mut report);
        let Verdict { grade, reasons } = Verdict::of(&report);
        (grade, reasons.join("; "))
    }

    fn status_of(report: &mut Report) -> &mut Status {
        report.status.as_mut().expect("a status")
    }

    #[test]
    fn everything_that_is_wrong_is_named_and_the_worst_counts() {
        assert_eq!(verdict(|_| ()), (Grade::Healthy, String::new()));
        let (grade, reasons) = verdict(|report| report.running = false);
        assert!(grade == Grade::Attention && reasons.contains("not running"), "{reasons}");
        let (grade, reasons) = verdict(|report| report.status = None);
        assert!(grade == Grade::Unwell && reasons.contains("no agent has run"), "{reasons}");
        let retry = RetryStatus { change: "attach".into(), error: "no".into(), attempts: 1 };
        let (grade, reasons) = verdict(|report| {
            status_of(report).config_error = Some("line 1".into());
            status_of(report).retrying = vec![retry];
        });
        assert_eq!(grade, Grade::Unwell);
        assert!(
            reasons.starts_with("1 of the agent's changes fail") && reasons.contains("refused"),
            "{reasons}"
        );
    }

    #[test]
    fn a_refused_configuration_is_told_by_the_agent_or_without_it() {
        let (grade, reasons) = verdict(|report| report.configuration_refused = Some("line 7".into()));
        assert!(grade == Grade::Attention && reasons.contains("line 7"), "{reasons}");
    }

    #[test]
    fn a_network_is_well_if_it_runs_as_configured() {
        let of = |change: fn(&mut NetworkStatus)| {
            verdict(|report| status_of(report).networks.iter_mut().for_each(change))
        };
        assert_eq!(of(|network| network.plan_error = Some("x".into())).0, Grade::Unwell);
        assert_eq!(of(|network| network.pending = Some("x".into())).0, Grade::Unwell);
        assert_eq!(of(|network| network.reload_error = Some("x".into())).0, Grade::Attention);
        assert_eq!(of(|network| network.attach = None).0, Grade::Unwell);
        let off = |network: &mut NetworkStatus| (network.attach, network.mode) = (None, Fastpath::Off);
        assert_eq!(of(off).0, Grade::Healthy, "none is wanted");
        let fastpath = |change: fn(&mut FastpathReport)| {
            verdict(|report| report.fastpath_of.values_mut().for_each(change))
        };
        assert_eq!(fastpath(|fastpath| fastpath.switched_on = Some(false)).0, Grade::Attention);
        let (grade, reasons) =
            fastpath(|fastpath| _ = fastpath.peers.unreachable.insert([192, 0, 2, 9].into()));
        assert!(grade == Grade::Attention && reasons.contains("192.0.2.9"), "{reasons}");
    }
}
