//! Agents are killed while connections run, policies change and somebody else is at the tables.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::interrupted::uninterrupted;
use crate::node::{Node, until};
use crate::space::privileged;

const ROUNDS: usize = 100;

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// `b` answers on port 80 whatever comes, and remembers from whom.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<SocketAddr>>,
}

fn bound(node: &Node, pod: &str, port: u16) -> UdpSocket {
    let at = SocketAddr::new(node.pods[pod].address, port);
    node.pods[pod].space.run(move || UdpSocket::bind(at).expect("a socket"))
}

impl Echo {
    fn start(node: &Node) -> Self {
        let socket = bound(node, "b", 80);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 8]);
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if !seen.contains(&from) {
                    seen.push(from);
                }
                let _ = socket.send_to(&buffer[..length], from);
            }
            seen
        });
        Self { stop, thread }
    }
}

/// Asks b again and again, by one connection and by a new one each time.
fn ask(
    node: &Node,
    pod: &str,
    expected: bool,
    stop: &Arc<AtomicBool>,
    asked: &Arc<AtomicU32>,
) -> JoinHandle<u32> {
    let (stop, asked) = (stop.clone(), asked.clone());
    let (address, to) = (node.pods[pod].address, SocketAddr::new(node.pods["b"].address, 80));
    let patience = Duration::from_millis(if expected { 5_000 } else { 1 });
    let old = bound(node, pod, 0);
    node.pods[pod].space.run(move || {
        std::thread::spawn(move || {
            let mut wrong = 0;
            let mut buffer = [0; 8];
            while !stop.load(Ordering::Relaxed) {
                let new = UdpSocket::bind(SocketAddr::new(address, 0)).expect("a socket");
                for socket in [&old, &new] {
                    socket.set_read_timeout(Some(patience)).expect("an option");
                    let _ = socket.send_to(b"x", to);
                    wrong += u32::from(uninterrupted(|| socket.recv(&mut buffer)).is_ok() != expected);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            wrong
        })
    })
}

/// Whether b answers.
fn reaches(node: &Node, pod: &str) -> bool {
    let socket = bound(node, pod, 0);
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("an option");
    let mut buffer = [0; 8];
    let to = SocketAddr::new(node.pods["b"].address, 80);
    socket.send_to(b"x", to).is_ok() && uninterrupted(|| socket.recv(&mut buffer)).is_ok()
}

/// What somebody else may try while no agent lives. The first is carried out, without effect; the others are refused.
const TRIED: [&str; 9] = [
    "nft flush ruleset",
    "nft delete table inet moat",
    "nft delete table netdev moat",
    "nft insert rule inet moat forward accept",
    "nft flush chain inet moat forward",
    "nft flush set inet moat to_pod",
    "nft add element inet moat local4 { 10.0.0.77 }",
    "nft add chain inet moat backdoor { type filter hook forward priority -10 ; policy accept ; }",
    "nft flush table inet moat",
];

#[test]
fn killed_a_hundred_times_it_lets_nothing_wrong_through_and_nobody_else_at_its_tables() {
    privileged(|| {
        let allow = |extra: &str| {
            policy(
                "b",
                &format!(
                    "{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{from:
                [{{podSelector: {{matchLabels: {{app: a}}}}}}{extra}]}}]}}"
                ),
            )
        };
        let d = ", {podSelector: {matchLabels: {app: d}}}";
        let mut node = Node::new(&["a", "b", "c", "d"], &allow(""), &[]);
        let echo = Echo::start(&node);
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let good = ask(&node, "a", true, &stop, &asked);
        let bad = ask(&node, "c", false, &stop, &asked);
        until("traffic", || asked.load(Ordering::Relaxed) > 10);
        let guards = node.guards();
        assert_eq!(guards.len(), 1);
        for round in 0..ROUNDS {
            node.kill();
            // Only now: until it was killed, the agent may have had a look to end.
            let before = node.tables();
            for tried in TRIED {
                let (done, ..) = node.space.try_command(tried);
                assert_eq!(done, tried == "nft flush ruleset", "round {round}: {tried}");
            }
            assert_eq!(node.tables(), before, "round {round}");
            // What changes while no agent lives is in force when the next one serves.
            let allowed = round % 2 == 0;
            node.write("policies.yaml", &allow(if allowed { d } else { "" }));
            node.start();
            assert_eq!(reaches(&node, "d"), allowed, "round {round}");
        }
        assert_eq!(node.guards(), guards, "the same guard all the time");
        stop.store(true, Ordering::Relaxed);
        let wrong = (good.join().expect("ends"), bad.join().expect("ends"));
        echo.stop.store(true, Ordering::Relaxed);
        let seen = echo.thread.join().expect("ends");
        let c = node.pods["c"].address;
        assert_eq!(wrong, (0, 0), "allowed that broke, denied that was answered");
        assert!(seen.iter().all(|from| from.ip() != c), "nothing of c's came through");
        println!("{} questions in {ROUNDS} rounds", asked.load(Ordering::Relaxed));
    });
}
