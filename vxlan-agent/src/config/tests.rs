use super::*;
use crate::net::Mtu;

const STATE: &str = "[state]\nsource = \"file\"\npath = \"cluster.toml\"\n";

fn whole(content: &str) -> Result<Config, Refused> {
    let text = Text::new("/etc/c.toml", format!("{STATE}{content}"));
    Config::parse(&text, Path::new("/etc"), &|| Some("box".into()))
}

/// A configuration of one network.
fn parse(content: &str) -> Result<View, Refused> {
    whole(content).map(one)
}

fn one(config: Config) -> View {
    let [view] = config.networks.try_into().expect("one network");
    view
}

/// Refused in `line` with a reason that has `word` in it.
fn refused(content: &str, line: Option<usize>, word: &str) {
    let refusal = whole(content).expect_err(content);
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
    assert_eq!(config.node.pins(), Path::new("/sys/fs/bpf/vxlan-agent/v8/@node"));
}

#[test]
fn nodes_on_the_same_link_may_be_reached_without_a_tunnel_in_routed_networks() {
    let of = |lines: &str| parse(&format!("[[network]]\nname = \"pods\"\nvni = 7\n{lines}"));
    assert!(!of("").expect("valid").network.direct_routing);
    assert!(of("direct_routing = true\n").expect("valid").network.direct_routing);
    let bridged = "[[network]]\nname = \"pods\"\nvni = 7\nkind = \"l2\"\ndirect_routing = false\n";
    refused(bridged, Some(8), "'direct_routing' is for kind = \"l3\"");
    let beside = "[[network]]\nkind = \"accelerate\"\ndevice = \"flannel.1\"\ndirect_routing = true\n";
    refused(beside, Some(7), "'direct_routing' is not for kind = \"accelerate\"");
}

#[test]
fn outer_headers_may_be_chosen() {
    use crate::kernel::{DontFragment, Field, WantedHeaders};
    let of = |lines: &str| {
        parse(&format!("[[network]]\nname = \"pods\"\nvni = 7\n{lines}")).expect(lines).network.headers
    };
    assert_eq!(of(""), WantedHeaders::default());
    let inherit = "\"inherit\"";
    let wanted = of(&format!("ttl = 9\ntos = {inherit}\ndf = true\nchecksum = true\n"));
    assert_eq!((wanted.ttl, wanted.tos), (Some(Field::Fixed(9)), Some(Field::Inherit)));
    assert_eq!((wanted.df, wanted.checksum), (Some(DontFragment::Set), Some(true)));
    let wanted = of(&format!("ttl = {inherit}\ntos = 0x28\ndf = {inherit}\n"));
    assert_eq!((wanted.ttl, wanted.tos), (Some(Field::Inherit), Some(Field::Fixed(40))));
    assert_eq!((wanted.df, wanted.checksum), (Some(DontFragment::Inherit), None));
    for (line, word) in [
        ("ttl = 0", "a number of hops from 1 to 255"),
        ("ttl = 256", "a number of hops from 1 to 255"),
        ("tos = 1", "a multiple of 4"),
        ("tos = \"af11\"", "a multiple of 4"),
        ("df = \"yes\"", "true, false or \"inherit\""),
        ("checksum = 1", "boolean"),
    ] {
        refused(&format!("[[network]]\nname = \"pods\"\nvni = 7\n{line}\n"), Some(7), word);
    }
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
    refused("[[network]]\nname = \"pods\"\nvni = 1\nkind = \"l4\"\n", Some(7), "l4");
    refused("[[network]]\nname = \"pods\"\nvni = 1\ncolour = \"red\"\n", Some(7), "colour");
    refused("[node]\nname = \"\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "empty");
    refused("[node]\nname = \"a\\u001b[2J\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "control");
    refused("[[network]]\nname = \"po\\nds\"\nvni = 1\n", Some(5), "po\\nds");
    refused("[node]\npin_dir = \"bpf\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "absolute");
    refused("[node]\npin_dir = \"/sys/fs/bpf/a.b\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "dot");
    refused("[node]\naddress = \"10.0.0\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "");
    refused("[[network]\n", Some(4), "");
}

const TENANT: &str = "[[network]]\nname = \"tenant-a\"\nkind = \"l2\"\nvni = 100\n";

fn segment(keys: &str) -> Segment {
    let view = parse(&format!("{TENANT}{keys}")).expect(keys);
    view.network.segment().expect("bridged").clone()
}

#[test]
fn a_segment_needs_nothing_but_its_name_and_vni() {
    let view = parse(TENANT).expect("minimal");
    let segment = Segment {
        bridge: "br-tenant-a".into(),
        addresses: vec![],
        flood: Flood::Copies,
        learning: true,
        suppress: false,
    };
    assert_eq!(view.network.kind, Kind::L2(segment));
    assert_eq!((view.network.port, view.network.device.as_str()), (8472, "vxlan100"));
    assert_eq!(view.network.fastpath, Fastpath::Verified);
}

#[test]
fn a_segment_can_be_told_everything() {
    let segment = segment(
        "port = 4789\nbridge = \"br0\"\ndevice = \"ov0\"\naddress = [\"10.0.0.1/24\", \"fd00::1/64\"]\n\
         flood = \"239.1.1.1\"\nlearning = false\nsuppress = true\nfastpath = \"off\"\nnotrack = true\n",
    );
    assert_eq!((segment.bridge.as_str(), segment.learning, segment.suppress), ("br0", false, true));
    assert_eq!(segment.addresses.len(), 2);
    assert_eq!(segment.flood, Flood::Group([239, 1, 1, 1].into()));
}

#[test]
fn addresses_are_those_of_a_host() {
    for good in ["10.0.0.1/24", "10.0.0.0/31", "10.0.0.0/32", "fd00::1/64", "fd00::/127", "fe80::1/64"] {
        let address: ipnetwork::IpNetwork = good.parse().expect("address");
        assert_eq!(segment(&format!("address = \"{good}\"\n")).addresses, [address]);
    }
    assert!(segment("address = []\n").addresses.is_empty());
    for (bad, word) in [
        ("\"10.0.0\"", "prefix length"),
        ("\"10.0.0.1\"", "prefix length is missing"),
        ("\"10.0.0.1/33\"", "10.0.0.1/33"),
        ("\"10.0.0.1/0\"", "all addresses"),
        ("\"10.0.0.0/24\"", "the segment itself"),
        ("\"fd00::/64\"", "the segment itself"),
        ("\"10.0.0.255/24\"", "all hosts"),
        ("\"239.1.1.1/24\"", "unicast"),
        ("\"127.0.0.1/8\"", "unicast"),
        ("\"0.0.0.1/8\"", "unicast"),
        ("\"::ffff:10.0.0.1/120\"", "unicast"),
        ("[\"10.0.0.1/24\", \"10.0.0.1/25\"]", "twice"),
        ("[\"10.0.0.1/24\", 7]", ""),
        ("7", "10.0.0.1/24"),
    ] {
        refused(&format!("{TENANT}address = {bad}\n"), Some(8), word);
    }
    refused(&format!("{TENANT}address = [\n\"10.0.0.1/24\",\n\"10.0.0.2\"]\n"), Some(10), "missing");
}

#[test]
fn frames_are_flooded_as_copies_or_to_a_group() {
    assert_eq!(segment("flood = \"copies\"\n").flood, Flood::Copies);
    for good in ["239.1.1.1", "224.0.1.1", "ff05::100", "ff02::1:2"] {
        let group = good.parse().expect("address");
        assert_eq!(segment(&format!("flood = \"{good}\"\n")).flood, Flood::Group(group));
    }
    for (bad, word) in [
        ("everywhere", "neither"),
        ("10.0.0.1", "not a multicast group"),
        ("224.0.0.5", "reserved"),
        ("ff02::1", "reserved"),
        ("ff01::100", "reserved"),
    ] {
        refused(&format!("{TENANT}flood = \"{bad}\"\n"), Some(8), word);
    }
}

#[test]
fn a_bridge_has_the_name_of_its_network_if_that_is_not_too_long() {
    let named =
        |name: &str, more: &str| format!("[[network]]\nname = \"{name}\"\nkind = \"l2\"\nvni = 7\n{more}");
    let bridge = |text: &str| parse(text).expect("valid").network.segment().expect("bridged").bridge.clone();
    assert_eq!(bridge(&named("a-twelve-one", "")), "br-a-twelve-one");
    refused(&named("a-thirteen-on", ""), Some(5), "bridge = \"br-a-thirteen-o\"");
    assert_eq!(bridge(&named("a-thirteen-on", "bridge = \"br7\"\n")), "br7");
    refused(&named("a", "bridge = \"b/r\"\n"), Some(8), "interface name");
}

#[test]
fn keys_of_one_kind_of_network_are_refused_for_the_other() {
    for key in [
        "bridge = \"br0\"",
        "address = \"10.0.0.1/24\"",
        "flood = \"copies\"",
        "learning = true",
        "suppress = false",
    ] {
        let word = key.split(' ').next().expect("a key");
        refused(&format!("[[network]]\nname = \"pods\"\nvni = 1\n{key}\n"), Some(7), word);
    }
    refused(&format!("{TENANT}[pods]\nmasquerade = false\n"), Some(8), "there is none");
    let text = format!("[state]\nsource = \"kubernetes\"\n{TENANT}");
    let refusal = Config::parse(&Text::new("c", text), Path::new("/"), &|| Some("a".into()));
    let refusal = refusal.expect_err("nodes of a cluster");
    assert!(refusal.line == Some(4) && refusal.reason.contains("from a file"), "{refusal}");
}

#[test]
fn pods_are_in_the_first_routed_network() {
    let routed = |name: &str, vni: u32| format!("[[network]]\nname = \"{name}\"\nvni = {vni}\n");
    let pods = "[pods]\nnetworks = [\"10.244.0.0/16\"]\nmasquerade = true\n";
    let config = whole(&format!("{TENANT}{}{}{pods}", routed("a", 1), routed("b", 2))).expect("valid");
    let masquerade: Vec<bool> = config.networks.iter().map(|view| view.pods.masquerade).collect();
    assert_eq!(masquerade, [false, true, false]);
    assert_eq!(config.networks[2].pods, PodsConfig::default());
}

#[test]
fn a_network_may_have_a_state_of_its_own() {
    let own = "[network.state]\nsource = \"file\"\npath = \"tenants.toml\"\n";
    let config = whole(&format!("{TENANT}{own}[[network]]\nname = \"pods\"\nvni = 1\n")).expect("valid");
    let states: Vec<_> = config.networks.iter().map(|view| view.state.clone()).collect();
    let file = |path: &str| StateConfig::File(path.into());
    assert_eq!(states, [file("/etc/tenants.toml"), file("/etc/cluster.toml")]);
    refused(&format!("{TENANT}[network.state]\nsource = \"file\"\n"), Some(9), "'path'");
    let bare =
        |content: &str| Config::parse(&Text::new("c", content), Path::new("/etc"), &|| Some("box".into()));
    assert!(bare(&format!("{TENANT}{own}")).is_ok(), "then no common one is needed");
    let refusal = bare(&format!("{TENANT}{own}[[network]]\nname = \"pods\"\nvni = 1\n")).expect_err("none");
    assert!(refusal.line == Some(9) && refusal.reason.contains("'pods' has no state"), "{refusal}");
}

#[test]
fn what_two_networks_claim_is_named_with_both() {
    let first = "[[network]]\nname = \"a\"\nkind = \"l2\"\nvni = 1\ndevice = \"ov0\"\n";
    let second = |name: &str, vni: u32, keys: &str| {
        format!("{first}[[network]]\nname = \"{name}\"\nkind = \"l2\"\nvni = {vni}\n{keys}")
    };
    refused(&second("a", 2, ""), Some(10), "two networks 'a': the other one is at 'a' (/etc/c.toml, line 5)");
    refused(
        &second("b", 1, ""),
        Some(12),
        "'b' has VNI 1 and port 8472, as network 'a' (/etc/c.toml, line 7)",
    );
    assert!(whole(&second("b", 1, "port = 4789\n")).is_ok(), "another port, another VXLAN");
    refused(
        &second("b", 2, "device = \"ov0\"\n"),
        Some(13),
        "'ov0' is the device of network 'b' and the device of network 'a' (/etc/c.toml, line 8)",
    );
    refused(&second("b", 2, "bridge = \"br-a\"\n"), Some(13), "the bridge of network 'b' and the bridge of");
    refused(
        &second("b", 2, "bridge = \"ov0\"\n"),
        Some(13),
        "bridge of network 'b' and the device of network 'a'",
    );
    refused(
        &second("b", 2, "bridge = \"vxlan2\"\n"),
        Some(13),
        "bridge of network 'b' and the device of network 'b'",
    );
    // Where a name was left out, the line is the network's.
    refused(&second("b", 2, "device = \"br-b\"\n"), Some(9), "the bridge of network 'b'");
}

#[test]
fn a_node_is_announced_once_in_each_place() {
    let refused = |state: &str, word: &str| {
        let network = |n: u32, state: &str| {
            format!("[[network]]\nname = \"n{n}\"\nvni = {n}\n[network.state]\n{state}")
        };
        let parse = |other: &str| {
            let text = Text::new("c", network(1, state) + &network(2, other));
            Config::parse(&text, Path::new("/"), &|| Some("a".into()))
        };
        let refusal = parse(state).expect_err(state);
        assert!(refusal.reason.contains(word) && refusal.reason.contains("network 'n1'"), "{refusal}");
        parse("source = \"kubernetes\"\nannotation_prefix = \"other\"\n").expect("elsewhere");
    };
    refused("source = \"kubernetes\"\n", "flannel.alpha.coreos.com");
    refused("source = \"etcd\"\nendpoints = [\"http://e\"]\n", "/coreos.com/network at http://e");
}

/// Neither is a network compared with all others, nor are lines counted for each.
#[test]
fn thousands_of_networks_are_read_at_once() {
    let network = |n: u32| {
        let kind = if n.is_multiple_of(2) { "l2" } else { "l3" };
        format!("[[network]]\nname = \"t{n}\"\nkind = \"{kind}\"\nvni = {n}\nfastpath = \"direct\"\n")
    };
    let networks: String = (1..=4096).map(network).collect();
    let started = std::time::Instant::now();
    assert_eq!(whole(&networks).expect("valid").networks.len(), 4096);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    let twice = networks + &network(7);
    refused(&twice, Some(4 + 5 * 4096 + 1), "two networks 't7'");
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
    refused("networks = [\n\"10.1.0.0/16\",\n\"ff00::/8\"]", Some(10), "unicast");
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

fn kubernetes(section: &str) -> Result<View, Refused> {
    let text = format!("[state]\nsource = \"kubernetes\"\n{section}[[network]]\nname = \"pods\"\nvni = 1\n");
    Config::parse(&Text::new("c", text), Path::new("/etc"), &|| Some("box".into())).map(one)
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

const BESIDE: &str = "[[network]]\nkind = \"accelerate\"\ndevice = \"flannel.1\"\n";

#[test]
fn a_device_of_somebody_elses_needs_nothing_but_its_name() {
    let text = Text::new("/etc/c.toml", BESIDE);
    let config = Config::parse(&text, Path::new("/etc"), &|| Some("box".into())).expect("no [state] needed");
    let view = one(config);
    let network = &view.network;
    assert_eq!((network.name.as_str(), network.device.as_str()), ("flannel-1", "flannel.1"));
    assert_eq!((network.fastpath, network.source_check), (Fastpath::Verified, SourceCheck::Count));
    assert_eq!((&network.kind, &view.state), (&Kind::Accelerate, &StateConfig::Device));
    assert!(view.devices().is_empty(), "none of it is ours");
    let named = format!("{BESIDE}name = \"pods\"\nfastpath = \"direct\"\nsource_check = \"drop\"\n");
    let network = parse(&named).expect("valid").network;
    assert_eq!((network.name.as_str(), network.fastpath), ("pods", Fastpath::Direct));
    assert_eq!(network.source_check, SourceCheck::Drop);
    let none = parse(&format!("{BESIDE}checksum = false\n")).expect("valid").network;
    assert_eq!(
        (none.headers.checksum, network.headers.checksum),
        (Some(false), None),
        "as the device, by default"
    );
    let off = format!("{BESIDE}source_check = \"off\"\n");
    assert_eq!(parse(&off).expect("valid").network.source_check, SourceCheck::Count);
}

#[test]
fn what_a_device_of_somebody_elses_is_like_is_not_ours_to_say() {
    for key in
        ["vni = 1", "port = 4789", "mtu = 1400", "notrack = true", "bridge = \"br0\"", "learning = true"]
    {
        refused(&format!("{BESIDE}{key}\n"), Some(7), "somebody else manages flannel.1");
    }
    let state = "[network.state]\nsource = \"file\"\npath = \"x\"\n";
    assert!(whole(&format!("{BESIDE}{state}")).expect_err("no state").reason.contains("'state'"));
    refused("[[network]]\nkind = \"accelerate\"\n", Some(4), "needs a 'device'");
    refused("[[network]]\nvni = 1\n", Some(4), "missing field `name`");
    refused("[[network]]\nname = \"a\"\n", Some(4), "missing field `vni`");
    refused(
        &format!("{BESIDE}[[network]]\nname = \"b\"\nvni = 7\ndevice = \"flannel.1\"\n"),
        Some(10),
        "flannel.1",
    );
    refused(&format!("{BESIDE}{BESIDE}"), Some(9), "two networks 'flannel-1'");
}

#[test]
fn a_command_line_is_a_configuration() {
    let node = || NodeConfig::parse(&Text::new("the node", "[node]\nname = \"a\"\n")).expect("valid");
    let accelerate = |devices: &[&str]| {
        let devices: Vec<String> = devices.iter().map(|device| (*device).to_owned()).collect();
        Config::accelerate(node(), &devices, Fastpath::Direct)
    };
    let config = accelerate(&["flannel.1", "vxlan100"]).expect("valid");
    let names: Vec<_> = config.networks.iter().map(|view| view.network.name.as_str()).collect();
    assert_eq!(names, ["flannel-1", "vxlan100"]);
    assert!(accelerate(&["flannel.1", "flannel.1"]).is_err() && accelerate(&["a/b"]).is_err());
}

#[test]
fn all_devices_of_others_need_not_be_named() {
    let all = "[[network]]\nkind = \"accelerate\"\ndevices = \"all\"\n";
    let config = whole(&format!("{all}fastpath = \"direct\"\n")).expect("valid");
    let like = config.all.as_ref().expect("all");
    assert_eq!((config.networks.len(), like.fastpath), (0, Fastpath::Direct));
    assert_eq!((like.source_check, config.has_accelerated()), (SourceCheck::Count, true));
    let both = whole(&format!("{all}{BESIDE}")).expect("one of them is as its section says");
    assert_eq!((both.networks.len(), both.all.is_some()), (1, true));
    for (more, word) in [
        ("device = \"flannel.1\"\n", "exclude each other"),
        ("name = \"a\"\n", "'name' is for one network"),
        ("vni = 1\n", "somebody else manages them"),
        ("[[network]]\nkind = \"accelerate\"\ndevices = \"all\"\n", "two sections"),
    ] {
        let refused = whole(&format!("{all}{more}")).expect_err(word);
        assert!(refused.line.is_some() && refused.reason.contains(word), "{refused}");
    }
    let one = all.replace("\"all\"", "\"flannel.1\"");
    assert!(whole(&one).expect_err("a word").reason.contains("'flannel.1' is not \"all\""));
    let ours = all.replace("accelerate", "l3");
    assert!(whole(&ours).expect_err("ours").reason.contains("'devices' is for kind"));
}
