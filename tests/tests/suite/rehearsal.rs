//! What `trace` is made of: the engine over pinned maps, which it only reads, and programs over copies of entries.

use std::collections::BTreeSet;

use vxlan_agent::datapath::LookUp;
use vxlan_ebpf_common::maps::{Mode, NO_NETWORK};
use vxlan_ebpf_common::model::Maps;
use vxlan_ebpf_common::testbed::{self, NETWORK};
use vxlan_ebpf_common::{Hook, Reason, hooks};
use vxlan_tests::testrun::{self, Kernel};

/// The testbed in either mode, and a segment.
const TABLES: [fn() -> Maps; 3] = [testbed::maps, verified, segment];

fn verified() -> Maps {
    let mut maps = Maps { now: testrun::now(), watched: true, ..testbed::maps() };
    maps.network_mut().expect("the network").mode = Mode::Verified as u8;
    maps
}

/// The kernel's bridge has just been given a frame of each station.
fn segment() -> Maps {
    testbed::segment(testrun::now())
}

#[test]
fn the_engine_decides_over_pinned_maps_as_over_its_model_and_writes_nothing() {
    for table in TABLES {
        let mut kernel = Kernel::load();
        let mut forwarded = 0;
        for (hook, frame) in testbed::seeds().into_iter().chain(testbed::segment_seeds()) {
            let maps = table();
            kernel.fill(&maps);
            let (before, recorder) = (kernel.read(), kernel.pins().recorder());
            let (mut expected, mut got) = (frame.clone(), frame.clone());
            let wanted = hooks::run(hook, &mut expected, &maps);
            let verdict = hooks::run(hook, &mut got, &recorder);
            assert_eq!((verdict.network, verdict.reason()), (wanted.network, wanted.reason()), "{hook:?}");
            assert_eq!(got.bytes, expected.bytes, "{hook:?}");
            forwarded += usize::from(verdict.outcome.is_ok());
            let flows: BTreeSet<_> = maps.flows.borrow().keys().copied().collect();
            let written = recorder.written().flows.into_iter().filter(|(_, flow)| flow.is_some());
            assert_eq!(written.map(|(key, _)| key).collect::<BTreeSet<_>>(), flows, "{hook:?}");
            let looked_up = recorder.take().expect("the maps can be read");
            assert!(
                looked_up.iter().any(|entry| matches!(entry, LookUp::Node(_))),
                "{hook:?}: {looked_up:?}"
            );
            assert_eq!(recorder.take().expect("the maps can be read"), [], "each is told of once");
            assert_eq!(kernel.read(), before);
        }
        assert!(forwarded > 0, "nothing was forwarded");
        assert!(kernel.flows().is_empty() && kernel.pins().counters(NETWORK).expect("counters").is_empty());
    }
}

#[test]
fn a_prefix_is_named_by_its_length_even_if_a_shorter_one_leads_to_the_same() {
    let mut maps = testbed::maps();
    maps.routes4.insert((testbed::key4(testbed::pod4(0, 0)), 16), testbed::REMOTE4);
    maps.routes4.insert((testbed::key4(testbed::pod4(2, 8)), 29), testbed::REMOTE4);
    let mut kernel = Kernel::load();
    kernel.fill(&maps);
    for (to, length) in [(testbed::pod4(2, 9), 29), (testbed::pod4(7, 1), 16)] {
        let recorder = kernel.pins().recorder();
        hooks::run(Hook::PodEgress, &mut testbed::Inner::from_pod(to.into()).frame(), &recorder);
        let found =
            recorder.take().expect("the maps can be read").into_iter().find_map(|look_up| match look_up {
                LookUp::Route(_, _, found) => found,
                LookUp::Subnet(_, prefix, id) => id.map(|id| (prefix, id)),
                _ => None,
            });
        assert_eq!(found.map(|(prefix, id)| (prefix.prefix(), id)), Some((length, testbed::REMOTE4)), "{to}");
    }
}

#[test]
fn a_rehearsal_is_a_run_of_the_program_and_counts_nothing() {
    for table in TABLES {
        let mut kernel = Kernel::load();
        // Loading a program takes its time: some of every kind.
        for (hook, frame) in testbed::seeds().into_iter().chain(testbed::segment_seeds()).step_by(5) {
            kernel.fill(&table());
            let counters = || [NO_NETWORK, NETWORK].map(|id| kernel.pins().counters(id).expect("counters"));
            let before = counters();
            let recorder = kernel.pins().recorder();
            let verdict = hooks::run(hook, &mut frame.clone(), &recorder);
            let mut rehearsal = kernel.pins().rehearsal().expect("a copy");
            assert_eq!(rehearsal.differs(hook).expect("it is loaded"), None, "{hook:?}");
            for look_up in recorder.take().expect("the maps can be read") {
                rehearsal.put(&look_up).expect("an entry can be copied");
            }
            let ran = rehearsal.run(hook, verdict.network, &frame).expect("it runs");
            assert_eq!(counters(), before, "a rehearsal counts nothing");
            assert!(kernel.flows().is_empty(), "a rehearsal opens no flow");
            let really = kernel.run(hook, &frame);
            // What it has noted would make a difference.
            kernel.flush_flows();
            let counted = really.counted.first().map(|(network, _, reason, ..)| (*network, *reason));
            assert_eq!((ran.action, ran.counted), (really.action, counted), "{hook:?}");
            let has_random_bytes = counted.is_some_and(|(_, reason)| reason == Reason::Encapsulated);
            assert!(has_random_bytes || ran.bytes == really.bytes, "{hook:?}");
        }
    }
}
