//! flanneld as it manages the VXLAN device of a node: the real one, which [`FLANNELD`] names, with its leases in the
//! lab's etcd.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::addr::inner4;
use super::server::Server;
use super::{DEVICE, Etcd, Netns, UNDERLAY, etcd};

/// Environment variable that names a flanneld to test with. No distribution has a package of it.
pub const FLANNELD: &str = "FLANNELD";

const READY_WITHIN: Duration = Duration::from_secs(15);

/// flanneld on a node, over IPv4; dropping it ends it without a warning, and leaves its device and entries.
pub struct Flanneld {
    ns: Netns,
    n: u8,
    program: OsString,
    dir: PathBuf,
    endpoint: String,
    server: Option<Server>,
}

impl Flanneld {
    /// Whether [`FLANNELD`] names one.
    pub fn is_there() -> bool {
        std::env::var_os(FLANNELD).is_some()
    }

    /// Has `etcd` hold a network of flannel's with IPv4 alone, and no nodes.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn begin(etcd: &Etcd) -> Result<()> {
        etcd.ctl(&["del", "--prefix", &format!("{}/subnets/", etcd::PREFIX)])?;
        let network = r#"{ "Network": "10.244.0.0/16", "Backend": { "Type": "vxlan" } }"#;
        etcd.ctl(&["put", &format!("{}/config", etcd::PREFIX), network]).map(drop)
    }

    /// Starts flanneld on `node`, which is number `n` and had its subnet before, with what is its in the directory `dir`,
    /// which it makes.
    ///
    /// # Errors
    /// [`FLANNELD`] names none, or it does not come up.
    pub fn start(node: &Netns, n: u8, dir: PathBuf, etcd: &Etcd) -> Result<Self> {
        let program = std::env::var_os(FLANNELD).with_context(|| format!("{FLANNELD} names no flanneld"))?;
        std::fs::create_dir_all(&dir)?;
        let ns = Netns::open(node.namespace())?;
        let mut flanneld = Self { ns, n, program, dir, endpoint: etcd.endpoint(), server: None };
        flanneld.restart()?;
        Ok(flanneld)
    }

    /// Kills it, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.server = None;
        let before = format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={}/24\n", inner4(self.n, 1));
        std::fs::write(self.subnet_file(), before)?;
        let mut command = Command::new(&self.program);
        command.args(["-ip-masq=false", "-iptables-forward-rules=false", "-iface", UNDERLAY]);
        command.arg("-etcd-endpoints").arg(&self.endpoint).arg("-subnet-file").arg(self.subnet_file());
        let mut server = Server::start(&self.ns, command, self.dir.join("flanneld.log"))?;
        // It writes the file anew once it has a lease, after it has made its device.
        let written =
            || std::fs::read_to_string(self.subnet_file()).is_ok_and(|text| text.contains("FLANNEL_MTU"));
        let made =
            || self.ns.sh(&format!("ip link show up dev {DEVICE}")).is_ok_and(|shown| !shown.is_empty());
        server.wait_ready(READY_WITHIN, || written() && made())?;
        self.server = Some(server);
        Ok(())
    }

    fn subnet_file(&self) -> PathBuf {
        self.dir.join("subnet.env")
    }
}
