//! Questions to a cluster that does not answer, or not as it should: what a person is told.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the tests of manifests use the rest")]
mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use common::moat_with;

/// A kubeconfig of a cluster at this address.
fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "{{apiVersion: v1, kind: Config, current-context: here, \
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{token: t}}}}], \
         contexts: [{{name: here, context: {{cluster: c, user: u, namespace: shop}}}}]}}"
    )
    .unwrap();
    file
}

/// What standard error says; the exit status is that of an error, and there is no answer.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let run = moat_with(arguments, "");
    assert_eq!((run.status, &*run.stdout), (2, ""), "{}", run.stderr);
    run.stderr
}

/// An API server that answers everything with one status.
fn server(code: u16, reason: &'static str, message: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let body = format!(
                "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\
                 \"message\":\"{message}\",\"reason\":\"{reason}\",\"code\":{code}}}"
            );
            let head = format!(
                "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    format!("http://{address}")
}

const QUESTIONS: [&[&str]; 4] = [
    &["reach", "web", "api", "--port", "80"],
    &["matrix", "--port", "80"],
    &["status"],
    &["drops", "--node", "node1"],
];

fn asked<'a>(question: &[&'a str], kubeconfig: &'a tempfile::NamedTempFile) -> Vec<&'a str> {
    let path = kubeconfig.path().to_str().unwrap();
    [question, &["--kubeconfig", path]].concat()
}

#[test]
fn without_anything_to_ask_one_is_told_what_there_could_be() {
    for question in [QUESTIONS[0], QUESTIONS[1]] {
        let said = refused(question);
        assert!(said.contains("give manifests with -f") && said.contains("--kubeconfig"), "{said}");
    }
    for question in [QUESTIONS[2], QUESTIONS[3]] {
        assert!(refused(question).contains("set KUBECONFIG, or name a file with --kubeconfig"));
    }
}

#[test]
fn a_kubeconfig_that_is_not_there_is_named() {
    for question in QUESTIONS {
        let said = refused(&[question, &["--kubeconfig", "/no/such/file"]].concat());
        assert!(said.contains("/no/such/file"), "{said}");
    }
}

/// A file that was taken for a kubeconfig may be a key, and a kubeconfig with a mistake in it has a token.
#[test]
fn what_is_in_a_file_that_is_no_kubeconfig_is_not_shown() {
    for secret in ["-----BEGIN PRIVATE KEY-----\nMIGHAgEA", "users: [{name: u, user: {token: MIGHAgEA"] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(secret.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        for question in QUESTIONS {
            let said = refused(&asked(question, &file));
            assert!(
                said.contains(path) && said.contains("is no kubeconfig") && !said.contains("MIGHAgEA"),
                "{said}"
            );
        }
        let by_environment = std::process::Command::new(env!("CARGO_BIN_EXE_moat"))
            .args(["status"])
            .env("KUBECONFIG", path)
            .output()
            .unwrap();
        let said = String::from_utf8(by_environment.stderr).unwrap();
        assert!(
            said.contains("what KUBECONFIG names is no kubeconfig") && !said.contains("MIGHAgEA"),
            "{said}"
        );
    }
}

#[test]
fn a_context_that_is_not_there_is_named() {
    let file = kubeconfig("http://127.0.0.1:1");
    for question in QUESTIONS {
        let said = refused(&[&asked(question, &file)[..], &["--context", "nosuch"]].concat());
        assert!(said.contains("has no context \"nosuch\"") && said.contains("get-contexts"), "{said}");
    }
}

#[test]
fn who_cannot_reach_the_server_is_told_why() {
    let file = kubeconfig("http://127.0.0.1:1");
    for question in QUESTIONS {
        let said = refused(&asked(question, &file));
        assert!(said.contains("cannot reach the API server") && said.contains("onnection refused"), "{said}");
    }
}

#[test]
fn who_may_not_is_told_which_right_is_missing() {
    let message = "pods is forbidden: User 'eve' cannot list resource 'pods' at the cluster scope";
    let file = kubeconfig(&server(403, "Forbidden", message));
    for question in QUESTIONS {
        let said = refused(&asked(question, &file));
        assert!(said.contains(message) && said.contains("moat-viewer"), "{said}");
    }
}

#[test]
fn who_is_not_known_is_told_to_log_in() {
    let file = kubeconfig(&server(401, "Unauthorized", "Unauthorized"));
    for question in QUESTIONS {
        assert!(refused(&asked(question, &file)).contains("log in again"));
    }
}

#[test]
fn manifests_and_a_cluster_are_not_asked_at_once() {
    let said = refused(&["matrix", "--port", "80", "-f", "shop", "--context", "here"]);
    assert!(said.contains("cannot be used with"), "{said}");
}
