use super::devices::device_chains;
use super::*;

fn hook(number: u32) -> Attributes {
    Attributes::default().number(nfta::HOOK_HOOKNUM, number).number(nfta::HOOK_PRIORITY, 0)
}

fn chain(hook: &Attributes) -> Attributes {
    Attributes::default()
        .string(nfta::CHAIN_TABLE, "t")
        .string(nfta::CHAIN_NAME, "c")
        .nest(nfta::CHAIN_HOOK, hook)
        .string(nfta::CHAIN_TYPE, "filter")
}

fn devices(family: u8, hook: &Attributes) -> Vec<String> {
    device_chains(family, chain(hook).as_bytes()).iter().map(ToString::to_string).collect()
}

#[test]
fn a_chain_names_its_devices() {
    let one = hook(1).string(nfta::HOOK_DEV, "eth0");
    assert_eq!(devices(5, &one), ["chain netdev t c (egress of eth0)"]);
    let names = Attributes::default().string(nfta::DEVICE_NAME, "eth0").string(nfta::DEVICE_NAME, "eth1");
    let two = hook(0).nest(nfta::HOOK_DEVS, &names);
    assert_eq!(
        devices(5, &two),
        ["chain netdev t c (ingress of eth0)", "chain netdev t c (ingress of eth1)"]
    );
    let both = hook(5)
        .string(nfta::HOOK_DEV, "eth0")
        .nest(nfta::HOOK_DEVS, &Attributes::default().string(nfta::DEVICE_NAME, "eth0"));
    assert_eq!(devices(1, &both), ["chain inet t c (ingress of eth0)"], "as the kernel writes a single one");
}

#[test]
fn chains_elsewhere_have_no_devices() {
    let named = |number| hook(number).string(nfta::HOOK_DEV, "eth0");
    assert!(devices(1, &named(0)).is_empty(), "inet prerouting");
    assert!(devices(2, &named(5)).is_empty(), "ip");
    assert!(devices(5, &named(2)).is_empty(), "a hook that netdev does not have");
    let regular = Attributes::default().string(nfta::CHAIN_TABLE, "t").string(nfta::CHAIN_NAME, "c");
    assert!(device_chains(5, regular.as_bytes()).is_empty(), "no hook");
    let whole = chain(&named(1));
    for length in 0..whole.as_bytes().len() {
        device_chains(5, &whole.as_bytes()[..length]);
    }
}

#[test]
fn a_chain_of_others_that_sees_what_is_routed_is_found() {
    let found = |family, number, table: &str| {
        let chain = Attributes::default().string(nfta::CHAIN_TABLE, table).string(nfta::CHAIN_NAME, "c");
        reach::routed_chain(family, chain.nest(nfta::CHAIN_HOOK, &hook(number)).as_bytes())
    };
    for (family, name) in [(1, "inet t c"), (2, "ip t c"), (10, "ip6 t c")] {
        for (number, comes_by) in [(0, true), (1, false), (2, true), (3, false), (4, true), (5, false)] {
            assert_eq!(
                found(family, number, "t").is_some_and(|found| found == name),
                comes_by,
                "{name} {number}"
            );
            for table in ["vxlan-agent-pods", "vxlan-agent-node.vxlan-agent"] {
                assert_eq!(found(family, number, table), None, "an agent's");
            }
        }
    }
    assert_eq!(found(7, 2, "t"), None, "a bridge's");
    assert_eq!(found(5, 0, "t"), None, "a device's");
}

#[test]
fn a_bridges_chain_is_found_whatever_its_hook() {
    let found = |family, chain: &Attributes| reach::bridge_chain(family, chain.as_bytes());
    for number in 0..6 {
        assert_eq!(found(7, &chain(&hook(number))).as_deref(), Some("bridge t c"));
        assert_eq!(found(1, &chain(&hook(number))), None, "inet");
    }
    let regular = Attributes::default().string(nfta::CHAIN_TABLE, "t").string(nfta::CHAIN_NAME, "c");
    assert_eq!(found(7, &regular), None, "no hook");
}

#[test]
fn a_prefix_stands_for_all_devices_that_begin_so() {
    let prefixes = [
        Attributes::default().string(nfta::DEVICE_PREFIX, "eth"),
        Attributes::default().bytes(nfta::DEVICE_NAME, b"eth"),
        Attributes::default().string(nfta::DEVICE_PREFIX, "eth*"),
    ];
    for prefix in prefixes {
        let chains = device_chains(5, chain(&hook(1).nest(nfta::HOOK_DEVS, &prefix)).as_bytes());
        let [chain] = chains.as_slice() else { panic!("{chains:?}") };
        assert_eq!(chain.device, "eth*");
        assert!(chain.is_on("eth0") && chain.is_on("eth") && !chain.is_on("et"));
    }
    let exact = DeviceChain { device: "eth0".into(), hook: DeviceHook::Egress, chain: String::new() };
    assert!(exact.is_on("eth0") && !exact.is_on("eth01"));
}
