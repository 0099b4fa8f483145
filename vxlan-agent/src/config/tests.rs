use super::*;

const STATE: &str = "[state]\nsource = \"file\"\npath = \"cluster.toml\"\n";

fn parse(content: &str) -> Result<Config, Refused> {
    let text = Text::new("/etc/c.toml", format!("{STATE}{content}"));
    Config::parse(&text, Path::new("/etc"), &|| Some("box".into()))
}

/// Refused in `line` with a reason that has `word` in it.
fn refused(content: &str, line: Option<usize>, word: &str) {
    let refusal = parse(content).expect_err(content);
    assert_eq!(refusal.line, line, "{refusal}");
    assert!(refusal.reason.contains(word), "{refusal}");
    assert!(!refusal.reason.contains('\n'), "{refusal}");
}

#[test]
fn everything_that_can_be_detected_may_be_left_out() {
    let config = parse("[[network]]\nname = \"pods\"\nvni = 7\n").expect("minimal");
    assert_eq!(config.node.name, "box");
    assert_eq!(config.node.run_dir, Path::new("/run/vxlan-agent/vxlan-agent"));
    assert_eq!(config.network.device, "vxlan7");
    assert_eq!(config.network.port, 8472);
    assert_eq!(config.network.mtu, None);
    assert_eq!(config.network.fastpath, Fastpath::Verified);
    assert_eq!(config.state, StateConfig::File("/etc/cluster.toml".into()));
    assert_eq!(config.pins(), Path::new("/sys/fs/bpf/vxlan-agent/v4/pods"));
}

#[test]
fn everything_can_be_given() {
    let config = parse(
        "[node]\nname = \"a\"\nunderlay = \"eth1\"\naddress = \"fd00::1\"\npin_dir = \"/sys/fs/bpf/a\"\nrun_dir = \"/run/a\"\nxdp = \"native\"\n\
         [[network]]\nname = \"pods\"\nkind = \"l3\"\nvni = 16777215\nport = 4789\nmtu = 1400\ndevice = \"ov0\"\nfastpath = \"off\"\nsource_check = \"count\"\nflows = 1024\nmalformed = \"drop\"\nother_vni = \"drop\"\nnotrack = true\n",
    )
    .expect("complete");
    assert_eq!(config.node.underlay.as_deref(), Some("eth1"));
    assert_eq!(config.network.mtu, Some(Mtu(1400)));
    assert_eq!(config.network.fastpath, Fastpath::Off);
    assert_eq!(config.network.source_check, SourceCheck::Count);
    assert_eq!((config.node.xdp, config.network.flows), (Xdp::Native, 1024));
    assert_eq!((config.network.malformed, config.network.other_vni), (Guard::Drop, Guard::Drop));
    assert!(config.network.notrack);
}

#[test]
fn the_line_of_what_is_wrong_is_named() {
    refused("[[network]]\nname = \"pods\"\nvni = 16777216\n", Some(6), "out of range");
    refused("[[network]]\nname = \"pods\"\nvni = 0\n", Some(6), "out of range");
    refused("[[network]]\nname = \"pods\"\nvni = -1\n", Some(6), "");
    refused("[[network]]\nname = \"po ds\"\nvni = 1\n", Some(5), "po ds");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nport = 0\n", Some(7), "port 0");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nport = 65536\n", Some(7), "");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nmtu = \"big\"\n", Some(7), "auto");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nmtu = 40\n", Some(7), "68");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nflows = 10\n", Some(7), "256 to 16777216");
    refused("[node]\nxdp = \"generic\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "native");
    refused(
        "[[network]]\nname = \"pods\"\nvni = 1\ndevice = \"a-name-that-is-long\"\n",
        Some(7),
        "interface name",
    );
    refused("[[network]]\nname = \"pods\"\nvni = 1\nfastpath = \"warp\"\n", Some(7), "warp");
    refused("[[network]]\nname = \"pods\"\nvni = 1\nkind = \"l2\"\n", Some(7), "l2");
    refused("[[network]]\nname = \"pods\"\nvni = 1\ncolour = \"red\"\n", Some(7), "colour");
    refused("[node]\nname = \"\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "empty");
    refused("[node]\nname = \"a\\u001b[2J\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "control");
    refused("[[network]]\nname = \"po\\nds\"\nvni = 1\n", Some(5), "po\\nds");
    refused("[node]\npin_dir = \"bpf\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "absolute");
    refused("[node]\npin_dir = \"/sys/fs/bpf/a.b\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "dot");
    refused("[node]\naddress = \"10.0.0\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "");
    refused("[[network]\n", Some(4), "");
}

#[test]
fn exactly_one_network_is_served() {
    refused("", None, "no [[network]]");
    let two = "[[network]]\nname = \"a\"\nvni = 1\n[[network]]\nname = \"b\"\nvni = 2\n";
    refused(two, Some(7), "second");
}

#[test]
fn nothing_is_done_for_pods_unless_asked_for() {
    let network = "[[network]]\nname = \"pods\"\nvni = 7\n";
    assert_eq!(parse(network).expect("minimal").pods, PodsConfig::default());
    let all = "[pods]\nnetworks = [\"10.244.0.0/16\", \"fd00:244::/48\"]\nsubnet_file = \"/run/s\"\n\
               cni = \"bridge\"\ncni_file = \"/etc/c\"\nmasquerade = true\n";
    let pods = parse(&format!("{network}{all}")).expect("complete").pods;
    assert_eq!((pods.networks.len(), pods.cni, pods.masquerade), (2, Cni::Bridge, true));
    let flannel = format!("{network}[pods]\ncni = \"flannel\"\nnetworks = [\"10.244.0.0/16\"]\n");
    let pods = parse(&flannel).expect("flannel's").pods;
    assert_eq!(pods.subnet_file, Some(DEFAULT_SUBNET_FILE.into()), "its plugin reads it");
}

#[test]
fn what_is_wrong_for_pods_is_named() {
    let refused = |lines: &str, line, word| {
        refused(&format!("[[network]]\nname = \"pods\"\nvni = 7\n[pods]\n{lines}"), line, word);
    };
    refused("networks = [\"10.244.1.0/16\"]", Some(8), "host bits");
    refused("networks = [\"0.0.0.0/0\"]", Some(8), "unicast");
    refused("networks = [\"10.1.0.0/16\", \"10.2.0.0/16\"]", Some(8), "second");
    refused("subnet_file = \"s\"", Some(8), "absolute");
    refused("cni_file = \"/\"", Some(8), "absolute");
    refused("cni = \"calico\"", Some(8), "calico");
    refused("masquerade = true", None, "networks is missing");
    refused("cni = \"flannel\"", None, "networks is missing");
}

#[test]
fn an_unknown_source_is_refused() {
    let text =
        Text::new("c", "[state]\nsource = \"oracle\"\npath = \"x\"\n[[network]]\nname = \"a\"\nvni = 1\n");
    let refusal = Config::parse(&text, Path::new("/"), &|| None).expect_err("no such source");
    assert_eq!(refusal.line, Some(2));
}

fn kubernetes(section: &str) -> Result<Config, Refused> {
    let text = format!("[state]\nsource = \"kubernetes\"\n{section}[[network]]\nname = \"pods\"\nvni = 1\n");
    Config::parse(&Text::new("c", text), Path::new("/etc"), &|| Some("box".into()))
}

#[test]
fn a_kubernetes_cluster_needs_nothing_but_its_name() {
    let config = kubernetes("").expect("minimal");
    assert_eq!(config.network.device, "flannel.1");
    assert_eq!(config.device_over([192, 0, 2, 1].into()), "flannel.1");
    assert_eq!(config.device_over("2001:db8::1".parse().expect("address")), "flannel-v6.1");
    assert_eq!(config.state, StateConfig::Kubernetes(KubernetesConfig::new(config.network.vni)));
}

#[test]
fn a_kubernetes_cluster_can_be_told_everything() {
    let config = kubernetes(
        "kubeconfig = \"k\"\nannotation_prefix = \"a.example\"\ndevice6 = \"six\"\nipv4 = false\nipv6 = true\n\
         public_ip = \"198.51.100.1\"\npublic_ipv6 = \"2001:db8::1\"\nset_condition = false\n",
    );
    let StateConfig::Kubernetes(state) = config.expect("complete").state else { panic!("another source") };
    assert_eq!(state.kubeconfig.as_deref(), Some(Path::new("/etc/k")));
    assert_eq!((state.names.prefix(), state.device6.as_str()), ("a.example/", "six"));
    assert_eq!((state.ipv4, state.ipv6, state.set_condition, state.public.len()), (false, true, false, 2));
}

#[test]
fn keys_of_one_source_are_refused_for_the_other() {
    let refused = |section: &str, word: &str| {
        let refusal = kubernetes(section).expect_err(section);
        assert!(refusal.line == Some(3) && refusal.reason.contains(word), "{refusal}");
    };
    refused("path = \"x\"\n", "source = \"file\"");
    refused("annotation_prefix = \"a/b/c\"\n", "a/b/c");
    refused("public_ip = \"2001:db8::1\"\n", "other IP version");
    refused("device6 = \"a-name-that-is-long\"\n", "interface name");
    let text = Text::new("c", "[state]\nsource = \"file\"\n[[network]]\nname = \"a\"\nvni = 1\n");
    let refusal = Config::parse(&text, Path::new("/"), &|| Some("a".into())).expect_err("no path");
    assert!(refusal.line == Some(2) && refusal.reason.contains("'path'"), "{refusal}");
}
