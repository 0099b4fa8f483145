//! All that an owner may have set up on a node.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::{Netns, wait_until};

/// Links, addresses, routes, rules, neighbours, forwarding entries, rules of packet filters and settings of `node`,
/// without what changes by itself: counters, timers, and what the kernel learns. Addresses are certain by then.
pub(crate) fn dump(node: &Netns) -> String {
    let is_certain = || node.sh("ip -6 addr show tentative").is_ok_and(|addresses| addresses.is_empty());
    wait_until("addresses are certain", Duration::from_secs(10), is_certain).expect("in time");
    let mut all = String::new();
    let links = node.sh("ip -d -j link show").expect("links");
    let mut links: Value = serde_json::from_str(&links).expect("JSON");
    forget_timers(&mut links);
    let _ = writeln!(all, "{links:#}");
    for command in
        ["addr show", "route show table all", "-6 route show table all", "rule show", "-6 rule show"]
    {
        let _ = writeln!(all, "{}", node.sh(&format!("ip {command}")).expect("a list"));
    }
    for command in ["ip neigh show nud permanent", "ip neigh show nud noarp", "bridge fdb show"] {
        let list = node.sh(command).expect("a list");
        // What bridges learn, they forget.
        let entered = |line: &&str| line.contains("permanent") || line.contains("extern_learn");
        let lasting = |line: &&str| !command.starts_with("bridge") || entered(line);
        // And the kernel enters groups that it sends to.
        let group = |line: &&str| line.starts_with("ff") || line.starts_with("224.");
        // They come in the order of a hash.
        let mut lines: Vec<_> = list.lines().filter(lasting).filter(|line| !group(line)).collect();
        lines.sort_unstable();
        lines.into_iter().for_each(|line| _ = writeln!(all, "{line}"));
    }
    let _ = writeln!(all, "{}", node.sh("nft list ruleset").expect("rules"));
    node.run(|| settings(Path::new("/proc/sys/net"), &mut all));
    all
}

fn forget_timers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.ends_with("_timer"));
            fields.values_mut().for_each(forget_timers);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_timers),
        _ => {}
    }
}

/// Settings below `dir`; those that cannot be read are write-only.
fn settings(dir: &Path, all: &mut String) {
    let mut entries: Vec<_> = dir.read_dir().expect("a directory").flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        // How many connections conntrack knows.
        if path.is_dir() {
            settings(&path, all);
        } else if !path.ends_with("nf_conntrack_count")
            && let Ok(value) = fs::read_to_string(&path)
        {
            let _ = writeln!(all, "{}: {}", path.display(), value.trim());
        }
    }
}

/// Whether nothing of a node is otherwise than it was.
#[track_caller]
pub(crate) fn assert_same(before: &str, now: &str, when: &str) {
    let missing = before.lines().filter(|line| !now.contains(line));
    let added = now.lines().filter(|line| !before.contains(line));
    let differs: Vec<String> =
        missing.map(|line| format!("- {line}")).chain(added.map(|line| format!("+ {line}"))).collect();
    assert!(before == now, "{when}, the owner's things are otherwise:\n{}", differs.join("\n"));
}
