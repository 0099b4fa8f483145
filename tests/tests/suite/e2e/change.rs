//! Changes while packets flow. None may be lost.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, StreamReport, UdpStream, ping};
use vxlan_tests::lab::{Family, Lab, UNDERLAY, wait_until};

use super::{
    assert_answered, assert_decapsulated, assert_took, build, counted, counters, pair, underlay_hook, warm_up,
};

const RATE: u32 = 5_000;

/// A stream of UDP from pod to pod in both directions while `change` happens.
pub(super) fn under_traffic(lab: &mut Lab, change: impl FnOnce(&mut Lab)) {
    under_traffic_over(Family::V4, lab, change);
}

/// The same over this IP version.
pub(super) fn under_traffic_over(family: Family, lab: &mut Lab, change: impl FnOnce(&mut Lab)) {
    let streams = [(1, 2), (2, 1)].map(|(from, to)| {
        let (client, server) = (lab.pod(from, 1), lab.pod(to, 1));
        UdpStream::start(client, server, server.ip(family), RATE, 200).expect("a stream")
    });
    std::thread::sleep(Duration::from_millis(200)); // traffic before, not synchronisation
    change(lab);
    std::thread::sleep(Duration::from_millis(200)); // and after
    for stream in streams {
        let report: StreamReport = stream.stop().expect("a report");
        assert!(report.sent > u64::from(RATE) / 5, "{report:?}");
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    }
}

#[test]
fn switching_the_fast_path_off_and_on_loses_nothing() {
    let mut lab = build(&pair());
    warm_up(&lab);
    under_traffic(&mut lab, |lab| {
        for _ in 0..5 {
            for n in [1, 2] {
                lab.agent(n).and_then(|agent| agent.cli(&["fastpath", "off"])).expect("off");
            }
            let [one, _] = counted(lab, || std::thread::sleep(Duration::from_millis(100)));
            assert_took(&one, "pod_egress", "switched_off", 100);
            assert_eq!(one.total("encapsulated"), 0, "{one}");
            for n in [1, 2] {
                lab.agent(n).and_then(|agent| agent.cli(&["fastpath", "on"])).expect("on");
            }
            let [one, _] = counted(lab, || std::thread::sleep(Duration::from_millis(100)));
            assert_took(&one, "pod_egress", "encapsulated", 100);
            assert_eq!(one.packets("pod_egress", "switched_off"), 0, "{one}");
        }
    });
}

#[test]
fn killing_and_restarting_the_agent_loses_nothing() {
    let mut lab = build(&pair());
    warm_up(&lab);
    under_traffic(&mut lab, |lab| {
        for _ in 0..3 {
            lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
            // Nobody is there, and the fast path goes on.
            let [one, _] = counted(lab, || std::thread::sleep(Duration::from_millis(100)));
            assert_took(&one, "pod_egress", "encapsulated", 100);
            assert_took(&one, underlay_hook(), "decapsulated", 100);
            let before = counters(lab, 1);
            lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
            let one = &counters(lab, 1) - &before;
            assert_took(&one, "pod_egress", "encapsulated", 50);
            assert_eq!(one.packets("pod_egress", "switched_off"), 0, "{one}");
        }
    });
}

#[test]
fn a_node_that_is_removed_and_added_again_is_reached_again() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let whole = lab.state().clone();
    lab.write_state(whole.without("n2")).expect("a state file");
    let gone = || {
        lab.agent(1)
            .and_then(|a| a.json(&["dump", "vteps"]))
            .is_ok_and(|v| v.as_array().is_some_and(Vec::is_empty))
    };
    wait_until("node 2 is gone", Duration::from_secs(5), gone).expect("a reload");
    let report = ping(
        lab.pod(1, 1),
        lab.pod(2, 1).ip4,
        Ping { timeout: Duration::from_millis(200), ..Ping::default() },
    );
    assert_eq!(report.expect("a socket").rtts.len(), 0, "a removed node is still reached");
    lab.write_state(whole).expect("a state file");
    let back = || {
        ping(
            lab.pod(1, 1),
            lab.pod(2, 1).ip4,
            Ping { timeout: Duration::from_millis(100), ..Ping::default() },
        )
        .is_ok_and(|r| r.all_answered())
    };
    wait_until("node 2 is back", Duration::from_secs(5), back).expect("a reload");
    for ip in lab.pod(2, 1).ips() {
        let [one, two] = counted(&lab, || {
            assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
        });
        assert_took(&one, "pod_egress", "encapsulated", 10);
        assert_decapsulated(&two, Family::V4, ip, 10);
    }
}

#[test]
fn reloading_the_state_under_traffic_loses_nothing() {
    let mut lab = build(&pair());
    warm_up(&lab);
    under_traffic(&mut lab, |lab| {
        let whole = lab.state().clone();
        for round in 0..10 {
            let mut changed = whole.clone();
            if round % 2 == 0 {
                let mut extra = whole.nodes[1].clone();
                extra.name = format!("extra{round}");
                extra.vtep = [192, 0, 2, 200].into();
                extra.mac = None;
                extra.subnets = vec!["10.244.200.0/24".into()];
                changed.nodes.insert(0, extra);
            }
            changed.nodes.reverse();
            let nodes = changed.nodes.len();
            lab.write_state(changed).expect("a state file");
            let loaded = || {
                lab.agent(1)
                    .and_then(|a| a.json(&["dump", "vteps"]))
                    .is_ok_and(|v| v.as_array().is_some_and(|v| v.len() == nodes - 1))
            };
            wait_until("the state is loaded", Duration::from_secs(5), loaded).expect("a reload");
        }
    });
    let [one, _] = counted(&lab, || {
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 10, ..Ping::default() })
    });
    assert_took(&one, "pod_egress", "encapsulated", 10);
}

#[test]
fn an_invalid_state_file_is_reported_and_changes_nothing() {
    let lab = build(&pair());
    warm_up(&lab);
    let agent = lab.agent(1).expect("an agent");
    let before = agent.json(&["dump", "routes"]).expect("routes");
    let valid = std::fs::read_to_string(lab.state_path()).expect("a state file");
    for (text, complaint) in [
        ("[[node]\n".to_owned(), "line 1"),
        (valid.replace("10.244.2.0/24", "10.244.1.0/24"), "overlap"),
        (valid.replace("10.244.2.0/24", "10.244.2.7/24"), "host"),
        (valid.replace("192.0.2.2", "192.0.2.1"), "192.0.2.1"),
    ] {
        std::fs::write(lab.state_path(), text).expect("a state file");
        let reported = || {
            agent.json(&["status"]).is_ok_and(|status| status.to_string().to_lowercase().contains(complaint))
        };
        wait_until(&format!("`{complaint}` is reported"), Duration::from_secs(5), reported)
            .inspect_err(|_| eprintln!("{:#}", agent.json(&["status"]).unwrap_or_default()))
            .expect("a report");
        assert_eq!(agent.json(&["dump", "routes"]).expect("routes"), before);
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
    }
    std::fs::write(lab.state_path(), valid).expect("a state file");
    let fine = || {
        let status = agent.json(&["status"]);
        status.is_ok_and(|mut status| {
            let past = status["errors"].take().to_string().to_lowercase();
            past.contains("overlap") && !status.to_string().to_lowercase().contains("overlap")
        })
    };
    wait_until("a valid file is taken", Duration::from_secs(5), fine).expect("a reload");
    assert_took(&counters(&lab, 1), "pod_egress", "encapsulated", 1);
}

#[test]
fn the_first_packet_to_a_node_whose_mac_is_not_known_arrives() {
    for underlay in [Family::V4, Family::V6] {
        let lab = build(&pair().underlay(underlay));
        warm_up(&lab);
        for (client, hook) in [(&**lab.node(1), "tunnel_egress"), (&**lab.pod(1, 1), "pod_egress")] {
            for ip in lab.pod(2, 1).ips() {
                for n in [1, 2] {
                    lab.node(n).sh(&format!("ip neigh flush dev {UNDERLAY}")).expect("a flush");
                }
                let [one, _] = counted(&lab, || assert_answered(client, ip, Ping::default()));
                assert_took(&one, hook, "encapsulated", 1);
            }
        }
    }
}
