//! What the agent may do once it runs: the capabilities that it needs, and no way back to others.
//!
//! Capabilities are a thread's. So they are given up before the agent starts its first thread, and all that it starts
//! have no more than it has left.

use std::collections::BTreeSet;

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl::set_no_new_privs;

use crate::config::NodeConfig;
use crate::datapath::ensure_bpffs;

/// Devices, routes, nf_tables and `/proc/sys/net`; maps and programs; programs that read packets.
const ALWAYS: [Capability; 3] = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];
/// Files of other users among those that the configuration names: a key of etcd's, for one. They are read anew while the
/// agent runs, and what is kept from it then would only be seen later.
const FILES: Capability = Capability::CAP_DAC_OVERRIDE;
/// Programs of others: to whom else Linux lists neither links nor programs (`bpf_link_get_fd_by_id`, v6.18). Without it
/// there may be one at netfilter's hooks, so that each connection has to be verified by itself; and kernels, or security
/// modules, that want more of whoever loads programs want this.
const OTHERS: Capability = Capability::CAP_SYS_ADMIN;
/// Echo requests through the tunnel.
const PROBES: Capability = Capability::CAP_NET_RAW;
/// Ports below this one are for `CAP_NET_BIND_SERVICE`, unless a setting says otherwise.
const UNPRIVILEGED_PORT: u16 = 1024;

/// Gives up all capabilities that the agent of `node` does not need from now on; `fast`: whether bpffs has to be there.
/// What is left, by name.
///
/// # Errors
/// The kernel does not say what this process may do, or bpffs cannot be mounted.
pub fn give_up(node: &NodeConfig, fast: bool) -> anyhow::Result<Vec<String>> {
    if fast {
        ensure_bpffs(&node.pin_dir)?;
    }
    let permitted = read(CapSet::Permitted)?;
    let ports = [node.healthz, node.metrics].into_iter().flatten().map(|address| address.port());
    let mut wanted: CapsHashSet = ALWAYS.into_iter().chain([FILES]).collect();
    wanted.extend(fast.then_some(OTHERS));
    wanted.extend(node.connectivity.map(|_| PROBES));
    wanted.extend(ports.filter(|port| *port < UNPRIVILEGED_PORT).map(|_| Capability::CAP_NET_BIND_SERVICE));
    let kept: CapsHashSet = permitted.intersection(&wanted).copied().collect();
    narrow(&kept);
    caps::set(None, CapSet::Effective, &kept).context("cannot give up capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("cannot give up capabilities")?;
    Ok(names(&read(CapSet::Effective)?))
}

/// Takes from this thread, and from those that it starts, all ways to get other capabilities than `kept`. Nothing that
/// the agent does comes near them, so what the kernel does not let it take away stays.
fn narrow(kept: &CapsHashSet) {
    let all = read(CapSet::Bounding).unwrap_or_default();
    for capability in all.difference(kept) {
        if let Err(error) = caps::drop(None, CapSet::Bounding, *capability) {
            tracing::debug!("{capability} stays in the bounding set: {error}");
        }
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        if let Err(error) = caps::clear(None, set) {
            tracing::debug!("{set:?} capabilities stay: {error}");
        }
    }
    if let Err(error) = set_no_new_privs() {
        tracing::debug!("programs may still give privileges: {error}");
    }
}

fn read(set: CapSet) -> anyhow::Result<CapsHashSet> {
    caps::read(None, set).context("cannot read the own capabilities")
}

/// In the order of their names.
fn names(capabilities: &CapsHashSet) -> Vec<String> {
    let names: BTreeSet<String> = capabilities.iter().map(ToString::to_string).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_told_in_the_order_of_their_names() {
        let all: CapsHashSet = ALWAYS.into_iter().chain([FILES]).collect();
        assert_eq!(names(&all), ["CAP_BPF", "CAP_DAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    }
}
