//! Flannel's keys in etcd as the source: node 1 is ours, node 2 one that flannel has set up, node 3
//! ours with the fast path off. Every node runs IPv4 over IPv4 and IPv6 over IPv6. The etcd is a
//! real one.

use std::time::Duration;

use serde_json::{Value, json};
use vxlan_tests::lab::etcd::{self, Etcd, attributes, key};
use vxlan_tests::lab::kubernetes::flannel;
use vxlan_tests::lab::traffic::{Ping, Talk};
use vxlan_tests::lab::{AgentOptions, DEVICE, EtcdSpec, Lab, LabSpec, Overlay, UNDERLAY};

use super::kubernetes::{
    LONG_PAUSES, agent, assert_all_reach_all, assert_one_cluster, at_once_when_back, count, known, mac, off,
    reaches, soon,
};
use super::{assert_answered, assert_took, build, counters};

fn three(first: Overlay) -> Vec<Overlay> {
    vec![first, Overlay::KernelVxlan, off()]
}

fn cluster() -> Lab {
    build(&LabSpec::of(three(Overlay::agent())).etcd(EtcdSpec::Open))
}

/// Adds a node of flannel's that nobody is, and waits until node 1 knows it.
#[track_caller]
fn a_new_node_is_known(lab: &Lab, n: u8) {
    lab.etcd().put(&key(n), &attributes(n), 1000).expect("a key");
    soon(lab, "a new node is known", || known(lab, &key(n)).is_some());
}

fn said(etcd: &Etcd, key: &str) -> Option<Value> {
    etcd.keys().expect("keys").remove(key)
}

#[test]
fn nodes_of_flannel_and_ours_are_one_cluster() {
    assert_one_cluster(&cluster());
}

#[test]
fn a_node_says_of_itself_what_flannel_would_for_a_day() {
    let lab = cluster();
    let mut expected = attributes(1);
    expected["BackendData"]["VtepMAC"] = json!(mac(&lab, DEVICE));
    expected["BackendV6Data"]["VtepMAC"] = json!(mac(&lab, flannel::DEVICE6));
    assert_eq!(said(lab.etcd(), &key(1)), Some(expected));
    let lease = lab.etcd().lease_of(&key(1)).expect("a lease");
    let left = lab.etcd().seconds_left(&lease).expect("a time");
    assert!((86_300..=86_400).contains(&left), "{left} s");
}

#[test]
fn keys_that_come_change_and_go_are_followed() {
    let lab = cluster();
    a_new_node_is_known(&lab, 50);
    let mut changed = attributes(50);
    changed["BackendData"]["VtepMAC"] = json!("0e:11:00:00:00:99");
    lab.etcd().put(&key(50), &changed, 1000).expect("a key");
    let follows = || known(&lab, &key(50)).is_some_and(|node| node["mac"] == "0e:11:00:00:00:99");
    soon(&lab, "another MAC is followed", follows);
    lab.etcd().delete(&key(50)).expect("deleted");
    soon(&lab, "a key that is deleted is forgotten", || known(&lab, &key(50)).is_none());

    lab.etcd().put(&key(51), &attributes(51), 3).expect("a key");
    soon(&lab, "a node that will not renew its lease is known", || known(&lab, &key(51)).is_some());
    soon(&lab, "and forgotten at its end", || known(&lab, &key(51)).is_none());
    let state = ["ip route", "ip -6 route", "ip neigh", "bridge fdb"]
        .map(|line| lab.node(1).sh(line).expect("a table"))
        .concat();
    for stale in ["10.244.50.0", "fd00:244:50::", "10.244.51.0", "0e:11:00:00:00:99", "192.0.2.51"] {
        assert!(!state.contains(stale), "{stale} in\n{state}");
    }
    assert_all_reach_all(&lab);
}

#[test]
fn keys_that_are_of_no_use_are_left_out_and_do_no_harm() {
    let lab = cluster();
    let mut other = attributes(60);
    other["BackendType"] = json!("wireguard");
    other["BackendData"] = json!({ "PublicKey": "k" });
    let mut thief = attributes(61);
    thief["PublicIP"] = json!("192.0.2.1");
    let mut network = attributes(62);
    network["BackendData"]["VNI"] = json!(7);
    for (n, value) in [(60, other), (61, thief), (62, network), (63, json!([]))] {
        lab.etcd().put(&key(n), &value, 1000).expect("a key");
    }
    lab.etcd().put("not-a-subnet", &json!({}), 1000).expect("a key");
    a_new_node_is_known(&lab, 64);
    for n in 60..64 {
        assert!(known(&lab, &key(n)).is_none(), "{n}");
    }
    let log = agent(&lab).log();
    assert_eq!(count(&log, "'wireguard'"), 1, "said once:\n{log}");
    assert!(log.contains("same VTEP address") && log.contains("VNI 7"), "{log}");
    // For the others, the newer of two keys with one address is meant.
    lab.etcd().delete(&key(61)).expect("deleted");
    soon(&lab, "node 3 knows who has the address", || reaches(&lab, 1, 3) && reaches(&lab, 3, 1));
    assert_all_reach_all(&lab);
}

#[test]
fn a_restarted_node_keeps_its_subnet_and_its_lease() {
    let mut lab = cluster();
    let before = (said(lab.etcd(), &key(1)), lab.etcd().lease_of(&key(1)).expect("a lease"));
    // Not even where nothing on the node tells of it.
    let subnet_file = lab.run_dir().join("n1/subnet.env");
    std::fs::remove_file(subnet_file).expect("removed");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    lab.agent_mut(1).and_then(|agent| agent.stop().or(Ok(()))).expect("ended");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    assert_eq!((said(lab.etcd(), &key(1)), lab.etcd().lease_of(&key(1)).expect("a lease")), before);
    soon(&lab, "node 2 is reached again", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));

    // A lease that is shorter than ours are is replaced, and the key stays.
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    lab.etcd().put(&key(1), &before.0.expect("a key"), 60).expect("a key");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let lease = lab.etcd().lease_of(&key(1)).expect("a lease");
    assert!(lab.etcd().seconds_left(&lease).expect("a time") > 86_000);
    assert_all_reach_all(&lab);
}

#[test]
fn a_node_that_has_had_no_subnet_chooses_one_that_is_free() {
    let mut lab = cluster();
    lab.agent_mut(3).and_then(|agent| agent.stop()).expect("ended");
    std::fs::remove_file(lab.run_dir().join("n3/subnet.env")).expect("removed");
    lab.etcd().delete(&key(3)).expect("deleted");
    lab.agent_mut(3).and_then(|agent| agent.start()).expect("a start");
    let chosen = lab.etcd().key_of(3).expect("a key");
    assert!(chosen.starts_with("10.244.") && chosen.contains("&fd00:244:"), "{chosen}");
    assert!(![key(1), key(2)].contains(&chosen), "{chosen}");
    soon(&lab, "node 1 knows it", || known(&lab, &chosen).is_some());
}

#[test]
fn etcd_that_is_away_is_missed_once_and_greeted_once() {
    let mut lab = cluster();
    let talks: Vec<Talk> = [(1, 2), (2, 1), (1, 3)]
        .into_iter()
        .flat_map(|(from, to)| lab.pod(to, 1).ips().map(|ip| (from, to, ip)))
        .map(|(from, to, ip)| Talk::start(lab.pod(from, 1), lab.pod(to, 1), ip).expect("a connection"))
        .collect();
    lab.etcd_mut().stop();
    let missed = || count(&agent(&lab).log(), "cannot follow etcd") == 1;
    soon(&lab, "the agent says so", missed);
    // Long enough for several attempts.
    std::thread::sleep(Duration::from_secs(3));
    assert_all_reach_all(&lab);
    lab.etcd_mut().resume().expect("it comes back");
    a_new_node_is_known(&lab, 50);
    let log = agent(&lab).log();
    assert_eq!(count(&log, "cannot follow etcd"), 1, "{log}");
    assert_eq!(count(&log, "following etcd again"), 1, "{log}");
    for talk in talks {
        let report = talk.stop().expect("a connection that has not broken");
        assert!(report.rounds > 100 && report.longest < Duration::from_secs(2), "{report:?}");
    }
}

#[test]
fn an_agent_that_starts_without_etcd_leaves_everything_as_it_is() {
    let mut lab = cluster();
    lab.etcd_mut().stop();
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    soon(&lab, "the agent says what it waits for", || agent(&lab).log().contains("waiting for the network"));
    assert_all_reach_all(&lab);
    lab.etcd_mut().resume().expect("it comes back");
    lab.agent(1).and_then(|agent| agent.wait_ready()).expect("ready");
    a_new_node_is_known(&lab, 50);
    assert_all_reach_all(&lab);
}

#[test]
fn what_changed_while_etcd_was_away_is_caught_up_with_even_if_it_was_compacted() {
    let mut lab = cluster();
    for compacted in [false, true] {
        let (old, new) = (50 + 2 * u8::from(compacted), 51 + 2 * u8::from(compacted));
        a_new_node_is_known(&lab, old);
        lab.etcd_mut().resume_in_private().expect("it comes back");
        lab.etcd().delete(&key(old)).expect("deleted");
        lab.etcd().put(&key(new), &attributes(new), 1000).expect("a key");
        if compacted {
            lab.etcd().compact().expect("compacted");
            std::thread::sleep(LONG_PAUSES);
        }
        lab.etcd_mut().resume().expect("it comes back");
        let times = 1 + usize::from(compacted);
        at_once_when_back(&lab, times, "the new node is known", || known(&lab, &key(new)).is_some());
        assert!(known(&lab, &key(old)).is_none(), "the old one is forgotten");
    }
    assert_all_reach_all(&lab);
}

#[test]
fn a_lost_lease_is_said_and_the_same_subnet_taken_again() {
    let lab = cluster();
    let talk = Talk::start(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into()).expect("a connection");
    let lease = lab.etcd().lease_of(&key(1)).expect("a lease");
    lab.etcd().ctl(&["lease", "revoke", &lease]).expect("revoked");
    soon(&lab, "the key is there again", || said(lab.etcd(), &key(1)).is_some());
    assert_ne!(lab.etcd().lease_of(&key(1)).expect("a lease"), lease);
    assert_eq!(count(&agent(&lab).log(), "is lost"), 1);

    // What is written into the own key is put right, under a lease that lasts.
    let mut wrong = attributes(1);
    wrong["BackendType"] = json!("host-gw");
    lab.etcd().put(&key(1), &wrong, 5).expect("a key");
    let right = || said(lab.etcd(), &key(1)).is_some_and(|value| value["BackendType"] == "vxlan");
    soon(&lab, "the key says what it should", right);
    let lease = lab.etcd().lease_of(&key(1)).expect("a lease");
    assert!(lab.etcd().seconds_left(&lease).expect("a time") > 86_000);
    assert!(talk.stop().expect("a connection that has not broken").rounds > 100);
    soon(&lab, "node 3 has heard of it", || reaches(&lab, 1, 3) && reaches(&lab, 3, 1));
    assert_all_reach_all(&lab);
}

#[test]
fn a_node_whose_subnet_is_another_s_by_now_takes_another() {
    let lab = cluster();
    lab.etcd().put(&key(3), &attributes(9), 1000).expect("a key");
    soon(&lab, "node 3 has another key", || lab.etcd().key_of(3).is_ok_and(|other| other != key(3)));
    let other = lab.etcd().key_of(3).expect("a key");
    soon(&lab, "node 1 knows both", || known(&lab, &other).is_some() && known(&lab, &key(3)).is_some());
    let log = lab.agent(3).expect("an agent").log();
    assert_eq!(count(&log, "is lost"), 1, "{log}");
    assert_eq!(said(lab.etcd(), &key(3)), Some(attributes(9)), "the other's key is left alone");
}

#[test]
fn a_node_that_gets_another_address_keeps_its_subnet_and_tells_the_others() {
    let lab = cluster();
    lab.node(1)
        .ip(&format!("addr del 192.0.2.1/24 dev {UNDERLAY}\naddr add 192.0.2.71/24 dev {UNDERLAY}\n"))
        .expect("another address");
    let told = || said(lab.etcd(), &key(1)).is_some_and(|value| value["PublicIP"] == "192.0.2.71");
    soon(&lab, "the others are told", told);
    etcd::follow(&lab, 2).expect("flannel follows");
    for other in [2, 3] {
        soon(&lab, "the others are reached", || reaches(&lab, 1, other) && reaches(&lab, other, 1));
    }
}

#[test]
fn flannels_own_flags_will_do() {
    let first = Overlay::Agent(AgentOptions { flannel: Some(Vec::new()), ..AgentOptions::default() });
    let lab = build(&LabSpec::of(three(first)).etcd(EtcdSpec::Open));
    assert_all_reach_all(&lab);
    let before = counters(&lab, 1);
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
    }
    assert_took(&(&counters(&lab, 1) - &before), "pod_egress", "encapsulated", 20);
}

#[test]
fn certificates_and_a_password_are_presented() {
    let mut lab = build(&LabSpec::of(three(Overlay::agent())).etcd(EtcdSpec::Secured));
    assert_all_reach_all(&lab);
    // Tokens do not outlive the etcd that gave them out.
    lab.etcd_mut().stop();
    lab.etcd_mut().resume().expect("it comes back");
    a_new_node_is_known(&lab, 50);
}
