//! How hosts find each other and their router: ARP, RARP, neighbour discovery.

use std::net::Ipv6Addr;
use std::time::Duration;

use vxlan_tests::lab::addr::mac_text;
use vxlan_tests::lab::segment::{Announcement, Host};
use vxlan_tests::lab::traffic::frames::{arp_request, gratuitous_arp, rarp};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, mac_of};
use vxlan_tests::lab::wait_until;

use super::frames::router_advertisement;
use super::{RED, assert_answered, build, over_all};

const SOON: Duration = Duration::from_secs(3);

/// The MAC that `host` has for `ip`.
fn neighbour(host: &Host, ip: &str) -> Option<String> {
    let shown = host.sh(&format!("ip neigh show {ip} dev eth0")).ok()?;
    Some(shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1)?.to_owned())
}

#[test]
fn hosts_learn_the_macs_of_others_at_other_nodes() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3));
        let client = lab.host(1, RED, 1);
        for server in [lab.host(2, RED, 1), lab.host(3, RED, 1)] {
            for ip in server.ips() {
                assert_answered(client, ip, Ping::default());
                assert_eq!(neighbour(client, &ip.to_string()), Some(mac_text(server.mac)), "{ip}");
            }
        }
    });
}

#[test]
fn a_gratuitous_arp_is_heard_and_believed_everywhere() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3));
        let (from, hears) = (lab.host(2, RED, 1), lab.host(1, RED, 1));
        // The kernel believes no change within a second otherwise.
        hears.sysctl(&[("ipv4/neigh/eth0/locktime", "0")]).expect("a setting");
        assert_answered(hears, from.ip4, Ping::default());
        let other = [0x02, 0x66, 0, 0, 0xaa, 0xaa];
        inject(from, "eth0", &gratuitous_arp(other, from.ip4)).expect("sent");
        let changed = || neighbour(hears, &from.ip4.to_string()) == Some(mac_text(other));
        wait_until("the announcement is believed", SOON, changed).expect("the new MAC");
    });
}

#[test]
fn broadcasts_arrive_as_sent_once_at_every_host() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3).hosts(2));
        let from = lab.host(1, RED, 1);
        for sent in [rarp(from.mac), arp_request(from.mac, from.ip4, lab.host(3, RED, 1).ip4)] {
            let others: Vec<_> = lab.hosts(RED).filter(|host| host.name != from.name).collect();
            let captures = others.iter().map(|host| Capture::start(host, "eth0").expect("a capture"));
            let captures: Vec<_> = captures.collect();
            inject(from, "eth0", &sent).expect("sent");
            for (host, capture) in others.iter().zip(captures) {
                let same = |frame: &Frame| frame.0 == sent;
                assert!(
                    capture.next(SOON, same).expect("a capture").is_some(),
                    "{} heard nothing",
                    host.name
                );
                let again = capture.drain(Duration::from_millis(100), same).expect("a capture");
                assert!(again.is_empty(), "{} heard it {} times", host.name, again.len() + 1);
            }
        }
    });
}

#[test]
fn announcements_do_not_keep_hosts_from_talking() {
    over_all(|pairing| {
        let lab = build(&pairing.pair());
        let (one, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for how in [Announcement::GratuitousArp, Announcement::Rarp] {
            other.announce(how).expect("sent");
            other.ips().into_iter().for_each(|ip| assert_answered(one, ip, Ping::default()));
        }
    });
}

#[test]
fn a_router_at_another_node_gives_hosts_their_addresses() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3));
        let router = lab.host(2, RED, 1);
        let hosts = [lab.host(1, RED, 1), lab.host(3, RED, 1)];
        for host in hosts {
            host.sysctl(&[("ipv6/conf/eth0/accept_ra", "1")]).expect("a setting");
        }
        let prefix = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 0);
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        router
            .ip(&format!("addr add {local}/64 dev eth0 nodad\naddr add fd00:99::1/64 dev eth0 nodad\n"))
            .expect("addresses");
        let mac = mac_of(router, "eth0").expect("a MAC");
        inject(router, "eth0", &router_advertisement(mac, local, prefix)).expect("sent");
        for host in hosts {
            let told = || {
                let has = |line: &str, what: &str| host.sh(line).is_ok_and(|shown| shown.contains(what));
                has("ip -6 addr show dev eth0", "fd00:99::")
                    && has("ip -6 route show default", &format!("via {local}"))
            };
            wait_until(&format!("{} has an address and a router", host.name), SOON, told).expect("told");
            assert_answered(host, Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1), Ping::default());
        }
    });
}
