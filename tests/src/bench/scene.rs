//! What is compared in: routed subnets, or a bridged segment, with a device of ours or of somebody else's.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::BenchArgs;
use super::case::Measurement;
use super::lineup::{Mode, Way};
use super::{bridged, routed};
use crate::lab::segment::Card;

/// How the two ends are attached to their nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// Pods in subnets of their nodes.
    Routed,
    /// Hosts of one segment, with this card.
    Bridged(Card),
    /// Pods in subnets of their nodes, whose device somebody else manages.
    BesideRouted,
    /// Hosts of one segment, at veths, whose device somebody else manages.
    BesideBridged,
}

impl Scene {
    /// For people; nothing for what is usual.
    pub(super) const fn title(self) -> Option<&'static str> {
        match self {
            Self::Routed => None,
            Self::Bridged(Card::Veth) => Some("bridged segment, veths"),
            Self::Bridged(Card::Tap) => Some("bridged segment, taps"),
            Self::BesideRouted => Some("somebody else's device that packets are routed through, accelerated"),
            Self::BesideBridged => Some("somebody else's device that is the port of a bridge, accelerated"),
        }
    }

    /// The labs that are compared.
    pub(super) fn build(self, args: &BenchArgs) -> Result<Vec<Way>> {
        match self {
            Self::Routed => routed::build(args, Mode::options),
            Self::Bridged(card) => bridged::build(args, card, Mode::options),
            Self::BesideRouted => routed::build(args, Mode::beside),
            Self::BesideBridged => bridged::build(args, Card::Veth, Mode::beside),
        }
    }

    /// What is measured unless cases are named.
    pub(super) const fn measurements(self) -> &'static [Measurement] {
        match self {
            Self::Routed => &Measurement::ALL,
            Self::Bridged(_) | Self::BesideRouted | Self::BesideBridged => &Measurement::FEW,
        }
    }

    /// The file `asked` for, or one with an agreed name. Where there are several in one run, the name says which.
    pub(super) fn file(self, asked: Option<&Path>, extension: &str) -> PathBuf {
        let (default, which) = match self {
            Self::Routed => ("bench", ""),
            Self::Bridged(Card::Veth) => ("bench-l2", "-veth"),
            Self::Bridged(Card::Tap) => ("bench-l2", "-tap"),
            Self::BesideRouted => ("bench-accelerate", "-l3"),
            Self::BesideBridged => ("bench-accelerate", "-l2"),
        };
        let path = asked.map_or_else(|| Path::new(default).with_extension(extension), Path::to_owned);
        let (Some(stem), false) = (path.file_stem(), which.is_empty()) else { return path };
        let mut name = stem.to_owned();
        name.push(which);
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        path.with_file_name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scene: Scene, asked: Option<&str>, expected: &str) {
        assert_eq!(scene.file(asked.map(Path::new), "svg"), Path::new(expected));
    }

    #[test]
    fn every_card_and_every_kind_of_device_has_files_of_its_own() {
        check(Scene::Routed, None, "bench.svg");
        check(Scene::Routed, Some("out/chart"), "out/chart");
        check(Scene::Bridged(Card::Veth), None, "bench-l2-veth.svg");
        check(Scene::Bridged(Card::Tap), Some("out/a.b.svg"), "out/a.b-tap.svg");
        check(Scene::Bridged(Card::Tap), Some("out/chart"), "out/chart-tap");
        check(Scene::BesideRouted, None, "bench-accelerate-l3.svg");
        check(Scene::BesideBridged, Some("out/chart"), "out/chart-l2");
    }
}
