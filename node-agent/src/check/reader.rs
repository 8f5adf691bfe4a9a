//! Reads what `nft -j list table` prints, object by object.
//!
//! Strict where a verdict depends on it: an expression, statement or word that this reader does not know is
//! an error, because a table that it understood in part could not be judged.

use serde_json::Value;

use super::ruleset::{Base, Chain, Field, FieldKind, Pattern, Right, Ruleset, Set, Statement, Type, Verdict};
use super::value;

/// Why a listing cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no JSON.
    #[error("the listing is not what `nft -j list table` prints")]
    Json(#[source] serde_json::Error),
    /// It has no list of objects.
    #[error("the listing has no \"nftables\" array")]
    NoObjects,
    /// Something in it is not known to the reader.
    #[error("in {place}: cannot judge {what}")]
    Unknown {
        /// Which chain, set or map.
        place: String,
        /// The JSON that is not known.
        what: String,
    },
}

/// Reads the table `family name` out of a listing; other tables in it are passed over.
pub fn read(listing: &str, family: &str, name: &str) -> Result<Ruleset, ReadError> {
    let document: Value = serde_json::from_str(listing).map_err(ReadError::Json)?;
    let objects = document.get("nftables").and_then(Value::as_array).ok_or(ReadError::NoObjects)?;
    let mut ruleset = Ruleset::default();
    for object in objects {
        let Some((kind, body)) = object.as_object().and_then(|o| o.iter().next()) else {
            return Err(unknown("the listing", object));
        };
        if text(body, "family") != Some(family) || text(body, "table") != Some(name) {
            continue;
        }
        match kind.as_str() {
            "chain" => {
                ruleset.chains.entry(name_of(body)?).or_default().base = base(body)?;
            }
            "set" | "map" => {
                ruleset.sets.insert(name_of(body)?, set(body)?);
            }
            "rule" => {
                let chain = text(body, "chain").ok_or_else(|| unknown("a rule", body))?;
                let place = format!("chain {chain}");
                let statements = body.get("expr").and_then(Value::as_array);
                let rule = rule(statements.ok_or_else(|| unknown(&place, body))?)
                    .map_err(|what| ReadError::Unknown { place, what })?;
                ruleset.chains.entry(chain.to_owned()).or_insert_with(Chain::default).rules.push(rule);
            }
            "counter" | "limit" | "quota" => {}
            _ => return Err(unknown("the table", object)),
        }
    }
    Ok(ruleset)
}

fn unknown(place: &str, what: &Value) -> ReadError {
    ReadError::Unknown { place: place.to_owned(), what: what.to_string() }
}

fn text<'a>(body: &'a Value, key: &str) -> Option<&'a str> {
    body.get(key).and_then(Value::as_str)
}

fn name_of(body: &Value) -> Result<String, ReadError> {
    text(body, "name").map(str::to_owned).ok_or_else(|| unknown("an object without a name", body))
}

fn base(body: &Value) -> Result<Option<Base>, ReadError> {
    let Some(hook) = text(body, "hook") else { return Ok(None) };
    let priority = body.get("prio").and_then(Value::as_i64).ok_or_else(|| unknown("a chain", body))?;
    Ok(Some(Base { hook: hook.to_owned(), priority, drops: text(body, "policy") == Some("drop") }))
}

fn set(body: &Value) -> Result<Set, ReadError> {
    let place = format!("set {}", text(body, "name").unwrap_or_default());
    let bad = |what: &Value| unknown(&place, what);
    let types = match body.get("type") {
        Some(Value::Array(parts)) => parts.iter().map(set_type).collect::<Option<Vec<_>>>(),
        Some(one) => set_type(one).map(|t| vec![t]),
        None => None,
    };
    let mut set = Set { types: types.ok_or_else(|| bad(body))?, ..Set::default() };
    for element in body.get("elem").and_then(Value::as_array).into_iter().flatten() {
        let (key, verdict) = match element.as_array().map(Vec::as_slice) {
            Some([key, data]) => (key, Some(self::verdict(data).ok_or_else(|| bad(data))?)),
            _ => (element, None),
        };
        let patterns = patterns(&set.types, key).ok_or_else(|| bad(key))?;
        let exact = patterns.iter().map(|p| match p {
            Pattern::Exactly(datum) => Some(datum.clone()),
            _ => None,
        });
        match exact.collect::<Option<Vec<_>>>() {
            Some(key) => drop(set.exact.insert(key, verdict)),
            None => set.ranges.push((patterns, verdict)),
        }
    }
    Ok(set)
}

fn set_type(value: &Value) -> Option<Type> {
    Some(match value.as_str()? {
        "ifname" => Type::Name,
        "ether_addr" => Type::Ether,
        "ipv4_addr" => Type::Ipv4,
        "ipv6_addr" => Type::Ipv6,
        "inet_proto" => Type::Protocol,
        "inet_service" | "mark" => Type::Number,
        "ct_state" => Type::CtState,
        _ => return None,
    })
}

/// The patterns of one element of a set with keys of these types.
fn patterns(types: &[Type], key: &Value) -> Option<Vec<Pattern>> {
    let key = key.get("elem").and_then(|e| e.get("val")).unwrap_or(key);
    let parts = match key.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(key),
    };
    if parts.len() != types.len() {
        return None;
    }
    types.iter().zip(parts).map(|(ty, part)| value::pattern(*ty, part)).collect()
}

/// Reads a rule, or says what in it is not known.
fn rule(statements: &[Value]) -> Result<Vec<Statement>, String> {
    let mut rule = Vec::with_capacity(statements.len());
    let mut limited = false;
    for s in statements {
        let statement = statement(s).ok_or_else(|| s.to_string())?;
        limited |= s.get("limit").or_else(|| s.get("set")).is_some();
        // Behind a limit a verdict falls now and then: no walk can tell when.
        if limited && !matches!(statement, Statement::Silent) {
            return Err(format!("a verdict behind a limit: {s}"));
        }
        rule.push(statement);
    }
    Ok(rule)
}

fn statement(statement: &Value) -> Option<Statement> {
    let (kind, body) = statement.as_object()?.iter().next()?;
    match kind.as_str() {
        "match" => matching(body),
        "vmap" => {
            let map = body.get("data")?.as_str()?.strip_prefix('@')?.to_owned();
            Some(Statement::VerdictMap { key: fields(body.get("key")?)?, map })
        }
        // A rule that adds to a set goes on with what is behind it, or not: a limit, as far as a walk can tell.
        "counter" | "log" | "limit" | "set" => Some(Statement::Silent),
        // What becomes of the connection's mark decides about later packets, not about this one.
        "mangle" => (text(body.get("key")?.get("ct")?, "key")? == "mark").then_some(Statement::Silent),
        _ => verdict(statement).map(Statement::Verdict),
    }
}

fn verdict(value: &Value) -> Option<Verdict> {
    let (kind, body) = value.as_object()?.iter().next()?;
    let target = || body.get("target").and_then(Value::as_str).map(str::to_owned);
    Some(match kind.as_str() {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "continue" => Verdict::Continue,
        "jump" => Verdict::Jump(target()?),
        "goto" => Verdict::Goto(target()?),
        _ => return None,
    })
}

fn matching(body: &Value) -> Option<Statement> {
    let left = fields(body.get("left")?)?;
    let types: Vec<Type> = left.iter().map(|f| f.kind.value_type()).collect();
    let (op, right) = (body.get("op")?.as_str()?, body.get("right")?);
    let negate = op == "!=" || op == "!";
    if let Some(set) = right.as_str().and_then(|r| r.strip_prefix('@')) {
        return (matches!(op, "==" | "!=" | "in")).then(|| Statement::Match {
            left,
            negate,
            right: Right::Set(set.to_owned()),
        });
    }
    let [ty] = types.as_slice() else { return None };
    let patterns = match right.get("set").and_then(Value::as_array) {
        Some(items) => items.iter().map(|i| value::pattern(*ty, i)).collect::<Option<_>>()?,
        // nft writes `in` for a test of bits, and `!` for its opposite.
        None if matches!(op, "in" | "!") => match value::datum(*ty, right)? {
            super::ruleset::Datum::Number(bits) => vec![Pattern::AnyBit(bits)],
            super::ruleset::Datum::Name(_) => return None,
        },
        None => vec![value::pattern(*ty, right)?],
    };
    matches!(op, "==" | "!=" | "in" | "!").then_some(Statement::Match {
        left,
        negate,
        right: Right::Any(patterns),
    })
}

/// What of the packet an expression reads, part by part of a concatenation.
fn fields(expression: &Value) -> Option<Vec<Field>> {
    match expression.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(field).collect(),
        None => Some(vec![field(expression)?]),
    }
}

fn field(expression: &Value) -> Option<Field> {
    let (kind, body) = expression.as_object()?.iter().next()?;
    let plain = |kind| Some(Field { kind, mask: None });
    match kind.as_str() {
        "&" => {
            let [inner, mask] = body.as_array()?.as_slice() else { return None };
            let kind = field(inner)?.kind;
            match value::datum(kind.value_type(), mask)? {
                super::ruleset::Datum::Number(bits) => Some(Field { kind, mask: Some(bits) }),
                super::ruleset::Datum::Name(_) => None,
            }
        }
        "meta" => plain(match text(body, "key")? {
            "iifname" => FieldKind::InName,
            "oifname" => FieldKind::OutName,
            "nfproto" => FieldKind::NfProto,
            "l4proto" => FieldKind::L4Proto,
            _ => return None,
        }),
        // Without a match on the kind of link before it, nft names the bytes only.
        "payload" if text(body, "base") == Some("ll") => {
            let at = (body.get("offset")?.as_u64()?, body.get("len")?.as_u64()?);
            (at == (48, 48)).then_some(Field { kind: FieldKind::EtherSource, mask: None })
        }
        "payload" => plain(match (text(body, "protocol")?, text(body, "field")?) {
            ("ether", "saddr") => FieldKind::EtherSource,
            ("ip", "saddr") => FieldKind::Source4,
            ("ip", "daddr") => FieldKind::Destination4,
            ("ip6", "saddr") => FieldKind::Source6,
            ("ip6", "daddr") => FieldKind::Destination6,
            ("tcp", "dport") => FieldKind::PortOf(6),
            ("udp", "dport") => FieldKind::PortOf(17),
            ("sctp", "dport") => FieldKind::PortOf(132),
            ("th", "dport") => FieldKind::Port,
            ("tcp", "sport") => FieldKind::SourcePortOf(6),
            ("udp", "sport") => FieldKind::SourcePortOf(17),
            ("sctp", "sport") => FieldKind::SourcePortOf(132),
            ("th", "sport") => FieldKind::SourcePort,
            ("tcp", "flags") => FieldKind::TcpFlags,
            ("icmp", "type") => FieldKind::IcmpType(1),
            ("icmpv6", "type") => FieldKind::IcmpType(58),
            _ => return None,
        }),
        "ct" => plain(match (text(body, "key")?, text(body, "dir")) {
            ("state", None) => FieldKind::CtState,
            ("mark", None) => FieldKind::CtMark,
            ("direction", None) => FieldKind::CtDirection,
            ("ip saddr", Some(dir)) => FieldKind::CtSource4 { reply: dir == "reply" },
            ("ip6 saddr", Some(dir)) => FieldKind::CtSource6 { reply: dir == "reply" },
            _ => return None,
        }),
        _ => None,
    }
}
