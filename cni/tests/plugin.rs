//! The plugin as a runtime runs it: the real binary, its environment, stdin, stdout and exit status.
#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use moat_cni::{note, protocol};
use serde_json::{Value, json};

struct Run {
    stdout: String,
    stderr: String,
    success: bool,
}

impl Run {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not JSON ({e}): {:?}", self.stdout))
    }

    #[track_caller]
    fn fails_with(&self, code: u32) -> Value {
        assert!(!self.success, "exit status 0, stdout {:?}", self.stdout);
        let error = self.json();
        assert_eq!(error["code"], code, "{error}");
        error
    }
}

fn run(environment: &[(&str, &str)], stdin: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_moat-cni"))
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may well end without reading, for example for a missing command.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Run {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        success: output.status.success(),
    }
}

const POD: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c0ffee"),
    ("CNI_NETNS", "/run/netns/pod"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"),
];

fn pod(command: &str, stdin: &str) -> Run {
    let mut environment = vec![("CNI_COMMAND", command)];
    environment.extend(POD);
    run(&environment, stdin)
}

fn config(version: &str, socket: &Path) -> Value {
    json!({"cniVersion": version, "name": "moat", "type": "moat-cni", "agentSocket": socket})
}

/// Answers `count` requests with `answer`, and returns what was asked.
fn listen(socket: &Path, count: usize, answer: &str) -> thread::JoinHandle<Vec<Value>> {
    let listener = UnixListener::bind(socket).unwrap();
    let answer = answer.to_owned();
    thread::spawn(move || {
        (0..count)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                serde_json::from_str(&line).unwrap()
            })
            .collect()
    })
}

const ATTACHED: &str = concat!(
    r#"{"version":1,"outcome":{"attached":{"host_ifname":"moat0123456789a","host_mac":"06:6d:0a:01:00:05","#,
    r#""pod_mac":"02:6d:0a:01:00:05","mtu":1450,"addresses":[{"address":"10.1.0.5","gateway":"169.254.1.1"},"#,
    r#"{"address":"fd00:1::5","gateway":"fe80::1"}]}}}"#,
    "\n"
);

#[test]
fn add_answers_in_the_form_of_each_version() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = listen(&socket, 4, ATTACHED);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let run = pod("ADD", &config(version, &socket).to_string());
        assert!(run.success, "{}", run.stdout);
        let mut interfaces = json!([
            {"name": "moat0123456789a", "mac": "06:6d:0a:01:00:05"},
            {"name": "eth0", "mac": "02:6d:0a:01:00:05", "sandbox": "/run/netns/pod"},
        ]);
        let mut ips = json!([
            {"interface": 1, "address": "10.1.0.5/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00:1::5/128", "gateway": "fe80::1"},
        ]);
        if version == "1.1.0" {
            interfaces[0]["mtu"] = json!(1450);
            interfaces[1]["mtu"] = json!(1450);
        }
        if version.starts_with('0') {
            ips[0]["version"] = json!("4");
            ips[1]["version"] = json!("6");
        }
        let expected = json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": ips,
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {},
        });
        assert_eq!(run.json(), expected, "{version}");
        assert_eq!(run.stderr, "");
    }
    let asked = agent.join().unwrap();
    assert_eq!(
        asked[0],
        json!({"version": 1, "command": {"add": {
            "network": "moat", "container_id": "c0ffee", "ifname": "eth0", "netns": "/run/netns/pod",
            "pod_namespace": "default", "pod_name": "web-0", "pod_uid": "u-1",
        }}})
    );
}

#[test]
fn the_other_commands_print_nothing_when_all_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = listen(&socket, 4, "{\"version\":1,\"outcome\":\"done\"}\n");
    let mut stdin = config("1.1.0", &socket);
    stdin["prevResult"] = json!({
        "interfaces": [{"name": "moat0"}, {"name": "eth0", "sandbox": "/run/netns/pod"}],
        "ips": [{"interface": 1, "address": "10.1.0.5/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    stdin["cni.dev/valid-attachments"] = json!([{"containerID": "c0ffee", "ifname": "eth0"}]);
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let run = pod(command, &stdin.to_string());
        assert!(run.success, "{command}: {}", run.stdout);
        assert_eq!(run.stdout, "", "{command}");
    }
    let asked = agent.join().unwrap();
    assert_eq!(asked[1]["command"]["check"]["addresses"], json!(["10.1.0.5"]));
    assert_eq!(asked[1]["command"]["check"]["gateways"], json!(["169.254.1.1"]));
    assert_eq!(asked[2]["command"]["gc"]["valid"], stdin["cni.dev/valid-attachments"]);
}

#[test]
fn del_needs_no_namespace_and_no_pod() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = listen(&socket, 1, "{\"version\":1,\"outcome\":\"done\"}\n");
    let run = run(
        &[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "eth0")],
        &config("1.0.0", &socket).to_string(),
    );
    assert!(run.success, "{}", run.stdout);
    agent.join().unwrap();
}

#[test]
fn version_answers_whatever_is_on_stdin() {
    for (stdin, version) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("nonsense", "1.1.0")] {
        let run = run(&[("CNI_COMMAND", "VERSION")], stdin);
        assert!(run.success);
        assert_eq!(
            run.json(),
            json!({"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
    }
}

#[test]
fn an_agent_that_cannot_be_reached_means_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nobody.sock");
    let mut stdin = config("1.1.0", &socket);
    stdin["cni.dev/valid-attachments"] = json!([]);
    stdin["prevResult"] = json!({"ips": []});
    for command in ["CHECK", "GC"] {
        let error = pod(command, &stdin.to_string()).fails_with(11);
        assert_eq!(error["cniVersion"], "1.1.0");
    }
    let error = pod("ADD", &config("0.4.0", &socket).to_string()).fails_with(11);
    assert_eq!(error["cniVersion"], "0.4.0");
    assert!(error["msg"].as_str().unwrap().contains(socket.to_str().unwrap()));
    // STATUS asks whether ADD can be served, and has a code for no.
    pod("STATUS", &stdin.to_string()).fails_with(50);
}

/// A container can go at any time: with no agent, DEL succeeds and leaves a note, which an agent that is there makes needless.
#[test]
fn del_without_an_agent_leaves_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let stdin = config("1.1.0", &socket).to_string();
    let notes = note::folder(&socket);
    for _ in 0..2 {
        let run = pod("DEL", &stdin);
        assert!(run.success && run.stdout.is_empty(), "{}", run.stdout);
        let left = note::read_all(&notes).unwrap();
        let [(name, Ok(left))] = &left[..] else { panic!("{left:?}") };
        assert_eq!((left.container_id.as_str(), left.ifname.as_str(), left.link), ("c0ffee", "eth0", None));
        assert_eq!(left.boot, note::boot_id());
        assert_eq!(*name, left.host_ifname());
    }
    // An agent that goes away in mid-request is none; one that comes meanwhile is asked, and the note taken back.
    let agent = {
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(b"{\"version\":1,\"outcome\":\"done\"}\n").unwrap();
        })
    };
    assert!(pod("DEL", &stdin).success);
    agent.join().unwrap();
    assert!(note::read_all(&notes).unwrap().is_empty());
}

/// Where neither the link can be removed nor a note be left, the runtime shall try again. There is no link here, so it is
/// enough for success that there is none.
#[test]
fn del_succeeds_where_no_note_can_be_left_and_there_is_no_link() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("removed"), "in the way").unwrap();
    let run = pod("DEL", &config("1.1.0", &folder.path().join("agent.sock")).to_string());
    assert!(run.success && run.stderr.contains("no note can be left"), "{} {}", run.stdout, run.stderr);
}

#[test]
fn an_agent_that_dies_in_mid_answer_means_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = listen(&socket, 1, "{\"version\":1,\"outc");
    pod("ADD", &config("1.1.0", &socket).to_string()).fails_with(11);
    agent.join().unwrap();
}

#[test]
fn an_agent_of_another_release_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let newer = format!("{{\"version\":{},\"outcome\":{{\"something\":{{}}}}}}\n", protocol::VERSION + 1);
    let agent = listen(&socket, 1, &newer);
    let error = pod("ADD", &config("1.1.0", &socket).to_string()).fails_with(100);
    assert!(error["details"].as_str().unwrap().contains("the plugin is the older"), "{error}");
    assert_eq!(agent.join().unwrap()[0]["version"], protocol::OLDEST, "an older agent understands it");
}

#[test]
fn what_the_agent_refuses_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = listen(
        &socket,
        1,
        "{\"version\":1,\"outcome\":{\"refused\":{\"code\":11,\"msg\":\"no free address\",\"details\":\"wait\"}}}\n",
    );
    let error = pod("ADD", &config("1.0.0", &socket).to_string()).fails_with(11);
    assert_eq!(
        error,
        json!({"cniVersion": "1.0.0", "code": 11, "msg": "no free address", "details": "wait"})
    );
    agent.join().unwrap();
}

#[test]
fn each_mistake_of_a_runtime_has_its_code() {
    let good = config("1.1.0", Path::new("/nonexistent/agent.sock"));
    let stdin = good.to_string();
    run(&[("CNI_COMMAND", "FLY")], &stdin).fails_with(4);
    let error = run(&[("CNI_COMMAND", "ADD")], &stdin).fails_with(4);
    assert!(error["msg"].as_str().unwrap().contains("CNI_CONTAINERID"));
    let mut without_args = vec![("CNI_COMMAND", "ADD")];
    without_args.extend(&POD[..3]);
    let error = run(&without_args, &stdin).fails_with(4);
    assert!(error["msg"].as_str().unwrap().contains("K8S_POD_NAMESPACE"));
    pod("ADD", "{").fails_with(6);
    pod("ADD", &config("9.9.9", Path::new("/x")).to_string()).fails_with(1);
    // Commands that came later than the version that is asked for.
    pod("CHECK", &config("0.3.1", Path::new("/x")).to_string()).fails_with(1);
    pod("GC", &config("1.0.0", Path::new("/x")).to_string()).fails_with(1);
    pod("STATUS", &config("1.0.0", Path::new("/x")).to_string()).fails_with(1);
    // No previous result for CHECK, one for ADD.
    pod("CHECK", &stdin).fails_with(7);
    let mut chained = good.clone();
    chained["prevResult"] = json!({"cniVersion": "1.1.0", "ips": []});
    pod("ADD", &chained.to_string()).fails_with(7);
    // Without a list of what is valid nothing is removed, and nobody asked.
    let run = pod("GC", &stdin);
    assert!(
        run.success && run.stdout.is_empty() && run.stderr.contains("nothing is removed"),
        "{}",
        run.stdout
    );
    let mut broken = good.clone();
    broken["cni.dev/valid-attachments"] = json!("all");
    pod("GC", &broken.to_string()).fails_with(6);
    let mut masquerade = good;
    masquerade["ipMasq"] = json!(true);
    let error = pod("ADD", &masquerade.to_string()).fails_with(2);
    assert!(error["msg"].as_str().unwrap().contains("ipMasq"));
}

#[test]
fn by_hand_it_says_what_it_is() {
    let run = run(&[], "");
    assert_eq!(run.stdout, "");
    assert!(
        run.stderr.contains("CNI plugin of moat") && run.stderr.contains("/opt/cni/bin"),
        "{}",
        run.stderr
    );
}
