//! `kind: NetworkPolicy` of networking.k8s.io/v1. An unknown field is an error here: `ingress: [{form: []}]` read
//! leniently would mean "everybody".

use moat_policies::{
    Block, Direction, NamespaceScope, NamespacedName, NetworkPolicy, Peer, Peers, PortMatch, PortRef, Ports,
    Protocol, Rule, Selector,
};

use crate::fields::{Context, Path, WHOLE, shared};
use crate::meta::{Naming, metadata, selector};
use crate::names::{dns_subdomain, port_name, port_number};
use crate::tree::{Node, Value};

pub(crate) const PROTOCOLS: &[(&str, Protocol)] =
    &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];

const TYPES: &[(&str, Direction)] = &[("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];

/// A NetworkPolicy. `None` only where something was refused.
pub(crate) fn network_policy(c: &mut Context<'_>, object: &Node) -> Option<NetworkPolicy> {
    let root = Path::ROOT;
    c.object(object, &root, &["apiVersion", "kind", "metadata", "spec"])?;
    let meta = metadata(c, object, Naming { namespaced: true, rule: dns_subdomain });
    Some(spec(c, object)?.of(meta?.namespaced_name()))
}

/// What is left of a NetworkPolicy's `spec`.
pub(crate) struct Spec {
    subject: Selector,
    types: Types,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

impl Spec {
    /// The policy of that name.
    pub(crate) fn of(self, name: NamespacedName) -> NetworkPolicy {
        let Self { subject, types, ingress, egress } = self;
        NetworkPolicy {
            name,
            subject,
            ingress: types.has(Direction::Ingress).then_some(ingress),
            egress: types.has(Direction::Egress).then_some(egress),
        }
    }

    /// The policy of that name that lets nobody talk to whomever it may select, in whatever direction it may be in force: what is
    /// known of one of which something could not be read.
    pub(crate) fn closed(self, name: NamespacedName) -> NetworkPolicy {
        let types = if self.types.certain { self.types } else { Types::BOTH };
        Self { types, ingress: Vec::new(), egress: Vec::new(), ..self }.of(name)
    }

    /// The one that selects every pod of the namespace in both directions.
    pub(crate) fn everything() -> Self {
        let subject = Selector::everything();
        Self { subject, types: Types::BOTH, ingress: Vec::new(), egress: Vec::new() }
    }
}

/// `spec` of a NetworkPolicy. `None` only where it is no object.
pub(crate) fn spec(c: &mut Context<'_>, object: &Node) -> Option<Spec> {
    let root = Path::ROOT;
    let path = root.field("spec");
    // A missing spec is an empty one: all pods of the namespace, isolated for ingress.
    let empty = Node { line: object.line, value: Value::Map(Vec::new()) };
    let spec = object.get("spec").unwrap_or(&empty);
    c.object(spec, &path, &["podSelector", "policyTypes", "ingress", "egress"])?;
    let subject = match spec.get("podSelector") {
        Some(node) => selector(c, node, &path.field("podSelector")),
        None => Selector::everything(),
    };
    let ingress = rules(c, spec, &path, Direction::Ingress);
    let egress = rules(c, spec, &path, Direction::Egress);
    let types = types(c, spec, &path, !egress.is_empty());
    for (direction, rules) in [(Direction::Ingress, &ingress), (Direction::Egress, &egress)] {
        if let Some(node) =
            spec.get(&direction.to_string()).filter(|_| !types.has(direction) && !rules.is_empty())
        {
            let field = direction.to_string();
            c.warn(node.line, &path.field(&field), "has no effect, because spec.policyTypes leaves it out");
        }
    }
    Some(Spec { subject, types, ingress, egress })
}

/// Which directions are in force.
#[derive(Clone, Copy)]
struct Types {
    in_force: [bool; 2],
    /// It says so itself, in words that are known.
    certain: bool,
}

impl Types {
    const BOTH: Types = Types { in_force: [true; 2], certain: true };

    fn has(self, direction: Direction) -> bool {
        self.in_force[direction as usize]
    }
}

/// Where `policyTypes` is missing or empty: Ingress, and Egress if it has a rule.
fn types(c: &mut Context<'_>, spec: &Node, path: &Path<'_>, has_egress_rule: bool) -> Types {
    let listed = c.list(spec, path, "policyTypes");
    let path = path.field("policyTypes");
    if let Some(third) = listed.get(2) {
        c.refuse(third, &path, "may not hold more than two entries");
    }
    let mut types = Types { in_force: [false; 2], certain: !listed.is_empty() };
    for (i, node) in listed.iter().enumerate() {
        match c.one_of(node, &path.index(i), TYPES) {
            Some(direction) => types.in_force[direction as usize] = true,
            None => types.certain = false,
        }
    }
    if listed.is_empty() {
        types.in_force = [true, has_egress_rule];
    }
    types
}

fn rules(c: &mut Context<'_>, spec: &Node, path: &Path<'_>, direction: Direction) -> Vec<Rule> {
    let (field, peers) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let listed = c.list(spec, path, field);
    let path = path.field(field);
    let mut all = Vec::new();
    for (i, node) in listed.iter().enumerate() {
        let path = path.index(i);
        // As for the API server, a rule that is null is one without fields: everybody, on every port.
        if node.is_null() {
            c.warn(
                node.line,
                &path,
                "an empty entry allows everybody, on every port; write {} if that is meant",
            );
            all.push(Rule { peers: Peers::Any, ports: Ports::Any });
        } else if c.object(node, &path, &[peers, "ports"]).is_some() {
            all.push(Rule { peers: self::peers(c, node, &path, peers), ports: ports(c, node, &path) });
        }
    }
    all
}

fn peers(c: &mut Context<'_>, rule: &Node, path: &Path<'_>, field: &str) -> Peers {
    let items = c.list(rule, path, field);
    if items.is_empty() {
        return Peers::Any;
    }
    let path = path.field(field);
    Peers::Of(items.iter().enumerate().filter_map(|(i, node)| peer(c, node, &path.index(i))).collect())
}

fn peer(c: &mut Context<'_>, node: &Node, path: &Path<'_>) -> Option<Peer> {
    if !node.is_null() {
        c.object(node, path, &["podSelector", "namespaceSelector", "ipBlock"])?;
    }
    let (pods, namespaces, block) =
        (node.get("podSelector"), node.get("namespaceSelector"), node.get("ipBlock"));
    let pods = pods.map(|n| selector(c, n, &path.field("podSelector")));
    let namespaces = namespaces.map(|n| selector(c, n, &path.field("namespaceSelector")));
    match block {
        Some(block) if pods.is_some() || namespaces.is_some() => {
            c.refuse(block, path, "may not hold both ipBlock and a selector; make them two entries");
            ip_block(c, block, &path.field("ipBlock"))
        }
        Some(block) => ip_block(c, block, &path.field("ipBlock")),
        None if pods.is_none() && namespaces.is_none() => {
            c.refuse(node, path, "must hold podSelector, namespaceSelector or ipBlock");
            None
        }
        None => Some(Peer::Pods {
            namespaces: namespaces.map_or(NamespaceScope::Own, NamespaceScope::Selected),
            pods: pods.unwrap_or_else(Selector::everything),
        }),
    }
}

fn ip_block(c: &mut Context<'_>, node: &Node, path: &Path<'_>) -> Option<Peer> {
    c.object(node, path, &["cidr", "except"])?;
    let whole = c.require(node, path, "cidr").and_then(|n| c.cidr(n, &path.field("cidr")));
    let path_except = path.field("except");
    let mut except = Vec::new();
    for (i, node) in c.list(node, path, "except").iter().enumerate() {
        let path = path_except.index(i);
        let Some(part) = c.cidr(node, &path) else { continue };
        match whole {
            Some(whole) if part == whole || !whole.contains(&part) => {
                c.refuse(node, &path, format!("{part} must lie strictly inside the cidr {whole}"));
            }
            _ => except.push(part),
        }
    }
    Block::new(whole?, except).ok().map(Peer::Block)
}

fn ports(c: &mut Context<'_>, rule: &Node, path: &Path<'_>) -> Ports {
    let items = c.list(rule, path, "ports");
    if items.is_empty() {
        return Ports::Any;
    }
    let path = path.field("ports");
    Ports::Of(items.iter().enumerate().filter_map(|(i, node)| port(c, node, &path.index(i))).collect())
}

fn port(c: &mut Context<'_>, node: &Node, path: &Path<'_>) -> Option<PortMatch> {
    if node.is_null() {
        return Some(PortMatch { protocol: Protocol::Tcp, port: PortRef::All });
    }
    c.object(node, path, &["protocol", "port", "endPort"])?;
    let protocol = match node.get("protocol") {
        Some(_) => c.word(node, path, "protocol", PROTOCOLS),
        None => Some(Protocol::Tcp),
    };
    let (path_port, path_end) = (path.field("port"), path.field("endPort"));
    let end = node.get("endPort");
    let port = match node.get("port") {
        None => {
            if let Some(end) = end {
                c.refuse(end, &path_end, "needs a port to start from");
            }
            Some(PortRef::All)
        }
        Some(named @ Node { value: Value::Text(_), .. }) => {
            if let Some(end) = end {
                c.refuse(end, &path_end, "goes with a number in port, not with a name");
            }
            c.parse(named, &path_port, |text| port_name(text).map(|()| PortRef::Named(shared(text))))
        }
        Some(Node { value: Value::Int(number), .. }) => {
            let first = match port_number(*number) {
                Ok(first) => Some(first),
                Err(reason) => {
                    c.refuse(node.get("port")?, &path_port, reason);
                    None
                }
            };
            let last = match end {
                None => first,
                Some(end) => {
                    let last = c.number(node, path, "endPort")?;
                    if last < *number {
                        c.refuse(end, &path_end, format!("{last} must not lie below port {number}"));
                    }
                    match port_number(last) {
                        Ok(last) => Some(last),
                        Err(reason) => {
                            c.refuse(end, &path_end, reason);
                            None
                        }
                    }
                }
            };
            first.zip(last).map(|(first, last)| PortRef::Range(first, last))
        }
        Some(other) => {
            c.refuse(other, &path_port, format!("must be {WHOLE}, or a port's name, not {}", other.what()));
            None
        }
    };
    Some(PortMatch { protocol: protocol?, port: port? })
}
