//! The command line of the benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::case::{CASES, Case, Measurement};
use super::lineup::{Kind, Mode};
use super::scene::Scene;
use crate::lab::segment::Card;

/// What to measure and where the results go.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Fewer and shorter rounds
    #[arg(long)]
    pub(super) quick: bool,
    /// Rounds instead of 7 (3 with --quick)
    #[arg(long)]
    rounds: Option<u32>,
    /// A bridged segment (a network of kind l2) instead of subnets that packets are routed to; no overlay is
    /// then one bridge with both hosts
    #[arg(long, conflicts_with_all = ["conntrack", "notrack", "bridge_netfilter", "control_plane"])]
    l2: bool,
    /// A device of somebody else's, instead, by itself and with agents beside it: one that packets are routed through, as
    /// flannel makes it, and one that is the port of a bridge
    #[arg(long, conflicts_with_all = ["l2", "conntrack", "notrack", "bridge_netfilter", "control_plane"])]
    accelerate: bool,
    /// With --l2: only hosts with this card, instead of both in turn. A tap's frames are carried by a thread
    /// of this program, which is most of their time
    #[arg(long, value_enum, value_delimiter = ',', default_value = "veth,tap", requires = "l2")]
    card: Vec<Card>,
    /// Only these cases, for example tcp_rr; by default all, with --l2 and --accelerate those of the few
    /// measurements that say most
    #[arg(long, value_delimiter = ',')]
    pub(super) cases: Vec<String>,
    /// Leave our overlay out: compare kernel VXLAN with no overlay only
    #[arg(long)]
    pub(super) without_ours: bool,
    /// Client and server on one CPU in every case
    #[arg(long)]
    pub(super) one_cpu: bool,
    /// Only this mode of our fast path, instead of both
    #[arg(long, value_enum, value_delimiter = ',', default_value = "verified,direct")]
    mode: Vec<Mode>,
    /// The clock counts instructions, one a nanosecond, as that of an emulator does: on one CPU, in fewer and shorter
    /// rounds, without CPU time and without the programs by themselves
    #[arg(long, hide = true, conflicts_with_all = ["control_plane", "many"])]
    pub(super) instructions: bool,
    /// With connection tracking and 5 000 service rules on all nodes
    #[arg(long)]
    pub(super) conntrack: bool,
    /// Our agents keep conntrack out of the tunnel's outer packets (notrack = true)
    #[arg(long)]
    pub(super) notrack: bool,
    /// With netfilter on the pods' bridges, as Kubernetes asks for (slows all but ours down)
    #[arg(long)]
    pub(super) bridge_netfilter: bool,
    /// What the agent itself costs among 5 000 nodes, instead: how it starts, and how it follows changes
    /// of nodes. With KUBE_APISERVER and ETCD the starts are measured with that API server, with a stub
    /// otherwise; changes need the stub
    #[arg(long, conflicts_with_all = ["cases", "without_ours", "one_cpu", "mode", "conntrack", "notrack", "bridge_netfilter", "svg"])]
    pub(super) control_plane: bool,
    /// What thousands of networks on a node cost, and a segment with a hundred thousand stations, instead: the
    /// agent, its maps, and each packet; with --quick a sixteenth of the networks and a tenth of the stations
    #[arg(long, conflicts_with_all = ["cases", "without_ours", "one_cpu", "mode", "conntrack", "notrack", "bridge_netfilter", "svg", "control_plane", "l2", "accelerate"])]
    pub(super) many: bool,
    /// Where the numbers go; by default bench.json, control-plane.json, or many.json. With --l2 the name gets the card:
    /// bench-l2-veth.json, bench-l2-tap.json; with --accelerate -l3 and -l2: bench-accelerate-l3.json
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the chart goes; by default bench.svg. Names get the same as those of the numbers
    #[arg(long)]
    svg: Option<PathBuf>,
}

impl BenchArgs {
    pub(super) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick || self.instructions { 3 } else { 7 })
    }

    /// Length of one measurement.
    pub(super) fn duration(&self) -> Duration {
        match self.instructions {
            true => Duration::from_millis(30),
            false => Duration::from_millis(if self.quick { 500 } else { 1000 }),
        }
    }

    /// What is compared.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| match kind {
            Kind::NoOverlay | Kind::KernelVxlan => true,
            Kind::Ours(mode) => !self.without_ours && self.mode.contains(mode),
        })
    }

    /// What is measured in, one after the other.
    pub(super) fn scenes(&self) -> Vec<Scene> {
        match (self.l2, self.accelerate) {
            (true, _) => self.card.iter().copied().map(Scene::Bridged).collect(),
            (_, true) => vec![Scene::BesideRouted, Scene::BesideBridged],
            _ => vec![Scene::Routed],
        }
    }

    /// What is measured there: what yields a case that was asked for, by default all that the scene has.
    pub(super) fn measurements(&self, scene: Scene) -> Vec<Measurement> {
        let asked = |case: &&Case| self.cases.iter().any(|name| name == case.name);
        let named = |measurement| CASES.iter().filter(asked).any(|case| case.measurement == measurement);
        let usual = |measurement| match self.instructions {
            true => Measurement::COUNTED.contains(&measurement),
            false => scene.measurements().contains(&measurement),
        };
        let all = Measurement::ALL.into_iter();
        all.filter(|m| if self.cases.is_empty() { usual(*m) } else { named(*m) }).collect()
    }

    /// Where a scene's numbers go.
    pub(super) fn json(&self, scene: Scene) -> PathBuf {
        scene.file(self.json.as_deref(), "json")
    }

    /// Where a scene's chart goes.
    pub(super) fn svg(&self, scene: Scene) -> PathBuf {
        scene.file(self.svg.as_deref(), "svg")
    }

    /// Where the numbers of many networks and stations go.
    pub(super) fn many_json(&self) -> PathBuf {
        self.json.clone().unwrap_or_else(|| "many.json".into())
    }

    /// Where the numbers of the control plane go.
    pub(super) fn control_plane_json(&self) -> PathBuf {
        self.json.clone().unwrap_or_else(|| "control-plane.json".into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> BenchArgs {
        Cli::try_parse_from(line.split(' ')).expect("a command line").args
    }

    #[test]
    fn a_bridged_segment_has_both_cards_and_few_measurements() {
        let args = parse("bench --l2 --quick");
        assert_eq!(args.scenes(), [Scene::Bridged(Card::Veth), Scene::Bridged(Card::Tap)]);
        assert_eq!(args.measurements(args.scenes()[0]), Measurement::FEW);
        assert_eq!(parse("bench --l2 --card tap").scenes(), [Scene::Bridged(Card::Tap)]);
    }

    #[test]
    fn devices_of_others_are_routed_through_or_bridged() {
        let args = parse("bench --accelerate");
        assert_eq!(args.scenes(), [Scene::BesideRouted, Scene::BesideBridged]);
        assert_eq!(args.measurements(Scene::BesideRouted), Measurement::FEW);
        assert!(Cli::try_parse_from(["bench", "--accelerate", "--l2"]).is_err());
    }

    #[test]
    fn routed_subnets_have_all_measurements() {
        let args = parse("bench");
        assert_eq!(args.scenes(), [Scene::Routed]);
        assert_eq!(args.measurements(Scene::Routed), Measurement::ALL);
    }

    #[test]
    fn cases_that_are_named_decide_what_is_measured_anywhere() {
        let args = parse("bench --l2 --cases tcp_crr,udp_loss");
        assert_eq!(args.measurements(args.scenes()[0]), [Measurement::TcpCrr, Measurement::UdpRate]);
    }

    #[test]
    fn settings_of_routed_subnets_are_refused_for_a_segment() {
        for option in ["--conntrack", "--notrack", "--bridge-netfilter", "--control-plane"] {
            assert!(Cli::try_parse_from(["bench", "--l2", option]).is_err(), "{option}");
        }
        assert!(Cli::try_parse_from(["bench", "--card", "tap"]).is_err());
    }
}
