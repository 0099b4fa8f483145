//! Connections that end while they bypass the stack.

use vxlan_tests::lab::Lab;
use vxlan_tests::lab::traffic::tcp_concurrent;

use super::super::{assert_nothing_dropped, assert_took, counted};
use super::{guarded, verified};

/// TCP connections that conntrack of node `n` believes to be up.
fn established(lab: &Lab, n: u8) -> usize {
    let listed = lab.node(n).sh("cat /proc/net/nf_conntrack").expect("conntrack");
    listed.lines().filter(|line| line.contains("tcp") && line.contains("ESTABLISHED")).count()
}

#[test]
fn connections_close_on_the_fast_path_and_leave_nothing_in_conntrack() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let nodes = counted(&lab, || {
        tcp_concurrent(client, server, server.ip4.into(), 300, 2_000)
            .expect("connections that open and close");
    });
    for node in &nodes {
        assert_took(node, "pod_egress", "encapsulated", 300 * 3);
        assert_nothing_dropped(node);
    }
    for n in [1, 2] {
        assert_eq!(established(&lab, n), 0, "node {n} keeps connections that are over");
        let flows = lab.agent(n).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
        let flows = flows.as_array().expect("a list");
        let closed =
            flows.iter().filter(|flow| flow["protocol"] == "tcp" && flow["state"] == "closed").count();
        assert!(closed >= 290, "{closed} of 300 connections are known to be closed");
    }
}
