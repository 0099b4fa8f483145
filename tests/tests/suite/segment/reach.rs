//! Everybody on a segment reaches everybody else.

use vxlan_tests::lab::Family;
use vxlan_tests::lab::segment::Card;
use vxlan_tests::lab::traffic::{Ping, udp_echo};

use super::{RED, assert_all_reach_each_other, assert_answered, build, over_all};

#[test]
fn hosts_of_two_nodes_reach_each_other_over_any_underlay() {
    over_all(|pairing| {
        for underlay in [Family::V4, Family::V6] {
            let lab = build(&pairing.pair().underlay(underlay).hosts(2));
            assert_all_reach_each_other(&lab, RED);
        }
    });
}

#[test]
fn hosts_of_three_nodes_reach_each_other() {
    over_all(|pairing| assert_all_reach_each_other(&build(&pairing.spec(3)), RED));
}

#[test]
fn hosts_of_eight_nodes_reach_each_other() {
    over_all(|pairing| assert_all_reach_each_other(&build(&pairing.spec(8)), RED));
}

#[test]
fn hosts_with_taps_reach_each_other() {
    over_all(|pairing| {
        let lab = build(&pairing.pair().card(Card::Tap));
        assert_all_reach_each_other(&lab, RED);
        let (client, server) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for ip in server.ips() {
            let report = udp_echo(client, server, ip, [1, 100, 1300, 4000, 9000]).expect("UDP");
            assert!(report.all_intact(), "{ip}: {report:?}");
        }
    });
}

#[test]
fn packets_of_every_size_arrive_and_no_larger_ones() {
    over_all(|pairing| {
        for (underlay, mtu) in
            [(Family::V4, 1500), (Family::V6, 1500), (Family::V4, 9000), (Family::V6, 9000)]
        {
            let lab = build(&pairing.pair().underlay(underlay).mtu(mtu));
            let (client, server) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
            for (ip, headers) in [(server.address(Family::V4), 20), (server.address(Family::V6), 40)] {
                // Less than what fits, all that fits, and what the sender has to cut.
                let fits = lab.spec().host_mtu() as usize - headers - 8;
                for payload in [0, 1, 1000, fits - 1, fits] {
                    assert_answered(client, ip, Ping { payload, dont_fragment: true, ..Ping::default() });
                }
                let sizes = [1, 64, fits - 1, fits, fits + 1, 2 * fits, 20_000];
                let report = udp_echo(client, server, ip, sizes).expect("UDP");
                assert!(report.all_intact(), "{ip} over {underlay:?}, {mtu}: {report:?}");
            }
        }
    });
}
