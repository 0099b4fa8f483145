use std::fs;

use super::*;

fn networks(list: &[&str]) -> Vec<IpNetwork> {
    list.iter().map(|network| network.parse().expect("a network")).collect()
}

fn config(cni: Cni, masquerade: bool) -> PodsConfig {
    PodsConfig { subnet_file: Some("/run/s".into()), cni, masquerade, ..PodsConfig::default() }
}

fn contents(config: &PodsConfig, cluster: &[&str], own: &[&str]) -> Vec<String> {
    let (networks, subnets) = (networks(cluster), networks(own));
    let facts = Facts { config, networks: &networks, subnets: &subnets, mtu: Mtu(1450) };
    files(&facts).into_iter().map(|(_, content)| content).collect()
}

#[test]
fn the_subnet_file_is_flannels_to_the_byte() {
    let config = config(Cni::Off, true);
    assert_eq!(
        contents(&config, &["10.244.0.0/16"], &["10.244.1.0/24"]),
        [
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        ]
    );
    assert_eq!(
        contents(&config, &["fd00:244::/48", "10.244.0.0/16"], &["10.244.1.0/24", "fd00:244:1::/64"]),
        ["FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
          FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:1::1/64\n\
          FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"]
    );
}

#[test]
fn a_family_without_a_network_or_a_subnet_is_left_out() {
    let config = config(Cni::Off, false);
    let only4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    assert_eq!(contents(&config, &["10.244.0.0/16"], &["10.244.1.0/24", "fd00:244:1::/64"]), [only4]);
    assert_eq!(contents(&config, &["10.244.0.0/16", "fd00:244::/48"], &["10.244.1.0/24"]), [only4]);
}

#[test]
fn the_bridge_configuration_names_every_subnet_and_the_mtu() {
    let content = &contents(&config(Cni::Bridge, true), &[], &["10.244.1.0/24", "fd00:244:1::/64"])[1];
    let list: serde_json::Value = serde_json::from_str(content).expect("JSON");
    assert_eq!(list["name"], "cbr0");
    let bridge = &list["plugins"][0];
    assert_eq!((&bridge["type"], &bridge["mtu"]), (&"bridge".into(), &1450.into()));
    assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
    assert_eq!(bridge["ipam"]["ranges"][1][0]["subnet"], "fd00:244:1::/64");
    assert_eq!(list["plugins"][1]["type"], "portmap");
}

#[test]
fn the_configuration_for_flannels_plugin_is_flannels() {
    let content = &contents(&config(Cni::Flannel, true), &[], &["10.244.1.0/24"])[1];
    let list: serde_json::Value = serde_json::from_str(content).expect("JSON");
    let flannels = serde_json::json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    });
    assert_eq!(list, flannels);
}

#[test]
fn a_file_is_written_only_when_it_differs_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("deep/er/10-x.conflist");
    assert!(write_if_other(&path, "one").expect("written"));
    assert!(!write_if_other(&path, "one").expect("the same"));
    assert!(write_if_other(&path, "two").expect("written"));
    assert_eq!(fs::read_to_string(&path).expect("readable"), "two");
    let beside = fs::read_dir(path.parent().expect("a directory")).expect("readable");
    assert_eq!(beside.count(), 1);
}

#[test]
fn only_a_file_that_is_as_we_wrote_it_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("subnet.env");
    assert!(!remove_if_same(&path, "ours").expect("nothing there"));
    fs::write(&path, "theirs").expect("writable");
    assert!(!remove_if_same(&path, "ours").expect("theirs"));
    assert!(remove_if_same(&path, "theirs").expect("the same"));
    assert!(!path.exists());
}
