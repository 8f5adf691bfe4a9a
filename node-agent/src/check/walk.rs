//! Walks a table with a packet, as the kernel would.

use std::net::IpAddr;

use super::ruleset::{Datum, Field, FieldKind, Right, Ruleset, Statement, Verdict};

/// The kernel refuses rulesets whose jumps go deeper.
const JUMP_DEPTH: usize = 16;

/// The first packet of a connection, or the answer to it, as a hook sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The interface it came in by.
    pub iif: String,
    /// The hardware address that it came from.
    pub ether: [u8; 6],
    /// The interface it is about to leave by; empty in the input hook.
    pub oif: String,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its IP protocol.
    pub protocol: u8,
    /// What stands where the port does that the connection goes to; `None` where the payload is too short to hold one.
    pub port: Option<u16>,
    /// Whether it is the answer: then that port is its source's.
    pub answer: bool,
}

impl Packet {
    /// The answer to this one. Its sender's hardware address is not known.
    pub(super) fn answer(&self) -> Packet {
        Packet {
            iif: self.oif.clone(),
            ether: [0; 6],
            oif: self.iif.clone(),
            source: self.destination,
            destination: self.source,
            answer: !self.answer,
            ..*self
        }
    }
}

/// What became of a packet, and the rules that did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it passed every base chain of the hook.
    pub accepted: bool,
    /// The chains it went through, in order.
    pub path: Vec<String>,
}

/// Why a table cannot be walked: it leads somewhere that is not there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WalkError {
    /// A rule leads to a chain that is not in the listing.
    #[error("a rule leads to the chain {0}, which is not in the listing")]
    NoChain(String),
    /// A rule names a set that is not in the listing.
    #[error("a rule names the set {0}, which is not in the listing")]
    NoSet(String),
    /// Jumps that come back to themselves.
    #[error("jumps go deeper than {JUMP_DEPTH} chains at {0}")]
    TooDeep(String),
}

/// Walks a packet through all base chains of a hook, in their order.
pub fn walk(ruleset: &Ruleset, hook: &str, packet: &Packet) -> Result<Outcome, WalkError> {
    let mut bases: Vec<_> = ruleset
        .chains
        .iter()
        .filter_map(|(name, chain)| {
            chain.base.as_ref().filter(|b| b.hook == hook).map(|b| (b.priority, name, b))
        })
        .collect();
    bases.sort_by_key(|(priority, name, _)| (*priority, *name));
    let mut outcome = Outcome { accepted: true, path: Vec::new() };
    for (_, name, base) in bases {
        let end = chain(ruleset, name, packet, 0, &mut outcome.path)?;
        let dropped = match end {
            End::Accept => false,
            End::Drop => true,
            End::Fell | End::Left => base.drops,
        };
        if dropped {
            outcome.accepted = false;
            break;
        }
    }
    Ok(outcome)
}

/// Walks a packet through one chain, which nothing need lead to just now. Accepted: it is not dropped.
pub(super) fn walk_from(ruleset: &Ruleset, name: &str, packet: &Packet) -> Result<Outcome, WalkError> {
    let mut path = Vec::new();
    let end = chain(ruleset, name, packet, 0, &mut path)?;
    Ok(Outcome { accepted: !matches!(end, End::Drop), path })
}

/// How a walk through one chain ended.
enum End {
    Accept,
    Drop,
    /// Back to where the jump came from.
    Fell,
    /// A `goto` went elsewhere and fell out there: not back to the chain that held the `goto`, but to where that
    /// one was jumped to from.
    Left,
}

fn chain(
    ruleset: &Ruleset,
    name: &str,
    packet: &Packet,
    depth: usize,
    path: &mut Vec<String>,
) -> Result<End, WalkError> {
    if depth > JUMP_DEPTH {
        return Err(WalkError::TooDeep(name.to_owned()));
    }
    path.push(name.to_owned());
    let chain_rules = ruleset.chains.get(name).ok_or_else(|| WalkError::NoChain(name.to_owned()))?;
    for rule in &chain_rules.rules {
        match verdict(ruleset, rule, packet)? {
            None | Some(Verdict::Continue) => {}
            Some(Verdict::Accept) => return Ok(End::Accept),
            Some(Verdict::Drop) => return Ok(End::Drop),
            Some(Verdict::Return) => return Ok(End::Fell),
            Some(Verdict::Goto(target)) => {
                return Ok(match self::chain(ruleset, target, packet, depth + 1, path)? {
                    End::Fell => End::Left,
                    end => end,
                });
            }
            Some(Verdict::Jump(target)) => match self::chain(ruleset, target, packet, depth + 1, path)? {
                End::Fell | End::Left => {}
                end => return Ok(end),
            },
        }
    }
    Ok(End::Fell)
}

/// The verdict of one rule; `None` where it has none for this packet.
fn verdict<'a>(
    ruleset: &'a Ruleset,
    rule: &'a [Statement],
    packet: &Packet,
) -> Result<Option<&'a Verdict>, WalkError> {
    let set = |name: &String| ruleset.sets.get(name).ok_or_else(|| WalkError::NoSet(name.clone()));
    for statement in rule {
        match statement {
            Statement::Silent => {}
            Statement::Verdict(verdict) => return Ok(Some(verdict)),
            Statement::VerdictMap { key, map } => {
                let Some(key) = read(packet, key) else { return Ok(None) };
                return Ok(set(map)?.get(&key).and_then(Option::as_ref));
            }
            Statement::Match { left, negate, right } => {
                // A rule that reads what a packet does not have holds for it neither way.
                let Some(key) = read(packet, left) else { return Ok(None) };
                let met = match right {
                    Right::Set(name) => set(name)?.get(&key).is_some(),
                    Right::Any(patterns) => patterns.iter().any(|p| key.iter().all(|d| p.matches(d))),
                };
                if met == *negate {
                    return Ok(None);
                }
            }
        }
    }
    Ok(None)
}

fn read(packet: &Packet, fields: &[Field]) -> Option<Vec<Datum>> {
    fields.iter().map(|f| field(packet, f)).collect()
}

/// What a packet has in a field. One that opens a connection is known to conntrack as new and without a mark, and a TCP one
/// carries SYN alone.
fn field(packet: &Packet, field: &Field) -> Option<Datum> {
    let v4 = |a: IpAddr| match a {
        IpAddr::V4(a) => Some(u128::from(a.to_bits())),
        IpAddr::V6(_) => None,
    };
    let v6 = |a: IpAddr| match a {
        IpAddr::V6(a) => Some(a.to_bits()),
        IpAddr::V4(_) => None,
    };
    let tuple_source = |reply: bool| if reply == packet.answer { packet.source } else { packet.destination };
    let port = |answer: bool| packet.port.filter(|_| packet.answer == answer).map(u128::from);
    let number = match field.kind {
        FieldKind::InName => return Some(Datum::Name(packet.iif.clone())),
        FieldKind::OutName => return Some(Datum::Name(packet.oif.clone())),
        FieldKind::EtherSource => Some(packet.ether.iter().fold(0, |all, b| all << 8 | u128::from(*b))),
        FieldKind::NfProto => Some(if packet.source.is_ipv4() { 2 } else { 10 }),
        FieldKind::L4Proto => Some(u128::from(packet.protocol)),
        FieldKind::Source4 => v4(packet.source),
        FieldKind::Destination4 => v4(packet.destination),
        FieldKind::Source6 => v6(packet.source),
        FieldKind::Destination6 => v6(packet.destination),
        FieldKind::Port => port(false),
        FieldKind::PortOf(p) => port(false).filter(|_| packet.protocol == p),
        FieldKind::SourcePort => port(true),
        FieldKind::SourcePortOf(p) => port(true).filter(|_| packet.protocol == p),
        // SYN; SYN and ACK.
        FieldKind::TcpFlags => (packet.protocol == 6).then_some(if packet.answer { 0x12 } else { 0x02 }),
        // Echo requests and their answers: the ICMP that is no error.
        FieldKind::IcmpType(1) => (packet.protocol == 1).then_some(if packet.answer { 0 } else { 8 }),
        FieldKind::IcmpType(_) => (packet.protocol == 58).then_some(if packet.answer { 129 } else { 128 }),
        FieldKind::CtState => Some(if packet.answer { 2 } else { 8 }),
        FieldKind::CtDirection => Some(u128::from(packet.answer)),
        FieldKind::CtMark => Some(0),
        FieldKind::CtSource4 { reply } => v4(tuple_source(reply)),
        FieldKind::CtSource6 { reply } => v6(tuple_source(reply)),
    };
    number.map(|n| Datum::Number(n & field.mask.unwrap_or(u128::MAX)))
}

#[cfg(test)]
mod tests {
    use super::super::reader::read;
    use super::*;

    fn packet(iif: &str, oif: &str, protocol: u8, port: Option<u16>) -> Packet {
        Packet {
            iif: iif.into(),
            ether: [2, 0, 0, 0, 0, 1],
            oif: oif.into(),
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol,
            port,
            answer: false,
        }
    }

    fn table(objects: &[&str]) -> Ruleset {
        let own = |o: &str| {
            o.replacen("{", r#"{"family":"inet","table":"t","#, 2).replacen(
                r#"{"family":"inet","table":"t","#,
                "{",
                1,
            )
        };
        let objects: Vec<String> = objects.iter().map(|o| own(o)).collect();
        read(&format!(r#"{{"nftables":[{}]}}"#, objects.join(",")), "inet", "t").unwrap()
    }

    const FORWARD: &str = r#"{"chain":{"name":"f","hook":"forward","prio":0,"policy":"accept"}}"#;

    #[test]
    fn a_miss_behind_goto_falls_to_the_policy_and_behind_jump_to_the_next_rule() {
        let rules = |verb: &str| {
            table(&[
                FORWARD,
                r#"{"chain":{"name":"c"}}"#,
                &format!(r#"{{"rule":{{"chain":"f","expr":[{{"{verb}":{{"target":"c"}}}}]}}}}"#),
                r#"{"rule":{"chain":"f","expr":[{"drop":null}]}}"#,
            ])
        };
        let p = packet("a", "b", 6, Some(80));
        assert!(walk(&rules("goto"), "forward", &p).unwrap().accepted);
        assert!(!walk(&rules("jump"), "forward", &p).unwrap().accepted);
    }

    #[test]
    fn a_goto_inside_a_jump_comes_back_to_the_jump() {
        let t = table(&[
            FORWARD,
            r#"{"chain":{"name":"c"}}"#,
            r#"{"chain":{"name":"d"}}"#,
            r#"{"rule":{"chain":"f","expr":[{"jump":{"target":"c"}}]}}"#,
            r#"{"rule":{"chain":"c","expr":[{"goto":{"target":"d"}}]}}"#,
            r#"{"rule":{"chain":"c","expr":[{"accept":null}]}}"#,
            r#"{"rule":{"chain":"f","expr":[{"drop":null}]}}"#,
        ]);
        let outcome = walk(&t, "forward", &packet("a", "b", 6, Some(80))).unwrap();
        assert_eq!((outcome.accepted, outcome.path.join(" ")), (false, "f c d".into()));
    }

    #[test]
    fn a_rule_that_reads_a_port_says_nothing_about_a_packet_without_one() {
        let t = table(&[
            FORWARD,
            r#"{"map":{"name":"m","type":["inet_proto","inet_service"],"map":"verdict","flags":["interval"],
                "elem":[[{"concat":["tcp",{"range":[80,90]}]},{"drop":null}],[{"concat":[253,80]},{"drop":null}]]}}"#,
            r#"{"rule":{"chain":"f","expr":[{"vmap":{"key":{"concat":[{"meta":{"key":"l4proto"}},
                {"payload":{"protocol":"th","field":"dport"}}]},"data":"@m"}}]}}"#,
        ]);
        for (protocol, port, accepted) in [
            (6, Some(79), true),
            (6, Some(80), false),
            (6, Some(90), false),
            (6, Some(91), true),
            (253, None, true),
        ] {
            let p = packet("a", "b", protocol, port);
            assert_eq!(walk(&t, "forward", &p).unwrap().accepted, accepted, "{protocol} {port:?}");
        }
        assert!(!walk(&t, "forward", &packet("a", "b", 253, Some(80))).unwrap().accepted);
    }

    #[test]
    fn names_prefixes_masks_and_states() {
        for (expr, met) in [
            (r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"moat*"}}"#, true),
            (r#"{"match":{"op":"!=","left":{"meta":{"key":"iifname"}},"right":"moat*"}}"#, false),
            (r#"{"match":{"op":"==","left":{"ct":{"key":"state"}},"right":"established"}}"#, false),
            (r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["new","related"]}}"#, true),
            (r#"{"match":{"op":"!","left":{"ct":{"key":"state"}},"right":"new"}}"#, false),
            (r#"{"match":{"op":"!=","left":{"&":[{"ct":{"key":"mark"}},65536]},"right":0}}"#, false),
            (
                r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},
                "right":{"prefix":{"addr":"10.0.0.0","len":8}}}}"#,
                true,
            ),
            (
                r#"{"match":{"op":"!=","left":{"payload":{"protocol":"ip6","field":"saddr"}},"right":"::"}}"#,
                false,
            ),
            (
                r#"{"match":{"op":"!=","left":{"&":[{"payload":{"protocol":"tcp","field":"flags"}},
                ["fin","syn","rst","ack"]]},"right":"syn"}}"#,
                false,
            ),
        ] {
            let t =
                table(&[FORWARD, &format!(r#"{{"rule":{{"chain":"f","expr":[{expr},{{"drop":null}}]}}}}"#)]);
            let accepted = walk(&t, "forward", &packet("moat1", "b", 6, Some(80))).unwrap().accepted;
            assert_eq!(accepted, !met, "{expr}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let listing = |expr: &str| {
            format!(
                r#"{{"nftables":[{{"rule":{{"family":"inet","table":"t","chain":"f","expr":[{expr}]}}}}]}}"#
            )
        };
        for expr in [
            r#"{"fib":{"result":"oif"}}"#,
            r#"{"match":{"op":"<","left":{"ct":{"key":"mark"}},"right":5}}"#,
            r#"{"match":{"op":"==","left":{"meta":{"key":"skuid"}},"right":5}}"#,
            r#"{"limit":{"rate":1,"per":"second"}},{"accept":null}"#,
        ] {
            assert!(read(&listing(expr), "inet", "t").is_err(), "{expr}");
        }
    }
}
