//! Changes of the configuration while the agent runs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::{Duration, timeout};

use super::Agent;
use super::feed::viewer;
use super::leaving::Leaving;
use super::network::Network;
use super::pending::Pending;
use super::watch::Read;
use crate::config::{Config, Fastpath, NodeConfig, StateConfig, View};
use crate::kernel::ruleset;
use crate::preflight;

/// How long the first reading of packet filters may take.
const RULES: Duration = Duration::from_secs(5);

/// What differs between two lists of networks, by their names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes<'c> {
    /// Those that are not there any more.
    pub(super) gone: Vec<&'c str>,
    /// Those that were not there before.
    pub(super) new: Vec<&'c View>,
    /// Those whose source stays as it is.
    pub(super) altered: Vec<&'c View>,
    /// Those whose source is another one, or has to be told otherwise who looks.
    pub(super) moved: Vec<&'c View>,
}

/// What differs between the networks `old` and `new`.
pub(super) fn changes<'c>(old: &'c [View], new: &'c [View]) -> Changes<'c> {
    let named = |views: &'c [View], name: &str| views.iter().find(|view| view.network.name == name);
    let mut changes = Changes::default();
    let gone = old.iter().map(|view| view.network.name.as_str()).filter(|name| named(new, name).is_none());
    changes.gone.extend(gone);
    for view in new {
        match named(old, &view.network.name) {
            None => changes.new.push(view),
            Some(before) if before == view => {}
            // What is ours of the one is not of the other.
            Some(before) if before.network.is_accelerated() != view.network.is_accelerated() => {
                changes.gone.push(&before.network.name);
                changes.new.push(view);
            }
            Some(before) if keeps_source(before, view) => changes.altered.push(view),
            Some(_) => changes.moved.push(view),
        }
    }
    changes
}

/// Whether the source that was opened for `old` is the one for `new`.
fn keeps_source(old: &View, new: &View) -> bool {
    let follows_rules = |view: &View| view.network.fastpath == Fastpath::Verified;
    old.state == new.state
        && viewer(old) == viewer(new)
        && match new.state {
            StateConfig::File(_) | StateConfig::Device => true,
            StateConfig::Kubernetes(_) => follows_rules(old) == follows_rules(new),
            // What it says of the network is in the configuration.
            StateConfig::Etcd(_) => false,
        }
}

impl Network {
    /// Goes on with the configuration `view`, and the source as it is.
    fn alter(&mut self, view: &View) {
        let View { network, pods, node: _, state: _ } = view.clone();
        if self.config.network.device != network.device {
            (self.mirror, self.followed) = (Err("nobody has looked yet".to_owned()), None);
        }
        // Source and machine have completed the rest.
        (self.config.network, self.config.pods) = (network, pods);
    }
}

impl Agent {
    /// Takes in a configuration that was read anew.
    ///
    /// # Errors
    /// As [`Agent::take_up`].
    pub(super) async fn reconfigure(&mut self, read: Read) -> anyhow::Result<()> {
        let checked = match read {
            Ok(config) => self.check_fast(&config).await.map(|()| config),
            Err(reason) => Err(reason),
        };
        match checked {
            Ok(config) => {
                self.config_error = None;
                let config = self.completed(config);
                self.change_to(config).await?;
            }
            Err(reason) => {
                tracing::error!("configuration refused, the one before stays in force: {reason}");
                self.config_error = Some(reason);
            }
        }
        self.settle().await;
        self.greet();
        Ok(())
    }

    /// Makes ready for the first network with a fast path, or refuses it.
    async fn check_fast(&mut self, config: &Config) -> Result<(), String> {
        if self.follows_rules || !config.is_fast() {
            return Ok(());
        }
        preflight::check_kernel().map_err(|error| format!("{error:#}"))?;
        self.rules = ruleset::follow();
        // A bypass is not opened before it is known that it may be.
        let known = timeout(RULES, self.rules.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(Result::ok).and_then(|known| known.clone());
        let Some(rules) = known else {
            return Err("the rules of packet filters cannot be read in time".to_owned());
        };
        self.take_rules(Some(rules));
        self.follows_rules = true;
        Ok(())
    }

    pub(super) async fn change_to(&mut self, new: Config) -> anyhow::Result<()> {
        let new = self.keep_node(new);
        let old = std::mem::replace(&mut self.config, new);
        let new = self.config.networks.clone();
        let Changes { gone, new, altered, moved } = changes(&old.networks, &new);
        self.is_alone = false;
        self.note_configured();
        self.put_in_order();
        if !gone.is_empty() {
            gone.into_iter().for_each(|name| self.let_go(name));
            // Names and numbers of what is gone may be wanted anew.
            self.settle().await;
        }
        for view in altered {
            tracing::info!(network = view.network.name, "configured otherwise");
            let runs = |network: &&mut Network| network.feed.is_some() || network.is_accelerated();
            let network = self.network_mut(&view.network.name).filter(runs);
            network.into_iter().for_each(|network| network.alter(view));
            if self.pending.iter().any(|pending| pending.name() == view.network.name) {
                self.begin(view.clone());
            }
        }
        for view in moved {
            tracing::info!(network = view.network.name, "configured otherwise, with another source");
            // The cluster stays in force until the new source has one.
            self.network_mut(&view.network.name).into_iter().for_each(|network| network.feed = None);
            self.begin(view.clone());
        }
        for view in new {
            tracing::info!(network = view.network.name, "configured");
            self.leaving.retain(|leaving| leaving.name() != view.network.name);
            self.begin(view.clone());
        }
        self.put_in_order();
        self.take_up().map(drop)
    }

    /// Goes on with the own section `[node]`, and says so if there is another one.
    fn keep_node(&mut self, mut new: Config) -> Config {
        if *new.node != *self.seen_node {
            if *new.node != *self.node {
                tracing::warn!("restart the agent for changes of [node]");
            }
            self.seen_node = Arc::clone(&new.node);
        }
        let node: &Arc<NodeConfig> = &self.node;
        new.node = Arc::clone(node);
        new.networks.iter_mut().for_each(|view| view.node = Arc::clone(node));
        new
    }

    /// Makes known what is configured.
    pub(super) fn note_configured(&mut self) {
        let views = &self.config.networks;
        self.machine.configured = views.iter().map(|view| view.network.name.clone()).collect();
        let files: BTreeSet<PathBuf> =
            views.iter().flat_map(|view| view.pods.files()).map(PathBuf::from).collect();
        self.machine.files = files;
        let wide = self.config.has_accelerated();
        self.machine.stale |= wide != self.machine.wide;
        self.machine.wide = wide;
    }

    /// Begins to open the source of `view`; one that needs none runs, and has to be put in order.
    pub(super) fn begin(&mut self, view: View) {
        self.pending.retain(|pending| pending.name() != view.network.name);
        if view.network.is_accelerated() {
            return self.install(Network::beside(view));
        }
        self.pending.push(Pending::new(view, &self.machine, &self.told));
    }

    /// Lets a network go that is not configured any more.
    fn let_go(&mut self, name: &str) {
        tracing::info!(network = name, "not configured any more");
        self.pending.retain(|pending| pending.name() != name);
        let at = self.networks.iter().position(|network| network.name() == name);
        let network = at.map(|at| self.networks.remove(at));
        self.leaving.push(network.map_or_else(|| Leaving::named(name), Leaving::from));
    }

    /// What is configured, and what runs as it was configured before.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        self.config.networks.iter().chain(self.networks.iter().map(|network| &network.config))
    }

    /// Whether a network's fast path runs in this mode.
    pub(super) fn runs(&self, mode: Fastpath) -> bool {
        self.views().any(|view| view.network.fastpath == mode)
    }

    /// Whether any network has a fast path.
    pub(super) fn is_fast(&self) -> bool {
        self.views().any(|view| view.network.fastpath != Fastpath::Off)
    }

    fn network_mut(&mut self, name: &str) -> Option<&mut Network> {
        self.networks.iter_mut().find(|network| network.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Text;

    fn networks(text: &str) -> Vec<View> {
        let text = Text::new("config.toml", text);
        Config::parse(&text, Path::new("/etc"), &|| Some("a".into())).expect("valid").networks
    }

    fn network(name: &str, vni: u32, more: &str) -> String {
        format!("[[network]]\nname = \"{name}\"\nvni = {vni}\n{more}\n")
    }

    /// Names of networks that are gone, new, altered and moved.
    fn check(old: &str, new: &str, expected: [&[&str]; 4]) {
        let (old, new) = (networks(old), networks(new));
        let Changes { gone, new, altered, moved } = changes(&old, &new);
        let names = |views: Vec<&View>| views.iter().map(|v| v.network.name.clone()).collect::<Vec<_>>();
        let found = [gone.into_iter().map(str::to_owned).collect(), names(new), names(altered), names(moved)];
        assert_eq!(found, expected.map(|names| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()));
    }

    const FILE: &str = "[state]\nsource = \"file\"\npath = \"s.toml\"\n";
    const ETCD: &str = "[network.state]\nsource = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
    const KUBERNETES: &str = "[network.state]\nsource = \"kubernetes\"\n";

    #[test]
    fn networks_are_told_apart_by_their_names() {
        let [a, b, c] = ["a", "b", "c"].map(|name| network(name, u32::from(name.as_bytes()[0]), ""));
        check(&format!("{a}{b}{FILE}"), &format!("{a}{b}{FILE}"), [&[], &[], &[], &[]]);
        check(&format!("{a}{b}{FILE}"), &format!("{b}{a}{FILE}"), [&[], &[], &[], &[]]);
        check(&format!("{a}{b}{FILE}"), &format!("{c}{b}{FILE}"), [&["a"], &["c"], &[], &[]]);
    }

    #[test]
    fn a_source_is_opened_anew_only_if_it_is_another_one() {
        let file = |more: &str| network("a", 1, more) + FILE;
        check(&file(""), &file("fastpath = \"off\"\ndevice = \"x\""), [&[], &[], &["a"], &[]]);
        check(&file(""), &(network("a", 2, "") + FILE), [&[], &[], &[], &["a"]]);
        check(&file(""), &file("").replace("s.toml", "t.toml"), [&[], &[], &[], &["a"]]);
        check(&file(""), &network("a", 1, ETCD), [&[], &[], &[], &["a"]]);
    }

    #[test]
    fn whose_the_device_is_makes_it_another_network() {
        let ours = network("a", 1, "device = \"x\"") + FILE;
        let theirs = format!("[[network]]\nname = \"a\"\nkind = \"accelerate\"\ndevice = \"x\"\n{FILE}");
        check(&ours, &theirs, [&["a"], &["a"], &[], &[]]);
        check(&theirs, &ours, [&["a"], &["a"], &[], &[]]);
        check(&theirs, &theirs.replace("\"x\"", "\"y\""), [&[], &[], &["a"], &[]]);
    }

    #[test]
    fn a_source_that_says_or_asks_more_is_opened_anew() {
        let with = |state: &str, mode: &str| network("a", 1, &format!("fastpath = \"{mode}\"\n{state}"));
        check(&with(KUBERNETES, "direct"), &with(KUBERNETES, "off"), [&[], &[], &["a"], &[]]);
        check(&with(KUBERNETES, "direct"), &with(KUBERNETES, "verified"), [&[], &[], &[], &["a"]]);
        check(&with(ETCD, "direct"), &with(ETCD, "off"), [&[], &[], &[], &["a"]]);
    }
}
