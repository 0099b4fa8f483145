//! What must not be in an archive, and its removal.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use toml::de::{DeTable, DeValue};

/// What stands in a secret's place.
pub(crate) const LEFT_OUT: &str = "<left out>";

/// Part of a key whose value is a secret. Names of files are none.
const KEY: &str = "(?:pass(?:word|wd|phrase)|secret|token|credential|private[-_]?key|api[-_]?key|username)";

/// A value behind such a key, whatever is wrong around it: strings on several lines, strings, lists, the rest of a line.
static BEHIND_KEY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let value = r#"(?:"""[\s\S]*?(?:"""|\z)|'''[\s\S]*?(?:'''|\z)|"(?:\\.|[^"\\\n])*"?|'[^'\n]*'?|\[[^\]]*\]?|[^\s][^\n]*)"#;
    Regex::new(&format!(r#"(?i)(["']?[\w.-]*{KEY}[\w.-]*["']?[ \t]*[=:][ \t]*){value}"#)).ok()
});
/// Who one is, in an address.
static IN_ADDRESS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"://[^/@\s]+@").ok());
/// Keys and certificates as they are written into files.
static PEM: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"-----BEGIN [A-Z0-9 ]+-----[\s\S]*?(?:-----END [A-Z0-9 ]+-----|\z)").ok());

/// Secrets that are known, so that they are found wherever they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(BTreeSet<String>);

impl Secrets {
    /// Learns the secrets of a configuration, as far as it is understood.
    pub(crate) fn learn(&mut self, configuration: &str) {
        let (table, _) = DeTable::parse_recoverable(configuration);
        table.get_ref().iter().for_each(|(key, value)| self.walk(key.get_ref(), value.get_ref(), false));
    }

    /// Learns a secret that comes from elsewhere.
    pub(crate) fn know(&mut self, secret: String) {
        // What is shorter is in half of all words.
        if secret.len() >= 4 {
            self.0.insert(secret);
        }
    }

    fn walk(&mut self, key: &str, value: &DeValue<'_>, is_secret: bool) {
        let is_secret = is_secret || is_secret_key(key);
        match value {
            DeValue::String(text) if is_secret => self.know(text.to_string()),
            DeValue::Array(all) => all.iter().for_each(|one| self.walk("", one.get_ref(), is_secret)),
            DeValue::Table(table) => {
                table.iter().for_each(|(key, value)| self.walk(key.get_ref(), value.get_ref(), is_secret));
            }
            _ => {}
        }
    }

    /// `text` without secrets. Without the means to find them, nothing of it is left.
    pub(crate) fn hide(&self, text: &str) -> String {
        let (Some(behind_key), Some(in_address), Some(pem)) = (&*BEHIND_KEY, &*IN_ADDRESS, &*PEM) else {
            return LEFT_OUT.to_owned();
        };
        // The longest first, since one may be part of another.
        let mut known: Vec<&String> = self.0.iter().collect();
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let text = known.into_iter().fold(text.to_owned(), |text, secret| {
            let as_json = serde_json::to_string(secret).unwrap_or_default();
            let as_json = as_json.trim_matches('"');
            text.replace(secret.as_str(), LEFT_OUT).replace(as_json, LEFT_OUT)
        });
        let text = pem.replace_all(&text, LEFT_OUT);
        in_address
            .replace_all(&text, format!("://{LEFT_OUT}@"))
            .pipe(|text| behind_key.replace_all(&text, format!("${{1}}\"{LEFT_OUT}\"")).into_owned())
    }
}

fn is_secret_key(key: &str) -> bool {
    static WHOLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(&format!("(?i){KEY}")).ok());
    WHOLE.as_ref().is_none_or(|regex| regex.is_match(key))
}

/// A value handed on.
trait Pipe: Sized {
    fn pipe<T>(self, to: impl FnOnce(Self) -> T) -> T {
        to(self)
    }
}

impl<T> Pipe for T {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2-very-secret";

    #[track_caller]
    fn assert_hidden(text: &str) -> String {
        let mut secrets = Secrets::default();
        secrets.learn(text);
        let hidden = secrets.hide(text);
        assert!(!hidden.contains(SECRET), "{hidden}");
        assert!(hidden.contains(LEFT_OUT), "{hidden}");
        hidden
    }

    #[test]
    fn secrets_are_left_out_however_they_are_written() {
        for text in [
            "password = \"hunter2-very-secret\"",
            "password=\"hunter2-very-secret",
            "password = hunter2-very-secret and more",
            "\"password\" = 'hunter2-very-secret'",
            "etcd.password = \"hunter2-very-secret\"",
            "# password = \"hunter2-very-secret\"",
            "password = \"\"\"\nhunter2-very-secret\n\"\"\"",
            "password = '''\nhunter2-very-secret\n",
            "token = [\n\"hunter2-very-secret\",\n]",
            "state = { source = \"etcd\", password = \"hunter2-very-secret\" }",
            "endpoints = [\"https://root:hunter2-very-secret@192.0.2.1:2379\"]",
            "\"pass\\u0077ord\" = \"hunter2-very-secret\"",
            "x = \"-----BEGIN PRIVATE KEY-----\nhunter2-very-secret\n-----END PRIVATE KEY-----\"",
            "{\"password\": \"hunter2-very-secret\"}",
        ] {
            assert_hidden(text);
        }
    }

    #[test]
    fn the_rest_stays_as_it_is() {
        let text = "[[network]\nvni = 1 # nonsense\n[state]\nkey_file = \"/etc/ssl/k.pem\"\npassword = \"hunter2-very-secret\"\nprefix = \"/a\"\n";
        let hidden = assert_hidden(text);
        for line in ["[[network]", "vni = 1 # nonsense", "key_file = \"/etc/ssl/k.pem\"", "prefix = \"/a\""] {
            assert!(hidden.lines().any(|found| found == line), "{line}: {hidden}");
        }
    }

    #[test]
    fn what_the_configuration_has_as_a_secret_is_found_in_other_texts_too() {
        let mut secrets = Secrets::default();
        secrets.learn("[state]\npassword = \"hunter2-very-secret\"\n");
        secrets.know("a\"quoted one".into());
        let hidden = secrets.hide("log: user hunter2-very-secret was refused, and a\\\"quoted one, too");
        assert_eq!(hidden, format!("log: user {LEFT_OUT} was refused, and {LEFT_OUT}, too"));
    }
}
