//! What the agent makes of a bridged network in the kernel: from nothing to the desired state and back,
//! over netlink, in a network namespace of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use vxlan_agent::kernel::{
    BridgeSpec, Device, Events, Feature, KernelState, Netlink, Place, PortState, Reason, Scope, Segment,
    Sought, SoughtBridge, Tables, Target, Touched, diff, observed_segment, ruleset, stations, wanted_bridge,
    why_not,
};
use vxlan_agent::net::{IfIndex, Mac, Mtu, Vni};

const NETWORK: &str = "lan";
const ALIAS: &str = "vxlan-agent network lan";
const DEVICE_MAC: Mac = Mac([2, 0, 0, 0, 0, 6]);
const SOUGHT: Sought<'static> =
    Sought { network: NETWORK, alias: ALIAS, name: "vxlan1", mac: DEVICE_MAC, adopt: None, held: None };
const BRIDGE: SoughtBridge<'static> = SoughtBridge { name: "br1", mac: Mac([2, 0, 0, 0, 0, 5]), held: None };

fn sh(line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let ended = Command::new(words[0]).args(&words[1..]).output().expect("started");
    assert!(ended.status.success(), "{line}: {}", String::from_utf8_lossy(&ended.stderr));
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

struct World {
    netlink: Netlink,
    target: Target,
}

impl World {
    /// Runs `test` in a namespace with an underlay, `under0`, that has 192.0.2.1.
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F + Send + 'static) {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace: run as root");
            sh("ip link add under0 type veth peer name wire0");
            sh("ip link set wire0 up");
            sh("ip address add 192.0.2.1/24 dev under0");
            sh("ip link set under0 up");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let netlink = Netlink::open().expect("a socket");
                let target = Target {
                    network: NETWORK.into(),
                    name: "vxlan1".into(),
                    alias: ALIAS.into(),
                    index: None,
                };
                test(Self { netlink, target }).await;
            });
        };
        std::thread::spawn(inside).join().expect("the test");
    }

    async fn tables(&self) -> Tables {
        self.netlink.dump().await.expect("tables")
    }

    async fn look(&self) -> KernelState {
        observed_segment(&self.tables().await, &SOUGHT, &BRIDGE).expect("ours").0
    }

    /// Goes to `desired`, and is there.
    async fn reach(&mut self, desired: &KernelState) {
        for change in diff(&self.look().await, desired) {
            self.netlink.apply(&change, &mut self.target).await.expect("carried out");
        }
        let now = self.look().await;
        assert_eq!(diff(&now, desired), [], "{now:#?}");
    }

    async fn index(&self, name: &str) -> IfIndex {
        self.netlink.index_of(name).await.expect("an interface")
    }

    /// A bridge and a device, with three other nodes and two stations.
    async fn desired(&self, learning: bool) -> KernelState {
        let mtu = Mtu(1400);
        let bridge = wanted_bridge(&self.tables().await, NETWORK, &BRIDGE, mtu);
        let bridge_addresses = match bridge.own {
            Some(_) => ["10.9.0.1/24", "fd00:9::1/64"].map(|ip| ip.parse().expect("an address")).into(),
            None => BTreeSet::new(),
        };
        let segment = Segment { learning, group: None, bridge: Some("br1".into()), suppress: true };
        let device = Device {
            name: "vxlan1".into(),
            vni: Vni::try_from(7).ok(),
            port: 4789,
            local: vtep(1),
            underlay: self.index("under0").await,
            mac: DEVICE_MAC,
            mtu,
            headers: vxlan_agent::kernel::Headers::of_new_device(false),
            ready: true,
            segment: Some(segment),
        };
        KernelState {
            device: Some(device),
            bridge: Some(bridge),
            bridge_addresses,
            stations: [(mac(1), vtep(2)), (mac(2), vtep(3))].into(),
            flood: [2, 3, 4].map(vtep).into(),
            ..KernelState::default()
        }
    }

    async fn links(&self) -> Vec<String> {
        let tables = self.tables().await;
        let all = tables.links.values().map(|link| link.name.clone());
        all.filter(|name| ["br1", "vxlan1"].contains(&name.as_str())).collect()
    }
}

#[test]
fn a_bridged_network_is_made_changed_and_removed() {
    World::run(|mut world| async move {
        for learning in [true, false] {
            let desired = world.desired(learning).await;
            world.reach(&desired).await;
            let mut other = desired.clone();
            let device = other.device.as_mut().expect("a device");
            device.mtu = Mtu(1300);
            device.segment.as_mut().expect("a segment").suppress = false;
            let own = other.bridge.as_mut().and_then(|bridge| bridge.own.as_mut()).expect("ours");
            own.mtu = Mtu(1300);
            other.bridge_addresses = ["10.9.0.2/24".parse().expect("an address")].into();
            other.stations = [(mac(2), vtep(4)), (mac(3), vtep(2))].into();
            other.flood = [3, 5].map(vtep).into();
            world.reach(&other).await;
            world.reach(&desired).await;
        }
        sh("ip link set vxlan1 nomaster");
        let desired = world.desired(false).await;
        world.reach(&desired).await;
        world.reach(&KernelState::default()).await;
        assert!(world.links().await.is_empty());
    });
}

#[test]
fn a_device_joins_a_multicast_group_instead_of_replicating() {
    World::run(|mut world| async move {
        let mut desired = world.desired(true).await;
        let segment = desired.device.as_mut().and_then(|device| device.segment.as_mut()).expect("a segment");
        segment.group = Some(IpAddr::from([239, 1, 1, 1]));
        desired.flood.clear();
        world.reach(&desired).await;
    });
}

#[test]
fn an_operators_bridge_outlives_the_network_and_so_does_one_of_ours_that_is_in_use() {
    World::run(|mut world| async move {
        sh("ip link add br1 type bridge");
        sh("ip link set br1 up");
        let desired = world.desired(true).await;
        assert_eq!(desired.bridge, Some(BridgeSpec { name: "br1".into(), own: None }));
        world.reach(&desired).await;
        world.reach(&KernelState { bridge: desired.bridge, ..KernelState::default() }).await;
        assert_eq!(world.links().await, ["br1"]);
        sh("ip link delete br1");

        let desired = world.desired(true).await;
        world.reach(&desired).await;
        sh("ip link add port0 type veth peer name pod0");
        sh("ip link set port0 master br1");
        for change in diff(&world.look().await, &KernelState::default()) {
            world.netlink.apply(&change, &mut world.target).await.expect("carried out");
        }
        assert_eq!(world.links().await, ["br1"], "port0 needs it");
        world.reach(&desired).await;
        // What is decided by tables from before port0 was there.
        let mut stale = world.look().await;
        stale.bridge_in_use = false;
        for change in diff(&stale, &KernelState::default()) {
            world.netlink.apply(&change, &mut world.target).await.expect("carried out");
        }
        assert_eq!(world.links().await, ["br1"], "port0 needs it");
    });
}

#[test]
fn stations_are_where_bridge_and_device_have_them() {
    World::run(|mut world| async move {
        let desired = world.desired(true).await;
        world.reach(&desired).await;
        sh("ip link add port0 type veth peer name pod0");
        sh("ip link set pod0 up addrgenmode none");
        sh("ip link set port0 up master br1");
        sh("bridge fdb add 02:00:00:00:01:07 dev port0 master dynamic");
        sh("bridge fdb add 02:00:00:00:01:08 dev vxlan1 dst 192.0.2.5 self dynamic");
        sh("bridge fdb add 02:00:00:00:01:09 dev vxlan1 dst 192.0.2.5 vni 9 self dynamic");
        sh("bridge fdb add 02:00:00:00:01:0a dev port0 master local");
        let [device, bridge, port] =
            [world.index("vxlan1").await, world.index("br1").await, world.index("port0").await];
        let mut expected = [
            ((mac(1), 0), Place::Vtep(vtep(2))),
            ((mac(2), 0), Place::Vtep(vtep(3))),
            ((mac(7), 0), Place::Port(port)),
            ((mac(8), 0), Place::Vtep(vtep(5))),
        ];
        let tables = world.tables().await;
        assert_eq!(stations(&tables, device, bridge), expected.into());
        assert_eq!(diff(&world.look().await, &desired), [], "what is learnt is nobody's");
        // A station moves here, and is left where it is.
        sh("bridge fdb replace 02:00:00:00:01:01 dev port0 master dynamic");
        expected[0].1 = Place::Port(port);
        assert_eq!(stations(&world.tables().await, device, bridge), expected.into());
        assert_eq!(diff(&world.look().await, &desired), []);
    });
}

/// Applies notifications until `done`.
async fn follow(what: &str, events: &mut Events, tables: &mut Tables, done: impl Fn(&Tables) -> bool) {
    let mut touched = Touched::default();
    let all = async {
        while !done(tables) {
            events.next(tables, &mut touched).await.expect("notifications");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all)
        .await
        .unwrap_or_else(|_| panic!("not heard of: {what}"));
}

#[test]
fn what_changes_on_bridge_ports_and_entries_is_heard_of() {
    World::run(|mut world| async move {
        sh("ip link add port0 type veth peer name pod0");
        sh("ip link set pod0 up addrgenmode none");
        let desired = world.desired(true).await;
        world.reach(&desired).await;
        sh("ip link set port0 up master br1");
        let [device, bridge, port] =
            [world.index("vxlan1").await, world.index("br1").await, world.index("port0").await];
        let mut events = Events::subscribe().expect("notifications");
        let mut tables = world.tables().await;
        let reasons =
            |tables: &Tables| -> BTreeSet<Reason> { why_not(tables, bridge, false).into_iter().collect() };
        follow("port0 up", &mut events, &mut tables, |tables| reasons(tables).is_empty()).await;
        for (line, scope, feature) in [
            ("bridge link set dev port0 isolated on", Scope::Port(port), Feature::Isolated),
            ("bridge link set dev port0 hairpin on", Scope::Port(port), Feature::Hairpin),
            ("ip link set port0 type bridge_slave learning off", Scope::Port(port), Feature::NoLearning),
            (
                "bridge link set dev port0 state 0",
                Scope::Port(port),
                Feature::NotForwarding(PortState::Disabled),
            ),
        ] {
            sh(line);
            let reason = Reason { scope, feature };
            follow(line, &mut events, &mut tables, |tables| reasons(tables).contains(&reason)).await;
        }
        let settings =
            |tables: &Tables| tables.bridges.get(&bridge).map(|bridge| (bridge.stp, bridge.ageing));
        sh("ip link set br1 type bridge stp_state 1 ageing_time 12300");
        follow("settings", &mut events, &mut tables, |tables| settings(tables) == Some((true, 12_300))).await;
        sh("bridge fdb add 02:00:00:00:01:07 dev port0 master static");
        sh("bridge fdb append 00:00:00:00:00:00 dev vxlan1 dst 192.0.2.9 self permanent");
        sh("bridge fdb del 00:00:00:00:00:00 dev vxlan1 dst 192.0.2.2 self");
        let now = world.tables().await;
        let same = |tables: &Tables| {
            tables.flood == now.flood && tables.remotes == now.remotes && tables.fdb == now.fdb
        };
        follow("entries", &mut events, &mut tables, same).await;
        assert_eq!(stations(&tables, device, bridge).get(&(mac(7), 0)), Some(&Place::Port(port)));
        sh("ip link set port0 nomaster");
        follow("nomaster", &mut events, &mut tables, |tables| !tables.ports.contains_key(&port)).await;
        sh("ip link delete br1");
        follow("delete", &mut events, &mut tables, |tables| !tables.bridges.contains_key(&bridge)).await;
        assert!(tables.fdb.is_empty() && tables.ports.is_empty());
    });
}

#[test]
fn a_chain_of_family_bridge_is_found() {
    World::run(|_| async {
        assert!(ruleset::read().expect("rules").bridge_chains.is_empty());
        sh("nft add table bridge t");
        sh("nft add chain bridge t c { type filter hook forward priority 0 ; }");
        sh("nft add chain bridge t plain");
        let chains = ruleset::read().expect("rules").bridge_chains;
        assert_eq!(chains, ["bridge t c".to_owned()].into());
    });
}
