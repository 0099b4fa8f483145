//! The screen of a terminal as a drawing.

use std::fmt::Write as _;
use std::fs;
use std::iter::repeat_n;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

/// Width and height of a character, and the margin, in pixels.
const CELL: (f64, f64) = (8.4, 18.0);
const MARGIN: f64 = 12.0;
const COLUMNS: f64 = 100.0;
const FONT: &str = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace";
const PAPER: &str = "#1b1f27";
const INK: &str = "#d8dee9";
/// The 16 colours of a terminal.
const COLOURS: [&str; 16] = [
    "#4c566a", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9", "#7f8899",
    "#ff8b94", "#b5e08f", "#ffd68a", "#82c4ff", "#dc9ff0", "#7fd8e2", "#ffffff",
];

/// How text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Style {
    bold: bool,
    dim: bool,
    inverse: bool,
    colour: Option<usize>,
}

impl Style {
    /// This one, changed by the numbers of an escape sequence (ECMA-48, SGR).
    fn changed(mut self, codes: &str) -> Self {
        let mut numbers = codes.split(';').map(|code| code.parse().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                7 => self.inverse = true,
                22 => (self.bold, self.dim) = (false, false),
                27 => self.inverse = false,
                30..=37 => self.colour = Some(number - 30),
                38 => self.colour = one_of_16(&mut numbers),
                39 => self.colour = None,
                // The background's, which only its numbers are taken of.
                48 => {
                    one_of_16(&mut numbers);
                }
                90..=97 => self.colour = Some(number - 82),
                _ => {}
            }
        }
        self
    }

    fn attributes(self) -> String {
        let own = self.colour.map_or(INK, |colour| COLOURS[colour]);
        let mut attributes = format!(" fill=\"{}\"", if self.inverse { PAPER } else { own });
        attributes.push_str(if self.bold { " font-weight=\"bold\"" } else { "" });
        attributes.push_str(if self.dim { " opacity=\"0.65\"" } else { "" });
        attributes
    }
}

/// What comes behind 38 and 48: `5;N`, or `2;R;G;B`, which is none of the 16.
fn one_of_16(numbers: &mut impl Iterator<Item = usize>) -> Option<usize> {
    match numbers.next() {
        Some(5) => numbers.next().filter(|colour| *colour < COLOURS.len()),
        Some(2) => numbers.nth(2).and(None),
        _ => None,
    }
}

/// Writes what `tmux capture-pane -e` has printed. The kernel's release is left with its version alone, since the
/// rest of it is about the machine.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, title: &str, screen: &str) -> Result<()> {
    let name = uname()?;
    let release = name.release().to_string_lossy();
    let version = release.split(['-', '+']).next().unwrap_or_default();
    fs::write(path, drawing(title, &screen.replace(release.as_ref(), version)))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn drawing(title: &str, screen: &str) -> String {
    let rows = screen.trim_end().lines().count() as f64;
    let (width, height) = (COLUMNS * CELL.0 + 2.0 * MARGIN, rows * CELL.1 + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"{FONT}\" font-size=\"14\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n"
    );
    let mut style = Style::default();
    for (row, line) in screen.trim_end().lines().enumerate() {
        let mut column = 0;
        for (index, part) in line.split("\x1b[").enumerate() {
            let text = match part.split_once('m') {
                Some((codes, text)) if index > 0 => {
                    style = style.changed(codes);
                    text
                }
                _ => part,
            };
            draw(&mut svg, (column, row), text, style);
            column += text.chars().count();
        }
    }
    svg + "</svg>\n"
}

/// Draws `text` from a column and row on, as wide as its characters are many, whatever the font.
fn draw(svg: &mut String, (column, row): (usize, usize), text: &str, style: Style) {
    let x = |column: usize| MARGIN + column as f64 * CELL.0;
    let wide = |count: usize| count as f64 * CELL.0;
    let top = MARGIN + row as f64 * CELL.1;
    if style.inverse {
        let (x, width, height) = (x(column), wide(text.chars().count()), CELL.1);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{INK}\"/>"
        );
    }
    for (from, words) in words(text) {
        let (x, width, y) = (x(column + from), wide(words.chars().count()), top + 0.75 * CELL.1);
        let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let attributes = style.attributes();
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y}\" textLength=\"{width:.1}\"{attributes}>{words}</text>"
        );
    }
}

/// Parts of `text` with two spaces or more between them, and their columns.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, String)> = vec![];
    let mut gap = 2;
    for (column, letter) in text.chars().enumerate() {
        if letter == ' ' {
            gap += 1;
            continue;
        }
        match words.last_mut() {
            Some((_, word)) if gap < 2 => word.extend(repeat_n(' ', gap).chain([letter])),
            _ => words.push((column, letter.to_string())),
        }
        gap = 0;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{COLOURS, PAPER, Style, drawing, words};

    #[test]
    fn words_far_apart_keep_their_columns() {
        let parts = words("  pods in    95 ↓x");
        assert_eq!(parts, [(2, "pods in".to_owned()), (13, "95 ↓x".to_owned())]);
    }

    #[test]
    fn styles_go_on_until_they_are_changed() {
        let style = Style::default().changed("1").changed("38;5;2");
        assert_eq!(style, Style { bold: true, colour: Some(2), ..Style::default() });
        assert_eq!(style.changed("0;48;2;7;7;7"), Style::default());
        assert_eq!(style.changed("22;39"), Style::default());
        let svg = drawing("t", "\x1b[32mone\ntwo\x1b[39m three\n\n");
        assert_eq!(svg.matches(COLOURS[2]).count(), 2, "{svg}");
        assert!(svg.contains(">two</text>") && svg.contains(">three</text>"), "{svg}");
    }

    #[test]
    fn inverse_text_has_the_colour_of_the_paper_and_is_escaped() {
        let svg = drawing("t", "\x1b[7m<a&b>\x1b[0m");
        assert!(svg.contains("&lt;a&amp;b&gt;</text>"), "{svg}");
        assert_eq!(svg.matches(PAPER).count(), 2, "{svg}");
    }
}
