//! What the host stack has to see is handed to it out of its tunnel, as long as its rules let the tunnel in.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::{Lab, LabSpec, Overlay, wait_until};

use super::super::{assert_nothing_dropped, counted};
use super::{conntrack, exchange, from_port, guarded, nft, verified};

/// How long an attempt to connect may take.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// Whether a new connection from the pod of node 1 comes about.
fn connects(lab: &Lab, to: &TcpListener) -> bool {
    let address = to.local_addr().expect("an address");
    let connected = lab.pod(1, 1).run(|| TcpStream::connect_timeout(&address, IMPATIENCE)).is_ok();
    if connected {
        to.accept().expect("a connection");
    }
    connected
}

/// A port of the pod of node 2.
fn listener(lab: &Lab) -> TcpListener {
    let server = lab.pod(2, 1);
    server.run(|| TcpListener::bind((server.ip4, 0))).expect("a listener")
}

/// What the agent of node 2 says keeps packets on the kernel's way.
fn obstacle(lab: &Lab) -> Option<String> {
    let status = lab.agent(2).and_then(|agent| agent.json(&["status"])).expect("a status");
    status["networks"][0]["handover"].as_str().map(str::to_owned)
}

#[test]
fn connections_begin_and_end_past_the_nodes_own_tracking_of_the_tunnel() {
    let lab = guarded(&verified());
    let listener = listener(&lab);
    let address = listener.local_addr().expect("an address");
    let connect = || {
        for value in 0..100 {
            let mut near = lab.pod(1, 1).run(|| from_port(0, address));
            let (mut far, _) = listener.accept().expect("a connection");
            exchange(&mut near, &mut far, value);
            exchange(&mut far, &mut near, value);
        }
    };
    connect();
    let nodes = counted(&lab, connect);
    for (n, node) in [(1, &nodes[0]), (2, &nodes[1])] {
        let handed_over = node.packets("underlay_ingress", "handed_over");
        // Of 100 connections at least what begins and what ends them; in between one in a second shows the way.
        assert!(handed_over >= 150, "node {n}: {handed_over}\n{node}");
        assert_nothing_dropped(node);
        let tunnels = conntrack(&lab, n).iter().filter(|line| line.contains("dport=8472")).count();
        assert!(tunnels < 60, "node {n} tracks {tunnels} of the tunnel's flows");
    }
}

/// Rules that come then nobody reads.
#[test]
fn an_agent_that_is_dead_hands_nothing_over() {
    let mut lab = guarded(&verified());
    let port = listener(&lab);
    let handed_over = |lab: &Lab| {
        let [_, node] = counted(lab, || assert!((0..5).all(|_| connects(lab, &port)), "no connection"));
        node.packets("underlay_ingress", "handed_over")
    };
    handed_over(&lab);
    assert_ne!(handed_over(&lab), 0);
    lab.agent_mut(2).and_then(|agent| agent.kill9()).expect("a kill");
    wait_until("nothing is handed over", Duration::from_secs(10), || handed_over(&lab) == 0)
        .expect("in time");
}

#[test]
fn a_rule_against_the_tunnel_counts_within_a_second_or_so() {
    let labs = [Overlay::KernelVxlan, Overlay::verified()]
        .map(|overlay| guarded(&LabSpec::pair(overlay.clone(), overlay)));
    for lab in &labs {
        let port = listener(lab);
        assert!((0..20).all(|_| connects(lab, &port)), "no rule");
        nft(
            lab,
            2,
            "table inet no {\n chain i {\n  type filter hook input priority 0; udp dport 8472 drop\n }\n}\n",
        );
        // An attempt may fail on a busy machine; by the end of four, what was known before is too old.
        let counts = || (0..4).all(|_| !connects(lab, &port));
        wait_until("the rule counts", Duration::from_secs(10), counts).expect("it does");
        assert!((0..5).all(|_| !connects(lab, &port)), "the stack does not let the tunnel in");
        lab.node(2).sh("nft delete table inet no").expect("the table goes");
        wait_until("the tunnel is let in", Duration::from_secs(5), || connects(lab, &port)).expect("it is");
    }
    assert_eq!(obstacle(&labs[1]), None, "the rule is the same for all of a VTEP's packets");
}

#[test]
fn a_rule_about_what_is_in_the_tunnel_is_met_by_all_that_the_stack_has_to_see() {
    let labs = [Overlay::KernelVxlan, Overlay::verified()]
        .map(|overlay| guarded(&LabSpec::pair(overlay.clone(), overlay)));
    for lab in &labs {
        let [denied, allowed] = [listener(lab), listener(lab)];
        // Behind UDP's, VXLAN's, Ethernet's and IP's headers.
        let port = denied.local_addr().expect("an address").port();
        nft(
            lab,
            2,
            &format!(
                "table inet deep {{\n chain i {{\n  type filter hook input priority 0; \
                 udp dport 8472 @th,416,16 {port} drop\n }}\n}}\n"
            ),
        );
        if lab.agent(2).is_ok() {
            wait_until("the agent knows", Duration::from_secs(5), || obstacle(lab).is_some())
                .expect("it does");
            assert_eq!(obstacle(lab).as_deref(), Some("payload in chain inet deep i"));
        }
        for _ in 0..10 {
            assert!(connects(lab, &allowed) && !connects(lab, &denied));
        }
    }
    let [_, node] = counted(&labs[1], || assert!(connects(&labs[1], &listener(&labs[1]))));
    assert_eq!(node.packets("underlay_ingress", "handed_over"), 0, "{node}");
    labs[1].node(2).sh("nft delete table inet deep").expect("the table goes");
    wait_until("the agent knows", Duration::from_secs(5), || obstacle(&labs[1]).is_none()).expect("it does");
}

/// What is in such tables the kernel tells nobody.
#[test]
fn a_table_of_legacy_iptables_may_look_at_anything() {
    let lab = guarded(&verified());
    let known = |what: Option<&str>| {
        let is_so = || obstacle(&lab).as_deref() == what;
        wait_until("the agent knows", Duration::from_secs(5), is_so)
            .unwrap_or_else(|_| panic!("{:?} instead of {what:?}", obstacle(&lab)));
    };
    known(None);
    let tools =
        lab.node(2).sh("iptables-legacy -t nat -L -n && iptables-legacy -A INPUT -p udp --dport 9 -j DROP");
    if let Err(error) = tools {
        eprintln!("SKIPPED: there is no legacy iptables here: {error:#}");
        return;
    }
    known(Some("the table filter of legacy iptables"));
    let port = listener(&lab);
    let [_, node] = counted(&lab, || assert!((0..3).all(|_| connects(&lab, &port))));
    assert_eq!(node.packets("underlay_ingress", "handed_over"), 0, "{node}");
}
