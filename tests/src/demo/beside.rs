//! A device that somebody else manages, before, while and after agents accelerate it, for people.

use anyhow::{Result, ensure};

use super::look::Look;
use super::{DemoArgs, compare, heading, paths, routed};
use crate::bench::{Glance, glance};
use crate::lab::{Agent, AgentOptions, Beside, DEVICE, Lab, LabSpec, Overlay};

/// What an owner may look at.
const LISTS: [&str; 8] = [
    "ip link",
    "ip -d link show type vxlan",
    "ip addr",
    "ip route show table all",
    "ip -6 route show table all",
    "ip neigh show nud permanent",
    "bridge fdb show",
    "nft list ruleset",
];

/// Runs the demo.
pub(super) fn demo(args: &DemoArgs) -> Result<()> {
    heading(&format!(
        "A cluster of {} nodes with a device as flannel makes it, two pods each, no agent",
        args.nodes
    ));
    let nodes = vec![Overlay::KernelVxlan; usize::from(args.nodes)];
    let mut lab = LabSpec::of(nodes).pods(2).unfiltered().build()?;
    routed::layout(&lab);
    show(&lab, &format!("ip -d link show {DEVICE}"))?;
    show(&lab, &format!("ip route show dev {DEVICE}"))?;
    heading("Before: the kernel alone");
    routed::send(&lab)?;
    let (owners, before) = (owners_things(&lab)?, glance(&[&lab])?);
    heading(&format!("`vxlan-agent accelerate {DEVICE}` on every node"));
    accelerate(&mut lab)?;
    lab.agent(1)?.cli(&["status"])?.lines().for_each(|line| println!("  {line}"));
    heading("While they run");
    let counted = routed::snapshot(&lab)?;
    routed::send(&lab)?;
    heading("The way it took: what the BPF programs counted");
    paths::show(&counted, &routed::snapshot(&lab)?)?;
    check(&lab, &owners, "while agents run")?;
    let during = glance(&[&lab])?;
    heading("After: agents stopped, `vxlan-agent detach`");
    detach(&mut lab)?;
    routed::send(&lab)?;
    check(&lab, &owners, "after detach")?;
    let after = glance(&[&lab])?;
    heading("Side by side (short; `cargo xtask bench --accelerate` does it properly)");
    compare::table(&["before", "accelerated", "after"], &side_by_side(before, [during, after]));
    if args.keep {
        accelerate(&mut lab)?;
        how_to_look_round(&lab)?;
        return lab.keep();
    }
    Ok(())
}

/// Runs an agent on every node, told by its command line.
fn accelerate(lab: &mut Lab) -> Result<()> {
    let beside = Some(Beside::CommandLine(vec![DEVICE]));
    let options = AgentOptions { beside, ..AgentOptions::verified() };
    let numbers = 1..=lab.nodes().len() as u8;
    for n in numbers.clone() {
        lab.add_agent(n, &options)?;
        lab.agent_mut(n)?.spawn()?;
    }
    numbers.into_iter().try_for_each(|n| lab.agent(n).and_then(Agent::wait_ready))
}

fn detach(lab: &mut Lab) -> Result<()> {
    (1..=lab.nodes().len() as u8).try_for_each(|n| {
        lab.agent_mut(n)?.stop()?;
        lab.agent(n)?.cli(&["detach"]).map(drop)
    })
}

/// What a command prints on node 1.
fn show(lab: &Lab, command: &str) -> Result<()> {
    println!("\n  n1# {command}");
    lab.node(1).sh(command)?.lines().for_each(|line| println!("  {line}"));
    Ok(())
}

/// All that the owner of node 1 has there, without what bridges learn and forget.
fn owners_things(lab: &Lab) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for command in LISTS {
        let list = lab.node(1).sh(command)?;
        let lasting = |line: &&str| !command.starts_with("bridge") || line.contains("permanent");
        all.extend(list.lines().filter(lasting).map(str::to_owned));
    }
    all.sort_unstable();
    Ok(all)
}

/// Says that the owner's things are as they were.
///
/// # Errors
/// They are not.
fn check(lab: &Lab, before: &[String], when: &str) -> Result<()> {
    let now = owners_things(lab)?;
    let differs: Vec<&String> = now
        .iter()
        .filter(|line| !before.contains(line))
        .chain(before.iter().filter(|line| !now.contains(line)))
        .collect();
    ensure!(now == before, "{when}, the owner's things are otherwise: {differs:#?}");
    println!(
        "\n  Links, addresses, routes, neighbours, entries and filters of n1 {when}: {} lines, as before",
        now.len()
    );
    Ok(())
}

/// One table of what was measured at several times.
fn side_by_side(first: Vec<Glance>, others: [Vec<Glance>; 2]) -> Vec<Glance> {
    let add = |mut row: Glance, index: usize| {
        row.values
            .extend(others.iter().filter_map(|glances| glances.get(index)).flat_map(|glance| &glance.values));
        row
    };
    first.into_iter().enumerate().map(|(index, row)| add(row, index)).collect()
}

/// What to type while the lab is up.
fn how_to_look_round(lab: &Lab) -> Result<()> {
    let (pod, target) = (lab.pod(1, 1).namespace(), lab.pod(2, 1).ip4);
    Look {
        prefix: lab.prefix(),
        node: lab.node(1),
        agent: lab.agent(1)?,
        change: format!("routes, neighbours and entries of {DEVICE}"),
        command: format!("nsenter --net=/run/netns/{pod} ping {target}"),
        words: &["status", "dump counters", "dump routes", "fastpath off"],
        map: "ROUTES4",
    }
    .print()
}
