//! The etcd of a lab, the real one, with flannel's keys in it. It listens at [`ADDRESS`] on the lab's
//! fabric.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::addr::{inner4, inner6, underlay4, underlay6, vtep_mac};
use super::kubernetes::flannel::{self, Remote};
use super::server::{self, Server};
use super::{Lab, Netns};

/// Where etcd listens.
pub const ADDRESS: &str = "192.0.2.250";

/// What flannel's keys begin with.
pub const PREFIX: &str = "/coreos.com/network";

/// The one user, where etcd asks who one is, and its password.
pub const USER: (&str, &str) = ("root", "open sesame");

const PORT: u16 = 2379;
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Seconds that a node of flannel's holds its key for.
const DAY: u32 = 24 * 60 * 60;

/// A lab's etcd; dropping it ends it.
pub struct Etcd {
    ns: Netns,
    dir: PathBuf,
    secured: bool,
    server: Option<Server>,
}

impl Etcd {
    /// Starts etcd in `ns`, with files in `dir`, and puts the network's parameters there. If it is
    /// `secured`, it speaks TLS, wants certificates, and asks for name and password.
    ///
    /// # Errors
    /// It is not there, or cannot be started.
    pub(super) fn start(ns: Netns, dir: &Path, secured: bool) -> Result<Self> {
        for program in [server::etcd_program(), server::etcdctl_program()] {
            let found =
                Command::new(&program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
            ensure!(found.is_ok(), "there is no {program:?}: install etcd-server and etcd-client");
        }
        let mut etcd = Self { ns, dir: dir.to_owned(), secured, server: None };
        if secured {
            etcd.make_certificates()?;
        }
        etcd.resume()?;
        let conf = json!({
            "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
            "Backend": { "Type": "vxlan" },
        });
        etcd.ctl(&["put", &format!("{PREFIX}/config"), &conf.to_string()])?;
        if secured {
            let (name, password) = USER;
            etcd.bare_ctl(&["user", "add", &format!("{name}:{password}")])?;
            etcd.bare_ctl(&["user", "grant-role", name, "root"])?;
            etcd.bare_ctl(&["auth", "enable"])?;
        }
        Ok(etcd)
    }

    /// Takes etcd away without a warning; what is in it stays.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Brings it back.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn resume(&mut self) -> Result<()> {
        self.run("0.0.0.0")
    }

    /// Brings it back, but not for the nodes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn resume_in_private(&mut self) -> Result<()> {
        self.run("127.0.0.1")
    }

    fn run(&mut self, listen: &str) -> Result<()> {
        self.stop();
        let scheme = if self.secured { "https" } else { "http" };
        let listen = format!("{scheme}://{listen}:{PORT}");
        let mut command = server::etcd(&self.dir, &listen, &self.endpoint());
        if self.secured {
            for (flag, file) in [("trusted-ca", "ca.pem"), ("cert", "server.pem"), ("key", "server.key")] {
                command.arg(format!("--{flag}-file={}", self.file(file).display()));
            }
            command.arg("--client-cert-auth");
        }
        let mut server = Server::start(&self.ns, command, self.dir.join("etcd.log"))?;
        server.wait_ready(READY_WITHIN, || self.ctl(&["get", "health"]).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// What agents are told to connect to.
    pub fn endpoint(&self) -> String {
        format!("{}://{ADDRESS}:{PORT}", if self.secured { "https" } else { "http" })
    }

    /// A certificate or key that has been made for a secured etcd.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether it speaks TLS, wants certificates, and asks for name and password.
    pub fn is_secured(&self) -> bool {
        self.secured
    }

    /// Runs `etcdctl`.
    ///
    /// # Errors
    /// It fails.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let user = format!("--user={}:{}", USER.0, USER.1);
        match self.secured {
            true => self.bare_ctl(&[&[user.as_str()], args].concat()).or_else(|_| self.bare_ctl(args)),
            false => self.bare_ctl(args),
        }
    }

    fn bare_ctl(&self, args: &[&str]) -> Result<String> {
        let endpoint = self.endpoint().replace(ADDRESS, "127.0.0.1");
        let mut all = vec![format!("--endpoints={endpoint}"), "--command-timeout=2s".to_owned()];
        if self.secured {
            for (flag, file) in [("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")] {
                all.push(format!("--{flag}={}", self.file(file).display()));
            }
        }
        let all: Vec<&str> = all.iter().map(String::as_str).chain(args.iter().copied()).collect();
        self.ns.cmd(&server::etcdctl_program().to_string_lossy(), &all)
    }

    /// The keys of nodes, without what all of them begin with, and what they say.
    ///
    /// # Errors
    /// etcd does not answer, or a value is not JSON.
    pub fn keys(&self) -> Result<BTreeMap<String, Value>> {
        let first = format!("{PREFIX}/subnets/");
        let text = self.ctl(&["get", "--prefix", &first])?;
        let lines: Vec<&str> = text.lines().collect();
        let pairs = lines.chunks(2).map(|pair| match pair {
            [key, value] => {
                let value = serde_json::from_str(value).with_context(|| format!("{key}: {value}"))?;
                Ok((key.trim_start_matches(&first).to_owned(), value))
            }
            _ => bail!("a key without a value in {text}"),
        });
        pairs.collect()
    }

    /// The key of node `n`, by its address.
    ///
    /// # Errors
    /// It has none.
    pub fn key_of(&self, n: u8) -> Result<String> {
        let address = json!(underlay4(n).to_string());
        let mut keys = self.keys()?.into_iter();
        let (key, _) = keys.find(|(_, value)| value["PublicIP"] == address).context("a key of this node")?;
        Ok(key)
    }

    /// A new lease of so many seconds.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn grant(&self, seconds: u32) -> Result<String> {
        let said = self.ctl(&["lease", "grant", &seconds.to_string()])?;
        Ok(said.split_whitespace().nth(1).context("a lease")?.to_owned())
    }

    /// Writes the key of a node under a lease of so many seconds.
    ///
    /// # Errors
    /// As [`Etcd::grant`].
    pub fn put(&self, key: &str, value: &Value, seconds: u32) -> Result<()> {
        let lease = format!("--lease={}", self.grant(seconds)?);
        self.ctl(&["put", &lease, &format!("{PREFIX}/subnets/{key}"), &value.to_string()]).map(drop)
    }

    /// Deletes the key of a node.
    ///
    /// # Errors
    /// There is none.
    pub fn delete(&self, key: &str) -> Result<()> {
        let deleted = self.ctl(&["del", &format!("{PREFIX}/subnets/{key}")])?;
        ensure!(deleted.trim() == "1", "{deleted} keys are deleted");
        Ok(())
    }

    /// Number of the lease of a node's key, as `etcdctl` wants it.
    ///
    /// # Errors
    /// There is none.
    pub fn lease_of(&self, key: &str) -> Result<String> {
        let fields = self.ctl(&["get", "-w", "fields", &format!("{PREFIX}/subnets/{key}")])?;
        let lease = fields.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).context("a key")?;
        Ok(format!("{:x}", lease.trim().parse::<i64>()?))
    }

    /// How many seconds a lease has left.
    ///
    /// # Errors
    /// As [`Etcd::lease_of`].
    pub fn seconds_left(&self, lease: &str) -> Result<u32> {
        let said = self.ctl(&["lease", "timetolive", lease])?;
        let words = said.split(&['(', ')', ' ', ','][..]);
        let left = words.filter_map(|word| word.trim().strip_suffix('s')?.parse().ok()).next_back();
        left.with_context(|| format!("{said:?} says how long"))
    }

    /// Forgets everything but what is there now.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        let fields = self.ctl(&["get", "-w", "fields", "nothing"])?;
        let revision = fields.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        self.ctl(&["compact", revision.context("a revision")?.trim()]).map(drop)
    }

    /// A certificate authority, and certificates of server and client that it has signed.
    fn make_certificates(&self) -> Result<()> {
        let openssl =
            |line: String| super::run(Command::new("openssl").args(line.split(' ')).current_dir(&self.dir));
        let make = "req -newkey rsa:2048 -nodes -keyout";
        openssl(format!("{make} ca.key -x509 -days 2 -subj /CN=lab -out ca.pem"))?;
        for name in ["server", "client"] {
            let extension = format!("subjectAltName=IP:{ADDRESS},IP:127.0.0.1\n");
            std::fs::write(self.file("names"), extension)?;
            openssl(format!("{make} {name}.key -subj /CN={name} -out {name}.csr"))?;
            openssl(format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ))?;
        }
        Ok(())
    }
}

/// The key that node `n` has where the lab gives it its subnets.
pub fn key(n: u8) -> String {
    format!("{}-24&{}-64", inner4(n, 0), inner6(n, 0))
}

/// The same in a network with IPv4 alone.
pub fn key_of_ipv4(n: u8) -> String {
    format!("{}-24", inner4(n, 0))
}

/// What flannel says of node `n`.
pub fn attributes(n: u8) -> Value {
    json!({
        "PublicIP": underlay4(n).to_string(),
        "PublicIPv6": underlay6(n).to_string(),
        "BackendType": "vxlan",
        "BackendData": { "VNI": 1, "VtepMAC": vtep_mac(n) },
        "BackendV6Data": { "VNI": 1, "VtepMAC": flannel::vtep_mac6(n) },
    })
}

/// What flannel's CNI plugin finds on node `n`, from before.
pub(super) fn subnet_file(n: u8) -> String {
    let (v4, v6) = (inner4(n, 1), inner6(n, 1));
    format!("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={v4}/24\nFLANNEL_IPV6_SUBNET={v6}/64\n")
}

/// Makes node `n` one of flannel's: devices and key, but no other node yet.
///
/// # Errors
/// The kernel or etcd refuses something.
pub fn set_up(lab: &Lab, n: u8) -> Result<()> {
    flannel::make_devices(lab, n)?;
    lab.etcd().put(&key(n), &attributes(n), DAY)
}

/// Lets node `own` know every other node that has a key, as flannel does.
///
/// # Errors
/// As [`set_up`].
pub fn follow(lab: &Lab, own: u8) -> Result<()> {
    let mut remotes = vec![];
    for (name, value) in lab.etcd().keys()?.iter().filter(|(name, _)| **name != key(own)) {
        for (subnet, fields) in
            name.split('&').zip([("BackendData", "PublicIP"), ("BackendV6Data", "PublicIPv6")])
        {
            let (net, bits) = subnet.split_once('-').context("a subnet")?;
            let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
            let (mac, ip) = (text(&value[fields.0]["VtepMAC"])?, text(&value[fields.1])?);
            remotes.push(Remote { mac, ip, net: net.to_owned(), bits: bits.to_owned() });
        }
    }
    flannel::program(lab.node(own), &remotes)
}

impl Lab {
    /// The lab's etcd.
    ///
    /// # Panics
    /// The lab was built without one.
    pub fn etcd(&self) -> &Etcd {
        self.etcd.as_ref().expect("a lab with etcd")
    }

    /// As [`Lab::etcd`], to stop and start it.
    ///
    /// # Panics
    /// The lab was built without one.
    pub fn etcd_mut(&mut self) -> &mut Etcd {
        self.etcd.as_mut().expect("a lab with etcd")
    }
}
