//! The routes that packets meet: rules lead them to tables one after the other, and of a table the longest prefix
//! counts, until one has any.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::routes::covering;
use crate::kernel::{LOCAL, MAIN, Path, Rule, Selects, Tables, Verdict};

/// A route that packets meet.
pub(super) struct Met<'t> {
    pub(super) path: Cow<'t, Path>,
    /// Whether all packets to there meet it; else it is for the kernel to tell them apart.
    pub(super) certain: bool,
}

/// What packets of one IP version meet. The longest prefix counts: what earlier tables hide is left out.
#[derive(Default)]
pub(super) struct Lookup<'t> {
    pub(super) routes: Vec<Met<'t>>,
    /// Tables that rules lead to, whichever packets.
    pub(super) tables: BTreeSet<u32>,
    /// What only the kernel knows, and why: a sentence each.
    pub(super) left: BTreeSet<String>,
    /// Those of them of which no route is passed over.
    whole: BTreeSet<u32>,
    /// Prefixes of the tables before.
    before: BTreeSet<IpNetwork>,
    /// Some packets have met the main table.
    skips_to_main: bool,
    /// Some packets have gone elsewhere.
    is_doubtful: bool,
}

impl<'t> Lookup<'t> {
    /// Follows the rules of IPv6 or IPv4. The host's own addresses are not looked at.
    pub(super) fn new(tables: &'t Tables, v6: bool) -> Self {
        let usual =
            [Rule { v6, verdict: Verdict::Table { number: MAIN, longer_than: None }, ..Rule::default() }];
        let mut rules: Vec<&Rule> = tables.rules.iter().filter(|rule| rule.v6 == v6).collect();
        rules.sort_by_key(|rule| rule.priority);
        if rules.is_empty() {
            // A kernel without policy routing.
            rules.extend(&usual);
        }
        let mut lookup = Self::default();
        for rule in rules {
            if !lookup.follow(tables, rule) {
                break;
            }
        }
        lookup
    }

    /// Whether some packets go on to the next rule.
    fn follow(&mut self, tables: &'t Tables, rule: &Rule) -> bool {
        let some = match rule.selects {
            Selects::Marked | Selects::Vrf => return true,
            Selects::All => false,
            Selects::Some => true,
        };
        let version = if rule.v6 { "IPv6" } else { "IPv4" };
        match rule.verdict {
            Verdict::Next | Verdict::Table { number: LOCAL, .. } => {}
            Verdict::Nowhere if !some => return false,
            Verdict::Nowhere | Verdict::Elsewhere => {
                self.is_doubtful = true;
                self.left
                    .insert(format!("{version}: a routing rule leads packets elsewhere than to a table"));
            }
            // Most have not met it yet, and will.
            Verdict::Table { number: MAIN, .. } if some => self.skips_to_main = true,
            Verdict::Table { number, longer_than } => {
                let hides = self.add(tables, (number, rule.v6), longer_than, some);
                if hides && (some || self.skips_to_main && number != MAIN) {
                    self.left.insert(format!(
                        "{version}: a routing rule leads some packets, and not all, to table {number}: \
                         where that has a route"
                    ));
                }
            }
        }
        true
    }

    /// Adds the routes of a table, but those that are hidden; whether there are any.
    fn add(
        &mut self,
        tables: &'t Tables,
        (number, v6): (u32, bool),
        longer_than: Option<u8>,
        some: bool,
    ) -> bool {
        // A second time, they hide themselves.
        if self.whole.contains(&number) {
            return false;
        }
        let certain = !(some || self.is_doubtful || self.skips_to_main && number != MAIN);
        let is_long = |path: &&Path| longer_than.is_none_or(|length| path.to.prefix() > length);
        let (mut found, mut hiding) = (vec![], vec![]);
        for path in best(tables, number, v6).filter(is_long) {
            hiding.push(path.to);
            let hidden = || covering(path.to, |prefix| self.before.contains(prefix)).next().is_some();
            if self.before.is_empty() || !hidden() {
                found.push(Met { path: tables.resolved(path), certain });
            }
        }
        self.tables.insert(number);
        if longer_than.is_none() {
            self.whole.insert(number);
        }
        self.before.extend(hiding);
        let any = !found.is_empty();
        self.routes.extend(found);
        any
    }
}

/// The routes of a table that packets take: of several to the same prefix the one with the lowest metric.
fn best(tables: &Tables, table: u32, v6: bool) -> impl Iterator<Item = &Path> {
    let mut before = None;
    let all = of_table(tables, table).filter(move |path| path.to.is_ipv6() == v6);
    all.filter(move |path| before.replace(path.to) != Some(path.to))
}

/// The routes of a table.
fn of_table(tables: &Tables, table: u32) -> impl Iterator<Item = &Path> {
    let to = IpNetwork::from(IpAddr::from([0; 4]));
    let to = IpNetwork::new(to.ip(), 0).unwrap_or(to);
    tables.paths.range(Path::first(table, to)..).take_while(move |path| path.table == table)
}
