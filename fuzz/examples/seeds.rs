//! Writes what the corpora begin with: every valid frame of the testbed, as a recipe and in full, and
//! some of the odd ones. `cargo run --example seeds` in this directory.

use std::path::Path;
use std::{fs, io};

use vxlan_ebpf_common::oracle::{Edit, FlowStep, Recipe, Way};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, way) in [("encap", Way::Out), ("roundtrip", Way::Out), ("decap", Way::In)] {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        for base in 0..Recipe::bases(way) {
            let recipe =
                Recipe { base, ttl: 64, len: 40, tos: base, outer_tos: 3 - base % 4, ..Recipe::default() };
            fs::write(dir.join(format!("recipe-{base:02}")), recipe.write())?;
            if base % 4 == 0 {
                let rest = recipe.frame(way).bytes;
                fs::write(
                    dir.join(format!("frame-{base:02}")),
                    Recipe { base: 255, rest, ..recipe }.write(),
                )?;
            }
        }
        for (name, recipe) in odd(way) {
            fs::write(dir.join(name), recipe.write())?;
        }
    }
    flows(&corpus.join("flow"))
}

/// Scripts of connections, each in a file: it opens, carries data, rests, is forgotten and goes on.
fn flows(dir: &Path) -> io::Result<()> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const FIN_ACK: u8 = 0x11;
    fs::create_dir_all(dir)?;
    for which in 0..36 {
        let step = |what, flags| FlowStep { what, which, flags, fate: 0 };
        let (send, receive) = (|flags| step(FlowStep::SEND, flags), |flags| step(FlowStep::RECEIVE, flags));
        let wait = |which, flags| FlowStep { what: FlowStep::WAIT, which, flags, fate: 0 };
        let open = [send(SYN), receive(SYN | ACK), send(ACK), receive(ACK)];
        let aggregate = step(FlowStep::RECEIVE_AGGREGATE, ACK);
        let rest = [wait(1, 2), send(ACK), receive(ACK), send(ACK), receive(ACK), aggregate];
        let flushed = [step(FlowStep::FLUSH, 0), send(ACK), receive(ACK), send(ACK), wait(3, 25), send(ACK)];
        let closed = [send(FIN_ACK), receive(FIN_ACK), send(ACK), wait(2, 2)];
        let blocked = [1, 2].map(|fate| FlowStep { fate, ..send(SYN) });
        let full =
            [step(FlowStep::FULL, 0), send(SYN), receive(SYN | ACK), send(ACK), step(FlowStep::FULL, 0)];
        let script = [&open[..], &rest, &flushed, &closed, &open, &blocked, &full, &open].concat();
        let bytes: Vec<u8> = script.into_iter().flat_map(FlowStep::write).collect();
        fs::write(dir.join(format!("connection-{which:02}")), bytes)?;
    }
    Ok(())
}

/// Recipes that no single byte of a plain one leads to.
fn odd(way: Way) -> Vec<(&'static str, Recipe)> {
    let plain = Recipe { base: 1, ttl: 64, len: 1300, ..Recipe::default() };
    let edit = |what, which, value| vec![Edit { what, which, value }];
    let bytes = |bytes: &[(u16, u8)]| -> Vec<u8> {
        bytes.iter().flat_map(|&(value, which)| Edit { what: 0, which, value }.write()).collect()
    };
    let mut odd = vec![
        ("aggregate", Recipe { flags: Recipe::LARGE, len: 20_000, segment_size: 1300, ..plain.clone() }),
        (
            "aggregate-too-large",
            Recipe { flags: Recipe::LARGE, len: 65_480, segment_size: 1300, ..plain.clone() },
        ),
        ("as-large-as-fits", Recipe { len: 1390, ..plain.clone() }),
        ("too-large", Recipe { len: 1391, ..plain.clone() }),
        (
            "large-mtu",
            Recipe { flags: Recipe::LARGE, len: 65_480, tables: edit(3, 0, 65_535), ..plain.clone() },
        ),
        ("fragment", Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(20, 0x20)]), ..plain.clone() }),
        (
            "shorter-than-it-says",
            Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(17, 0)]), ..plain.clone() },
        ),
        ("cut", Recipe { rest: edit(5, 0, 50)[0].write().into(), ..plain.clone() }),
        ("tagged", Recipe { flags: Recipe::TAGGED, ..plain.clone() }),
        ("rigid", Recipe { flags: Recipe::RIGID, ..plain.clone() }),
        ("elsewhere", Recipe { flags: Recipe::ELSEWHERE, ..plain.clone() }),
        ("switched-off", Recipe { tables: edit(0, 0, 0), ..plain.clone() }),
    ];
    odd.extend(match way {
        Way::Out => vec![
            ("switched", Recipe { base: 12, rest: bytes(&TO_SECOND_POD), ..plain.clone() }),
            (
                "other-bridge",
                Recipe { base: 12, rest: bytes(&TO_SECOND_POD), tables: edit(14, 6, 7), ..plain.clone() },
            ),
            ("udp-without-checksum", Recipe { base: 6, rest: bytes(&[(40, 0), (41, 0)]), ..plain.clone() }),
            ("udp-with-a-trailer", with_a_trailer(&Recipe { base: 6, len: 12, ..plain.clone() })),
            ("aggregate-over-ipv6", Recipe { base: 7, segment_size: 100, ..plain.clone() }),
            ("route-to-nowhere", Recipe { tables: edit(8, 8, 7), ..plain.clone() }),
            ("route-to-a-free-entry", Recipe { tables: edit(8, 8, 5), ..plain.clone() }),
            ("host-route", Recipe { tables: edit(10, 11, 2), ..plain }),
        ],
        Way::In => vec![
            ("other-vni", Recipe { tables: edit(1, 7, 0x0304), ..plain.clone() }),
            ("reserved-flag", Recipe { rest: bytes(&[(42, 0x88)]), ..plain.clone() }),
            ("reserved-byte", Recipe { rest: bytes(&[(49, 1)]), ..plain.clone() }),
            ("udp-length-lies", Recipe { rest: bytes(&[(39, 100)]), ..plain.clone() }),
            ("last-fragment", Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(21, 1)]), ..plain.clone() }),
            ("options", Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(64, 0x46)]), ..plain.clone() }),
            (
                "inner-fragment",
                Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(70, 0x20)]), ..plain.clone() },
            ),
            ("foreign-source", Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(78, 3)]), ..plain.clone() }),
            ("unknown-vtep", Recipe { flags: Recipe::REPAIRED, rest: bytes(&[(29, 66)]), ..plain.clone() }),
            ("forgotten-vtep", Recipe { tables: edit(12, 4, 0), ..plain.clone() }),
            ("no-hops-left", Recipe { ttl: 1, ..plain.clone() }),
            ("congested", Recipe { tos: 2, outer_tos: 3, ..plain.clone() }),
            ("congested-without-ecn", Recipe { outer_tos: 3, ..plain }),
        ],
    });
    odd
}

/// Turns the gateway's MAC into the second pod's.
const TO_SECOND_POD: [(u16, u8); 3] = [(3, 1), (4, 0), (5, 2)];

/// The packet of `recipe` with ten more bytes than its payload needs.
fn with_a_trailer(recipe: &Recipe) -> Recipe {
    let mut rest = recipe.frame(Way::Out).bytes;
    rest[17] += 10;
    rest.extend([0x5a; 10]);
    Recipe { base: 255, flags: Recipe::REPAIRED, rest, ..recipe.clone() }
}
