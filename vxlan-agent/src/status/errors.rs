//! What went wrong lately, and when: what is well again is not forgotten at once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// How many are remembered.
const MOST: usize = 16;

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// What, in one sentence.
    pub what: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// When it was well again, likewise; `None`: it is not.
    pub until: Option<u64>,
}

/// What went wrong lately, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Errors(Vec<ErrorStatus>);

impl Errors {
    /// Those that an agent before has written down: what was wrong then was as long as it lived, until `now`.
    pub fn of_before(mut errors: Vec<ErrorStatus>, now: u64) -> Self {
        errors.iter_mut().for_each(|error| _ = error.until.get_or_insert(now));
        Self(errors)
    }

    /// Takes down that exactly `wrong` is wrong at `now`. What comes again is one with what it was before.
    pub fn note(&mut self, wrong: BTreeSet<String>, now: u64) {
        for error in self.0.iter_mut().filter(|error| error.until.is_none()) {
            if !wrong.contains(&error.what) {
                error.until = Some(now);
            }
        }
        for what in wrong {
            let is_known = self.0.iter().any(|error| error.until.is_none() && error.what == what);
            if !is_known {
                self.0.retain(|error| error.what != what);
                self.0.push(ErrorStatus { what, since: now, until: None });
            }
        }
        // What goes on is not given up for what is over.
        while let Some(over) = (self.0.len() > MOST).then(|| self.0.iter().position(|e| e.until.is_some())) {
            self.0.remove(over.unwrap_or(0));
        }
    }

    /// All of them.
    pub fn list(&self) -> Vec<ErrorStatus> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(whats: &[&str]) -> BTreeSet<String> {
        whats.iter().map(|what| (*what).to_owned()).collect()
    }

    fn list(errors: &Errors) -> Vec<(String, u64, Option<u64>)> {
        errors.list().into_iter().map(|error| (error.what, error.since, error.until)).collect()
    }

    #[test]
    fn an_error_has_a_beginning_and_an_end_and_comes_again_as_one() {
        let mut errors = Errors::default();
        errors.note(wrong(&["a"]), 10);
        errors.note(wrong(&["a", "b"]), 20);
        assert_eq!(list(&errors), [("a".into(), 10, None), ("b".into(), 20, None)]);
        errors.note(wrong(&["b"]), 30);
        assert_eq!(list(&errors), [("a".into(), 10, Some(30)), ("b".into(), 20, None)]);
        errors.note(wrong(&["a", "b"]), 40);
        assert_eq!(list(&errors), [("b".into(), 20, None), ("a".into(), 40, None)]);
    }

    #[test]
    fn what_goes_on_outlasts_what_is_over_and_there_is_an_end_to_both() {
        let mut errors = Errors::default();
        for n in 0..100 {
            errors.note(wrong(&["stays", &n.to_string()]), n);
        }
        assert_eq!(errors.list().len(), MOST);
        assert_eq!(errors.list()[0].what, "stays");
        let many: BTreeSet<String> = (0..100).map(|n| n.to_string()).collect();
        errors.note(many, 200);
        assert_eq!(errors.list().len(), MOST);
    }

    #[test]
    fn with_the_agent_ends_what_it_complained_of() {
        let mut errors = Errors::default();
        errors.note(wrong(&["a"]), 10);
        let errors = Errors::of_before(errors.list(), 50);
        assert_eq!(list(&errors), [("a".into(), 10, Some(50))]);
    }
}
