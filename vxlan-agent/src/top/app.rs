//! What somebody looks at, and what keys change about it. Nothing here draws or reads maps.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rates::Rates;
use super::table::{Row, View, arrange};

/// How rows of a view are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) descending: bool,
}

/// Whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Quit,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) view: View,
    /// By view, in the order of [`View::ALL`].
    pub(super) sorts: [Sort; 4],
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    pub(super) has_help: bool,
    /// How many rows are above the first one that is shown.
    pub(super) scroll: usize,
    pub(super) rates: Rates,
    /// Why there are no new rates.
    pub(super) error: Option<String>,
}

impl Default for App {
    fn default() -> Self {
        let sort = |view: View| {
            let (column, descending) = view.first_sort();
            Sort { column, descending }
        };
        Self {
            view: View::default(),
            sorts: View::ALL.map(sort),
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            has_help: false,
            scroll: 0,
            rates: Rates::default(),
            error: None,
        }
    }
}

impl App {
    /// Takes in what goes on now, or why that cannot be known; a pause keeps what was there.
    pub(super) fn take(&mut self, rates: Result<Rates, String>) {
        if self.is_paused {
            return;
        }
        match rates {
            Ok(rates) => (self.rates, self.error) = (rates, None),
            Err(error) => self.error = Some(error),
        }
    }

    pub(super) fn sort(&self) -> Sort {
        self.sorts[self.view as usize]
    }

    /// The rows of the view, filtered and sorted.
    pub(super) fn rows(&self) -> Vec<Row> {
        let Sort { column, descending } = self.sort();
        arrange(self.view.rows(&self.rates), &self.filter, column, descending)
    }

    /// Does what a key is for.
    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Next::Quit } else { Next::GoOn };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return Next::GoOn;
        }
        if std::mem::take(&mut self.has_help) {
            return Next::GoOn;
        }
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Next::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?' | 'h') => self.has_help = true,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char(digit @ '1'..='4') => self.show(digit as usize - '1' as usize),
            KeyCode::Tab => self.show((self.view as usize + 1) % View::ALL.len()),
            KeyCode::BackTab => self.show((self.view as usize + View::ALL.len() - 1) % View::ALL.len()),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by_next(1),
            KeyCode::Left | KeyCode::Char('<') => self.sort_by_next(self.view.columns().len() - 1),
            KeyCode::Char('r') => self.sorts[self.view as usize].descending ^= true,
            KeyCode::Down | KeyCode::Char('j') => self.scroll_to(self.scroll + 1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll_to(self.scroll.saturating_sub(1)),
            KeyCode::PageDown => self.scroll_to(self.scroll + 10),
            KeyCode::PageUp => self.scroll_to(self.scroll.saturating_sub(10)),
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        Next::GoOn
    }

    fn type_filter(&mut self, key: KeyCode) {
        self.scroll = 0;
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn show(&mut self, view: usize) {
        self.view = View::ALL[view];
        self.scroll = 0;
    }

    fn sort_by_next(&mut self, step: usize) {
        let columns = self.view.columns();
        let sort = &mut self.sorts[self.view as usize];
        sort.column = (sort.column + step) % columns.len();
        // Numbers are looked at for the largest, words for the first.
        sort.descending = columns[sort.column].number;
    }

    fn scroll_to(&mut self, row: usize) {
        self.scroll = row.min(self.rows().len().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rates::{NodeRate, Rate};
    use super::*;

    fn app() -> App {
        let node = |name: &str, bits| NodeRate {
            node: name.into(),
            vtep: None,
            network: "pods".into(),
            flows: 1,
            rate: Rate { packets: 1.0, bits },
        };
        let mut app = App::default();
        app.take(Ok(Rates { nodes: vec![node("n2", 10.0), node("n3", 2000.0)], ..Rates::default() }));
        app
    }

    fn press(app: &mut App, keys: &str) -> Next {
        let code = |key| match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        keys.chars().fold(Next::GoOn, |_, key| app.press(KeyEvent::new(code(key), KeyModifiers::NONE)))
    }

    fn nodes(app: &App) -> Vec<String> {
        app.rows().iter().map(|row| row[0].written().to_owned()).collect()
    }

    #[test]
    fn digits_and_tab_choose_what_is_looked_at() {
        let mut app = app();
        assert_eq!(app.view, View::Networks);
        press(&mut app, "2");
        assert_eq!(app.view, View::Nodes);
        press(&mut app, "\t\t\t");
        assert_eq!(app.view, View::Networks, "round and round");
    }

    #[test]
    fn each_view_is_sorted_as_it_was_left() {
        let mut app = app();
        press(&mut app, "2");
        assert_eq!(nodes(&app), ["n3", "n2"], "the busiest first");
        press(&mut app, "r");
        assert_eq!(nodes(&app), ["n2", "n3"]);
        press(&mut app, "32");
        assert_eq!(nodes(&app), ["n2", "n3"], "still");
        press(&mut app, ">");
        assert_eq!(app.sort(), Sort { column: 0, descending: false }, "behind the last comes the first");
        press(&mut app, "<");
        assert_eq!(app.sort(), Sort { column: 5, descending: true });
    }

    #[test]
    fn a_filter_is_typed_and_taken_back() {
        let mut app = app();
        assert_eq!(press(&mut app, "2/N3q\x08"), Next::GoOn, "q is a letter here");
        press(&mut app, "\x1b/n3\n");
        assert_eq!((app.filter.as_str(), app.is_typing), ("n3", false));
        assert_eq!(nodes(&app), ["n3"]);
        assert_eq!(press(&mut app, "\x1b"), Next::GoOn, "the filter goes first");
        assert_eq!(nodes(&app).len(), 2);
        assert_eq!(press(&mut app, "\x1b"), Next::Quit);
    }

    #[test]
    fn a_pause_keeps_what_is_there_until_it_ends() {
        let mut app = app();
        press(&mut app, "p");
        app.take(Ok(Rates::default()));
        assert_eq!(app.rates.nodes.len(), 2);
        press(&mut app, "p");
        app.take(Err("gone".into()));
        assert_eq!((app.rates.nodes.len(), app.error.as_deref()), (2, Some("gone")));
        app.take(Ok(Rates::default()));
        assert_eq!((app.rates.nodes.len(), app.error.as_deref()), (0, None));
    }

    #[test]
    fn it_ends_on_q_and_control_c_wherever_it_is() {
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert_eq!(press(&mut app(), "q"), Next::Quit);
        let mut typing = app();
        press(&mut typing, "/");
        assert_eq!(typing.press(control('c')), Next::Quit);
        assert_eq!(typing.press(control('x')), Next::GoOn);
        let mut helped = app();
        assert_eq!(press(&mut helped, "?q"), Next::GoOn, "any key leaves the help");
        assert_eq!(press(&mut helped, "q"), Next::Quit);
    }

    #[test]
    fn scrolling_ends_with_the_rows() {
        let mut app = app();
        press(&mut app, "2jjjj");
        assert_eq!(app.scroll, 1);
        press(&mut app, "kk");
        assert_eq!(app.scroll, 0);
    }
}
