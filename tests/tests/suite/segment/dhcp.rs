//! Addresses from a DHCP server at another node: a real server, and a real client.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vxlan_tests::lab::segment::{Host, SegmentLab};
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::wait_until;

use super::{BLUE, RED, assert_answered, build, over_all, two_tenants};

/// What the client runs when it has a lease.
const ON_LEASE: &str = "#!/bin/sh\n[ \"$1\" = bound ] && ip addr add \"$ip/16\" dev \"$interface\"\nexit 0\n";

/// dnsmasq on a host; ended when dropped.
pub(super) struct Server(Child);

impl Server {
    /// Gives out the addresses `10.66.<third>.1` to `.9`.
    pub(super) fn start(host: &Host, dir: &Path, third: u8) -> Self {
        let log = dir.join(format!("{}.dnsmasq", host.name));
        let out = File::create(&log).expect("a log");
        let range = format!("--dhcp-range=10.66.{third}.1,10.66.{third}.9,255.255.0.0,1h");
        let leases = format!("--dhcp-leasefile={}", dir.join(format!("{}.leases", host.name)).display());
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0"]);
        command.args(["--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--log-dhcp"]);
        command.args(["--log-facility=-", "--user=root", "--pid-file=", &range, &leases]);
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a log")).stderr(out);
        let child = host.run(|| command.spawn()).expect("dnsmasq (package dnsmasq-base)");
        let listens = || host.sh("ss -lun").is_ok_and(|shown| shown.contains(":67 "));
        let up = wait_until("dnsmasq listens", Duration::from_secs(5), listens);
        up.inspect_err(|_| eprintln!("{}", fs::read_to_string(&log).unwrap_or_default())).expect("a server");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets a host without an IPv4 address ask for one.
fn ask(host: &Host, script: &Path) {
    host.ip("addr flush dev eth0 scope global\n").expect("no addresses");
    let script = script.display().to_string();
    let args = ["-i", "eth0", "-f", "-n", "-q", "-t", "5", "-T", "1", "-s", &script];
    host.cmd("udhcpc", &args).expect("a lease");
}

/// The address that a host has.
fn address(host: &Host) -> String {
    let shown = host.sh("ip -4 -o addr show dev eth0").expect("an interface");
    let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    address.unwrap_or_default().to_owned()
}

fn script(lab: &SegmentLab) -> PathBuf {
    let path = lab.run_dir().join("on-lease");
    fs::write(&path, ON_LEASE).expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a program");
    path
}

#[test]
fn hosts_get_their_addresses_from_the_server_of_their_tenant() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3).tenants(two_tenants(4789)));
        let servers = [(RED, 201), (BLUE, 202)].map(|(tenant, third)| {
            let server = Server::start(lab.host(2, tenant, 1), &lab.run_dir(), third);
            (tenant, third, server)
        });
        let script = script(&lab);
        for (tenant, third, _) in &servers {
            for n in [1, 3] {
                let host = lab.host(n, tenant, 1);
                ask(host, &script);
                let got = address(host);
                assert!(got.starts_with(&format!("10.66.{third}.")), "{} got {got:?}", host.name);
                assert_answered(host, lab.host(2, tenant, 1).ip4, Ping::default());
            }
        }
    });
}
