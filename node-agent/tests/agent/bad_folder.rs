//! A folder that turns bad changes nothing, whatever is wrong with it; a start with a bad one lets nothing new in.

use std::fs;

use crate::netns::{Namespace, in_world};
use crate::packets::Server;
use crate::world::{Pod, World};

/// Lets one pod in.
fn policy(name: &str, peer: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  podSelector: \
         {{matchLabels: {{app: server}}}}\n  ingress:\n  - from:\n    - podSelector: {{matchLabels: {{app: {peer}}}}}\n"
    )
}

/// Everybody may talk to the server over this rule, if it came into force.
fn rule(fields: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: open}}\nspec:\n  podSelector: {{}}\n  \
         ingress:\n  - {fields}\n"
    )
}

const OPEN: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: open}\nspec:\n  podSelector: {}\n";

/// What somebody does to the file, and what of it is told: where, and what is wrong.
fn ways_to_be_bad() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let text = |text: String| text.into_bytes();
    let deep = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<String>();
    vec![
        ("an unknown field", text(rule("form: []")), &["(line 7)", "spec.ingress[0].form"]),
        (
            "a bad CIDR",
            text(rule("from: [{ipBlock: {cidr: 10.0.0.1/8}}]")),
            &["(line 7)", "spec.ingress[0].from[0].ipBlock.cidr"],
        ),
        (
            "an except outside of its CIDR",
            text(rule("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]")),
            &["(line 7)", "spec.ingress[0].from[0].ipBlock.except[0]"],
        ),
        (
            "endPort below port",
            text(rule("ports: [{port: 80, endPort: 79}]")),
            &["(line 7)", "spec.ingress[0].ports[0].endPort"],
        ),
        (
            "endPort with a named port",
            text(rule("ports: [{port: http, endPort: 90}]")),
            &["(line 7)", "spec.ingress[0].ports[0].endPort"],
        ),
        (
            "a protocol in lower case",
            text(rule("ports: [{port: 80, protocol: tcp}]")),
            &["(line 7)", "spec.ingress[0].ports[0].protocol"],
        ),
        ("port 0", text(rule("ports: [{port: 0}]")), &["(line 7)", "spec.ingress[0].ports[0].port"]),
        ("port 70000", text(rule("ports: [{port: 70000}]")), &["(line 7)", "spec.ingress[0].ports[0].port"]),
        (
            "an unknown operator",
            text(OPEN.replace("{}", "{matchExpressions: [{key: a, operator: Is, values: [b]}]}")),
            &["(line 5)", "spec.podSelector.matchExpressions[0].operator"],
        ),
        (
            "In without values",
            text(OPEN.replace("{}", "{matchExpressions: [{key: a, operator: In}]}")),
            &["(line 5)", "spec.podSelector.matchExpressions[0].values"],
        ),
        ("a key twice", text(format!("{OPEN}  podSelector: {{}}\n")), &["(line 6)", "spec.podSelector"]),
        (
            "the same object twice",
            text(format!("{OPEN}---\n{OPEN}")),
            &["(line 7)", "NetworkPolicy default/open"],
        ),
        ("an object of another file", text(policy("server", "stranger")), &["(line 1)", "policy.yaml"]),
        ("no YAML", text(rule("{[}")), &["(line 7)"]),
        ("half a document", OPEN.as_bytes()[..OPEN.len() - 20].to_vec(), &["(line "]),
        ("nothing", Vec::new(), &["empty"]),
        ("binary", b"\x7fELF\x02\x01\x01\0\0\0".to_vec(), &["byte 7 is NUL"]),
        ("no UTF-8", b"apiVersion: \xff\xfe".to_vec(), &["byte 12 is not UTF-8"]),
        ("very deep", text(deep), &["nested deeper than 100 levels"]),
    ]
}

/// A node whose server lets the client in and nobody else.
fn node() -> World {
    let world = World::new();
    for name in ["server", "client", "stranger", "late"] {
        world.write(&format!("{name}.yaml"), &World::pod_text(name));
    }
    world.write("policy.yaml", &policy("server", "client"));
    world
}

fn pods(world: &World) -> [Pod; 3] {
    ["server", "client", "stranger"].map(|name| world.add(name))
}

#[track_caller]
fn as_before(what: &str, server: &Server, client: &Pod, stranger: &Pod) {
    assert!(server.answers(client), "{what}: what was allowed is denied");
    assert!(!server.answers(stranger), "{what}: what was denied is allowed");
}

fn applied(world: &World) -> Option<String> {
    world.readyz()?.body.lines().find_map(|line| Some(line.strip_prefix("applied ")?.to_owned()))
}

#[test]
fn a_folder_that_turns_bad_changes_nothing_until_it_is_mended() {
    in_world(|| {
        let mut world = node();
        world.start_ready();
        let [server_pod, client, stranger] = pods(&world);
        let server = Server::start(&server_pod);
        as_before("at first", &server, &client, &stranger);
        let good = applied(&world).unwrap();
        let told = |world: &World, words: &[&str]| {
            world.readyz().is_some_and(|ready| {
                let named =
                    |line: &str| line.starts_with("error ") && words.iter().all(|word| line.contains(word));
                ready.status == 503 && ready.body.lines().any(named)
            })
        };
        for (what, bytes, words) in ways_to_be_bad() {
            world.write_bytes("bad.yaml", &bytes);
            let words = [&["bad.yaml"], words].concat();
            world.until(what, |world| told(world, &words));
            assert_eq!(applied(&world).as_ref(), Some(&good), "{what}");
            let log = world.log();
            let line = log.lines().rev().find(|line| words.iter().all(|word| line.contains(word)));
            assert!(
                line.is_some_and(|line| line.contains("ERROR")),
                "{what}: {words:?} not in the log: {log}"
            );
            // A good change beside it waits.
            world.write("other.yaml", &policy("other", "stranger"));
            as_before(what, &server, &client, &stranger);
            world.remove("other.yaml");
            world.remove("bad.yaml");
            let mended = |world: &World| world.readyz().is_some_and(|r| r.status == 200);
            world.until("mended", mended);
            assert_eq!(applied(&world).as_ref(), Some(&good), "{what}");
        }

        let large = fs::File::create(world.manifests().join("bad.yaml")).unwrap();
        large.set_len((64 << 20) + 1).unwrap();
        drop(large);
        world.until("very large", |world| told(world, &["bad.yaml", "longer than 64 MiB"]));
        as_before("very large", &server, &client, &stranger);
        world.remove("bad.yaml");

        // Half written by somebody who takes a while: first nothing of it counts, then all of it.
        world.write_bytes("bad.yaml", b"apiVersion: networking.k8s.io/v1\nkind: NetworkPol");
        world.until("half written", |world| told(world, &["bad.yaml"]));
        as_before("half written", &server, &client, &stranger);
        world.write("bad.yaml", &policy("other", "stranger"));
        world.until("the other half", |_| server.answers(&stranger));
        world.remove("bad.yaml");
        world.until("mended", |_| !server.answers(&stranger));

        let away = world.manifests().with_extension("away");
        fs::rename(world.manifests(), &away).unwrap();
        world.until("the folder gone", |world| told(world, &["/manifests: No such file or directory"]));
        as_before("the folder gone", &server, &client, &stranger);
        fs::rename(&away, world.manifests()).unwrap();
        world.until("the folder is back", |world| applied(world).as_ref() == Some(&good));
        world.until("ready", |world| world.readyz().is_some_and(|r| r.status == 200));
        as_before("at last", &server, &client, &stranger);
    });
}

#[test]
fn a_start_with_a_bad_folder_keeps_what_the_kernel_holds_and_lets_nothing_new_in() {
    in_world(|| {
        let mut world = node();
        world.start_ready();
        let [server_pod, client, stranger] = pods(&world);
        let server = Server::start(&server_pod);
        as_before("with the first agent", &server, &client, &stranger);
        world.kill();

        world.write("bad.yaml", &rule("form: []"));
        world.write("policy.yaml", &policy("server", "stranger"));
        world.start();
        world.until("it says why it is not ready", |world| {
            world.readyz().is_some_and(|r| {
                r.status == 503
                    && r.body.contains("nothing is in force yet")
                    && r.body.contains("spec.ingress[0].form")
            })
        });
        as_before("with a bad folder", &server, &client, &stranger);
        let late = Namespace::new();
        assert!(!world.plugin().run("ADD", "late", &late.path).success, "a new pod waits");
        assert_eq!(late.sh("ip -o link show type veth").trim(), "");
        as_before("after a failed ADD", &server, &client, &stranger);

        world.remove("bad.yaml");
        world.until("ready", |world| world.readyz().is_some_and(|r| r.status == 200));
        assert!(!server.answers(&client) && server.answers(&stranger));
        world.add("late");
    });
}
