//! Host model and kernel program must agree: on the verdict, on every byte and on the counters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use proptest::prelude::*;
use vxlan_agent::datapath::{KernelFeatures, Listener, Wanted};
use vxlan_ebpf_common::listen::Filter;
use vxlan_ebpf_common::maps::{
    Addr, BY_ADDRESS, DEFAULT_VTEPS, DROP_MALFORMED, DROP_OTHER_VNI, Endpoint, Flow, Key4, Kind, Mode,
    NO_HANDOVER, NO_NETWORK, Network, TOLERATE_VIOLATIONS, local, moment, names, station,
};
use vxlan_ebpf_common::model::{Frame, Maps};
use vxlan_ebpf_common::oracle::{self, Filters, FlowStep};
use vxlan_ebpf_common::testbed::{self, Inner, NETWORK, POD_IFINDEX, REMOTE4, REMOTE6, pod4, pod6};
use vxlan_ebpf_common::{Disposition, Hook, Reason, hooks};
use vxlan_tests::testrun::{self, Kernel, Verdict};

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// What the engine makes of a frame on the host, and why.
fn model(hook: Hook, frame: &Frame, maps: &Maps) -> (Reason, Verdict) {
    // Its flows are for those who keep them.
    let (mut after, maps) = (frame.clone(), &maps.clone());
    let verdict = hooks::run(hook, &mut after, maps);
    let (network, reason) = (verdict.network, verdict.reason());
    let dropped = maps.networks.get(&network).is_some_and(|network| network.drops(hook, reason));
    let action = match (hook, verdict.outcome.is_ok()) {
        (Hook::UnderlayXdp, _) if dropped => XDP_DROP,
        (Hook::UnderlayXdp, _) => XDP_PASS,
        (_, true) => TC_ACT_REDIRECT,
        _ if dropped => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    };
    let bytes = frame.bytes.len() as u64;
    let counted = if reason == Reason::NotVxlan { vec![] } else { vec![(network, hook, reason, 1, bytes)] };
    (reason, Verdict { action, metadata: after.metadata(), bytes: after.bytes, counted })
}

/// `frame` with the flow hash and the random number that the kernel used for `encapsulated`.
fn with_kernels_choices(frame: &Frame, encapsulated: &[u8], maps: &Maps) -> Frame {
    let network = maps.network();
    let over_ipv4 = encapsulated[12] == 8 && encapsulated[13] == 0;
    let udp = if over_ipv4 { 34 } else { 54 };
    let port = u16::from_be_bytes([encapsulated[udp], encapsulated[udp + 1]]);
    let local = if over_ipv4 { network.local4 } else { network.local6 };
    let span = u64::from(local.port_max - local.port_min);
    // The port's formula backwards; `h ^ h << 16` is its own inverse.
    let mixed = (u64::from(port - local.port_min) << 32).div_ceil(span) as u32;
    let random = u32::from(u16::from_ne_bytes([encapsulated[18], encapsulated[19]]));
    Frame { flow_hash: mixed ^ (mixed << 16), random, ..frame.clone() }
}

/// Whether what is inside has to be of the family outside (before Linux 6.3).
fn takes_off_one_family_only() -> bool {
    !KernelFeatures::probe().mixed_decap
}

/// `frame` as the kernel takes it, which compares its destination with the MAC of its interface.
fn received(frame: &Frame) -> Frame {
    let destination = &frame.bytes[..6];
    Frame { stray: destination != testbed::UNDERLAY_MAC && destination[0] & 1 == 0, ..frame.clone() }
}

/// Runs both and compares.
fn compare(kernel: &Kernel, maps: &Maps, hook: Hook, frame: &Frame) -> Reason {
    let got = kernel.run(hook, frame);
    let frame = &received(frame);
    let (mut reason, mut expected) = model(hook, frame, maps);
    let no_room = got.counted.iter().any(|(_, _, reason, ..)| *reason == Reason::NoRoom);
    let decapsulated = matches!(reason, Reason::Decapsulated | Reason::HandedOver);
    if decapsulated && no_room && takes_off_one_family_only() {
        (reason, expected) = model(hook, &Frame { rigid: true, ..frame.clone() }, maps);
    } else if reason == Reason::Encapsulated && no_room {
        // A test run has no aggregate, only its size, and the kernel makes no room in that.
        assert_ne!(frame.segment_size, 0, "no room in an ordinary packet");
        (reason, expected) = model(hook, &Frame { rigid: true, ..frame.clone() }, maps);
    } else if reason == Reason::Encapsulated && got.action == TC_ACT_REDIRECT {
        (reason, expected) = model(hook, &with_kernels_choices(frame, &got.bytes, maps), maps);
    }
    assert_eq!(got, expected, "{hook:?}, {reason:?}: kernel left, model right");
    reason
}

#[test]
fn kernel_and_model_forward_the_same_bytes() {
    let mut kernel = Kernel::load();
    let maps = testbed::maps();
    kernel.fill(&maps);
    for (hook, frame) in testbed::seeds() {
        let reason = compare(&kernel, &maps, hook, &frame);
        let forwarded = reason.disposition() == Disposition::Forwarded;
        if reason == Reason::NoRoom && takes_off_one_family_only() {
            continue;
        }
        assert!(forwarded, "{hook:?} did not forward a valid frame: {reason:?}");
    }
}

#[test]
fn kernel_and_model_hand_the_same_bytes_to_the_stack() {
    for (flags, heard, hands_over) in [(0, true, true), (NO_HANDOVER, true, false), (0, false, false)] {
        // No flow is known yet.
        let mut kernel = Kernel::load();
        let now = testrun::now();
        let mut maps = Maps { now, watched: true, ..testbed::maps() };
        maps.vteps.values_mut().for_each(|vtep| vtep.heard = if heard { moment(now) } else { 0 });
        let network = maps.network_mut().expect("the network");
        (network.mode, network.flags) = (Mode::Verified as u8, flags);
        kernel.fill(&maps);
        let seeds = testbed::seeds();
        let reasons = seeds.iter().map(|(hook, frame)| compare(&kernel, &maps, *hook, frame));
        let handed_over = reasons.filter(|reason| *reason == Reason::HandedOver).count();
        assert_eq!(handed_over != 0, hands_over, "{flags} {heard}");
    }
}

#[test]
fn kernel_and_model_make_the_same_outer_headers() {
    let mut kernel = Kernel::load();
    let inside = local::TTL_INSIDE | local::TOS_INSIDE | local::DF_INSIDE | local::LABEL_INSIDE;
    for flags in [0, inside, local::DF, local::CHECKSUM, inside | local::CHECKSUM] {
        let mut maps = testbed::maps();
        let network = maps.network_mut().expect("the network");
        for local in [&mut network.local4, &mut network.local6] {
            (local.flags, local.ttl, local.tos, local.label) = (flags, 9, 0x28, 0xabcde);
        }
        kernel.fill(&maps);
        for (hook, frame) in testbed::seeds() {
            compare(&kernel, &maps, hook, &frame);
        }
    }
}

#[test]
fn kernel_and_model_forward_the_same_frames_of_segments() {
    let mut kernel = Kernel::load();
    let stray = Inner { to_mac: testbed::station_mac(9), ..testbed::frame_to([0; 6], false) }.frame();
    let group = Inner { to_mac: [0xff; 6], ..testbed::frame_to([0; 6], false) }.frame();
    let elsewhere = Frame { ifindex: 2, ..testbed::frame_to(testbed::pod_mac(2), false).frame() };
    let others = [stray, group, elsewhere].map(|frame| (Hook::PortIngress, frame));
    for (hook, frame) in testbed::segment_seeds().into_iter().chain(others) {
        // All stations are known, and one after the other they have moved, or are unknown or to be confirmed.
        let maps = testbed::segment(testrun::now());
        kernel.fill(&maps);
        let reason = compare(&kernel, &maps, hook, &frame);
        let keys: Vec<_> = maps.stations.keys().copied().collect();
        for key in keys {
            let mut changed = maps.clone();
            changed.stations.remove(&key);
            kernel.fill(&changed);
            compare(&kernel, &changed, hook, &frame);
            for (moved, confirmed) in [(1, maps.now), (0, 0)] {
                let mut changed = maps.clone();
                changed.stations.entry(key).and_modify(|station| {
                    (station.moved, station.confirmed) = (moved, confirmed);
                });
                kernel.fill(&changed);
                compare(&kernel, &changed, hook, &frame);
            }
        }
        if reason == Reason::NoRoom && takes_off_one_family_only() {
            continue;
        }
        let is_valid = testbed::segment_seeds().contains(&(hook, frame));
        assert_eq!(reason.disposition() == Disposition::Forwarded, is_valid, "{hook:?}: {reason:?}");
    }
}

#[test]
fn what_is_written_to_the_maps_is_read_from_them() {
    let mut kernel = Kernel::load();
    assert_eq!(kernel.read(), Default::default(), "fresh maps are empty");
    kernel.fill(&testbed::maps());
    let read = kernel.read();
    assert_eq!(read.routes.len(), 6);
    assert_eq!(read.vteps, testbed::maps().vteps);
    assert_eq!(read.endpoints.len(), 6);
    kernel.fill(&Maps::default());
    assert_eq!(kernel.read(), Default::default());
}

#[test]
fn whoever_listens_hears_of_every_packet_before_and_after() {
    let mut kernel = Kernel::load();
    let maps = testbed::maps();
    kernel.fill(&maps);
    let wanted =
        Wanted { filter: Filter::default(), before: 2048, after: 2048, untouched: 2048, sample: 1, rate: 0 };
    let mut listener = Listener::start(kernel.dir(), &wanted).expect("nobody else listens");
    let spoofed = Inner { from: pod4(1, 2).into(), ..Inner::from_pod(pod4(2, 9).into()) }.frame();
    for (hook, frame) in testbed::seeds().into_iter().chain([(Hook::PodEgress, spoofed)]) {
        let reason = compare(&kernel, &maps, hook, &frame);
        // As it was run just now, but heard of.
        listener.read();
        let left = kernel.run(hook, &frame);
        let [report] = listener.read().try_into().expect("one report");
        let event = report.event;
        assert_eq!((event.hook(), event.reason(), event.network), (Some(hook), Some(reason), NETWORK));
        assert_eq!(event.dropped != 0, reason == Reason::PodSpoofed);
        assert_eq!((&report.before, event.length as usize), (&frame.bytes, frame.bytes.len()), "{hook:?}");
        assert_eq!((&report.after, event.length_after as usize), (&left.bytes, left.bytes.len()), "{hook:?}");
    }
    drop(listener);
    assert!(Listener::start(kernel.dir(), &wanted).is_ok());
}

#[test]
fn who_listens_hears_of_what_the_filter_takes() {
    let mut kernel = Kernel::load();
    kernel.fill(&testbed::maps());
    let (to4, to6) = (pod4(2, 9).into(), pod6(2, 9).into());
    let address =
        Filter { address: Addr::from(IpAddr::from(pod4(2, 0))), mask: slash24(), ..Filter::default() };
    let hook = Filter { hooks: Filter::hook(Hook::TunnelEgress), ..Filter::default() };
    let remote = testbed::maps().vteps[&REMOTE4].addr;
    let node = Filter { vteps: [remote; 2], ..Filter::default() };
    let dropped = Filter { reasons: Filter::reason(Reason::PodSpoofed), ..Filter::default() };
    for (filter, heard) in [
        (Filter::default(), [true; 2]),
        (address, [true, false]),
        (hook, [false; 2]),
        (node, [true; 2]),
        (dropped, [false; 2]),
    ] {
        let wanted = Wanted { filter, before: 192, after: 0, untouched: 192, sample: 1, rate: 0 };
        let mut listener = Listener::start(kernel.dir(), &wanted).expect("nobody else listens");
        for (to, heard) in [to4, to6].into_iter().zip(heard) {
            kernel.run(Hook::PodEgress, &Inner::from_pod(to).frame());
            assert_eq!(!listener.read().is_empty(), heard, "{filter:?} {to}");
        }
    }
}

/// The mask of 24 bits of an IPv4 address.
fn slash24() -> Addr {
    let mut mask = [0xff; 16];
    mask[15] = 0;
    Addr(mask)
}

#[test]
fn the_last_vtep_id_can_be_used() {
    let mut kernel = Kernel::load();
    let mut maps = testbed::maps();
    let vtep = maps.vteps[&REMOTE4];
    maps.vteps.insert(DEFAULT_VTEPS - 1, vtep);
    maps.routes4.insert((testbed::key4(pod4(2, 0)), 24), DEFAULT_VTEPS - 1);
    kernel.fill(&maps);
    let frame = Inner::from_pod(pod4(2, 9).into()).frame();
    assert_eq!(compare(&kernel, &maps, Hook::PodEgress, &frame), Reason::Encapsulated);
}

#[test]
fn violations_pass_where_they_are_tolerated() {
    let mut kernel = Kernel::load();
    let mut maps = testbed::maps();
    let spoofed = Inner { from: pod4(1, 2).into(), ..Inner::from_pod(pod4(2, 9).into()) }.frame();
    kernel.fill(&maps);
    assert_eq!(kernel.run(Hook::PodEgress, &spoofed).action, TC_ACT_SHOT);
    if let Some(network) = maps.network_mut() {
        network.flags = TOLERATE_VIOLATIONS;
    }
    kernel.fill(&maps);
    let tolerated = kernel.run(Hook::PodEgress, &spoofed);
    assert_eq!(tolerated.action, TC_ACT_UNSPEC);
    assert_eq!(tolerated.bytes, spoofed.bytes);
    assert_eq!(tolerated.counted[0].2, Reason::PodSpoofed);
}

/// The same frames twice, so that programs find what they have copied, between changes of all that they copy.
#[test]
fn a_change_of_subnets_and_endpoints_counts_at_once() {
    let mut kernel = Kernel::load();
    let mut maps = testbed::maps();
    let seeds = testbed::seeds();
    let mut agree = |maps: &Maps| {
        kernel.fill(maps);
        let all = seeds.iter().chain(&seeds);
        all.map(|(hook, frame)| compare(&kernel, maps, *hook, frame)).collect::<Vec<_>>()
    };
    let first = agree(&maps);
    assert!(first.iter().filter(|reason| **reason == Reason::Encapsulated).count() >= 4, "{first:?}");
    maps.routes4.insert((testbed::key4(pod4(2, 0)), 24), REMOTE6);
    maps.routes6.insert((testbed::key6(pod6(2, 0)), 64), REMOTE6);
    assert!(agree(&maps).contains(&Reason::ForeignSource), "the senders' subnet is another node's");
    maps = testbed::maps();
    let moved = |endpoint: &mut Endpoint| endpoint.mac[5] ^= 0x80;
    maps.endpoints4.values_mut().for_each(moved);
    maps.endpoints6.values_mut().for_each(moved);
    assert!(agree(&maps).contains(&Reason::Decapsulated), "pods have other MACs");
    maps.endpoints4.clear();
    maps.endpoints6.clear();
    assert!(agree(&maps).contains(&Reason::NoEndpoint), "pods are gone");
}

/// Each CPU has copies of its own.
fn stay_on_one_cpu() {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).expect("CPUs");
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("a CPU");
    one.set(first).and_then(|()| sched_setaffinity(this_thread, &one)).expect("a CPU");
}

/// What nobody announces is not seen, which shows that programs do look at their copies.
#[test]
fn an_endpoint_is_looked_up_once() {
    stay_on_one_cpu();
    let mut kernel = Kernel::load();
    let mut maps = testbed::maps();
    kernel.fill(&maps);
    let frame = Inner::from_pod(pod4(2, 9).into()).frame();
    assert_eq!(compare(&kernel, &maps, Hook::PodEgress, &frame), Reason::Encapsulated);
    let pinned = MapData::from_pin(kernel.dir().join(names::ENDPOINTS4)).and_then(Map::from_map_data);
    let endpoints: Result<HashMap<_, Key4, Endpoint>, _> = pinned.and_then(TryInto::try_into);
    endpoints.expect("a map").remove(&testbed::key4(pod4(1, 1))).expect("the entry is there");
    assert_eq!(compare(&kernel, &maps, Hook::PodEgress, &frame), Reason::Encapsulated);
    maps.endpoints4.insert(testbed::key4(pod4(1, 4)), Endpoint::default());
    kernel.fill(&maps);
    assert_eq!(kernel.run(Hook::PodEgress, &frame).counted[0].2, Reason::UnknownSource);
}

/// Tables with some entries missing or changed.
fn tables() -> impl Strategy<Value = Maps> {
    let prefix = prop_oneof![Just(8u32), Just(16), Just(24), Just(32)];
    (any::<u16>(), any::<u8>(), prefix, 0u32..4, 0u8..4).prop_map(|(missing, seed, bits, id, mode)| {
        let mut maps = testbed::maps();
        let absent = |bit: u32| missing & 1 << bit != 0 && missing.count_ones() < 6;
        if absent(0) {
            maps.vteps.remove(&REMOTE4);
        }
        if absent(1) {
            maps.vtep_ids.retain(|_, id| *id != REMOTE6);
        }
        if absent(2) {
            maps.stations.retain(|_, station| station.vtep != REMOTE4);
        }
        if absent(3) {
            maps.endpoints4.remove(&testbed::key4(pod4(1, 1 + seed % 3)));
        }
        if absent(4) {
            maps.endpoints6.remove(&testbed::key6(pod6(1, 1 + seed % 3)));
        }
        if absent(5) {
            let mask = u32::MAX << (32 - bits);
            let ip = u32::from(pod4(2, seed)) & mask;
            maps.routes4.insert((testbed::key4(ip.into()), bits), id);
        }
        if missing & 1 << 6 != 0 {
            // Interface and VNI say which network it is.
            maps.node.only = NO_NETWORK;
        }
        if let Some(network) = maps.network_mut() {
            network.flags = u32::from(seed >> 4) & (TOLERATE_VIOLATIONS | DROP_MALFORMED | DROP_OTHER_VNI);
        }
        if let Some(network) = maps.network_mut().filter(|_| mode == 3) {
            network.mode = seed & 1;
            network.local4.mtu = 128;
        }
        maps
    })
}

#[test]
fn kernel_and_model_agree_on_random_tables_and_damaged_frames() {
    agree_on(testbed::seeds(), tables(), 6000);
}

/// Runs `cases` frames, made of `seeds`, on `tables` through both.
fn agree_on(seeds: Vec<(Hook, Frame)>, tables: impl Strategy<Value = Maps>, cases: u32) {
    let mut kernel = Kernel::load();
    let changes = proptest::collection::vec((0usize..160, any::<u8>()), 0..4);
    let cut = prop_oneof![4 => Just(usize::MAX), 1 => Kernel::SHORTEST..200];
    let segment_size = prop_oneof![6 => Just(0u32), 1 => 1u32..0x10000];
    let strategy = (tables, 0..seeds.len(), 0..Hook::ALL.len() * 4, changes, cut, segment_size);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut forwarded = 0;
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let kernel = std::cell::RefCell::new((&mut kernel, &mut forwarded));
    runner
        .run(&strategy, |(maps, seed, other_hook, changes, cut, segment_size)| {
            let (kernel, forwarded) = &mut *kernel.borrow_mut();
            let (mut hook, mut frame) = seeds[seed].clone();
            if let Some(other) = Hook::ALL.get(other_hook) {
                hook = *other;
            }
            for (at, value) in changes {
                let len = frame.bytes.len();
                frame.bytes[at % len] = value;
            }
            frame.bytes.truncate(cut);
            frame.segment_size = if hook == Hook::UnderlayXdp { 0 } else { segment_size };
            frame.ifindex = POD_IFINDEX;
            if maps.network().kind == Kind::L2 as u8 {
                // What programs have noted of stations stays with entries that stay.
                kernel.fill(&Maps { stations: BTreeMap::new(), ..maps.clone() });
            }
            kernel.fill(&maps);
            let reason = compare(kernel, &maps, hook, &frame);
            **forwarded += u32::from(reason.disposition() == Disposition::Forwarded);
            Ok(())
        })
        .expect("kernel and model agree");
    assert!(
        forwarded > cases / 12,
        "only {forwarded} of {cases} frames were forwarded: the test tests too little"
    );
}

/// The tables of a segment with some entries missing or changed.
fn segment_tables() -> impl Strategy<Value = Maps> {
    let station = (0usize..4, 0u32..4, 0u32..4, any::<u8>(), 0u8..3, any::<bool>());
    (proptest::collection::vec(station, 0..3), any::<u8>(), any::<u16>()).prop_map(
        |(changes, missing, seed)| {
            let now = testrun::now();
            let mut maps = testbed::segment(now);
            let keys: Vec<_> = maps.stations.keys().copied().collect();
            for (which, vtep, ifindex, flags, moved, known) in changes {
                let Some(at) = maps.stations.get_mut(&keys[which]) else { continue };
                (at.flags, at.moved) =
                    (flags & (station::PEER | station::HOOKED_IN | station::HOOKED_OUT), moved);
                match flags >> 4 {
                    0 => at.confirmed = 0,
                    1 => (at.vtep, at.ifindex) = (vtep, ifindex),
                    2 => at.mtu = 60 + u16::from(flags),
                    _ => {}
                }
                if !known {
                    maps.stations.remove(&keys[which]);
                }
            }
            if missing & 1 << 0 != 0 {
                maps.vteps.remove(&REMOTE4);
            }
            if missing & 1 << 1 != 0 {
                maps.vtep_ids.retain(|_, id| *id != REMOTE6);
            }
            if missing & 1 << 2 != 0 {
                // Interface and VNI say which network it is.
                maps.node.only = NO_NETWORK;
            }
            if let Some(network) = maps.network_mut() {
                let tolerated = TOLERATE_VIOLATIONS | DROP_MALFORMED | DROP_OTHER_VNI;
                network.flags = u32::from(seed) & tolerated;
                network.mode = if seed >> 12 == 0 { Mode::Off as u8 } else { network.mode };
                network.local4.mtu = if seed >> 12 == 1 { 128 } else { network.local4.mtu };
            }
            maps
        },
    )
}

#[test]
fn kernel_and_model_agree_on_random_segments_and_damaged_frames() {
    let mut seeds = testbed::segment_seeds();
    let to_all = Inner { to_mac: [0xff; 6], ..testbed::frame_to([0; 6], false) }.frame();
    let to_nobody = Inner { to_mac: testbed::station_mac(9), ..testbed::frame_to([0; 6], false) }.frame();
    seeds.extend([to_all, to_nobody].map(|frame| (Hook::PortIngress, frame)));
    agree_on(seeds, segment_tables(), 2000);
}

/// What of a flow does not depend on when it was and on the kernel's hash.
fn lasting(flow: &Flow) -> (u8, u8, u8, u64, u64) {
    (flow.closing(), flow.egress.state, flow.ingress.state, flow.packets, flow.bytes)
}

/// Sends a frame of a script through both, which must keep the same flows.
fn compare_flows(
    kernel: &mut Kernel,
    generation: &mut u32,
    hook: Hook,
    frame: &Frame,
    maps: &mut Maps,
) -> Reason {
    if *generation != maps.generation {
        *generation = maps.generation;
        kernel.flush_flows();
    }
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    maps.now = std::time::Duration::from(clock.now().expect("a clock")).as_nanos() as u64;
    compare(kernel, maps, hook, frame);
    let reason = oracle::check(hook, frame, maps);
    let flows = maps.flows.borrow();
    let known = flows.iter().filter(|(_, flow)| flow.generation == maps.generation);
    let expected: BTreeMap<_, _> = known.map(|(key, flow)| (*key, lasting(flow))).collect();
    let got: BTreeMap<_, _> = kernel.flows().iter().map(|(key, flow)| (*key, lasting(flow))).collect();
    assert_eq!(got, expected, "{hook:?}, {reason:?}: kernel left, model right");
    reason
}

/// A packet of one of a few connections, or a flush. What depends on more than a test run has, a
/// clock, a second interface, another packet's hash, is left out.
fn step() -> impl Strategy<Value = FlowStep> {
    let what = prop_oneof![
        10 => Just(FlowStep::SEND),
        10 => Just(FlowStep::RECEIVE),
        2 => Just(FlowStep::RECEIVE_AGGREGATE),
        1 => Just(FlowStep::FLUSH),
    ];
    let flags = prop_oneof![
        2 => Just(0x02u8), 2 => Just(0x12), 6 => Just(0x10), 1 => Just(0x11), 1 => Just(0x04)];
    let fate = prop_oneof![4 => Just(0u8), 1 => Just(1)];
    (what, 0u8..12, flags, fate).prop_map(|(what, which, flags, fate)| FlowStep { what, which, flags, fate })
}

#[test]
fn kernel_and_model_keep_the_same_flows() {
    let mut kernel = Kernel::load();
    for (filters, flags) in [(Filters::Some, 0), (Filters::None, BY_ADDRESS)] {
        keep_the_same_flows(&mut kernel, filters, flags);
    }
}

fn keep_the_same_flows(kernel: &mut Kernel, filters: Filters, flags: u32) {
    let maps = testbed::maps();
    let network = Network { mode: Mode::Verified as u8, flags, ..maps.network() };
    kernel.fill(&Maps { networks: [(NETWORK, network)].into(), watched: true, ..maps });
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let kernel = std::cell::RefCell::new((kernel, 0));
    runner
        .run(&(proptest::collection::vec(step(), 20..60), 0u8..12), |(steps, only)| {
            let (kernel, bypassed) = &mut *kernel.borrow_mut();
            kernel.flush_flows();
            let mut generation = 0;
            // Few connections, so that they get somewhere.
            let steps = steps.into_iter().map(|step| FlowStep { which: only ^ (step.which & 1), ..step });
            let reasons = oracle::play_flows(filters, steps, |hook, frame, maps| {
                compare_flows(kernel, &mut generation, hook, frame, maps)
            });
            let forwarded = |reason: &&Reason| reason.disposition() == Disposition::Forwarded;
            *bypassed += reasons.iter().filter(forwarded).count();
            Ok(())
        })
        .expect("kernel and model agree");
    let bypassed = kernel.into_inner().1;
    assert!(bypassed > 200, "only {bypassed} packets were forwarded: the test tests too little");
}
