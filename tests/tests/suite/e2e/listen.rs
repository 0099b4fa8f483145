//! `monitor` and `capture`: what operators are told of packets while they pass.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vxlan_ebpf_common::listen::{Listen, Snapshot};
use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::agent::agent_binary;
use vxlan_tests::lab::traffic::{Ping, inject, ping, tcp_bulk};
use vxlan_tests::lab::{Lab, LabSpec, Overlay, UNDERLAY, VNI, run, wait_until};

use super::guard::forged;
use super::{assert_took, build, counted, pair, underlay_hook, warm_up};

/// A `monitor` or `capture` on node 1.
struct Listening {
    child: Child,
}

/// The entry of a map of node 1.
fn map(lab: &Lab, name: &str) -> Map {
    let pins = lab.agent(1).and_then(|agent| agent.pins()).expect("pins");
    Map::from_map_data(MapData::from_pin(pins.join(name)).expect("a map")).expect("a map")
}

fn entry(lab: &Lab) -> Listen {
    let listen: Array<MapData, Listen> = map(lab, "LISTEN").try_into().expect("an array");
    listen.get(&0, 0).expect("an entry")
}

/// How many packets the programs of node 1 have told of since the last listener began.
fn matched(lab: &Lab) -> u64 {
    let snapshot: PerCpuArray<MapData, Snapshot> = map(lab, "SNAPSHOT").try_into().expect("an array");
    snapshot.get(&0, 0).expect("an entry").iter().map(|cpu| cpu.heard.matched).sum()
}

impl Listening {
    /// Starts and waits until the programs know.
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let listening = Self::try_start(lab, args);
        let pid = listening.child.id();
        wait_until("the programs report", Duration::from_secs(5), || {
            let entry = entry(lab);
            entry.until != 0 && entry.pid == pid
        })
        .expect("a listener");
        listening
    }

    fn try_start(lab: &Lab, args: &[&str]) -> Self {
        let config = lab.agent(1).expect("an agent").config().to_owned();
        let spawn = || {
            let program = agent_binary().expect("an agent");
            let mut command = Command::new(program);
            command.args(args).arg("--config").arg(config);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        };
        Self { child: lab.node(1).run(spawn).expect("a process") }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    /// What it has written when it has ended: to standard output and to standard error.
    fn ended(mut self) -> (Vec<u8>, String) {
        let (mut out, mut errors) = (vec![], String::new());
        self.child.stdout.take().expect("a pipe").read_to_end(&mut out).expect("readable");
        self.child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("readable");
        let status = self.child.wait().expect("an end");
        assert!(status.success() || errors.contains("already"), "{status}: {errors}");
        (out, errors)
    }

    /// Ends it as Ctrl-C does; what it has written.
    fn stop(self) -> (Vec<u8>, String) {
        self.signal(Signal::SIGINT);
        self.ended()
    }
}

/// What `monitor --json` on node 1 tells while `traffic` runs: packets, and the summary.
fn monitored(lab: &Lab, args: &[&str], traffic: impl FnOnce()) -> (Vec<Value>, Value) {
    let listening = Listening::start(lab, &[&["monitor", "--json"], args].concat());
    traffic();
    let (out, _) = listening.stop();
    let text = String::from_utf8(out).expect("text");
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect();
    let summary = lines.pop().expect("a summary");
    assert_eq!(summary["event"], "summary");
    lines.retain(|line| line["event"] == "packet");
    (lines, summary)
}

fn echo(lab: &Lab, count: u16) {
    let report = ping(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count, ..Ping::default() });
    assert!(report.expect("a socket").all_answered());
}

/// Sends node 1 what a stranger and a node with another's source would.
fn forge(lab: &Lab) {
    let stranger = std::net::Ipv4Addr::new(192, 0, 2, 66);
    for (outer, inner) in [(stranger, inner4(2, 9)), (underlay4(2), inner4(1, 9))] {
        inject(lab.node(2), UNDERLAY, &forged(lab, outer, inner, VNI)).expect("sent");
    }
}

/// Those `lines` with this hook and reason.
fn of<'a>(lines: &'a [Value], hook: &str, reason: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["hook"] == hook && line["reason"] == reason).collect()
}

#[test]
fn monitor_tells_what_becomes_of_packets_and_why() {
    let lab = build(&pair());
    warm_up(&lab);
    let (pod, other) = (lab.pod(1, 1).ip4.to_string(), lab.pod(2, 1).ip4.to_string());
    let mut told = vec![];
    let [one, _] = counted(&lab, || {
        (told, _) = monitored(&lab, &["--address", &other], || echo(&lab, 3));
    });
    let out = of(&told, "pod_egress", "encapsulated");
    assert_eq!(out.len(), 3, "{told:?}");
    assert_eq!((&out[0]["source"], &out[0]["destination"]), (&pod.clone().into(), &other.clone().into()));
    assert_eq!((&out[0]["verdict"], &out[0]["network"]), (&"forwarded".into(), &"pods".into()));
    assert_eq!((&out[0]["protocol"], &out[0]["outer"]["vni"]), (&"ICMP".into(), &VNI.into()));
    assert_eq!(out[0]["outer"]["destination"], underlay4(2).to_string());
    let back = of(&told, underlay_hook(), "decapsulated");
    assert_eq!((back.len(), &back[0]["source"]), (3, &other.clone().into()));
    assert_eq!(back[0]["outer"]["source"], underlay4(2).to_string());
    // They took the way that they take unheard.
    assert_eq!(one.packets("pod_egress", "encapsulated"), 3, "{one}");

    let (told, summary) = monitored(&lab, &["--drops"], || {
        echo(&lab, 2);
        forge(&lab);
    });
    let reasons: Vec<_> = told.iter().map(|line| line["reason"].as_str().expect("a reason")).collect();
    assert_eq!(reasons, ["unknown_vtep", "foreign_source"]);
    assert!(told.iter().all(|line| line["verdict"] == "dropped" && line["hook"] == underlay_hook()));
    assert_eq!((&summary["told"], &summary["matched"]), (&2.into(), &2.into()));

    let listening = Listening::start(&lab, &["monitor"]);
    echo(&lab, 1);
    forge(&lab);
    let (out, errors) = listening.stop();
    let text = String::from_utf8(out).expect("text");
    for expected in [
        format!("{pod} > {other} ICMP echo request"),
        "forwarded: Encapsulated and sent out of the underlay (encapsulated)".to_owned(),
        format!("10.244.2.9:7777 > {pod}:7777 UDP in 192.0.2.66 > {} VNI {VNI}", underlay4(1)),
        "dropped: The outer source is not a VTEP of this network (unknown_vtep)".to_owned(),
    ] {
        assert!(text.contains(&expected), "no {expected} in\n{text}");
    }
    assert!(errors.contains("packets"), "no summary: {errors}");
    filters_pick_packets(&lab);
    rates_and_samples_are_kept(&lab);
    only_one_listens_and_a_killed_one_is_forgotten(&lab);
}

/// Options of `monitor`, and what holds of every packet that it tells of then.
type Filtered<'a> = (&'a [&'a str], &'a dyn Fn(&Value) -> bool);

/// Echoes and forged datagrams, of which each filter picks its own.
fn filters_pick_packets(lab: &Lab) {
    let (mac, vni, hook) = (super::guard::pod_mac(lab), VNI.to_string(), underlay_hook());
    let is_no_strangers = |line: &Value| line["outer"]["source"] != "192.0.2.66";
    let is_of_mac = |line: &Value| line["source_mac"] == *mac || line["destination_mac"] == *mac;
    let is_out = |line: &Value| line["hook"] == "pod_egress" && line["reason"] == "encapsulated";
    let cases: [Filtered<'_>; 7] = [
        (&["--port", "7777"], &|line| line["source_port"] == 7777),
        (&["--protocol", "icmp"], &|line| line["protocol"] == "ICMP"),
        (&["--hook", "pod_egress", "--reason", "encapsulated"], &is_out),
        (&["--mac", &mac], &is_of_mac),
        (&["--vni", &vni, "--hook", hook], &|line| line["outer"]["vni"] == VNI),
        (&["--node", "n2", "--hook", hook], &is_no_strangers),
        (&["--node", "192.0.2.2", "--network", "pods"], &is_no_strangers),
    ];
    for (args, wanted) in cases {
        let (told, _) = monitored(lab, args, || {
            echo(lab, 2);
            forge(lab);
        });
        assert!(!told.is_empty() && told.iter().all(wanted), "{args:?}: {told:#?}");
    }
    for args in
        [&["--vni", "99"][..], &["--address", "10.244.9.0/24"], &["--port", "9"], &["--node", "192.0.2.9"]]
    {
        let (told, summary) = monitored(lab, args, || echo(lab, 2));
        assert_eq!((told.len(), &summary["matched"]), (0, &0.into()), "{args:?}: {told:#?}");
    }
}

fn rates_and_samples_are_kept(lab: &Lab) {
    let fast = Ping { count: 200, interval: Duration::from_millis(1), ..Ping::default() };
    let send = || drop(ping(lab.pod(1, 1), lab.pod(2, 1).ip4, fast).expect("a socket"));
    let only = ["--hook", "pod_egress", "--protocol", "icmp"];
    let number = |summary: &Value, name: &str| summary[name].as_u64().expect("a number");
    let (told, summary) = monitored(lab, &[&only[..], &["--rate", "10"]].concat(), send);
    assert!(told.len() < 100, "{summary}");
    assert_eq!(number(&summary, "suppressed") + told.len() as u64, number(&summary, "matched"), "{summary}");
    let (told, summary) = monitored(lab, &[&only[..], &["--sample", "4"]].concat(), send);
    assert!((10..120).contains(&told.len()), "{} of 200: {summary}", told.len());
    assert_eq!(number(&summary, "unsampled") + told.len() as u64, 200, "{summary}");
    let listening = Listening::start(lab, &["monitor", "--count", "2"]);
    echo(lab, 3);
    let (out, _) = listening.ended();
    assert_eq!(String::from_utf8_lossy(&out).lines().filter(|line| line.contains(" > ")).count(), 2);
}

fn only_one_listens_and_a_killed_one_is_forgotten(lab: &Lab) {
    let first = Listening::start(lab, &["monitor"]);
    let (_, refused) = Listening::try_start(lab, &["monitor", "--seconds", "1"]).ended();
    let holder = format!("listens on this node already (process {})", first.child.id());
    assert!(refused.contains(&holder), "{refused}");
    first.signal(Signal::SIGKILL);
    let mut first = first;
    first.child.wait().expect("an end");
    wait_until("the programs forget it", Duration::from_secs(6), || {
        echo(lab, 1);
        entry(lab).until == 0
    })
    .expect("in time");
    let before = matched(lab);
    echo(lab, 3);
    assert_eq!(matched(lab), before, "nothing is reported to nobody");
    Listening::start(lab, &["monitor"]).stop();
    assert_eq!(entry(lab), Listen::default());
}

#[test]
fn an_operator_is_told_of_flows_without_an_agent() {
    let mut lab = build(&LabSpec::pair(Overlay::verified(), Overlay::verified()));
    warm_up(&lab);
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    let listening =
        Listening::start(&lab, &["monitor", "--flows", "--json", "--protocol", "tcp", "--rate", "0"]);
    let server = lab.pod(2, 1);
    tcp_bulk(lab.pod(1, 1), server, server.ip4.into(), 4 << 20).expect("a transfer");
    let (out, _) = listening.stop();
    let text = String::from_utf8(out).expect("text");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
    let states: Vec<String> = lines
        .filter(|line| line["event"] == "flow" && line["remote"] == server.ip4.to_string())
        .map(|line| line["state"].as_str().expect("a state").to_owned())
        .collect();
    assert_eq!(states.first().map(String::as_str), Some("opened"), "{states:?}");
    assert!(states.iter().any(|state| state == "bypass"), "{states:?}");
    assert!(matches!(states.last().map(String::as_str), Some("closing" | "closed")), "{states:?}");
    assert!(!text.contains("\"packet\""), "{text}");
}

/// What tshark makes of the fields of packets.
fn tshark(file: &std::path::Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-d", "udp.port==8472,vxlan", "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = run(&mut command).expect("tshark reads it");
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn captures_have_packets_that_bypass_the_stack_with_what_became_of_them() {
    let lab = build(&pair());
    warm_up(&lab);
    let file: PathBuf = lab.run_dir().join("packets.pcapng");
    let name = file.display().to_string();
    let (pod, other) = (lab.pod(1, 1).ip4.to_string(), lab.pod(2, 1).ip4.to_string());
    let listening =
        Listening::start(&lab, &["capture", "-w", &name, "--before", "--after", "--address", &other]);
    let [one, _] = counted(&lab, || echo(&lab, 2));
    assert_took(&one, "pod_egress", "encapsulated", 2);
    forge(&lab);
    let (_, summary) = listening.stop();
    assert!(summary.contains("packets"), "{summary}");
    let read = tshark(&file, &["frame.interface_name", "ip.src", "ip.dst", "vxlan.vni", "frame.comment"]);
    let at = |hook: &str| read.iter().filter(|row| row[0].ends_with(hook)).collect::<Vec<_>>();
    let (before, after) = (at(":pod_egress:before"), at(":pod_egress:after"));
    assert_eq!((before.len(), after.len()), (2, 2), "{read:?}");
    assert_eq!((&before[0][1], &before[0][2], before[0][3].as_str()), (&pod, &other, ""));
    assert_eq!(after[0][1], format!("{},{pod}", underlay4(1)));
    assert_eq!((after[0][2].clone(), &after[0][3]), (format!("{},{other}", underlay4(2)), &VNI.to_string()));
    assert!(after[0][4].contains("encapsulated: forwarded: Encapsulated and sent"), "{}", after[0][4]);
    let came = at(&format!(":{}:before", underlay_hook()));
    assert_eq!(came[0][1], format!("{},{other}", underlay4(2)));
    assert!(came[0][4].contains("decapsulated: forwarded"), "{}", came[0][4]);

    let listening = Listening::start(&lab, &["capture", "-w", &name, "--drops", "--headers", "inner"]);
    forge(&lab);
    listening.stop();
    let read = tshark(&file, &["ip.src", "vxlan.vni", "frame.comment", "frame.len"]);
    let row = |source: &str| read.iter().find(|row| row[0] == source).expect("a packet");
    assert_eq!(read.len(), 2, "{read:?}");
    assert!(row("10.244.2.9")[2].contains("unknown_vtep: dropped"), "{read:?}");
    assert!(row("10.244.1.9")[2].contains("foreign_source: dropped"), "{read:?}");

    // Into a pipe, while it goes on.
    let listening =
        Listening::start(&lab, &["capture", "-w", "-", "--hook", "pod_egress", "--after", "--count", "1"]);
    echo(&lab, 1);
    let (out, _) = listening.ended();
    std::fs::File::create(&file).and_then(|mut copy| copy.write_all(&out)).expect("a copy");
    let read = tshark(&file, &["ip.dst"]);
    assert_eq!(read, [[format!("{},{other}", underlay4(2))]]);
}
