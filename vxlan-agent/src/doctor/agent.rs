//! Whether an agent runs and can do what it is to do: what `status` says, in the same words.

use std::fmt::Write as _;

use super::facts::NetworkFacts;
use super::{Check, Facts, Finding};

pub(super) const CHECKS: &[Check] =
    &[configuration, running, version, cluster, members, networks, stuck, retrying, clock];

/// What starts it.
const START: &str = "systemctl start vxlan-agent";
/// Where it says more.
const LOG: &str = "journalctl -u vxlan-agent";
/// A clock may be set by so many seconds without a word.
const SLACK: u64 = 2;

fn configuration(facts: &Facts) -> Vec<Finding> {
    let written = facts.running().and_then(|status| status.config_error.clone());
    let finding = |reason: String| {
        let what = match facts.holder {
            Some(_) => "the configuration is refused, the one before is in force",
            None => "the configuration is refused, so no agent can start",
        };
        Finding::error("config-refused", what)
            .seen(reason)
            .mend("mend the file; an agent that runs reads it again")
    };
    facts.refused.clone().or(written).map(finding).into_iter().collect()
}

fn running(facts: &Facts) -> Vec<Finding> {
    if facts.holder.is_some() {
        return vec![];
    }
    let dir = facts.node.run_dir.display();
    let evidence = match &facts.status {
        Ok(Some(status)) => {
            format!("the lock in {dir} is free; the last agent was {} {}", status.pid, status.version)
        }
        _ => format!("no status in {dir}"),
    };
    let what = "the agent is not running; what it set up goes on as it is";
    vec![Finding::warning("agent-not-running", what).seen(evidence).mend(START)]
}

fn version(facts: &Facts) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let what = "the agent that runs is of another version than this program";
    let evidence = match &facts.status {
        Err(error) => error.clone(),
        Ok(Some(status)) if status.version != own && facts.holder.is_some() => {
            format!("the agent is {}, this is {own}", status.version)
        }
        Ok(_) => return vec![],
    };
    vec![Finding::warning("agent-version", what).seen(evidence).mend("systemctl restart vxlan-agent")]
}

/// Two nodes with one MAC, address or subnet, and whatever else a source may be refused for.
fn cluster(facts: &Facts) -> Vec<Finding> {
    let refused = |network: &NetworkFacts| {
        let told = network.status.as_ref().filter(|_| facts.holder.is_some());
        let reason = told.and_then(|status| status.reload_error.clone());
        let file = || network.cluster.as_ref().err().cloned().filter(|_| network.source == "file");
        let reason = reason.or_else(file)?;
        let what = "the cluster state is refused, the one before is in force";
        let mend = match network.source {
            "kubernetes" => "kubectl describe nodes: give the node to blame another subnet, address or MAC",
            "etcd" => "etcdctl get --prefix /coreos.com/network: remove the lease that is in the way",
            _ => "mend the line in the state file; it is read again at once",
        };
        Some(Finding::error("state-refused", what).of(&network.name).seen(reason).mend(mend))
    };
    facts.networks.iter().filter_map(refused).collect()
}

/// What the source says of nodes that cannot be right: it is followed, without them.
fn members(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (network, status) in facts.told() {
        let look = |node: &str| match network.source {
            "etcd" => format!("etcdctl get --prefix /coreos.com/network/subnets/{node}"),
            _ => format!("kubectl describe node {node}"),
        };
        if let Some(reason) = &status.trouble {
            let what = "this node does not take part as a whole: other nodes may not know it";
            let mend = format!("{}: mend what the evidence says", look(&facts.node.name));
            found
                .push(Finding::error("node-trouble", what).of(&network.name).seen(reason.clone()).mend(mend));
        }
        for (node, reason) in &status.left_out {
            let what = format!("{node} is left out, or in part: what is sent to it is lost");
            let mend =
                format!("{}: give one of the two another subnet, address or MAC, or remove it", look(node));
            found.push(
                Finding::error("node-left-out", what).of(&network.name).seen(reason.clone()).mend(mend),
            );
        }
    }
    found
}

fn networks(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (network, status) in facts.told() {
        if let Some(reason) = &status.pending {
            let what = "the network waits for its cluster; what was programmed before stays";
            found.push(
                Finding::error("network-pending", what).of(&network.name).seen(reason.clone()).mend(LOG),
            );
        }
        if let Some(reason) = &status.plan_error {
            let what = "nothing can be planned for the network; what was programmed before stays";
            found.push(
                Finding::error("network-stuck", what)
                    .of(&network.name)
                    .seen(reason.clone())
                    .mend("do what the evidence says; the agent tries again by itself"),
            );
        }
        for caution in status.bridge.iter().flat_map(|bridge| &bridge.cautions) {
            let what = "the bridge is not as the configuration asks for";
            let mend = "do what the evidence says, or change the configuration";
            found.push(Finding::warning("bridge", what).of(&network.name).seen(caution.clone()).mend(mend));
        }
    }
    if facts.holder.is_none() {
        let stuck = |network: &NetworkFacts| {
            let reason = network.sides.as_ref().err().filter(|_| network.cluster.is_ok())?;
            let what = "the network cannot run on this machine as it is";
            let finding = Finding::error("network-stuck", what).of(&network.name);
            Some(finding.seen(reason.clone()).mend("do what the evidence says"))
        };
        found.extend(facts.networks.iter().filter_map(stuck));
    }
    found
}

fn stuck(facts: &Facts) -> Vec<Finding> {
    let error = facts.running().and_then(|status| status.error.clone());
    let finding = |error: String| {
        Finding::error("agent-stuck", "nothing could be done in the last round").seen(error).mend(LOG)
    };
    error.map(finding).into_iter().collect()
}

fn retrying(facts: &Facts) -> Vec<Finding> {
    let all = facts.running().map(|status| status.retrying.as_slice()).unwrap_or_default();
    let finding = |retry: &crate::status::RetryStatus| {
        let mut evidence = retry.sentence();
        let _ = write!(evidence, " ({} attempts)", retry.attempts);
        Finding::error("agent-retrying", "the kernel refuses a change, which is tried again and again")
            .seen(evidence)
            .mend("remove what is in the way; the agent tries again by itself")
    };
    all.iter().map(finding).collect()
}

/// Leases and certificates are judged by it.
fn clock(facts: &Facts) -> Vec<Finding> {
    let started = facts.running().map(|status| status.started);
    let behind = started.filter(|started| *started > facts.now + SLACK);
    let finding = |started: u64| {
        let what = "the clock of this node has gone back since the agent started: leases and certificates are misjudged";
        Finding::warning("clock", what)
            .seen(format!("the agent started {} s in the future", started - facts.now))
            .mend("timedatectl set-ntp true, then systemctl restart vxlan-agent")
    };
    behind.map(finding).into_iter().collect()
}
