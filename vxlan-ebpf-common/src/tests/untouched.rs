//! The contract, for frames that nobody thought of: no panic, and untouched unless forwarded.

use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::hooks::{pod_egress, tunnel_egress, tunnel_ingress, underlay_ingress};
use crate::testbed::*;

const ENTRIES: [Entry; 4] = [pod_egress, tunnel_egress, underlay_ingress, tunnel_ingress];

/// Valid frames for each of the hooks.
fn seeds() -> Vec<Frame> {
    let mut seeds = Vec::new();
    for payload in Payload::ALL {
        for to in
            [pod4(2, 9).into(), pod6(2, 9).into(), pod4(3, 9).into(), pod6(3, 9).into(), pod4(1, 2).into()]
        {
            seeds.push(Inner { payload, ..Inner::from_pod(to) }.frame());
            seeds.push(Inner { payload, to_mac: vtep_mac(REMOTE6), ..Inner::from_pod(to) }.frame());
        }
        for (id, v6) in [(REMOTE4, false), (REMOTE4, true), (REMOTE6, false), (REMOTE6, true)] {
            let inner = Inner { payload, ..Inner::from_remote(id, v6) };
            seeds.push(inner.frame());
            seeds.push(Outer::from_remote(id, inner.build()).frame());
        }
    }
    seeds
}

fn check(entry: Entry, frame: &Frame) {
    let (reason, after) = run(entry, frame);
    let forwarded = matches!(reason.disposition(), crate::Disposition::Forwarded);
    assert!(forwarded || &after == frame, "{reason:?} changed the frame");
    assert_ne!(reason, Reason::WriteFailed);
}

#[test]
fn frames_cut_off_anywhere_are_left_alone() {
    for seed in seeds().into_iter().step_by(if cfg!(miri) { 13 } else { 1 }) {
        for len in (0..seed.bytes.len()).step_by(if cfg!(miri) { 23 } else { 1 }) {
            let cut = with(&seed, |bytes| bytes.truncate(len));
            for entry in ENTRIES {
                let (reason, after) = run(entry, &cut);
                assert!(
                    !matches!(reason.disposition(), crate::Disposition::Forwarded),
                    "{reason:?} at {len}"
                );
                assert_eq!(after, cut);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 4096 }))]

    #[test]
    fn frames_with_any_bytes_changed_are_forwarded_or_untouched(
        seed in 0usize..39,
        changes in proptest::collection::vec((0usize..160, any::<u8>()), 0..4),
        segment_size in prop_oneof![Just(0u32), any::<u16>().prop_map(u32::from)],
    ) {
        let mut frame = seeds().swap_remove(seed % seeds().len());
        for (at, value) in changes {
            let len = frame.bytes.len();
            frame.bytes[at % len] = value;
        }
        frame.segment_size = segment_size;
        for entry in ENTRIES {
            check(entry, &frame);
        }
    }

    #[test]
    fn any_bytes_are_forwarded_or_untouched(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for entry in ENTRIES {
            check(entry, &Frame { bytes: bytes.clone(), ..Frame::default() });
        }
    }
}
