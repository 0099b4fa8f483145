//! Asking an agent for its metrics, and reading the answer.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use vxlan_tests::lab::Netns;

/// Where agents of these tests answer, on all of their addresses.
pub(super) const PORT: u16 = 9469;

/// One line of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// All lines.
pub(crate) struct Scrape {
    pub(crate) text: String,
    samples: Vec<Sample>,
}

/// What is served at `path` of a port on this host; `None`: nothing is.
pub(super) fn get(node: &Netns, port: u16, path: &str) -> Option<String> {
    let exchange = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        // Of a version that knows no chunks.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = node.run(exchange).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// What the agent of `node` says.
pub(crate) fn scrape(node: &Netns) -> Option<Scrape> {
    get(node, PORT, "/metrics").map(Scrape::parse)
}

impl Scrape {
    fn parse(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect();
        Self { text, samples }
    }

    /// The samples of `name` with these labels among theirs.
    pub(crate) fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let has = |sample: &&Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        };
        self.samples.iter().filter(|sample| sample.name == name).filter(has).collect()
    }

    /// The one value of `name` with these labels.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.all(name, labels)[..] {
            [sample] => sample.value,
            ref several => panic!("{} of {name} {labels:?}:\n{}", several.len(), self.text),
        }
    }

    /// The sum of the values of `name` with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).iter().map(|sample| sample.value).sum()
    }
}

/// `name{key="value",…} value`.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}')?.split_terminator(',').map(|label| {
        let (key, value) = label.split_once('=')?;
        Some((key.to_owned(), value.trim_matches('"').to_owned()))
    });
    Some(Sample { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value: value.parse().ok()? })
}
