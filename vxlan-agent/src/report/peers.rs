//! What came of probing other nodes.

use std::collections::BTreeMap;
use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::gauge::ConstGauge;

use super::facts::Probed;
use super::family::{Labels, family, flag, number, since_1970, single};
use crate::probe::{Row, Way};

/// Rows that are reported one by one, those that are lost first. Of all, the numbers are.
const MOST_PEERS: usize = 256;

/// Writes them down.
pub(super) fn encode(e: &mut DescriptorEncoder<'_>, probed: &Probed) -> Result<(), Error> {
    let Some(at) = probed.at.and_then(since_1970) else { return Ok(()) };
    single(
        e,
        "probe_time_seconds",
        "When other nodes were last probed, in seconds since 1970",
        ConstGauge::new(at),
    )?;
    counts(e, &probed.rows)?;
    let mut rows: Vec<(&Row, String)> =
        probed.rows.iter().map(|row| (row, row.address.to_string())).collect();
    rows.sort_by_key(|(row, _)| row.is_well());
    rows.truncate(MOST_PEERS);
    let all = || {
        rows.iter().flat_map(|(row, address)| Way::ALL.map(|way| (labels(row, address, way), row.path(way))))
    };
    family(
        e,
        "peer_reachable",
        "Whether a node answers through the tunnel",
        all().map(|(labels, path)| (labels, flag(path.reachable))),
    )?;
    family(
        e,
        "peer_round_trip_seconds",
        "How soon a node answers through the tunnel",
        all().filter_map(|(labels, path)| Some((labels, ConstGauge::new(path.round_trip_seconds?)))),
    )?;
    family(
        e,
        "peer_path_mtu_bytes",
        "The largest packet that a node answers through the tunnel",
        all().filter_map(|(labels, path)| Some((labels, number(path.path_mtu?)))),
    )
}

fn counts(e: &mut DescriptorEncoder<'_>, rows: &[Row]) -> Result<(), Error> {
    let mut counts = BTreeMap::<(&str, Way), [usize; 2]>::new();
    for (row, way) in rows.iter().flat_map(|row| Way::ALL.map(|way| (row, way))) {
        let [all, lost] = counts.entry((&row.network, way)).or_default();
        *all += 1;
        *lost += usize::from(!row.path(way).reachable);
    }
    let each = |at: usize| {
        counts.iter().map(move |((network, way), counts)| {
            let labels: Labels<'_, 2> = [("network", *network), ("path", way.word())];
            (labels, number(counts[at]))
        })
    };
    family(e, "probed_peers", "Nodes that were probed, once for each IP version inside", each(0))?;
    family(e, "unreachable_peers", "Those that did not answer", each(1))
}

fn labels<'r>(row: &'r Row, address: &'r str, way: Way) -> Labels<'r, 4> {
    [("network", &row.network), ("node", &row.node), ("address", address), ("path", way.word())]
}
