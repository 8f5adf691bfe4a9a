//! A verdict program as chains.
//!
//! ```text
//! <direction>-<id>          TCP in mid-stream               ▶ mid-stream
//!                           port class 0: lookup, pass      (a few port ranges: inline)
//!                           l4proto . dport ▶ …-ports       (more: a map to a chain for each class's peers)
//!                           every protocol: lookup, pass    reads no port, so it holds for packets without one
//!                           named: address . l4proto . dport, pass
//!                           ▶ policy-<direction>
//! <direction>-peers-<set>   lookup, pass
//! ```
//!
//! And all once more, as `…-answers`, for packets that come back while connections are judged anew: with the two ends exchanged,
//! and `revoke` at a program's end.
//!
//! The chain that a map leads to is named by the allow set that it looks into, and so shared by all classes of all programs
//! that allow the same peers. A change of one policy makes a pod's program another one; where that has hundreds of classes, all
//! but one or two of them are those of the program before it, and stay as they are. The kernel looks sets up by name, one after the other:
//! a chain that looks into two of them costs more than all else in a commit where there are thousands.
//!
//! A class's peers include those of `every`, so that a packet that misses its class may fall on and miss the rest, too.

use std::collections::BTreeSet;

use moat_nfnetlink::nft::{Chain, Element, Operand, Rule, Set, Source, Value, Verdict};
use moat_policies::{Allow, Direction, PortRange, Program, ProgramId, SetId};

use super::ChainRules;
use super::drops::DropReason;
use super::fixed::{mid_stream, v4, v6};
use super::names::{self, Part, Table, Way};

/// Up to this many port ranges stand inline. A map costs the kernel a set, of which it should have few.
const INLINE_RANGES: usize = 3;

/// What one program is in the kernel, each part behind those that it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProgramObjects {
    /// The allow sets that have chains of their own for it: those of its port classes, where they do not stand inline.
    pub(crate) peers: BTreeSet<SetId>,
    /// The maps to them.
    pub(crate) maps: Vec<(Set, Vec<Element>)>,
    /// Its own chains.
    pub(crate) chains: Vec<ChainRules>,
}

/// The objects of a program in one direction. `parts` says what kernel sets an allow set is made of.
pub(crate) fn program(
    direction: Direction,
    id: ProgramId,
    program: &Program,
    parts: &dyn Fn(SetId) -> Vec<Part>,
) -> ProgramObjects {
    let mut objects = ProgramObjects::default();
    for way in Way::BOTH {
        Side { way, direction, parts }.program(id, program, &mut objects);
    }
    objects
}

/// The chains that pass an allow set's peers, for the maps of all programs in one direction. `parts` are what it is made of.
pub(crate) fn peers(direction: Direction, set: SetId, parts: Vec<Part>) -> [ChainRules; 2] {
    Way::BOTH.map(|way| {
        let rules = Side { way, direction, parts: &|_| parts.clone() }.allow(&Rule::new(), Allow::Set(set));
        ChainRules { table: Table::Inet, chain: Chain::new(names::peers(way, direction, set)), rules }
    })
}

fn port_map(name: std::sync::Arc<str>, single: bool) -> Set {
    let fields = [moat_nfnetlink::nft::Field::InetProto, moat_nfnetlink::nft::Field::InetService];
    let set = Set::new(name, names::key(fields)).verdict_map();
    if single { set } else { set.intervals() }
}

fn port_element(range: PortRange) -> Element {
    let protocol = Value::Proto(range.protocol.number());
    Element::range([protocol, Value::Port(range.first)], [protocol, Value::Port(range.last)])
}

struct Side<'a> {
    way: Way,
    direction: Direction,
    parts: &'a dyn Fn(SetId) -> Vec<Part>,
}

impl Side<'_> {
    fn program(&self, id: ProgramId, program: &Program, objects: &mut ProgramObjects) {
        let &Side { way, direction, .. } = self;
        let mut rules = Vec::new();
        if way == Way::There {
            rules.push(mid_stream(direction));
        }
        let ranges: usize = program.classes.iter().map(|c| c.ports.len()).sum();
        if ranges <= INLINE_RANGES {
            for class in &program.classes {
                for range in &class.ports {
                    rules.extend(self.allow(&self.on_ports(*range), class.allow));
                }
            }
        } else {
            let mut elements = Vec::with_capacity(ranges);
            for class in &program.classes {
                let verdict = match class.allow {
                    Allow::Everyone => self.pass(),
                    Allow::Set(set) => {
                        objects.peers.insert(set);
                        Verdict::jump(names::peers(way, direction, set))
                    }
                };
                elements
                    .extend(class.ports.iter().map(|range| port_element(*range).verdict(verdict.clone())));
            }
            let single = program.classes.iter().flat_map(|c| &c.ports).all(|r| r.first == r.last);
            let set = port_map(names::ports(way, direction, id), single);
            if single {
                elements.iter_mut().for_each(|e| e.end = None);
            }
            rules.push(Rule::new().vmap([Source::L4PROTO, self.port()], set.name().clone()));
            objects.maps.push((set, elements));
        }
        if let Some(allow) = program.every {
            rules.extend(self.allow(&Rule::new(), allow));
        }
        if let Some(named) = program.named {
            rules.extend(self.named(named));
        }
        rules.push(Rule::new().verdict(self.deny()));
        let chain = Chain::new(names::program(way, direction, id));
        objects.chains.push(ChainRules { table: Table::Inet, chain, rules });
    }

    /// The beginning of a rule for the packets of connections to these ports.
    fn on_ports(&self, range: PortRange) -> Rule {
        let rule = Rule::new().eq(Source::L4PROTO, range.protocol.number());
        match (range.first, range.last) {
            (0, u16::MAX) => rule,
            (first, last) if first == last => rule.eq(self.port(), Operand::be16(first)),
            (first, last) => rule.range(self.port(), Operand::be16(first), Operand::be16(last)),
        }
    }

    /// Where the port stands that the connection goes to.
    fn port(&self) -> Source {
        match self.way {
            Way::There => Source::TH_DPORT,
            Way::Back => Source::TH_SPORT,
        }
    }

    /// What becomes of a packet that this side denies.
    fn deny(&self) -> Verdict {
        match self.way {
            Way::There => DropReason::Policy.on(self.direction).goto(),
            Way::Back => Verdict::goto(names::REVOKE),
        }
    }

    /// What becomes of a packet that this side allows.
    fn pass(&self) -> Verdict {
        match (self.direction, self.way) {
            (Direction::Ingress, _) => Verdict::Accept,
            // The other side has its say, if it is on this node.
            (Direction::Egress, Way::There) => Verdict::goto(names::TO_POD),
            (Direction::Egress, Way::Back) => Verdict::goto(names::ANSWERER),
        }
    }

    /// Where the peer's address stands.
    fn peer(&self, part: Part) -> Source {
        let sends = (self.direction == Direction::Ingress) == (self.way == Way::There);
        match (sends, part.is_v4()) {
            (true, true) => Source::IP_SADDR,
            (true, false) => Source::IP6_SADDR,
            (false, true) => Source::IP_DADDR,
            (false, false) => Source::IP6_DADDR,
        }
    }

    /// Rules that begin with `start` and pass the peers of `allow`.
    fn allow(&self, start: &Rule, allow: Allow) -> Vec<Rule> {
        let set = match allow {
            Allow::Everyone => return vec![start.clone().verdict(self.pass())],
            Allow::Set(set) => set,
        };
        (self.parts)(set)
            .into_iter()
            .map(|part| {
                let peer = self.peer(part);
                let name = part.set(set).name().clone();
                let rule = if part.is_v4() { v4(start.clone()) } else { v6(start.clone()) };
                match part {
                    Part::Nets4 | Part::Nets6 => rule.lookup([peer, Source::L4PROTO], name),
                    _ => rule.lookup([peer], name),
                }
                .verdict(self.pass())
            })
            .collect()
    }

    /// Rules that pass the peers of a set with ports in it.
    fn named(&self, set: SetId) -> Vec<Rule> {
        (self.parts)(set)
            .into_iter()
            .map(|part| {
                let rule = if part.is_v4() { v4(Rule::new()) } else { v6(Rule::new()) };
                rule.lookup([self.peer(part), Source::L4PROTO, self.port()], part.set(set).name().clone())
                    .verdict(self.pass())
            })
            .collect()
    }
}
