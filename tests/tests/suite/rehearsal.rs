//! What `trace` is made of: the engine over pinned maps, which it only reads, and programs over copies of entries.

use std::collections::BTreeSet;

use vxlan_agent::datapath::LookUp;
use vxlan_ebpf_common::maps::{Mode, NO_NETWORK};
use vxlan_ebpf_common::model::Maps;
use vxlan_ebpf_common::testbed::{self, NETWORK};
use vxlan_ebpf_common::{Hook, Reason, hooks};
use vxlan_tests::testrun::{self, Kernel};

/// The testbed in either mode, and a segment.
fn tables() -> [Maps; 3] {
    let now = testrun::now();
    let mut verified = Maps { now, watched: true, ..testbed::maps() };
    verified.network_mut().expect("the network").mode = Mode::Verified as u8;
    [testbed::maps(), verified, testbed::segment(now)]
}

#[test]
fn the_engine_decides_over_pinned_maps_as_over_its_model_and_writes_nothing() {
    for maps in tables() {
        let mut kernel = Kernel::load();
        kernel.fill(&maps);
        let before = kernel.read();
        let mut forwarded = 0;
        for (hook, frame) in testbed::seeds().into_iter().chain(testbed::segment_seeds()) {
            let recorder = kernel.pins().recorder();
            let (mut expected, mut got, model) = (frame.clone(), frame.clone(), maps.clone());
            let wanted = hooks::run(hook, &mut expected, &model);
            let verdict = hooks::run(hook, &mut got, &recorder);
            assert_eq!((verdict.network, verdict.reason()), (wanted.network, wanted.reason()), "{hook:?}");
            assert_eq!(got.bytes, expected.bytes, "{hook:?}");
            forwarded += usize::from(verdict.outcome.is_ok());
            let flows: BTreeSet<_> = model.flows.borrow().keys().copied().collect();
            let written = recorder.written().flows.into_iter().filter(|(_, flow)| flow.is_some());
            assert_eq!(written.map(|(key, _)| key).collect::<BTreeSet<_>>(), flows, "{hook:?}");
            let looked_up = recorder.take().expect("the maps can be read");
            assert!(matches!(looked_up.first(), Some(LookUp::Node(_))), "{hook:?}: {looked_up:?}");
            assert_eq!(recorder.take().expect("the maps can be read"), [], "each is told of once");
        }
        assert!(forwarded > 0 || maps.network().mode == Mode::Verified as u8, "nothing was forwarded");
        assert_eq!(kernel.read(), before);
        assert!(kernel.flows().is_empty() && kernel.pins().counters(NETWORK).expect("counters").is_empty());
    }
}

#[test]
fn a_prefix_is_named_by_its_length_even_if_a_shorter_one_leads_to_the_same() {
    let mut maps = testbed::maps();
    maps.network_mut().expect("the network");
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
    for maps in tables() {
        let mut kernel = Kernel::load();
        kernel.fill(&maps);
        let all = testbed::seeds().into_iter().chain(testbed::segment_seeds());
        // Loading a program takes its time: some of every kind.
        let seeds: Vec<_> = all.step_by(5).collect();
        let mut ran = vec![];
        for (hook, frame) in &seeds {
            let recorder = kernel.pins().recorder();
            let verdict = hooks::run(*hook, &mut frame.clone(), &recorder);
            let mut rehearsal = kernel.pins().rehearsal().expect("a copy");
            assert_eq!(rehearsal.differs(*hook).expect("it is loaded"), None, "{hook:?}");
            for look_up in recorder.take().expect("the maps can be read") {
                rehearsal.put(&look_up).expect("an entry can be copied");
            }
            ran.push(rehearsal.run(*hook, verdict.network, frame).expect("it runs"));
        }
        for network in [NO_NETWORK, NETWORK] {
            assert_eq!(kernel.pins().counters(network).expect("counters"), [], "a rehearsal counts nothing");
        }
        assert!(kernel.flows().is_empty(), "a rehearsal opens no flow");
        for ((hook, frame), ran) in seeds.iter().zip(ran) {
            // Flows that the run before has noted would make a difference.
            kernel.flush_flows();
            kernel.fill(&maps);
            let really = kernel.run(*hook, frame);
            let counted = really.counted.first().map(|(network, _, reason, ..)| (*network, *reason));
            assert_eq!((ran.action, ran.counted), (really.action, counted), "{hook:?}");
            let has_random_bytes = counted.is_some_and(|(_, reason)| reason == Reason::Encapsulated);
            assert!(has_random_bytes || ran.bytes == really.bytes, "{hook:?}");
        }
    }
}
