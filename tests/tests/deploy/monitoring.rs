//! Scrapes, alerts and the dashboard fit the agent, one another, and the documentation.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{agent, base_configuration, configuration, deploy, documents, of_kind};

fn one(name: &str) -> Value {
    let [document] =
        <[Value; 1]>::try_from(documents(&deploy().join("monitoring").join(name))).expect("one document");
    document
}

fn rules() -> Vec<Value> {
    let groups = one("alerts.yaml")["groups"].clone();
    groups
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|g| g["rules"].as_array().expect("rules").clone())
        .collect()
}

#[test]
fn agents_are_scraped_where_they_answer() {
    let address = base_configuration().node.metrics.expect("metrics");
    assert!(address.ip().is_unspecified(), "Prometheus is elsewhere");
    for variant in ["flannel-cni", "accelerate"] {
        assert_eq!(configuration(variant).node.metrics, Some(address), "{variant}");
    }
    let port = agent()["ports"][0].clone();
    assert_eq!(port["containerPort"], address.port());
    let monitor = one("podmonitor.yaml");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&port["name"], &json!("/metrics")));
    assert_eq!(
        monitor["spec"]["selector"]["matchLabels"],
        of_kind("DaemonSet")["spec"]["selector"]["matchLabels"]
    );
    // The job that alerts look for is this label of the pods.
    let label = monitor["spec"]["jobLabel"].as_str().expect("a label");
    let labels = &of_kind("DaemonSet")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[label], "vxlan-agent");
    assert!(rules()[0]["expr"].as_str().expect("an expression").contains("job=\"vxlan-agent\""));
}

#[test]
fn every_file_for_monitoring_is_used() {
    let list = one("kustomization.yaml");
    assert_eq!(list["namespace"], of_kind("Namespace")["metadata"]["name"]);
    let lists = [&list["resources"], &list["configMapGenerator"][0]["files"]];
    let listed = lists.iter().flat_map(|list| list.as_array().expect("a list")).filter_map(Value::as_str);
    // For those who have Prometheus without its operator.
    let listed: BTreeSet<String> =
        listed.chain(["alerts.yaml", "alerts_test.yaml", "kustomization.yaml"]).map(str::to_owned).collect();
    let files = fs::read_dir(deploy().join("monitoring")).expect("a directory");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
    assert_eq!(names.collect::<BTreeSet<_>>(), listed);
}

#[test]
fn the_operators_alerts_are_the_same() {
    assert_eq!(one("prometheusrule.yaml")["spec"], one("alerts.yaml"));
}

#[test]
fn every_alert_is_tested_and_the_documentation_says_what_to_do() {
    let names: BTreeSet<String> =
        rules().iter().map(|r| r["alert"].as_str().expect("a name").to_owned()).collect();
    let tests = one("alerts_test.yaml");
    let tests = tests["tests"].as_array().expect("tests").iter();
    let cases = tests.flat_map(|test| test["alert_rule_test"].as_array().expect("cases"));
    let comes =
        cases.filter(|case| case["exp_alerts"] != json!([])).filter_map(|case| case["alertname"].as_str());
    assert_eq!(comes.map(str::to_owned).collect::<BTreeSet<_>>(), names);
    let docs = fs::read_to_string(deploy().join("../docs/operate.md")).expect("documentation");
    for name in &names {
        assert!(docs.contains(&format!("| `{name}` |")), "{name} is not in the documentation");
    }
}

/// As the end-to-end tests have it installed; where it is not, those fail.
#[test]
fn promtool_finds_that_alerts_come_when_they_should() {
    let mut promtool = Command::new("promtool");
    promtool.args(["test", "rules", "alerts_test.yaml"]).current_dir(deploy().join("monitoring"));
    let Ok(output) = promtool.output() else {
        eprintln!("SKIPPED: promtool is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let text = fs::read_to_string(deploy().join("monitoring/dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len());
    let variables: BTreeSet<&str> = dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "instance", "network"]));
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(!panel["description"].as_str().expect("a description").is_empty(), "{panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        for (x, y) in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && taken.insert((x, y)), "{} lies on another", panel["title"]);
        }
    }
}
