//! TCP, whose segments the kernel joins and cuts on the way; content is compared.

use vxlan_tests::lab::Family;
use vxlan_tests::lab::segment::Card;
use vxlan_tests::lab::traffic::{UdpStream, tcp_bulk, tcp_concurrent};

use super::{RED, build, over_all};

const BYTES: u64 = 16 << 20;

#[test]
fn streams_arrive_whole_in_both_directions() {
    over_all(|pairing| {
        for (underlay, card) in [(Family::V4, Card::Veth), (Family::V6, Card::Veth), (Family::V4, Card::Tap)]
        {
            let lab = build(&pairing.pair().underlay(underlay).card(card));
            let (one, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
            for (client, server) in [(one, other), (other, one)] {
                for ip in server.ips() {
                    let moved = tcp_bulk(client, server, ip, BYTES);
                    moved.unwrap_or_else(|error| panic!("{card:?} over {underlay:?}: {error:#}"));
                }
            }
        }
    });
}

#[test]
fn many_connections_at_once_arrive_whole() {
    over_all(|pairing| {
        let lab = build(&pairing.pair());
        let (one, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for ip in other.ips() {
            tcp_concurrent(one, other, ip, 50, 20_000).expect("all connections");
        }
    });
}

#[test]
fn no_datagram_is_lost_or_doubled() {
    over_all(|pairing| {
        let lab = build(&pairing.spec(3));
        let (one, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for ip in other.ips() {
            let stream = UdpStream::start(one, other, ip, 2000, 200).expect("a stream");
            std::thread::sleep(std::time::Duration::from_millis(500));
            let report = stream.stop().expect("a report");
            assert!(report.sent > 200 && report.lost == 0 && report.duplicates == 0, "{report:?}");
        }
    });
}
