//! Draws it.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell as Shown, Clear, Paragraph, Row as ShownRow, Table};

use super::app::App;
use super::table::{Cell, View, fit};

/// Below so few rows there is no place for anything but the table and its head.
const SMALL: u16 = 8;

const KEYS: &str = "1-4 Tab view  < > sort  r reverse  / filter  p pause  ? help  q quit";

const HELP: &str = "\
1 2 3 4, Tab     networks, nodes, flows, reasons
< >, arrows      sort by the column before or behind
r                the other way round
/                only rows with what is typed; Esc: all
p, blank         stand still, go on
up down j k      scroll; also PgUp, PgDn, Home
q, Esc, Ctrl-C   end

networks: what goes through the tunnel, by direction
nodes, flows: what bypasses the host stack (mode verified)
reasons: what each program did with packets, and why";

pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let area = frame.area();
    let small = area.height < SMALL;
    let heights = if small { [0, 0, 0] } else { [1, 1, 1] };
    let [title, tabs, table, foot] = Layout::vertical([
        Constraint::Length(heights[0]),
        Constraint::Length(heights[1]),
        Constraint::Min(1),
        Constraint::Length(heights[2]),
    ])
    .areas(area);
    frame.render_widget(title_of(app), title);
    frame.render_widget(tabs_of(app), tabs);
    rows_of(frame, app, table);
    frame.render_widget(foot_of(app), foot);
    if app.has_help {
        help(frame, area);
    }
}

fn title_of(app: &App) -> Line<'static> {
    let rates = &app.rates;
    let share = |direction: &str| rates.share(direction).map_or_else(|| "-".into(), |s| format!("{s:.1} %"));
    let agent = if rates.running { "agent runs" } else { "no agent" };
    let mut parts = vec![
        Span::from("vxlan-agent top").bold(),
        Span::from(format!("  {}  {agent}  fast path: out {}, in {}", rates.node, share("out"), share("in"))),
    ];
    if app.is_paused {
        parts.push(Span::from("  PAUSED").yellow().bold());
    }
    Line::from(parts)
}

fn tabs_of(app: &App) -> Line<'static> {
    let tab = |(n, view): (usize, &View)| {
        let text = format!("{} {}", n + 1, view.name());
        let style = if *view == app.view { Style::new().reversed() } else { Style::new() };
        [Span::styled(text, style), Span::from("  ")]
    };
    let mut parts: Vec<Span<'_>> = View::ALL.iter().enumerate().flat_map(tab).collect();
    let (read, all) = (app.rates.flows_read, app.rates.flows_in_all);
    if app.view == View::Flows && all > read as u64 * 2 {
        parts.push(Span::from(format!("({read} of about {all})")).dim());
    }
    Line::from(parts)
}

fn foot_of(app: &App) -> Line<'static> {
    match &app.error {
        _ if app.is_typing => Line::from(format!("filter: {}_", app.filter)).bold(),
        Some(error) => Line::from(error.clone()).red(),
        None if !app.filter.is_empty() => Line::from(format!("filter: {} (Esc: all)  {KEYS}", app.filter)),
        None => Line::from(KEYS).dim(),
    }
}

fn rows_of(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let (columns, sort) = (app.view.columns(), app.sort());
    let shown = fit(columns, area.width);
    let head = shown.iter().map(|(n, _)| {
        let column = &columns[*n];
        let arrow = if *n != sort.column {
            ""
        } else if sort.descending {
            "↓"
        } else {
            "↑"
        };
        let name = format!("{arrow}{}", column.name.to_uppercase());
        Shown::from(Line::from(name).alignment(side(column.number)))
    });
    let rows = app.rows();
    let first = app.scroll.min(rows.len().saturating_sub(1));
    let rows = rows.iter().skip(first).take(usize::from(area.height)).map(|row| {
        let cells = shown.iter().map(|(n, _)| {
            let cell = &row[*n];
            let text = Line::from(cell.written().to_owned()).alignment(side(columns[*n].number));
            Shown::from(text).style(style(cell))
        });
        ShownRow::new(cells)
    });
    let widths = shown.iter().map(|(_, width)| Constraint::Length(*width));
    let head = ShownRow::new(head).style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(head).column_spacing(1), area);
}

const fn side(is_number: bool) -> Alignment {
    if is_number { Alignment::Right } else { Alignment::Left }
}

/// What somebody should see at once.
fn style(cell: &Cell) -> Style {
    match cell.written() {
        "drop" | "OFF" => Style::new().red(),
        "kernel" => Style::new().yellow(),
        "fast" => Style::new().green(),
        _ => Style::new(),
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let height = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { height, y: area.y + (area.height - height) / 2, ..area };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).reversed(), place);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::rates::{FlowRate, NetworkRate, Rate, Rates, ReasonRate};
    use super::*;

    fn app() -> App {
        let rate = |packets| Rate { packets, bits: packets * 8000.0 };
        let network = |direction| NetworkRate {
            network: "pods".into(),
            direction,
            switched_on: true,
            fast: rate(900.0),
            kernel: rate(100.0),
            drop: rate(0.0),
        };
        let flow = |n: u8| FlowRate {
            network: "pods".into(),
            protocol: "tcp".into(),
            local: format!("10.244.1.{n}:40000"),
            remote: "10.244.2.2:80".into(),
            node: "n2".into(),
            state: "bypass",
            rate: rate(f64::from(n)),
            bytes: 1,
            idle: 0.1,
        };
        let reason = ReasonRate {
            network: "pods".into(),
            hook: "underlay_ingress",
            reason: "unknown_vtep",
            path: "drop",
            rate: rate(3.0),
            packets: 42,
        };
        let mut app = App::default();
        app.take(Ok(Rates {
            node: "n1".into(),
            running: true,
            networks: vec![network("out"), network("in")],
            flows: (1..=40).map(flow).collect(),
            reasons: vec![reason],
            ..Rates::default()
        }));
        app
    }

    /// What is on a screen of that size, line by line.
    fn screen(app: &App, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal.draw(|frame| draw(frame, app)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let cells = buffer.content().chunks(usize::from(width));
        cells
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    #[track_caller]
    fn assert_shows(screen: &[String], words: &[&str]) {
        let is_line = |line: &&String| words.iter().all(|word| line.contains(word));
        assert!(
            screen.iter().any(|line| is_line(&line)),
            "{words:?} are on no line of\n{}",
            screen.join("\n")
        );
    }

    #[test]
    fn on_eighty_columns_a_network_has_rates_shares_and_keys() {
        let screen = screen(&app(), (80, 24));
        assert_shows(&screen, &["vxlan-agent top", "n1", "agent runs", "out 90.0 %"]);
        assert_shows(&screen, &["1 networks", "4 reasons"]);
        assert_shows(&screen, &["NETWORK", "FAST PKT/S", "FAST %"]);
        assert_shows(&screen, &["pods", "out", "900", "7.2M", "100", "90.0"]);
        assert_shows(&screen[23..], &["1-4", "q quit"]);
    }

    #[test]
    fn every_view_is_drawn_at_any_size() {
        for view in View::ALL {
            for size in [(1, 1), (20, 3), (40, 10), (80, 24), (200, 60)] {
                let mut app = App { view, ..app() };
                screen(&app, size);
                app.has_help = true;
                screen(&app, size);
            }
        }
    }

    #[test]
    fn reasons_say_what_was_dropped_where() {
        let app = App { view: View::Reasons, ..app() };
        let screen = screen(&app, (80, 24));
        assert_shows(&screen, &["underlay_ingress", "unknown_vtep", "drop", "3", "42"]);
    }

    #[test]
    fn flows_scroll_and_are_filtered() {
        let mut app = App { view: View::Flows, ..app() };
        assert_shows(&screen(&app, (80, 24))[2..4], &["10.244.1.40:40000"]);
        app.scroll = 39;
        let scrolled = screen(&app, (80, 24));
        assert_shows(&scrolled, &["10.244.1.1:40000"]);
        assert!(!scrolled.iter().any(|line| line.contains("10.244.1.2:")), "{scrolled:?}");
        app.filter = "1.33:".into();
        app.scroll = 0;
        let filtered = screen(&app, (80, 24));
        assert_shows(&filtered, &["10.244.1.33:40000"]);
        assert_shows(&filtered, &["filter: 1.33:"]);
        assert_eq!(filtered.iter().filter(|line| line.contains("10.244.2.2:80")).count(), 1);
    }

    #[test]
    fn a_pause_an_error_and_help_are_seen() {
        let mut app = app();
        app.is_paused = true;
        assert_shows(&screen(&app, (80, 24)), &["PAUSED"]);
        app.error = Some("nothing is pinned".into());
        assert_shows(&screen(&app, (80, 24)), &["nothing is pinned"]);
        app.has_help = true;
        assert_shows(&screen(&app, (80, 24)), &["sort by the column"]);
    }
}
