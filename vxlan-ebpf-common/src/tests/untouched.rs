//! The contract, for frames that nobody thought of: no panic, and untouched unless forwarded.

use proptest::prelude::*;

use super::*;
use crate::Hook;
use crate::hooks;
use crate::testbed::seeds;

/// Runs `frame` through `hook`: whether it was forwarded.
#[track_caller]
fn forwarded(hook: Hook, frame: &Frame) -> bool {
    let mut after = frame.clone();
    let verdict = hooks::run(hook, &mut after, &testbed::maps()).outcome.map(|forward| forward.reason());
    assert!(verdict.is_ok() || &after == frame, "{}: {verdict:?} changed the frame", hook.label());
    assert_ne!(verdict, Err(Reason::WriteFailed));
    verdict.is_ok()
}

#[test]
fn frames_cut_off_anywhere_are_left_alone() {
    for (_, seed) in seeds().into_iter().step_by(if cfg!(miri) { 13 } else { 1 }) {
        for len in (0..seed.bytes.len()).step_by(if cfg!(miri) { 23 } else { 1 }) {
            let cut = with(&seed, |bytes| bytes.truncate(len));
            for hook in Hook::ALL {
                assert!(!forwarded(hook, &cut), "{} at {len}", hook.label());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 4096 }))]

    #[test]
    fn frames_with_any_bytes_changed_are_forwarded_or_untouched(
        seed in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((0usize..160, any::<u8>()), 0..4),
        segment_size in prop_oneof![Just(0u32), any::<u16>().prop_map(u32::from)],
    ) {
        let mut frame = seed.get(&seeds()).1.clone();
        for (at, value) in changes {
            let len = frame.bytes.len();
            frame.bytes[at % len] = value;
        }
        frame.segment_size = segment_size;
        for hook in Hook::ALL {
            forwarded(hook, &frame);
        }
    }

    #[test]
    fn any_bytes_are_forwarded_or_untouched(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for hook in Hook::ALL {
            forwarded(hook, &Frame { bytes: bytes.clone(), ..Frame::default() });
        }
    }
}
