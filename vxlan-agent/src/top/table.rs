//! Rates as tables: what each view shows, how it is sorted and filtered. Nothing here draws.

use std::cmp::Ordering;

use super::rates::{FlowRate, NetworkRate, NodeRate, Rate, Rates, ReasonRate};

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    #[default]
    Networks,
    Nodes,
    Flows,
    Reasons,
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Networks, Self::Nodes, Self::Flows, Self::Reasons];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Networks => "networks",
            Self::Nodes => "nodes",
            Self::Flows => "flows",
            Self::Reasons => "reasons",
        }
    }

    /// The column that it is sorted by at first, and whether the largest comes first.
    pub(super) const fn first_sort(self) -> (usize, bool) {
        match self {
            Self::Networks => (0, false),
            Self::Nodes | Self::Flows => (5, true),
            Self::Reasons => (4, true),
        }
    }

    pub(super) const fn columns(self) -> &'static [Column] {
        match self {
            Self::Networks => &NETWORKS,
            Self::Nodes => &NODES,
            Self::Flows => &FLOWS,
            Self::Reasons => &REASONS,
        }
    }

    /// Its rows, unsorted.
    pub(super) fn rows(self, rates: &Rates) -> Vec<Row> {
        match self {
            Self::Networks => rates.networks.iter().map(network).collect(),
            Self::Nodes => rates.nodes.iter().map(node).collect(),
            Self::Flows => rates.flows.iter().map(flow).collect(),
            Self::Reasons => rates.reasons.iter().map(reason).collect(),
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// In characters.
    pub(super) width: u16,
    /// Where there is no room for all columns, those with the largest number go first.
    pub(super) rank: u8,
    /// Whether it has numbers.
    pub(super) number: bool,
}

const fn text(name: &'static str, width: u16, rank: u8) -> Column {
    Column { name, width, rank, number: false }
}

const fn number(name: &'static str, width: u16, rank: u8) -> Column {
    Column { name, width, rank, number: true }
}

const NETWORKS: [Column; 9] = [
    text("network", 12, 0),
    text("way", 3, 0),
    number("fast pkt/s", 10, 1),
    number("bit/s", 7, 2),
    number("kern. pkt/s", 11, 1),
    number("bit/s", 7, 3),
    number("drop/s", 7, 2),
    number("fast %", 6, 0),
    text("switch", 6, 4),
];

const NODES: [Column; 6] = [
    text("node", 20, 0),
    text("vtep", 16, 2),
    text("network", 12, 3),
    number("flows", 7, 1),
    number("pkt/s", 8, 1),
    number("bit/s", 8, 0),
];

const FLOWS: [Column; 9] = [
    text("proto", 6, 1),
    text("local", 16, 0),
    text("remote", 16, 0),
    text("state", 10, 3),
    number("pkt/s", 7, 2),
    number("bit/s", 7, 0),
    number("bytes", 7, 4),
    number("idle s", 6, 5),
    text("node", 10, 6),
];

const REASONS: [Column; 6] = [
    text("network", 12, 2),
    text("hook", 16, 1),
    text("reason", 18, 0),
    text("path", 6, 1),
    number("pkt/s", 9, 0),
    number("packets", 12, 3),
];

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// What it is sorted by, and how it is written.
    Number(f64, String),
}

impl Cell {
    pub(super) fn written(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(_, text) => text,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(a, _), Self::Number(b, _)) => a.total_cmp(b),
            (a, b) => a.written().cmp(b.written()),
        }
    }
}

pub(super) type Row = Vec<Cell>;

/// Leaves the rows in which `filter` is, whatever the case of its letters, and sorts them by `column`; those that are
/// alike there, by all columns from the first.
pub(super) fn arrange(mut rows: Vec<Row>, filter: &str, column: usize, descending: bool) -> Vec<Row> {
    let filter = filter.to_lowercase();
    rows.retain(|row| row.iter().any(|cell| cell.written().to_lowercase().contains(&filter)));
    rows.sort_by(|a, b| {
        let by = match (a.get(column), b.get(column)) {
            (Some(a), Some(b)) if descending => b.compare(a),
            (Some(a), Some(b)) => a.compare(b),
            _ => Ordering::Equal,
        };
        by.then_with(|| alike(a, b))
    });
    rows
}

fn alike(a: &Row, b: &Row) -> Ordering {
    let texts = |row: &Row| {
        let text = row.iter().filter(|cell| matches!(cell, Cell::Text(_)));
        text.map(|cell| cell.written().to_owned()).collect::<Vec<_>>()
    };
    texts(a).cmp(&texts(b))
}

/// The columns that `width` has room for, one blank apart, and how wide each is. The widest text grows into what is left.
pub(super) fn fit(columns: &[Column], width: u16) -> Vec<(usize, u16)> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| shown.iter().map(|n| columns[*n].width + 1).sum::<u16>().saturating_sub(1);
    while shown.len() > 1 && needed(&shown) > width {
        let least = shown.iter().copied().max_by_key(|n| (columns[*n].rank, *n));
        shown.retain(|n| Some(*n) != least);
    }
    let mut spare = width.saturating_sub(needed(&shown));
    let texts: Vec<usize> = shown.iter().copied().filter(|n| !columns[*n].number).collect();
    let share = spare / u16::try_from(texts.len().max(1)).unwrap_or(1);
    let wide = |n: usize| {
        let more = if texts.contains(&n) { share.min(spare) } else { 0 };
        spare -= more;
        (n, (columns[n].width + more).min(width))
    };
    shown.into_iter().map(wide).collect()
}

fn name(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

fn amount(value: f64) -> Cell {
    Cell::Number(value, short(value))
}

/// A number in few characters: 950, 1.2k, 34.5M.
pub(super) fn short(value: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let (mut value, mut unit) = (value, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value:.0}"),
        _ => format!("{value:.1}{}", UNITS[unit]),
    }
}

fn rates(rate: Rate) -> [Cell; 2] {
    [amount(rate.packets), amount(rate.bits)]
}

fn network(row: &NetworkRate) -> Row {
    let share = row.share();
    let share = Cell::Number(share.unwrap_or(-1.0), share.map_or_else(|| "-".into(), |s| format!("{s:.1}")));
    let mut cells = vec![name(&row.network), name(row.direction)];
    cells.extend(rates(row.fast).into_iter().chain(rates(row.kernel)));
    cells.extend([amount(row.drop.packets), share, name(if row.switched_on { "on" } else { "OFF" })]);
    cells
}

fn node(row: &NodeRate) -> Row {
    let vtep = row.vtep.map_or_else(|| "-".to_owned(), |vtep| vtep.to_string());
    let mut cells = vec![name(&row.node), name(&vtep), name(&row.network), amount(row.flows as f64)];
    cells.extend(rates(row.rate));
    cells
}

fn flow(row: &FlowRate) -> Row {
    let mut cells = vec![name(&row.protocol), name(&row.local), name(&row.remote), name(row.state)];
    cells.extend(rates(row.rate));
    cells.extend([
        amount(row.bytes as f64),
        Cell::Number(row.idle, format!("{:.1}", row.idle)),
        name(&row.node),
    ]);
    cells
}

fn reason(row: &ReasonRate) -> Row {
    let [packets, _] = rates(row.rate);
    let all = Cell::Number(row.packets as f64, row.packets.to_string());
    vec![name(&row.network), name(row.hook), name(row.reason), name(row.path), packets, all]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        [("a", 2.0), ("b", 10.0), ("c", 2.0), ("Ab", 0.0)]
            .map(|(text, number)| vec![name(text), amount(number)])
            .to_vec()
    }

    fn first(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row[0].written()).collect()
    }

    #[test]
    fn rows_are_sorted_by_number_or_text_and_alike_ones_keep_their_place() {
        assert_eq!(first(&arrange(rows(), "", 1, true)), ["b", "a", "c", "Ab"]);
        assert_eq!(first(&arrange(rows(), "", 1, false)), ["Ab", "a", "c", "b"]);
        assert_eq!(first(&arrange(rows(), "", 0, false)), ["Ab", "a", "b", "c"]);
        assert_eq!(arrange(rows(), "", 9, false).len(), 4, "no such column");
    }

    #[test]
    fn a_filter_is_looked_for_in_every_cell_whatever_the_case() {
        assert_eq!(first(&arrange(rows(), "AB", 0, false)), ["Ab"]);
        assert_eq!(first(&arrange(rows(), "10", 0, false)), ["b"]);
        assert!(arrange(rows(), "x", 0, false).is_empty());
    }

    #[test]
    fn every_view_has_its_whole_table_in_eighty_columns_but_for_what_matters_least() {
        for view in View::ALL {
            let columns = view.columns();
            for row in view.rows(&Rates::default()) {
                assert_eq!(row.len(), columns.len());
            }
            let shown = fit(columns, 80);
            let hidden = columns.len() - shown.len();
            assert!(hidden <= 2, "{view:?} hides {hidden} of {} columns", columns.len());
            let used: u16 = shown.iter().map(|(_, width)| width + 1).sum();
            assert!(used <= 81, "{view:?}: {used}");
        }
    }

    #[test]
    fn on_a_narrow_terminal_what_matters_most_stays() {
        let names =
            |width| -> Vec<&str> { fit(&FLOWS, width).into_iter().map(|(n, _)| FLOWS[n].name).collect() };
        assert_eq!(names(41), ["local", "remote", "bit/s"]);
        assert_eq!(fit(&FLOWS, 3), [(1, 3)], "something is always there");
    }

    #[test]
    fn numbers_are_short() {
        let written = [0.0, 0.4, 999.0, 999.6, 1234.0, 34_500_000.0, 1e10].map(short);
        assert_eq!(written, ["0", "0", "999", "1.0k", "1.2k", "34.5M", "10.0G"]);
    }
}
