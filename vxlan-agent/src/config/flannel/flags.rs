//! Flannel's flags and environment, in the manner of Go's `flag` package: one dash or two, the
//! value after `=` or in the next word, switches without a value; `FLANNELD_…` for what the command
//! line does not give.

use std::collections::BTreeMap;

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It is obeyed.
    Obeyed,
    /// It says nothing to us.
    Moot,
    /// It is not done here, which the operator should know.
    Undone(&'static str),
}

use Use::{Moot, Obeyed, Undone};

/// Flags that take a value.
const VALUES: &[(&str, Use)] = &[
    ("iface", Obeyed),
    ("iface-regex", Obeyed),
    ("iface-can-reach", Obeyed),
    ("public-ip", Obeyed),
    ("public-ipv6", Obeyed),
    ("kubeconfig-file", Obeyed),
    ("kube-annotation-prefix", Obeyed),
    ("subnet-file", Obeyed),
    ("net-config-path", Obeyed),
    ("kube-api-url", Undone("put the server's address into a kubeconfig")),
    ("healthz-ip", Obeyed),
    ("healthz-port", Obeyed),
    ("etcd-endpoints", Obeyed),
    ("etcd-prefix", Obeyed),
    ("etcd-keyfile", Obeyed),
    ("etcd-certfile", Obeyed),
    ("etcd-cafile", Obeyed),
    ("etcd-username", Obeyed),
    ("etcd-password", Obeyed),
    ("subnet-lease-renew-margin", Obeyed),
    ("iptables-resync", Moot),
    ("charon-executable-path", Moot),
    ("charon-vici-uri", Moot),
    ("v", Moot),
    ("vmodule", Moot),
    ("stderrthreshold", Moot),
    ("log_backtrace_at", Moot),
    ("log_dir", Moot),
    ("log_file", Moot),
    ("log_file_max_size", Moot),
];

/// Flags that are there or not.
const SWITCHES: &[(&str, Use)] = &[
    ("kube-subnet-mgr", Obeyed),
    ("ip-masq", Obeyed),
    ("ip-masq-fully-random-disable", Obeyed),
    ("set-node-network-unavailable", Obeyed),
    ("version", Obeyed),
    ("ip-blackhole-route", Undone("no blackhole route is made for the node's own subnet")),
    ("iptables-forward-rules", Moot),
    ("logtostderr", Moot),
    ("alsologtostderr", Moot),
    ("add_dir_header", Moot),
    ("one_output", Moot),
    ("skip_headers", Moot),
    ("skip_log_headers", Moot),
];

/// Whether flanneld would say what flags it has, and no more.
pub(super) fn ask_for_help(words: &[String]) -> bool {
    words.iter().any(|word| matches!(word.as_str(), "-h" | "--h" | "-help" | "--help"))
}

/// All flags, and what becomes of them.
pub(super) fn help() -> String {
    let mut text = "Usage: flanneld [FLAG]...\n\nThe agent in flanneld's place. FLANNELD_NAME in the environment is --name.\n\n".to_owned();
    let lines = VALUES.iter().map(|flag| (flag, "=VALUE")).chain(SWITCHES.iter().map(|flag| (flag, "")));
    for ((name, used), value) in lines {
        let used = match used {
            Obeyed => String::new(),
            Moot => "   (accepted, has no meaning here)".to_owned(),
            Undone(why) => format!("   (accepted, not done: {why})"),
        };
        text.push_str(&format!("  --{name}{value}{used}\n"));
    }
    text + "\nExamples:\n  vxlan-agent flannel --ip-masq --kube-subnet-mgr\n  vxlan-agent flannel --etcd-endpoints=https://192.0.2.1:2379 --iface=eth0\n"
}

/// Flags as they were given, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    given: BTreeMap<&'static str, Vec<String>>,
    /// What is given and not done, one sentence each.
    pub(super) undone: Vec<String>,
}

impl Flags {
    /// Reads the words after the program's name, and the environment.
    ///
    /// # Errors
    /// One sentence: a flag that flannel does not have, or that lacks a value.
    pub(super) fn parse(
        words: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut flags = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest)) else {
                return Err(format!("'{word}' is no flag"));
            };
            let (name, value) =
                flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            flags.take(name, value.map(str::to_owned), &mut words)?;
        }
        flags.take_environment(environment)?;
        Ok(flags)
    }

    fn take(
        &mut self,
        name: &str,
        value: Option<String>,
        more: &mut impl Iterator<Item = String>,
    ) -> Result<(), String> {
        let known = |list: &'static [(&'static str, Use)]| list.iter().find(|(known, _)| *known == name);
        if let Some((name, used)) = known(SWITCHES) {
            return self.keep(name, *used, value.unwrap_or_else(|| "true".to_owned()));
        }
        let Some((name, used)) = known(VALUES) else {
            return Err(format!("flannel has no flag '--{name}'"));
        };
        let value = value.or_else(|| more.next()).ok_or_else(|| format!("--{name} needs a value"))?;
        self.keep(name, *used, value)
    }

    fn keep(&mut self, name: &'static str, used: Use, value: String) -> Result<(), String> {
        if SWITCHES.iter().any(|(switch, _)| *switch == name) {
            truth(name, &value)?;
        }
        match used {
            Obeyed => self.given.entry(name).or_default().push(value),
            Undone(why) => self.undone.push(format!("--{name}: {why}")),
            Moot => {}
        }
        Ok(())
    }

    fn take_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), String> {
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix("FLANNELD_") else { continue };
            let name = name.to_lowercase().replace('_', "-");
            let known = VALUES.iter().chain(SWITCHES).find(|(known, _)| *known == name);
            // The command line wins, and flannel ignores variables that are no flag's.
            let Some((name, used)) = known.filter(|(name, _)| !self.given.contains_key(name)) else {
                continue;
            };
            self.keep(name, *used, value)?;
        }
        Ok(())
    }

    /// The values of a flag that may be given more than once.
    pub(super) fn all(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of a flag; the last one counts, and an empty one is none.
    pub(super) fn last(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on; `default` where it is not given.
    pub(super) fn is_on(&self, name: &str, default: bool) -> bool {
        self.last(name).map_or(default, |value| truth(name, value).unwrap_or(default))
    }
}

/// As Go's `strconv.ParseBool`.
fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("--{name}: '{value}' is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, environment: &[(&str, &str)]) -> Result<Flags, String> {
        let pairs = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Flags::parse(line.split_whitespace().map(str::to_owned), pairs)
    }

    #[test]
    fn flags_are_given_as_go_programs_take_them() {
        let flags =
            parse("-iface eth0 --iface=eth1 --ip-masq -kube-subnet-mgr=true --v=6", &[]).expect("valid");
        assert_eq!(flags.all("iface"), ["eth0", "eth1"]);
        assert!(flags.is_on("ip-masq", false) && flags.is_on("kube-subnet-mgr", false));
        assert!(!parse("--ip-masq=false", &[]).expect("valid").is_on("ip-masq", false));
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let environment = [("FLANNELD_PUBLIC_IP", "192.0.2.1"), ("FLANNELD_IFACE", "eth9"), ("PATH", "/")];
        let flags = parse("--iface=eth0", &environment).expect("valid");
        assert_eq!(flags.all("iface"), ["eth0"]);
        assert_eq!(flags.last("public-ip"), Some("192.0.2.1"));
    }

    #[test]
    fn what_is_not_flannels_is_refused_by_name() {
        for (line, word) in [
            ("--warp", "--warp"),
            ("run", "'run'"),
            ("--iface", "needs a value"),
            ("--ip-masq=perhaps", "perhaps"),
        ] {
            assert!(parse(line, &[]).expect_err(line).contains(word), "{line}");
        }
    }

    #[test]
    fn whoever_asks_for_help_gets_all_flags() {
        let asks = |line: &str| ask_for_help(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(asks("--ip-masq --help") && asks("-h") && !asks("--healthz-port=1"));
        for flag in
            ["--ip-masq-fully-random-disable\n", "--iface=VALUE\n", "--ip-blackhole-route   (accepted, not"]
        {
            assert!(help().contains(flag), "{flag}");
        }
    }

    /// As flanneld 0.28 has them.
    #[test]
    fn every_flag_of_flanneld_is_accepted() {
        for name in
            "etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password \
             iface iface-regex iface-can-reach subnet-file public-ip public-ipv6 subnet-lease-renew-margin \
             kube-api-url kube-annotation-prefix kubeconfig-file healthz-ip healthz-port iptables-resync \
             net-config-path v vmodule log_backtrace_at"
                .split_whitespace()
        {
            assert!(VALUES.iter().any(|(known, _)| *known == name), "{name}");
        }
        for name in "ip-masq ip-masq-fully-random-disable kube-subnet-mgr version iptables-forward-rules \
             ip-blackhole-route set-node-network-unavailable"
            .split_whitespace()
        {
            assert!(SWITCHES.iter().any(|(known, _)| *known == name), "{name}");
        }
    }

    #[test]
    fn what_is_not_done_here_is_said() {
        let flags = parse("--ip-blackhole-route --iptables-resync=5", &[]).expect("valid");
        assert_eq!(flags.undone.len(), 1);
        assert!(flags.undone[0].contains("--ip-blackhole-route"));
    }
}
