use std::collections::BTreeMap;

use super::*;
use crate::config::{Cni, EtcdConfig, reference};
use crate::net::Mtu;

/// A machine of files and variables.
#[derive(Default)]
struct Paper {
    files: BTreeMap<PathBuf, String>,
    environment: Vec<(String, String)>,
}

impl Machine for Paper {
    fn read(&self, path: &Path) -> Result<Option<Text>, String> {
        Ok(self.files.get(path).map(|content| Text::new(path, content.as_str())))
    }

    fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    fn hostname(&self) -> Option<String> {
        Some("box".into())
    }
}

impl Paper {
    fn new(net_conf: &str) -> Self {
        Self::default().file(NET_CONF, net_conf)
    }

    fn file(mut self, path: &str, content: &str) -> Self {
        self.files.insert(path.into(), content.to_owned());
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn translate(&self, line: &str) -> Result<Flannel, String> {
        let line = format!("--kube-subnet-mgr {line}");
        Flannel::translate(line.split_whitespace().map(str::to_owned), self)
    }
}

/// As flannel's manifest has it.
const PLAIN: &str =
    r#"{ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } }"#;

fn kubernetes(flannel: &Flannel) -> &KubernetesConfig {
    match &flannel.config.state {
        StateConfig::Kubernetes(state) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_manifest_needs_no_change() {
    let machine = Paper::new(PLAIN)
        .variable("POD_NAME", "kube-flannel-ds-x")
        .variable("POD_NAMESPACE", "kube-flannel")
        .variable("EVENT_QUEUE_DEPTH", "5000");
    let flannel = machine.translate("--ip-masq").expect("valid");
    let (config, state) = (&flannel.config, kubernetes(&flannel));
    assert_eq!((config.network.vni.get(), config.network.port, config.network.mtu), (1, 8472, None));
    assert_eq!((config.network.device.as_str(), state.device6.as_str()), ("flannel.1", "flannel-v6.1"));
    assert_eq!((state.ipv4, state.ipv6, state.set_condition), (true, false, true));
    assert_eq!(state.pod, Some(("kube-flannel".into(), "kube-flannel-ds-x".into())));
    assert_eq!(config.network.fastpath, Fastpath::Verified);
    let pods = &config.pods;
    assert_eq!(pods.networks, ["10.244.0.0/16".parse().expect("network")]);
    assert_eq!(pods.subnet_file.as_deref(), Some(Path::new("/run/flannel/subnet.env")));
    assert_eq!((pods.masquerade, pods.random_ports, pods.cni), (true, true, Cni::Off));
    assert!(flannel.undone.is_empty());
    assert_eq!(config.node.healthz, None);
}

#[test]
fn keys_are_matched_without_case() {
    let machine = Paper::new(
        r#"{ "network": "10.1.0.0/16", "ENABLEIPV6": true, "ipv6network": "fd00::/48",
             "backend": { "type": "vxlan", "vni": 7, "PORT": 4789, "mtu": 1400, "directrouting": true } }"#,
    );
    let flannel = machine.translate("").expect("valid");
    let network = &flannel.config.network;
    assert_eq!((network.vni.get(), network.port, network.mtu), (7, 4789, Some(Mtu(1400))));
    assert_eq!(network.device, "flannel.7");
    assert_eq!(flannel.config.pods.networks.len(), 2);
    assert!(kubernetes(&flannel).ipv6);
    assert!(network.direct_routing);
    assert!(flannel.undone.is_empty());
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (net_conf, word) in [
        (r#"{ "Network": "10.1.0.0/16", "Backend": { "Type": "host-gw" } }"#, "'host-gw'"),
        (r#"{ "Network": "10.1.0.0/16" }"#, "'udp'"),
        (r#"{ "Backend": { "Type": "vxlan" } }"#, "Network is missing"),
        (
            r#"{ "Network": "10.1.0.0/16", "EnableIPv6": true, "Backend": { "Type": "vxlan" } }"#,
            "IPv6Network",
        ),
        (r#"{ "Network": "fd00::/48", "Backend": { "Type": "vxlan" } }"#, "other IP version"),
        (r#"{ "Network": "10.1.0.0/16", "Backend": { "Type": "vxlan", "VNI": 16777216 } }"#, "VNI"),
        (r#"{ "Network": "10.1.0.0/16", "Backend": { "Type": "vxlan", "Port": "x" } }"#, "Port"),
        (r#"{ "Network": "10.1.0.0/16", "Backend": { "Type": "vxlan", "GBP": true } }"#, "GBP"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
    ] {
        let refused = Paper::new(net_conf).translate("").expect_err(net_conf);
        assert!(refused.contains(word) && refused.contains(NET_CONF), "{refused}");
    }
    assert!(Paper::default().translate("").expect_err("no file").contains("ConfigMap"));
    let relative = Paper::new(PLAIN).translate("--subnet-file=subnet.env").expect_err("relative");
    assert!(relative.contains("--subnet-file"), "{relative}");
}

fn without_kubernetes(line: &str, machine: &Paper) -> Result<Flannel, String> {
    Flannel::translate(line.split_whitespace().map(str::to_owned), machine)
}

fn etcd(flannel: &Flannel) -> &EtcdConfig {
    match &flannel.config.state {
        StateConfig::Etcd(state) => state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_kubernetes_the_network_is_in_etcd() {
    let flannel = without_kubernetes("", &Paper::default()).expect("valid");
    let state = etcd(&flannel);
    assert_eq!(state.access.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!((state.access.prefix.as_str(), state.margin.as_secs()), ("/coreos.com/network", 3600));
    assert_eq!((state.subnet_file.as_path(), state.follows), (Path::new("/run/flannel/subnet.env"), true));
    assert!(flannel.config.pods.networks.is_empty() && flannel.undone.is_empty());
}

#[test]
fn flags_and_environment_for_etcd_are_obeyed() {
    let machine = Paper::default()
        .variable("FLANNELD_ETCD_PREFIX", "/net/")
        .variable("FLANNELD_ETCD_CAFILE", "/ca")
        .file("/etc/kube-flannel/vxlan-agent.toml", "fastpath = \"direct\"\n");
    let flannel = without_kubernetes(
        "--etcd-endpoints=https://a:2379,https://b:2379 --etcd-certfile=/c --etcd-keyfile=/k \
         --etcd-username=u --etcd-password=p --subnet-lease-renew-margin=5 --subnet-file=/s \
         --iface=eth1 --public-ip=198.51.100.1 --ip-masq",
        &machine,
    )
    .expect("valid");
    let state = etcd(&flannel);
    assert_eq!(state.access.endpoints.len(), 2);
    assert_eq!((state.access.prefix.as_str(), state.margin.as_secs()), ("/net", 300));
    assert_eq!(state.access.ca_file.as_deref(), Some(Path::new("/ca")));
    assert_eq!(state.access.identity, Some(("/c".into(), "/k".into())));
    assert_eq!(state.access.user, Some(("u".into(), "p".into())));
    assert_eq!((state.subnet_file.as_path(), state.public.len()), (Path::new("/s"), 1));
    assert_eq!(state.interfaces, [Choice::Name("eth1".into())]);
    assert!(flannel.config.pods.masquerade && flannel.config.network.fastpath == Fastpath::Direct);
    for (line, word) in [
        ("--etcd-endpoints=a:2379", "a:2379"),
        ("--etcd-keyfile=/k", "--etcd-certfile"),
        ("--etcd-password=p", "--etcd-username"),
        ("--subnet-lease-renew-margin=0", "margin"),
    ] {
        assert!(without_kubernetes(line, &Paper::default()).expect_err(line).contains(word), "{line}");
    }
}

#[test]
fn flags_are_obeyed() {
    let machine = Paper::new("").file("/conf/net-conf.json", PLAIN).variable("NODE_NAME", "n1");
    let flannel = machine
        .translate(
            "--net-config-path=/conf/net-conf.json --iface=eth1 --iface=192.0.2.1 --iface-regex=^ens \
             --iface-can-reach=192.0.2.9 --public-ip=198.51.100.1 --public-ipv6=2001:db8::1 \
             --kubeconfig-file=/k --kube-annotation-prefix=a.example --subnet-file=/s \
             --set-node-network-unavailable=false --healthz-ip=127.0.0.1 --healthz-port=10256 \
             --ip-masq-fully-random-disable",
        )
        .expect("valid");
    let state = kubernetes(&flannel);
    let choices: Vec<String> = state.interfaces.iter().map(ToString::to_string).collect();
    assert_eq!(
        choices,
        [
            "interface eth1",
            "an interface with 192.0.2.1",
            "an interface that matches ^ens",
            "the interface that leads to 192.0.2.9"
        ]
    );
    assert_eq!((state.public.len(), state.set_condition), (2, false));
    assert_eq!(state.kubeconfig.as_deref(), Some(Path::new("/k")));
    assert_eq!(state.names.prefix(), "a.example/");
    assert_eq!((flannel.config.node.name.as_str(), &state.pod), ("n1", &None));
    assert_eq!(flannel.config.node.healthz, Some(([127, 0, 0, 1], 10256).into()));
    let pods = &flannel.config.pods;
    assert_eq!((pods.subnet_file.as_deref(), pods.masquerade), (Some(Path::new("/s")), false));
    assert!(!pods.random_ports);
}

#[test]
fn what_flannel_does_not_have_stands_next_to_its_configuration() {
    let extras = "fastpath = \"off\"\nflows = 512\nother_vni = \"drop\"\nnotrack = true\n[node]\nattach = \"clsact\"\nunderlay = \"eth7\"\n";
    let machine = Paper::new(PLAIN).file("/etc/kube-flannel/vxlan-agent.toml", extras);
    let flannel = machine.translate("").expect("valid");
    let network = &flannel.config.network;
    assert_eq!((network.fastpath, network.flows), (Fastpath::Off, 512));
    assert_eq!((network.malformed, network.other_vni, network.notrack), (Guard::Kernel, Guard::Drop, true));
    assert_eq!(kubernetes(&flannel).interfaces, [Choice::Name("eth7".into())]);
    let machine = Paper::new(PLAIN).file("/etc/kube-flannel/vxlan-agent.toml", "colour = \"red\"\n");
    assert!(machine.translate("").expect_err("unknown").contains("colour"));
}

#[test]
fn the_reference_has_every_key_that_flannel_does_not_have() {
    let machine = Paper::new(PLAIN).file("/etc/kube-flannel/vxlan-agent.toml", "nonsense = 1\n");
    let refusal = machine.translate("").expect_err("an unknown key");
    assert_eq!(reference::expected(&refusal), reference::documented("`vxlan-agent.toml`"));
}
