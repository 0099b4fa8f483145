//! Rules that count or limit see every packet, as without a fast path.

use std::process::Command;
use std::time::Duration;

use vxlan_tests::lab::traffic::{StreamReport, UdpStream, udp_echo};
use vxlan_tests::lab::{Lab, LabSpec, Overlay, wait_until};

use super::super::{assert_took, build, counted, underlay_hook, warm_up};
use super::policy::running;
use super::{FILTER, nft, verified};

/// Lets through a small part of what the tests send.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Rate,
    Quota,
    Hash,
    Bytes,
}

impl Limit {
    /// All that can be added here.
    fn all() -> Vec<Self> {
        if Command::new("iptables-nft-restore").arg("--version").output().is_err() {
            eprintln!("SKIPPED: hashlimit and connbytes, because there is no iptables-nft-restore here");
            return vec![Self::Rate, Self::Quota];
        }
        vec![Self::Rate, Self::Quota, Self::Hash, Self::Bytes]
    }

    /// Adds the rule on node 2.
    fn add(self, lab: &Lab) {
        let rule = match self {
            Self::Rate => "limit rate over 100/second burst 5 packets drop",
            Self::Quota => "quota over 20 kbytes drop",
            Self::Hash => {
                "-m hashlimit --hashlimit-above 100/second --hashlimit-burst 5 --hashlimit-name a --hashlimit-mode srcip"
            }
            Self::Bytes => "-m connbytes --connbytes 20000: --connbytes-dir both --connbytes-mode bytes",
        };
        if rule.starts_with('-') {
            let rules = format!("*filter\n-A FORWARD -p udp {rule} -j DROP\nCOMMIT\n");
            lab.node(2).feed("iptables-nft-restore", &[], &rules).expect("iptables takes the rules");
        } else {
            let chain = "type filter hook forward priority filter - 1;";
            nft(
                lab,
                2,
                &format!("table ip limits {{\n chain f {{\n  {chain}\n  meta l4proto udp {rule}\n }}\n}}"),
            );
        }
    }

    /// Removes what [`Limit::add`] added.
    fn remove(self, lab: &Lab) {
        let table = if matches!(self, Self::Rate | Self::Quota) { "limits" } else { "filter" };
        lab.node(2).sh(&format!("nft delete table ip {table}")).expect("the table goes");
    }
}

fn lab(overlay: &Overlay) -> Lab {
    let lab = build(&LabSpec::pair(overlay.clone(), overlay.clone()));
    for n in [1, 2] {
        nft(&lab, n, FILTER);
    }
    lab.node(2).sysctl(&[("netfilter/nf_conntrack_acct", "1")]).expect("accounting");
    warm_up(&lab);
    lab
}

fn stream(lab: &Lab) -> UdpStream {
    UdpStream::start(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into(), 1_000, 100).expect("a stream")
}

/// What a second of datagrams comes to.
fn second(lab: &Lab) -> StreamReport {
    let stream = stream(lab);
    std::thread::sleep(Duration::from_secs(1));
    stream.stop().expect("a report")
}

/// Rules that the agent of node 2 says have to see every packet.
fn meters(lab: &Lab) -> Vec<String> {
    let status = lab.agent(2).and_then(|agent| agent.json(&["status"])).expect("a status");
    let meters = status["networks"][0]["meters"].as_array().expect("a list");
    meters.iter().filter_map(|meter| meter.as_str().map(str::to_owned)).collect()
}

fn until_known(lab: &Lab, known: bool) {
    wait_until("the agent knows", Duration::from_secs(5), || meters(lab).is_empty() != known)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", meters(lab)));
}

/// How many datagrams bypass the stack of node 2 in a third of a second.
fn bypassing(lab: &Lab) -> u64 {
    let [_, two] = counted(lab, || std::thread::sleep(Duration::from_millis(300)));
    two.packets(underlay_hook(), "decapsulated")
}

#[test]
fn rules_that_limit_let_through_what_they_do_without_a_fast_path() {
    let labs = [lab(&Overlay::KernelVxlan), lab(&Overlay::verified())];
    for limit in Limit::all() {
        let [kernel, ours] = [&labs[0], &labs[1]].map(|lab| {
            limit.add(lab);
            if lab.agent(2).is_ok() {
                until_known(lab, true);
            }
            let report = second(lab);
            limit.remove(lab);
            report
        });
        assert!(kernel.received < 400, "{limit:?} limits nothing: {kernel:?}");
        let difference = kernel.received.abs_diff(ours.received);
        assert!(difference <= 60, "{limit:?}: {kernel:?} without a fast path, {ours:?} with one");
        until_known(&labs[1], false);
    }
}

#[test]
fn a_flow_that_bypasses_the_stack_returns_to_it_for_as_long_as_there_is_a_limit() {
    let lab = lab(&Overlay::verified());
    let stream = stream(&lab);
    for limit in Limit::all() {
        let opens = || wait_until("it bypasses", Duration::from_secs(5), || bypassing(&lab) > 200);
        opens().unwrap_or_else(|error| panic!("before {limit:?}: {error:#}"));
        limit.add(&lab);
        until_known(&lab, true);
        assert_eq!(bypassing(&lab), 0, "{limit:?}");
        limit.remove(&lab);
        until_known(&lab, false);
    }
    wait_until("it bypasses again", Duration::from_secs(5), || bypassing(&lab) > 200)
        .expect("without limits");
    let log = lab.agent(2).expect("an agent").log();
    assert_eq!(log.matches("no flow bypasses the host stack").count(), Limit::all().len(), "{log}");
    drop(stream.stop());
}

#[test]
fn a_tcp_connection_lives_on_while_limits_come_and_go() {
    let lab = lab(&Overlay::verified());
    let (mut near, mut far, _) = running(&lab);
    for value in 0..3 {
        Limit::Rate.add(&lab);
        until_known(&lab, true);
        let talk = |near: &mut _, far: &mut _| {
            for _ in 0..20 {
                super::exchange(near, far, value);
                super::exchange(far, near, value);
            }
        };
        let [_, two] = counted(&lab, || talk(&mut near, &mut far));
        assert_eq!(two.packets(underlay_hook(), "decapsulated"), 0, "{two}");
        assert_took(&two, "pod_egress", "limited", 20);
        Limit::Rate.remove(&lab);
        until_known(&lab, false);
        let [_, two] = counted(&lab, || talk(&mut near, &mut far));
        assert_took(&two, underlay_hook(), "decapsulated", 15);
    }
}

#[test]
fn an_agent_that_starts_knows_the_limits_before_anything_bypasses() {
    let mut lab = lab(&Overlay::verified());
    Limit::Quota.add(&lab);
    until_known(&lab, true);
    let stream = stream(&lab);
    lab.agent_mut(2).and_then(|agent| agent.restart()).expect("a restart");
    let [_, two] = counted(&lab, || std::thread::sleep(Duration::from_millis(500)));
    assert_eq!(two.packets(underlay_hook(), "decapsulated"), 0, "{two}");
    drop(stream.stop());
}

#[test]
fn direct_says_that_it_skips_limits() {
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::agent()));
    warm_up(&lab);
    Limit::Rate.add(&lab);
    until_known(&lab, true);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let report = udp_echo(client, server, server.ip4.into(), [100; 100]).expect("UDP");
    assert!(report.all_intact(), "{report:?}");
    let text = lab.agent(2).and_then(|agent| agent.cli(&["status"])).expect("a status");
    assert!(
        text.contains("skipped, as every rule in this mode") && text.contains("limit in chain ip limits f"),
        "{text}"
    );
}

#[test]
fn the_status_says_which_rules_and_what_to_do() {
    let lab = build(&verified());
    Limit::Quota.add(&lab);
    until_known(&lab, true);
    let text = lab.agent(2).and_then(|agent| agent.cli(&["status"])).expect("a status");
    for words in ["no flow bypasses the host stack", "remove them, or", "quota in chain ip limits f"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(meters(&lab), ["quota in chain ip limits f"]);
}
