//! Where copies of entries are kept.

use super::std::collections::BTreeSet;
use crate::headers::Be32;
use crate::maps::{CACHED, subnet4, subnet6};
use crate::testbed::{NETWORK, key4, key6, pod4, pod6};

#[test]
fn all_pods_of_a_node_have_places_of_their_own() {
    let v4: BTreeSet<u32> = (0..=255).map(|pod| key4(pod4(7, pod)).place()).collect();
    let v6: BTreeSet<u32> = (0..=255).map(|pod| key6(pod6(7, pod)).place()).collect();
    assert_eq!((v4.len(), v6.len()), (256, 256));
    assert!(v4.union(&v6).all(|place| *place < CACHED));
}

#[test]
fn all_subnets_of_256_nodes_have_places_of_their_own() {
    let v4 = |node| subnet4(NETWORK, 24, Be32::from_bytes(pod4(node, 9).octets())).place();
    let v6 = |node| subnet6(NETWORK, 64, key6(pod6(node, 9)).addr.as_v6()).place();
    let all = |place: &dyn Fn(u8) -> u32| (0..=255).map(place).collect::<BTreeSet<u32>>().len();
    assert_eq!((all(&v4), all(&v6)), (256, 256));
}
