//! FRR as it manages the bridged VXLAN devices of a node: zebra, which writes forwarding entries, and bgpd, which tells
//! and hears of MACs by BGP EVPN. The real ones, from Debian's package `frr`, with a directory of their own.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, chown};

use super::server::Server;
use super::{Netns, cmd};

/// Where Debian's package has the daemons.
const PROGRAMS: &str = "/usr/lib/frr";
/// Whose rights they take on.
const USER: &str = "frr";
/// All nodes are in one autonomous system.
const SYSTEM: u32 = 65_000;
const READY_WITHIN: Duration = Duration::from_secs(10);

/// One of the two daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Writes and reads the kernel's entries.
    Zebra,
    /// Speaks BGP.
    Bgpd,
}

impl Daemon {
    const fn name(self) -> &'static str {
        match self {
            Self::Zebra => "zebra",
            Self::Bgpd => "bgpd",
        }
    }
}

/// What FRR on a node is told.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// The node's address, and its name in BGP.
    pub own: Ipv4Addr,
    /// Whom it speaks to.
    pub peers: Vec<Ipv4Addr>,
    /// VNI of a device over which the subnets of the nodes are routed (routes of type 5).
    pub routed: Option<u32>,
}

/// FRR on a node; dropping it ends it without a warning.
pub struct Frr {
    ns: Netns,
    dir: PathBuf,
    /// bgpd first, because it is zebra's client.
    bgpd: Option<Server>,
    zebra: Option<Server>,
}

impl Frr {
    /// Starts FRR in `node`, with files in the directory `dir`, which it makes. It tells of all bridged VXLAN
    /// devices of the node.
    ///
    /// # Errors
    /// The package `frr` is not installed, or a daemon does not come up.
    pub fn start(node: &Netns, dir: PathBuf, speaker: &Speaker) -> Result<Self> {
        let user = User::from_name(USER)?;
        ensure!(Path::new(PROGRAMS).join("bgpd").exists(), "there is no {PROGRAMS}/bgpd: install frr");
        let user = user.with_context(|| format!("there is no user {USER}: install frr"))?;
        std::fs::create_dir_all(&dir)?;
        chown(&dir, Some(user.uid), Some(user.gid))?;
        let routed = speaker.routed.map(|vni| format!("vni {vni}\n"));
        std::fs::write(dir.join("zebra.conf"), routed.unwrap_or_default())?;
        std::fs::write(dir.join("bgpd.conf"), speaker.bgp())?;
        let ns = Netns::open(node.namespace())?;
        let mut frr = Self { ns, dir, bgpd: None, zebra: None };
        frr.resume(Daemon::Zebra)?;
        frr.resume(Daemon::Bgpd)?;
        Ok(frr)
    }

    /// Kills a daemon.
    pub fn kill9(&mut self, daemon: Daemon) {
        *self.slot(daemon) = None;
    }

    /// Starts a daemon that has been killed.
    ///
    /// # Errors
    /// It does not come up.
    pub fn resume(&mut self, daemon: Daemon) -> Result<()> {
        let (name, dir) = (daemon.name(), &self.dir);
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let (vty, api) = (file("vty"), dir.join("zserv.api"));
        let mut command = Command::new(Path::new(PROGRAMS).join(name));
        command.arg("-f").arg(file("conf")).arg("-i").arg(file("pid")).arg("-z").arg(&api);
        // No port for terminals: two daemons would share it.
        command.arg("--vty_socket").arg(dir).args(["-P", "0", "--log", "stdout"]);
        let served = if daemon == Daemon::Zebra { api } else { vty };
        let _ = std::fs::remove_file(&served);
        let mut server = Server::start(&self.ns, command, file("log"))?;
        server.wait_ready(READY_WITHIN, || served.exists())?;
        *self.slot(daemon) = Some(server);
        Ok(())
    }

    /// What FRR's shell prints, for example for `show bgp l2vpn evpn`.
    ///
    /// # Errors
    /// No daemon answers.
    pub fn show(&self, words: &str) -> Result<String> {
        cmd::run(Command::new("vtysh").arg("--vty_socket").arg(&self.dir).args(["-c", words]))
    }

    const fn slot(&mut self, daemon: Daemon) -> &mut Option<Server> {
        match daemon {
            Daemon::Zebra => &mut self.zebra,
            Daemon::Bgpd => &mut self.bgpd,
        }
    }
}

impl Speaker {
    /// bgpd's configuration, with timers that suit a lab.
    fn bgp(&self) -> String {
        let mut text = format!(
            "router bgp {SYSTEM}\n bgp router-id {}\n no bgp default ipv4-unicast\n timers bgp 1 3\n",
            self.own
        );
        for peer in &self.peers {
            let _ = writeln!(
                text,
                " neighbor {peer} remote-as {SYSTEM}\n neighbor {peer} timers connect 1\n \
                 neighbor {peer} advertisement-interval 0"
            );
        }
        if self.routed.is_some() {
            text += " address-family ipv4 unicast\n  redistribute connected\n exit-address-family\n";
        }
        text += " address-family l2vpn evpn\n  advertise-all-vni\n";
        text += self.routed.map_or("", |_| "  advertise ipv4 unicast\n");
        self.peers.iter().for_each(|peer| _ = writeln!(text, "  neighbor {peer} activate"));
        text + " exit-address-family\n"
    }
}
