//! What the host says of itself in files: in a mount namespace of its own the doctor reads others.

use vxlan_tests::lab::addr::{underlay4, vtep_mac};
use vxlan_tests::lab::{DEVICE, Lab};

use super::{await_findings, ids};

/// Runs the doctor where `/run` says more than it does, or where something is not mounted.
#[track_caller]
fn assert_found(lab: &Lab, script: &str, expected: &[&str]) {
    let keep = "mount --make-rprivate / && mkdir -p /tmp/run.$$ && mount --rbind /run /tmp/run.$$ && \
                mount -t tmpfs none /run && mkdir /run/vxlan-lab && mount --rbind /tmp/run.$$/vxlan-lab /run/vxlan-lab && \
                umount -l /tmp/run.$$ && rmdir /tmp/run.$$";
    let script = format!("{keep} && {script} && exec \"$0\" \"$@\"");
    let wrapper = ["unshare", "--mount", "sh", "-c", &script];
    let (_, report) = lab.agent(1).and_then(|agent| agent.judged(&wrapper, &["doctor"])).expect("a report");
    let expected = expected.iter().copied().collect();
    assert_eq!(ids(&report["findings"]), expected, "{script}: {report:#}");
}

fn index(lab: &Lab) -> String {
    let shown = lab.node(1).sh(&format!("ip -o link show dev {DEVICE}")).expect("a device");
    shown.split(':').next().expect("an index").to_owned()
}

pub(super) fn managers(lab: &Lab) {
    let index = index(lab);
    assert_found(lab, "true", &[]);
    let says = |directory: &str, text: &str| {
        format!("mkdir -p {directory} && printf '{text}\\n' > {directory}/{index}")
    };
    let networkd = says(
        "/run/systemd/netif/links",
        "ADMIN_STATE=configured\\nNETWORK_FILE=/etc/systemd/network/x.network",
    );
    assert_found(lab, &networkd, &["foreign-manager"]);
    assert_found(lab, &says("/run/systemd/netif/links", "ADMIN_STATE=unmanaged"), &[]);
    let manager = says("/run/NetworkManager/devices", "[device]\\nmanaged=true");
    assert_found(lab, &manager, &["foreign-manager"]);
    assert_found(lab, "umount -l /sys/fs/bpf", &["bpffs-missing"]);
}

/// An agent of another version, and one that has started when it was later.
pub(super) fn other_agents(lab: &Lab) {
    let status = lab.run_dir().join("n1").join("status.json");
    let (path, text) = (status.display(), std::fs::read_to_string(&status).expect("a status"));
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let (version, started) = (&told["version"], &told["started"]);
    let says = |from: &str, to: &str| {
        format!("sed 's/{from}/{to}/' {path} > /run/status && mount --bind /run/status {path}")
    };
    assert_found(lab, &says(&version.to_string(), "\"0.0.1\""), &["agent-version"]);
    assert_found(lab, &says(&started.to_string(), "99999999999"), &["clock"]);
    assert_found(lab, &says("\"version\"", "\"edition\""), &["agent-version"]);
}

/// Packets whose checksum a raw socket at the other node does not compute. The kernel does not forget them.
pub(super) fn wrong_checksums(lab: &Lab) {
    let datagram = [0x30, 0x39, 0x30, 0x39, 0, 12, 0xde, 0xad, 1, 2, 3, 4];
    let to = std::net::SocketAddr::from((underlay4(1), 0));
    lab.node(2).run(|| {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).expect("a socket");
        for _ in 0..200 {
            socket.send_to(&datagram, &to.into()).expect("sent");
        }
    });
    await_findings(lab, &[], "wrong checksums", &["checksum"]);
}

/// udev has made the MAC.
pub(super) fn mac_of_udev(lab: &Lab) {
    let says = |policy: &str| {
        format!(
            "mkdir -p /run/udev/data && printf 'E:ID_NET_LINK_FILE=/run/x.link\\n' > /run/udev/data/n{} && \
             printf '[Link]\\nMACAddressPolicy={policy}\\n' > /run/x.link",
            index(lab)
        )
    };
    let stopped = "agent-not-running";
    assert_found(lab, &says("persistent"), &[stopped]);
    lab.node(1).ip(&format!("link set {DEVICE} address 02:00:00:00:00:99\n")).expect("a MAC");
    let otherwise = ["vtep-mac", "neighbour-missing", stopped];
    assert_found(lab, &says("none"), &otherwise);
    assert_found(lab, &says("persistent"), &[&otherwise[..], &["udev-mac"]].concat());
    lab.node(1).ip(&format!("link set {DEVICE} address {}\n", vtep_mac(1))).expect("a MAC");
    let found = super::findings(lab, &[]);
    assert_eq!(super::mend(lab, &found, &[stopped]), Vec::<String>::new());
    await_findings(lab, &[], "the MAC is the node's again", &[stopped]);
}
