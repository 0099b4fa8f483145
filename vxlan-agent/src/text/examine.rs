//! Everything that is wrong with a TOML text, instead of what is wrong first.

use std::collections::BTreeSet;
use std::iter::once;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::{Refused, Text};

/// How many mistakes of one text are told at once.
pub const MOST: usize = 20;

/// A text, and what is wrong with it.
#[derive(Debug)]
pub struct Examined<T> {
    /// What it says without the sections that have mistakes; `None` where it is no TOML.
    pub value: Option<T>,
    /// Its mistakes, by line, at most [`MOST`].
    pub refused: Vec<Refused>,
    /// Names of the sections of which something is left out.
    pub incomplete: BTreeSet<String>,
}

/// The way from a table to something in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

impl Text {
    /// Deserialises as much of the text as is right. What is wrong is taken out, one mistake after the other, until the
    /// rest can be read; a mistake that only follows from another is not told.
    pub fn examine<T: DeserializeOwned>(&self) -> Examined<T> {
        let (whole, errors) = DeTable::parse_recoverable(&self.content);
        if !errors.is_empty() {
            let mut refused: Vec<_> = errors.iter().map(|error| self.refusal(error)).collect();
            // What follows on the same line follows from the first.
            refused.dedup_by_key(|refused| refused.line);
            refused.truncate(MOST);
            return Examined { value: None, refused, incomplete: BTreeSet::new() };
        }
        let (mut rest, mut refused) = (whole.clone(), vec![]);
        let mut broken = BTreeSet::new();
        let mut incomplete = BTreeSet::new();
        while refused.len() < MOST {
            let Err(error) = read::<T>(&rest) else { break };
            let at = error.span().and_then(|span| in_table(rest.get_ref(), span.start));
            let Some(path) = at else {
                refused.push(self.refusal(&error));
                return Examined { value: None, refused, incomplete };
            };
            let section = section(rest.get_ref(), &path);
            let told = self.refusal(&error);
            let follows = error.message().starts_with("missing field") && broken.contains(&section);
            if !follows && !refused.contains(&told) {
                refused.push(told);
            }
            if let Some(Step::Key(name)) = path.first() {
                incomplete.insert(name.clone());
            }
            broken.insert(section);
            remove(rest.get_mut(), &path);
        }
        refused.sort_by_key(|refused| refused.line);
        let mut sound = whole;
        for section in broken.into_iter().flatten() {
            if let Some(path) = find_section(sound.get_ref(), section) {
                remove(sound.get_mut(), &path);
            }
        }
        Examined { value: read(&sound).ok(), refused, incomplete }
    }
}

fn read<T: DeserializeOwned>(table: &Spanned<DeTable<'_>>) -> Result<T, toml::de::Error> {
    T::deserialize(Deserializer::from(table.clone()))
}

/// What is at the byte `at`: the innermost value whose key or text that is.
fn in_table(table: &DeTable<'_>, at: usize) -> Option<Vec<Step>> {
    table.iter().find_map(|(key, value)| {
        let here = || (key.span().contains(&at) || value.span().contains(&at)).then(Vec::new);
        let rest = in_value(value.get_ref(), at).or_else(here)?;
        Some(once(Step::Key(key.get_ref().to_string())).chain(rest).collect())
    })
}

fn in_value(value: &DeValue<'_>, at: usize) -> Option<Vec<Step>> {
    match value {
        DeValue::Table(table) => in_table(table, at),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(index, value)| {
            let here = || value.span().contains(&at).then(Vec::new);
            let rest = in_value(value.get_ref(), at).or_else(here)?;
            Some(once(Step::Index(index)).chain(rest).collect())
        }),
        _ => None,
    }
}

/// Where the section begins that `path` leads into: a value at the top, or where that is a list, one of its items.
fn section(table: &DeTable<'_>, path: &[Step]) -> Option<usize> {
    let Some(Step::Key(key)) = path.first() else { return None };
    let value = table.get(key.as_str())?;
    let span = match (value.get_ref(), path.get(1)) {
        (DeValue::Array(array), Some(Step::Index(index))) => array.get(*index)?.span(),
        _ => value.span(),
    };
    Some(span.start)
}

/// The way to the section that begins at the byte `at`.
fn find_section(table: &DeTable<'_>, at: usize) -> Option<Vec<Step>> {
    table.iter().find_map(|(key, value)| {
        let name = Step::Key(key.get_ref().to_string());
        if let DeValue::Array(array) = value.get_ref()
            && let Some(index) = array.iter().position(|item| item.span().start == at)
        {
            return Some(vec![name, Step::Index(index)]);
        }
        (value.span().start == at).then(|| vec![name])
    })
}

fn remove(table: &mut DeTable<'_>, path: &[Step]) {
    let Some((Step::Key(key), rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.remove(key.as_str());
    } else if let Some(value) = table.get_mut(key.as_str()) {
        remove_in(value.get_mut(), rest);
        if matches!(value.get_ref(), DeValue::Array(array) if array.is_empty()) {
            table.remove(key.as_str());
        }
    }
}

fn remove_in(value: &mut DeValue<'_>, path: &[Step]) {
    match (value, path.split_first()) {
        (DeValue::Table(table), _) => remove(table, path),
        (DeValue::Array(array), Some((Step::Index(index), rest))) if *index < array.len() => {
            if rest.is_empty() {
                let all = array.iter().enumerate();
                let kept: DeArray<'_> =
                    all.filter(|(at, _)| at != index).map(|(_, value)| value.clone()).collect();
                *array = kept;
            } else {
                array.get_mut(*index).into_iter().for_each(|item| remove_in(item.get_mut(), rest));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        one: BTreeMap<String, u32>,
        #[serde(default)]
        item: Vec<Item>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        name: String,
        #[serde(default)]
        numbers: Vec<u8>,
        deep: Option<Deep>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "it is read, and that is all")]
    struct Deep {
        source: String,
    }

    fn examine(content: &str) -> Examined<File> {
        Text::new("f.toml", content).examine()
    }

    #[track_caller]
    fn assert_mistakes(content: &str, expected: &[(usize, &str)]) -> Examined<File> {
        let examined = examine(content);
        let found: Vec<_> = examined.refused.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (refused, (line, word)) in examined.refused.iter().zip(expected) {
            assert!(refused.line == Some(*line) && refused.reason.contains(word), "{refused}: {line} {word}");
        }
        examined
    }

    #[test]
    fn a_text_without_mistakes_is_read_as_it_is() {
        let examined = assert_mistakes("[one]\na = 1\n[[item]]\nname = \"x\"\n", &[]);
        assert_eq!((examined.value.map(|file| file.item.len()), examined.incomplete.len()), (Some(1), 0));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let content = "colour = 1\n[one]\na = \"x\"\nb = 2\n[[item]]\nname = 5\nnumbers = [1, 300, 400]\nsize = 1\n\
                       [[item]]\nnumbers = []\n[item.deep]\nsize = 3\n[[item]]\nname = \"sound\"\n";
        let examined = assert_mistakes(
            content,
            &[
                (1, "colour"),
                (3, "expected u32"),
                (6, "expected a string"),
                (7, "300"),
                (7, "400"),
                (8, "size"),
                (12, "size"),
            ],
        );
        let file = examined.value.expect("what is left");
        assert_eq!(file.item.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["sound"]);
        assert!(file.one.is_empty() && file.item[0].numbers.is_empty() && file.item[0].deep.is_none());
        assert_eq!(
            examined.incomplete.iter().map(String::as_str).collect::<Vec<_>>(),
            ["colour", "item", "one"]
        );
    }

    #[test]
    fn a_missing_key_is_told_unless_it_is_there_and_wrong() {
        assert_mistakes(
            "[[item]]\n[[item]]\nname = 1\n",
            &[(1, "missing field `name`"), (3, "expected a string")],
        );
    }

    #[test]
    fn all_lines_that_are_no_toml_are_told() {
        let examined = assert_mistakes("[one\na = 1\n[[item]]\nname = = 2\n", &[(1, ""), (4, "")]);
        assert!(examined.value.is_none());
    }

    #[test]
    fn of_many_mistakes_as_many_are_told_as_anybody_reads() {
        let content: String = (0..100).map(|n| format!("k{n} = 1\n")).collect();
        assert_eq!(examine(&content).refused.len(), MOST);
    }
}
