//! A pod that fills its node's connection tracking table, with an accomplice who answers.
//!
//! The table is really filled: how many entries there may be is one number for all network namespaces, so making it small would
//! be felt by everybody on the machine, while entries are counted for each namespace by itself. So a full table is felt in
//! this lab's node alone. What is felt by all is the memory, and how long it takes to walk the kernel's table, for some seconds.
//!
//! Behind these rows go marks as behind all others; on the node whose table is full they are not tracked, so they need no entry.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_policies::Family;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::cast::{ALLOWED, Cast, DENIED, Place, Sender, Who};
use super::frame::{Ends, Eth, Ip, UDP};
use super::report::HostileRow;
use super::rows::Row;
use super::run::{MARK_PORT, Stage};
use super::wire::Writer;
use crate::error::{LabError, Trying as _};
use crate::fabric::nft;
use crate::lab::{Lab, Tell};
use crate::probe::payload;
use crate::space::Space;

const GROUP: &str = "a full connection table";
/// Labels of these rows: no other row has them.
const FIRST_LABEL: u16 = 0x7a00;
/// A table of more entries than this is not filled.
const MOST: u32 = 300_000;
/// The accomplice's first port, which the flood's flows go to.
const PORT: u16 = 20_000;
/// Source ports from 1 on, of each of the accomplice's ports.
const PORTS_EACH: u32 = 60_000;
/// A conversation of datagrams counts as one, which makes room for nobody, when it goes on after two seconds.
const CONVERSATION: Duration = Duration::from_secs(2);
/// The agent has counted by then.
const PATIENCE: Duration = Duration::from_secs(30);
/// Goes through the rows about a full table; a note where there are none.
pub(super) async fn rows(
    stage: &mut Stage,
    lab: &Lab,
    only: impl Fn(&str, &str) -> bool,
    tell: Tell<'_>,
) -> Result<(Vec<HostileRow>, Option<String>), LabError> {
    let families: Vec<Family> =
        Family::ALL.into_iter().filter(|f| !stage.cast.pod(Who::Near).address(*f).is_unspecified()).collect();
    let Some(&family) = families.first() else { return Ok((Vec::new(), None)) };
    let mut table = Table { next: FIRST_LABEL, rows: Vec::new() };
    for family in &families {
        table.open_to_all(&stage.cast, *family);
    }
    let unanswered = table.take();
    for family in &families {
        table.full_of_conversations(&stage.cast, *family);
    }
    let answered = table.take();
    let wanted = |row: &Row| only(row.group, &row.name);
    if !unanswered.iter().chain(&answered).any(wanted) && !only(GROUP, NAMED) {
        return Ok((Vec::new(), None));
    }
    let node = stage.nodes[0].clone();
    let limit = match ready(&node).await {
        Ok(limit) if limit <= MOST && limit > 0 => limit,
        Ok(limit) => {
            let note =
                format!("no row about {GROUP}: there may be {limit} entries, and up to {MOST} are filled");
            return Ok((Vec::new(), Some(note)));
        }
        Err(error) => return Ok((Vec::new(), Some(format!("no row about {GROUP}: {error}")))),
    };

    tell(&format!("{GROUP}: {limit} flows that nobody answers"));
    let reader = Reader::open(&node).await?;
    let flood = Flood::new(&stage.cast, family, limit);
    // What is open already and goes both ways is a conversation by the time the table is full.
    stage.talk(&answered).await?;
    flood.ask(stage).await?;
    let asked = Instant::now();
    let mut done = Vec::new();
    for row in unanswered.iter().filter(|row| wanted(row)) {
        done.push(stage.perform(row).await?);
    }

    tell(&format!("{GROUP}: {limit} conversations"));
    flood.answer(stage).await?;
    // The kernel's own clock decides, which nothing tells of.
    tokio::time::sleep(CONVERSATION.saturating_sub(asked.elapsed())).await;
    stage.talk(&answered).await?;
    flood.ask(stage).await?;
    for row in answered.iter().filter(|row| wanted(row)) {
        let opened = Row { before: Vec::new(), ..row.clone() };
        done.push(stage.perform(&opened).await?);
    }
    if only(GROUP, NAMED) {
        done.push(named(lab, family, &node, &reader).await);
    }
    Ok((done, None))
}

impl Stage {
    /// Sends what is before these rows.
    async fn talk(&self, rows: &[Row]) -> Result<(), LabError> {
        for (from, frame) in rows.iter().flat_map(|row| &row.before) {
            self.send(*from, vec![frame.clone()]).await.map_err(LabError::Told)?;
        }
        Ok(())
    }
}

/// The row about who is named.
const NAMED: &str = "who fills it is named";

/// Has marks pass without an entry, and says how many entries there may be.
async fn ready(node: &Arc<Space>) -> Result<u32, LabError> {
    let rules = format!(
        "table inet lab-marks {{
            chain output {{ type filter hook output priority raw
                udp dport {MARK_PORT} notrack
            }}
            chain prerouting {{ type filter hook prerouting priority raw
                udp dport {MARK_PORT} notrack
            }}
        }}
        "
    );
    let loaded = node.run(async move { nft(&rules).await }).await.flatten();
    loaded.trying(|| "cannot exempt marks from tracking".into())?;
    let read = async {
        let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?;
        text.trim().parse().map_err(io::Error::other)
    };
    node.run(read).await.flatten().trying(|| "cannot read how many entries there may be".into())
}

/// Rows that are being written.
struct Table {
    next: u16,
    rows: Vec<Row>,
}

impl Table {
    fn take(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows)
    }

    /// While the table is full of what nobody answered, the kernel lets go of one of them for each new one.
    fn open_to_all(&mut self, cast: &Cast, family: Family) {
        let mut to = |from, to: Who, port, expected: &[Place], name: &str| {
            // A few, since the kernel looks for one to let go of in a few places only.
            self.row(cast, family, (from, to, port), 3, expected, format!("flows without answers; {name}"));
        };
        to(Who::Denied, Who::Near, ALLOWED, &[], "denied to near");
        to(Who::Limited, Who::Near, DENIED, &[], "limited to near, another port");
        to(Who::Limited, Who::Near, ALLOWED, &[Place::Pod(Who::Near)], "limited to near, a new flow");
        let far = [Place::Pod(Who::Far), Place::Wire(0)];
        to(Who::Limited, Who::Far, ALLOWED, &far, "limited to far, a new flow");
    }

    /// While it is full of conversations, something new has a place only where one becomes free just then: that is luck, and no row
    /// is about it.
    fn full_of_conversations(&mut self, cast: &Cast, family: Family) {
        let mut to = |from, to: Who, port, expected: &[Place], name: &str| {
            self.row(cast, family, (from, to, port), 1, expected, format!("conversations; {name}"));
        };
        to(Who::Denied, Who::Near, ALLOWED, &[], "denied to near");
        to(Who::Limited, Who::Near, DENIED, &[], "limited to near, another port");
        to(Who::Limited, Who::Near, ALLOWED, &[Place::Pod(Who::Near)], "limited to near, as before");
        let from = self.next - 1;
        // As it was opened before: the same ports.
        let ports = (from, ALLOWED);
        let (limited, near) = (cast.pod(Who::Limited), cast.pod(Who::Near));
        let frame = |from: Who, seats: [&super::cast::Seat; 2], ports: (u16, u16)| {
            let ends = Ends::new(seats[0].address(family), seats[1].address(family));
            let datagram = ends.udp(ports, b"open");
            (
                Sender::Pod(from),
                Eth::new(seats[0].mac, seats[0].next).ip(&Ip::new(ends, 0).packet(UDP, &datagram)),
            )
        };
        if let Some(row) = self.rows.last_mut() {
            row.before.push(frame(Who::Limited, [limited, near], ports));
            row.before.push(frame(Who::Near, [near, limited], (ports.1, ports.0)));
        }
    }

    /// A row of so many flows; the first has the label for its port.
    fn row(
        &mut self,
        cast: &Cast,
        family: Family,
        (from, to, port): (Who, Who, u16),
        flows: u16,
        expected: &[Place],
        name: String,
    ) {
        let label = self.next;
        let seat = cast.pod(from);
        let ends = Ends::new(seat.address(family), cast.pod(to).address(family));
        let frames = (0..flows).map(|n| {
            let datagram = ends.udp((label + n * 0x100, port), &payload(label.into()));
            Eth::new(seat.mac, seat.next).ip(&Ip::new(ends, label).packet(UDP, &datagram))
        });
        self.rows.push(Row {
            group: GROUP,
            name,
            family,
            from: Sender::Pod(from),
            label,
            before: Vec::new(),
            frames: frames.collect(),
            expected: expected.iter().copied().collect::<BTreeSet<_>>(),
        });
        self.next += 1;
    }
}

/// As many flows between two pods as there may be entries.
struct Flood {
    question: Template,
    answer: Template,
    flows: u32,
}

impl Flood {
    fn new(cast: &Cast, family: Family, flows: u32) -> Self {
        let (open, accomplice) = (cast.pod(Who::Open), cast.pod(Who::Accomplice));
        let template = |from: &super::cast::Seat, to: &super::cast::Seat| {
            let ends = Ends::new(from.address(family), to.address(family));
            // What the ports add to the checksum, the payload takes off again.
            let datagram = ends.udp((0, 0), &[0xff; 4]);
            let header = if family == Family::V4 { 20 } else { 40 };
            Template {
                frame: Eth::new(from.mac, from.next).ip(&Ip::new(ends, 0).packet(UDP, &datagram)),
                ports: 14 + header,
            }
        };
        Self { question: template(open, accomplice), answer: template(accomplice, open), flows }
    }

    /// Sends a packet of each flow.
    async fn ask(&self, stage: &Stage) -> Result<(), LabError> {
        self.send(stage, Who::Open, &self.question, |ports| ports).await
    }

    /// Answers each.
    async fn answer(&self, stage: &Stage) -> Result<(), LabError> {
        self.send(stage, Who::Accomplice, &self.answer, |(from, to)| (to, from)).await
    }

    async fn send(
        &self,
        stage: &Stage,
        who: Who,
        template: &Template,
        ports: fn((u16, u16)) -> (u16, u16),
    ) -> Result<(), LabError> {
        let Some((space, writer)) = stage.writers.get(&Sender::Pod(who)) else { return Ok(()) };
        let (writer, template, flows) = (writer.clone(), template.clone(), self.flows);
        stage.sights.look_away(true);
        let sent = space.run(async move { template.send(&writer, flows, ports) }).await;
        stage.watches.iter().for_each(|watch| watch.catch_up());
        stage.sights.look_away(false);
        sent.flatten().trying(|| format!("cannot send from {}", who.name()))
    }
}

/// A frame whose ports change and nothing else.
#[derive(Clone)]
struct Template {
    frame: Vec<u8>,
    /// Where its ports are.
    ports: usize,
}

impl Template {
    fn send(mut self, writer: &Writer, flows: u32, ports: fn((u16, u16)) -> (u16, u16)) -> io::Result<()> {
        for flow in 0..flows {
            // Both fit: a table of more entries is not filled.
            let (from, to) = ports(((flow % PORTS_EACH) as u16 + 1, PORT + (flow / PORTS_EACH) as u16));
            let at = self.ports;
            self.frame[at..at + 2].copy_from_slice(&from.to_be_bytes());
            self.frame[at + 2..at + 4].copy_from_slice(&to.to_be_bytes());
            self.frame[at + 8..at + 10].copy_from_slice(&(!from).to_be_bytes());
            self.frame[at + 10..at + 12].copy_from_slice(&(!to).to_be_bytes());
            writer.send(std::slice::from_ref(&self.frame))?;
        }
        Ok(())
    }
}

/// Who fills the table is in the node's log, and among its agent's numbers.
async fn named(lab: &Lab, family: Family, node: &Arc<Space>, reader: &Reader) -> HostileRow {
    let pod = format!("{}/{}", super::cast::NAMESPACE, Who::Open.name());
    let number = format!(
        "conntrack_pod_entries{{namespace=\"{}\",pod=\"{}\"}}",
        super::cast::NAMESPACE,
        Who::Open.name()
    );
    let log = lab.rooms.nodes().first().map(|n| lab.rooms.agent_of(&n.name).0.log());
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 2 && Instant::now() < deadline {
        let text = log.as_ref().and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
        let told =
            |line: &str| line.contains("connection tracking table is nearly full") && line.contains(&pod);
        if text.lines().any(told) {
            seen.insert("log");
        }
        // To ask is what makes the agent look, too.
        if reader.read(node).await.is_ok_and(|numbers| numbers.contains(&number)) {
            seen.insert("metric");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let words = |words: &BTreeSet<&str>| words.iter().map(|word| (*word).to_owned()).collect();
    HostileRow {
        group: GROUP.into(),
        name: NAMED.into(),
        family: family.to_string(),
        from: Who::Open.name().into(),
        expected: words(&["log", "metric"].into()),
        seen: words(&seen),
    }
}

/// A connection with a node's agent that is open all the time, as who reads its numbers now and then has one: a new one would
/// need an entry, too.
struct Reader(Arc<Mutex<BufReader<TcpStream>>>);

impl Reader {
    async fn open(node: &Arc<Space>) -> Result<Self, LabError> {
        let stream = node.run(TcpStream::connect(crate::agent::LISTEN)).await.flatten();
        let stream = stream.trying(|| "cannot ask the first node's agent".into())?;
        Ok(Self(Arc::new(Mutex::new(BufReader::new(stream)))))
    }

    /// The agent's numbers.
    async fn read(&self, node: &Arc<Space>) -> io::Result<String> {
        let stream = self.0.clone();
        let answer = async move {
            let mut stream = stream.lock().await;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                if stream.read_line(&mut line).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().map_err(io::Error::other)?;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            Ok(String::from_utf8_lossy(&body).into_owned())
        };
        node.run(timeout(PATIENCE, answer)).await??
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_port_leaves_the_checksum_right() {
        let ends = Ends::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let of = |from: u16, to: u16| {
            let payload = [(!from).to_be_bytes(), (!to).to_be_bytes()].concat();
            ends.udp((from, to), &payload)[6..8].to_vec()
        };
        assert_eq!(of(0, 0), of(1, 20_000));
        assert_eq!(of(0, 0), of(60_000, 20_004));
    }
}
