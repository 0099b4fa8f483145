//! Multicast over a segment, with bridges that snoop and bridges that do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Capture, Frame, Member, multicast};
use vxlan_tests::lab::wait_until;

use super::frames::carries;
use super::{RED, build, over_all};

const GROUPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3)), IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x66, 0x3))];
const COUNT: usize = 20;
const SETTLED: Duration = Duration::from_secs(10);

/// A port per IP version: a socket for IPv6 takes IPv4, too.
const fn port(group: IpAddr) -> u16 {
    if group.is_ipv4() { 7704 } else { 7706 }
}

/// How many of [`COUNT`] datagrams from the first host of node 1 arrive at a member on each of the other
/// nodes, in order, and how many frames come by at the second host of node 2, which is no member.
fn sent_to(lab: &SegmentLab, group: IpAddr, members: &[Member]) -> (Vec<usize>, usize) {
    let bystander = Capture::start(lab.host(2, RED, 2), "eth0").expect("a capture");
    let data = format!("to {group}").into_bytes();
    multicast(lab.host(1, RED, 1), "eth0", group, port(group), &data, COUNT).expect("sent");
    let received = members.iter().map(|member| member.received(&data, COUNT).expect("a socket")).collect();
    let with = |frame: &Frame| carries(frame, &data);
    (received, bystander.drain(Duration::from_millis(100), with).expect("a capture").len())
}

fn join(lab: &SegmentLab, group: IpAddr) -> Vec<Member> {
    let hosts = [lab.host(2, RED, 1), lab.host(3, RED, 1)];
    hosts.map(|host| Member::join(host, "eth0", group, port(group)).expect("a member")).into()
}

#[test]
fn without_snooping_everybody_gets_what_a_group_gets() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3).hosts(2));
        for group in GROUPS {
            let (members, bystander) = sent_to(&lab, group, &join(&lab, group));
            assert_eq!(members, [COUNT; 2], "{group}");
            assert_eq!(bystander, COUNT, "{group}");
        }
    });
}

#[test]
fn with_snooping_members_get_what_a_group_gets_and_others_do_not() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3).hosts(2).snooping());
        let members = GROUPS.map(|group| join(&lab, group));
        for (group, members) in GROUPS.into_iter().zip(members) {
            // Until the queriers know each other and have waited for answers, the bridges flood or have not
            // heard of all members.
            let exact = || sent_to(&lab, group, &members) == (vec![COUNT; 2], 0);
            wait_until(&format!("members alone get {group}"), SETTLED, exact).expect("snooping");
            // From then on it stays so.
            for _ in 0..3 {
                assert_eq!(sent_to(&lab, group, &members), (vec![COUNT; 2], 0), "{group}");
            }
        }
    });
}
