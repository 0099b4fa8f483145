//! `detach`: remove everything that is ours, with or without a running agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{print, print_json};
use crate::cluster::derive_mac;
use crate::config::{Config, View};
use crate::datapath;
use crate::kernel::{self, ForeignSegment, KernelState, Netlink, Sought, SoughtBridge, Tables, Target};
use crate::net::Mac;
use crate::node;
use crate::ownership;
use crate::status::Holder;
use crate::{preflight, status};

/// How long a running agent has to end; longer than the kubelet gives it by the manifests in `deploy/`.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let stopped = stop_agent(&config.node.run_dir).await?;
    // The fast path first: what is on its way meanwhile is the kernel's, until that goes too.
    let pins = &config.node.pin_dir;
    let detached = datapath::detach(pins);
    let mut removed = vec![];
    for view in &config.networks {
        removed.extend(remove_from_kernel(view).await?);
    }
    if detached? {
        removed.push(format!("remove programs and maps at {}", pins.display()));
    }
    removed.extend(remove_tables(config)?);
    removed.extend(remove_files(config)?);
    status::remove(&config.node.run_dir)?;
    if json {
        return print_json(&serde_json::json!({ "agent_stopped": stopped, "removed": removed }));
    }
    for what in &removed {
        print(&format!("{what}\n"))?;
    }
    if removed.is_empty() { print("there was nothing of ours\n") } else { Ok(()) }
}

/// Leaves the overlay to flanneld: the programs and what exists only for their sake go, and so does
/// the mark on the devices. Addresses, routes, neighbours and forwarding entries are what flanneld
/// would make, and it takes them over as they are. Bridged networks, which flannel has not, go on as they are.
pub(super) async fn release(config: &Config, json: bool) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let stopped = stop_agent(&config.node.run_dir).await?;
    datapath::detach(&config.node.pin_dir)?;
    // Nobody would tell it of nodes that come.
    node::remove_table(&ownership::tunnel_table(&config.node.pin_dir))?;
    let netlink = Netlink::open()?;
    let mut left = vec![];
    let routed = config.networks.iter().filter(|view| view.network.segment().is_none());
    let devices = routed.flat_map(|view| view.devices().into_iter().map(move |d| (view, d)));
    for (view, (name, alias)) in devices {
        let sought = Sought {
            network: &view.network.name,
            alias: &alias,
            name,
            mac: Mac::default(),
            adopt: None,
            held: None,
        };
        let Ok((observed, index)) = kernel::observed(&netlink.dump().await?, &sought) else { continue };
        let without_headroom = KernelState { headroom: BTreeMap::new(), ..observed.clone() };
        let mut target = Target { network: view.network.name.clone(), name: name.to_owned(), alias, index };
        for change in kernel::diff(&observed, &without_headroom) {
            netlink.apply(&change, &mut target).await?;
        }
        if observed.device.is_some() {
            netlink.unmark(name).await?;
            left.push(name);
        }
    }
    status::remove(&config.node.run_dir)?;
    if json {
        return print_json(&serde_json::json!({ "agent_stopped": stopped, "left": left }));
    }
    match left.as_slice() {
        [] => print("there was nothing of ours\n"),
        left => print(&format!("left to flanneld: {}\n", left.join(", "))),
    }
}

/// Ends a running agent. One in a container is waited for: whoever ends the container ends it, and its
/// process id means another process here.
async fn stop_agent(run_dir: &Path) -> anyhow::Result<Option<i32>> {
    let Some(Holder { pid }) = status::holder(run_dir)? else { return Ok(None) };
    if let Some(pid) = pid {
        tracing::info!(pid, "stopping the agent");
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .with_context(|| format!("cannot stop the agent, pid {pid}"))?;
    } else {
        tracing::info!("waiting for the agent, which runs in a container, to end");
    }
    let gone = async {
        while status::holder(run_dir)?.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(pid)
    };
    let ended = tokio::time::timeout(PATIENCE, gone).await;
    ended.with_context(|| format!("the agent (lock in {}) does not end: stop it first", run_dir.display()))?
}

/// Removes the table of all tunnels, and those that are named after networks.
fn remove_tables(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut removed = vec![];
    if node::remove_table(&ownership::tunnel_table(&config.node.pin_dir))? {
        removed.push("remove the nf_tables table of the tunnels".to_owned());
    }
    let named: BTreeSet<String> = node::named_tables().unwrap_or_default().into_iter().collect();
    let ours = config.networks.iter().map(|view| &view.network.name).filter(|name| named.contains(*name));
    for name in ours {
        if node::remove_table(&ownership::nft_table(name))? {
            removed.push(format!("remove the nf_tables table of network {name}"));
        }
    }
    Ok(removed)
}

/// Removes those files that are as the agent wrote them last.
fn remove_files(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut removed = vec![];
    let last = status::read(&config.node.run_dir).ok().flatten();
    let files = last.iter().flat_map(|status| &status.networks).flat_map(|network| &network.files);
    for (path, content) in files {
        if node::remove_if_same(path, content)? {
            removed.push(format!("remove {}", path.display()));
        }
    }
    Ok(removed)
}

/// What there is of a network at one of its devices, and at its bridge.
fn observe(config: &View, sought: &Sought<'_>, tables: &Tables) -> Result<KernelState, ForeignSegment> {
    match config.network.segment() {
        None => Ok(kernel::observed(tables, sought)?.0),
        Some(segment) => {
            let bridge = SoughtBridge { name: &segment.bridge, mac: sought.mac, held: None };
            Ok(kernel::observed_segment(tables, sought, &bridge)?.0)
        }
    }
}

async fn remove_from_kernel(config: &View) -> anyhow::Result<Vec<String>> {
    let network = &config.network;
    let netlink = Netlink::open()?;
    let mac = derive_mac(&config.node.name, network.vni);
    let mut removed = vec![];
    for (name, alias) in config.devices() {
        let sought = Sought { network: &network.name, alias: &alias, name, mac, adopt: None, held: None };
        let observed = match observe(config, &sought, &netlink.dump().await?) {
            Ok(observed) => observed,
            Err(foreign) => {
                tracing::warn!("left alone: {foreign}");
                continue;
            }
        };
        let mut target = Target { network: network.name.clone(), name: name.to_owned(), alias, index: None };
        for change in kernel::diff(&observed, &KernelState::default()) {
            netlink.apply(&change, &mut target).await?;
            removed.push(change.to_string());
        }
    }
    Ok(removed)
}
