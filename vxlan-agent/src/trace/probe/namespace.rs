//! The network namespace that has an address.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockaddrLike as _};
use vxlan_ebpf_common::maps::NetworkId;

use crate::datapath::DatapathState;
use crate::net::Mac;
use crate::trace::Unanswerable;

/// Directories in which namespaces have names.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A network namespace.
pub(super) struct Namespace {
    /// None: this process's own.
    file: Option<File>,
    name: String,
}

impl Namespace {
    /// That which sends from `from`: this host's, or that of a pod.
    pub(super) fn of(state: &DatapathState, networks: &[NetworkId], from: IpAddr) -> Result<Self> {
        if owner(from)?.is_some() {
            return Ok(Self { file: None, name: "this node".to_owned() });
        }
        let pod = state.endpoints.iter().find(|((id, ip), _)| networks.contains(id) && *ip == from);
        let mac = pod.map(|(_, endpoint)| Mac(endpoint.mac));
        for path in candidates() {
            let Ok(file) = File::open(&path) else { continue };
            let namespace =
                Self { file: Some(file), name: format!("the pod's namespace {}", path.display()) };
            // Two tenants' pods may have one address; no two here have one MAC.
            let holds = |known: &Option<Mac>| mac.is_none() || *known == mac;
            match namespace.run(|| owner(from)) {
                Ok(Ok(Some(known))) if holds(&known) => return Ok(namespace),
                _ => {}
            }
        }
        Err(Unanswerable(format!(
            "{from} is neither an address of this node nor of a pod whose network namespace can be found here: \
             a probe is sent by SRC itself, so run it on that node"
        ))
        .into())
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` on a thread in it. Sockets that are opened there stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Some(file) = &self.file else { return Ok(work()) };
        let inside = || {
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.name))?;
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, inside);
            let thread = thread.context("cannot start a thread")?;
            thread.join().map_err(|_| anyhow!("the thread in {} has ended early", self.name))?
        })
    }
}

/// If this thread's namespace has the address, the MAC of its interface.
fn owner(ip: IpAddr) -> Result<Option<Option<Mac>>> {
    let all: Vec<_> = getifaddrs().context("cannot list addresses")?.collect();
    let has = |address: &nix::ifaddrs::InterfaceAddress| {
        let address = address.address?;
        match address.family()? {
            AddressFamily::Inet => Some(IpAddr::from(address.as_sockaddr_in()?.ip())),
            AddressFamily::Inet6 => Some(IpAddr::from(address.as_sockaddr_in6()?.ip())),
            _ => None,
        }
    };
    let Some(found) = all.iter().find(|address| has(address) == Some(ip)) else { return Ok(None) };
    let link = all.iter().filter(|address| address.interface_name == found.interface_name);
    let mac = link.filter_map(|address| address.address?.as_link_addr()?.addr()).next();
    Ok(Some(mac.map(Mac)))
}

/// Every network namespace that a name or a process leads to, once, but for this one.
fn candidates() -> Vec<PathBuf> {
    let inside = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let named = NAMED.into_iter().flat_map(inside).map(|entry| entry.path());
    let of_processes = inside("/proc").map(|entry| entry.path().join("ns/net"));
    let number = |path: &PathBuf| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let own = number(&PathBuf::from("/proc/thread-self/ns/net"));
    let mut known: BTreeSet<_> = own.into_iter().collect();
    named.chain(of_processes).filter(|path| number(path).is_some_and(|number| known.insert(number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_sends_from_its_own_addresses() {
        let own = Namespace::of(&DatapathState::default(), &[], IpAddr::from([127, 0, 0, 1]));
        assert_eq!(own.expect("loopback").name(), "this node");
    }

    #[test]
    fn nobody_sends_from_an_address_that_nobody_has() {
        let nobody = Namespace::of(&DatapathState::default(), &[], IpAddr::from([192, 0, 2, 77]));
        assert!(nobody.err().is_some_and(|error| error.is::<Unanswerable>()));
    }
}
