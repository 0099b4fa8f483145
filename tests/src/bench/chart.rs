//! The chart: how much better than kernel VXLAN, case by case.

use std::fmt::Write as _;

use super::case::{Better, Case, NOT_IN_JSON};
use super::lineup::{Kind, Mode};
use super::report::{Report, digits};
use super::stats::Summary;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 78.0;
const BAR: f64 = 15.0;
const GROUP: f64 = Kind::ALL.len() as f64 * BAR + 18.0;

/// Bars that are longer where the result is better; kernel VXLAN is 1 everywhere.
pub(super) fn svg(report: &Report) -> String {
    let cases: Vec<_> = report.cases().filter(|case| case.name != NOT_IN_JSON).collect();
    let height = TOP + GROUP * cases.len() as f64 + 34.0;
    let longest = cases.iter().flat_map(|case| Kind::ALL.map(|kind| scores(report, case, kind)));
    let longest = longest.flatten().map(|score| score.max).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let mut svg = head(height, &report.place());
    for (row, case) in cases.iter().enumerate() {
        group(&mut svg, report, case, TOP + GROUP * row as f64, scale);
    }
    let one = LEFT + scale;
    let _ = writeln!(
        svg,
        r##"<line x1="{one:.1}" y1="{:.1}" x2="{one:.1}" y2="{:.1}" stroke="#57606a" stroke-dasharray="3 3"/>"##,
        TOP - 8.0,
        height - 30.0
    );
    svg + "</svg>\n"
}

fn head(height: f64, place: &str) -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="24" font-size="16" font-weight="bold">Relative to kernel VXLAN (longer is better)</text>
<text x="16" y="{:.1}" fill="#57606a">{}; bars: medians, lines: lowest to highest round</text>
"##,
        height - 10.0,
        escape(place),
    );
    let mut x = 16.0;
    for kind in Kind::ALL {
        let _ = writeln!(
            svg,
            r##"<rect x="{x}" y="40" width="12" height="12" fill="{}"/><text x="{}" y="50">{}</text>"##,
            colour(kind),
            x + 18.0,
            kind.label()
        );
        x += 120.0;
    }
    svg
}

fn group(svg: &mut String, report: &Report, case: &Case, top: f64, scale: f64) {
    let middle = top + (GROUP - 18.0) / 2.0 + 4.0;
    let _ = writeln!(
        svg,
        r#"<text x="{:.1}" y="{middle:.1}" text-anchor="end">{}</text>"#,
        LEFT - 10.0,
        case.title
    );
    for (row, kind) in Kind::ALL.into_iter().enumerate() {
        let (Some(summary), Some(score)) = (report.summary(case, kind), scores(report, case, kind)) else {
            continue;
        };
        let y = top + BAR * row as f64;
        let centre = y + BAR / 2.0 - 1.0;
        let [end, low, high] = [score.median, score.min, score.max].map(|score| LEFT + score * scale);
        let digits = digits(summary.median);
        let _ = writeln!(
            svg,
            r##"<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{}"/><line x1="{low:.1}" y1="{centre:.1}" x2="{high:.1}" y2="{centre:.1}" stroke="#24292f"/><text x="{:.1}" y="{:.1}" font-size="11">{:.digits$} {}</text>"##,
            end - LEFT,
            BAR - 2.0,
            colour(kind),
            end.max(high) + 6.0,
            y + BAR - 4.0,
            summary.median,
            case.unit
        );
    }
}

/// How many times better than kernel VXLAN's median.
fn scores(report: &Report, case: &Case, kind: Kind) -> Option<Summary> {
    let base = report.summary(case, Kind::KernelVxlan)?.median;
    let Summary { median, min, max } = report.summary(case, kind)?;
    Some(match case.better {
        Better::Higher => Summary { median: median / base, min: min / base, max: max / base },
        Better::Lower => Summary { median: base / median, min: base / max, max: base / min },
    })
}

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::NoOverlay => "#afb8c1",
        Kind::KernelVxlan => "#54aeff",
        Kind::Ours(Mode::Verified) => "#e16f24",
        Kind::Ours(Mode::Direct) => "#f3b27a",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
