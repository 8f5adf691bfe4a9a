//! From the API server's answer until packets follow the policy.
//!
//! ```text
//!   client (node1) ──a packet every half millisecond──▶ server (node2)
//!   POST the policy ──201──▶ the last packet that arrives         deny
//!   DELETE it       ──200──▶ the first packet that arrives        allow
//! ```
//!
//! A figure is the time from when the whole answer was there until the sending of that packet had returned: 0 where that was before.
//! Packets between namespaces are mostly judged inside send(2); a packet every half millisecond is how finely it can be seen.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::figures;
use crate::suites::{Pod, Stage, pod};

const PERIOD: Duration = Duration::from_micros(500);
/// Nothing arrives for so long: it is denied.
const QUIET: Duration = Duration::from_millis(60);
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// Two, so that no new flow has the ports of one that conntrack remembers: it forgets after 30 s, and these last for 50.
const PORTS: [u16; 2] = [7000, 7001];
const SOURCE_PORTS: usize = 50_000;

/// Denies and allows so many times each, for new flows and for one that is there.
pub(super) fn run(stage: &Stage, trials: usize) -> Result<()> {
    let pods = stage.start_mute(&[pod("server", "node2", &[]), pod("client", "node1", &[])])?;
    let [server, client] = &pods[..] else { bail!("two pods were started") };
    println!(
        "{trials} policies made and {trials} removed, a packet every {PERIOD:?}; to reach: p50 3 ms, p99 20 ms"
    );
    figures::head("API server's answer to packet, milliseconds");
    for (flows, name) in [(Flows::New, "new flows"), (Flows::Established, "an established flow")] {
        let [mut deny, mut allow] = measure(stage, server, client, flows, trials)?;
        figures::row(&format!("deny, {name}"), &mut deny);
        figures::row(&format!("allow after deny, {name}"), &mut allow);
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flows {
    New,
    Established,
}

/// What the ends share. Times are nanoseconds since the start.
struct Clock {
    start: Instant,
    arrived: AtomicU64,
    stop: AtomicBool,
}

impl Clock {
    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A change of policy: when it was sent, and when the answer was there.
struct Change {
    begun: u64,
    answered: u64,
}

fn measure(
    stage: &Stage,
    server: &Pod,
    client: &Pod,
    flows: Flows,
    trials: usize,
) -> Result<[Vec<Duration>; 2]> {
    let clock = Clock { start: Instant::now(), arrived: AtomicU64::new(0), stop: AtomicBool::new(false) };
    let to = server.addresses[0];
    let sockets = server.network.run(|| {
        let open = |port| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((to, port))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        };
        PORTS.into_iter().map(open).collect::<Result<Vec<_>>>()
    })?;
    let (changes, sent, arrived) = thread::scope(|scope| {
        let receivers: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(|| receive(socket, &clock))).collect();
        let sender = scope.spawn(|| client.network.run(|| send(client.addresses[0], to, flows, &clock)));
        let changes = change(stage, &clock, trials);
        clock.stop.store(true, Ordering::Relaxed);
        let mut arrived = Vec::new();
        for receiver in receivers {
            arrived.extend(receiver.join().unwrap_or_default());
        }
        // Where nobody sent, nothing can have arrived: that is told first.
        let sent = sender.join().unwrap_or_else(|_| bail!("the sending thread panicked"))?;
        anyhow::Ok((changes?, sent, arrived))
    })?;
    Ok(judge(&changes, &sent, &arrived))
}

/// Denies and allows by turns.
fn change(stage: &Stage, clock: &Clock, trials: usize) -> Result<Vec<Change>> {
    let until = |what: &str, there: &dyn Fn() -> bool| stage.field.until(what, PATIENCE, || Ok(there()));
    let arrived = || clock.arrived.load(Ordering::Relaxed);
    until("the first packet arrives", &|| arrived() > 0)?;
    let mut changes = Vec::new();
    for trial in 0..2 * trials {
        // Anywhere between two packets, and between what else happens regularly.
        thread::sleep(QUIET + Duration::from_micros((trial as u64 * 617) % 3_000));
        let deny = trial % 2 == 0;
        let begun = clock.now();
        let answered = if deny {
            let spec =
                json!({ "podSelector": { "matchLabels": { "pod": "server" } }, "policyTypes": ["Ingress"] });
            stage.policy("deny", spec)?.at
        } else {
            stage.remove_policy("deny")?.at
        };
        let answered = clock.at(answered);
        changes.push(Change { begun, answered });
        let quiet = u64::try_from(QUIET.as_nanos())?;
        if deny {
            until("packets are denied", &|| clock.now() > arrived().max(answered) + quiet)?;
        } else {
            until("packets are allowed", &|| arrived() > answered)?;
        }
    }
    thread::sleep(QUIET);
    Ok(changes)
}

/// The time of each deny, and of each allow. `sent`: when the sending of each packet had returned; `arrived`: the numbers of those
/// that did.
fn judge(changes: &[Change], sent: &[u64], arrived: &[u64]) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let number = |packet: &u64| sent.get(usize::try_from(*packet).ok()?).copied();
    let mut through: Vec<u64> = arrived.iter().filter_map(number).collect();
    through.sort_unstable();
    for (trial, change) in changes.iter().enumerate() {
        let next = changes.get(trial + 1).map_or(u64::MAX, |next| next.begun);
        let mut seen = through.iter().filter(|at| (change.begun..next).contains(*at));
        let at = if trial % 2 == 0 { seen.next_back() } else { seen.next() };
        let took = at.map_or(0, |at| at.saturating_sub(change.answered));
        times[trial % 2].push(Duration::from_nanos(took));
    }
    times
}

fn receive(socket: &UdpSocket, clock: &Clock) -> Vec<u64> {
    let mut arrived = Vec::new();
    while !clock.stop.load(Ordering::Relaxed) {
        let mut packet = [0; 8];
        // Nothing for a while, or interrupted: look whether it is over.
        let Ok((_, from)) = socket.recv_from(&mut packet) else { continue };
        clock.arrived.store(clock.now(), Ordering::Relaxed);
        // A flow that was answered is established.
        if arrived.len() < 10 {
            let _ = socket.send_to(b"answer", from);
        }
        arrived.push(u64::from_ne_bytes(packet));
    }
    arrived
}

fn send(from: IpAddr, to: IpAddr, flows: Flows, clock: &Clock) -> Result<Vec<u64>> {
    let open = |number: usize| {
        let port = 10_000 + u16::try_from(number % SOURCE_PORTS).unwrap_or_default();
        UdpSocket::bind((from, port))
    };
    let mut socket: Option<UdpSocket> = None;
    let mut sent = Vec::new();
    let mut next = Instant::now();
    while !clock.stop.load(Ordering::Relaxed) {
        let number = sent.len();
        let mut port = PORTS[0];
        if flows == Flows::New {
            socket = None;
            port = PORTS[number / SOURCE_PORTS % PORTS.len()];
        }
        let socket = match &socket {
            Some(socket) => socket,
            None => socket.insert(open(number)?),
        };
        // An earlier answer may be told as an error.
        let _ = socket.send_to(&(number as u64).to_ne_bytes(), SocketAddr::new(to, port));
        sent.push(clock.now());
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deny_lasts_until_the_last_packet_and_an_allow_until_the_first() {
        let changes = [Change { begun: 10, answered: 12 }, Change { begun: 40, answered: 42 }];
        let sent = [1, 5, 15, 20, 30, 45, 50, 60];
        let [deny, allow] = judge(&changes, &sent, &[0, 1, 2, 3, 6, 7]);
        assert_eq!(deny, [Duration::from_nanos(8)]);
        assert_eq!(allow, [Duration::from_nanos(8)]);
        let [deny, _] = judge(&changes, &sent, &[0, 1, 6]);
        assert_eq!(deny, [Duration::ZERO]);
    }
}
