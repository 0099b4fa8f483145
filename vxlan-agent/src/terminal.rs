//! The terminal, borrowed and given back as it was.

use std::io::{self, IsTerminal as _, Write as _};
use std::panic;
use std::sync::Once;

use anyhow::Context as _;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{
    Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{execute, queue};

/// Whether standard output takes colours: it is a terminal, and nobody has asked for none (`NO_COLOR`).
pub(crate) fn has_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The terminal's other screen, without a cursor. What was there before is there again when this is dropped.
pub(crate) struct Screen(());

impl Screen {
    /// Takes it.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        give_back_on_panic();
        let screen = Self(());
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)
            .context("cannot use the terminal")?;
        Ok(screen)
    }

    /// As [`Screen::enter`], with keys as they are pressed, and none of them a signal.
    ///
    /// # Errors
    /// As there, or standard input is no terminal.
    pub(crate) fn enter_raw() -> anyhow::Result<Self> {
        let screen = Self::enter()?;
        enable_raw_mode().context("cannot read single keys from the terminal")?;
        Ok(screen)
    }

    /// Replaces what it shows by as much of `text` as there is room for.
    ///
    /// # Errors
    /// As [`Screen::enter`].
    pub(crate) fn show(&mut self, text: &str) -> anyhow::Result<()> {
        let (_, rows) = size().unwrap_or((80, 24));
        let draw = || {
            let mut out = io::stdout().lock();
            queue!(out, MoveTo(0, 0))?;
            for (row, line) in cut(text, usize::from(rows)).iter().enumerate() {
                queue!(out, MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX)))?;
                out.write_all(line.as_bytes())?;
                queue!(out, Clear(ClearType::UntilNewLine))?;
            }
            queue!(out, Clear(ClearType::FromCursorDown))?;
            out.flush()
        };
        draw().context("cannot write to the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Twice does no harm.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
}

/// Gives the terminal back before a panic says what happened, which nobody would see on the other screen.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            give_back();
            before(what);
        }));
    });
}

/// The lines of `text` that `rows` have room for; the last of them says how many there are besides.
fn cut(text: &str, rows: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.max(1);
    if lines.len() <= room {
        return lines.into_iter().map(str::to_owned).collect();
    }
    let shown = room - 1;
    let more = format!("... {} more lines: make the terminal taller", lines.len() - shown);
    lines.into_iter().take(shown).map(str::to_owned).chain([more]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "VXLAN_AGENT_TEST_PANICS";

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_says_what_happened() {
        if std::env::var_os(CHILD).is_some() {
            let _screen = Screen::enter().expect("a screen");
            panic!("what happened");
        }
        // Both outputs in one file, as on a terminal.
        let mut file = tempfile::tempfile().expect("a file");
        let own = std::env::current_exe().expect("this program");
        let status = std::process::Command::new(own)
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("terminal::tests::a_panic_gives_the_terminal_back_before_it_says_what_happened")
            .env(CHILD, "1")
            .stdout(file.try_clone().expect("a file"))
            .stderr(file.try_clone().expect("a file"))
            .status()
            .expect("a child");
        assert!(!status.success());
        let mut text = String::new();
        io::Seek::rewind(&mut file).expect("a file");
        io::Read::read_to_string(&mut file, &mut text).expect("text");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        assert!(at("\x1b[?1049h") < at("\x1b[?1049l"), "{text:?}");
        assert!(at("\x1b[?1049l") < at("what happened"), "{text:?}");
        assert!(at("\x1b[?25h") < at("what happened"), "the cursor is back: {text:?}");
    }

    #[test]
    fn what_has_no_room_is_counted() {
        assert_eq!(cut("a\nb\n", 2), ["a", "b"]);
        assert_eq!(cut("a\nb\nc\nd\n", 3), ["a", "b", "... 2 more lines: make the terminal taller"]);
        assert_eq!(cut("a\nb\n", 0).len(), 1);
    }
}
