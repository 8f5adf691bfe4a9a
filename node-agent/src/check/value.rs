//! The words that `nft -j` writes for values: addresses, names of protocols, states and flags.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::ruleset::{Datum, Pattern, Type};

/// One literal of a type; `None` where it says nothing that is known.
pub(super) fn datum(ty: Type, value: &Value) -> Option<Datum> {
    if ty == Type::Name {
        return value.as_str().map(|name| Datum::Name(name.to_owned()));
    }
    if let Value::Array(parts) = value {
        // Flags: `["fin", "syn"]` is both bits.
        return parts.iter().try_fold(0, |bits, part| Some(bits | number(ty, part)?)).map(Datum::Number);
    }
    number(ty, value).map(Datum::Number)
}

/// A literal, range or prefix of a type.
pub(super) fn pattern(ty: Type, value: &Value) -> Option<Pattern> {
    if let Some(range) = value.get("range").and_then(Value::as_array) {
        let [first, last] = range.as_slice() else { return None };
        return Some(Pattern::Within(number(ty, first)?, number(ty, last)?));
    }
    if let Some(prefix) = value.get("prefix") {
        let length = u32::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return prefix_range(ty, number(ty, prefix.get("addr")?)?, length);
    }
    // Elements with a comment, a time-out or a counter stand in `elem`.
    if let Some(inner) = value.get("elem").and_then(|e| e.get("val")) {
        return pattern(ty, inner);
    }
    match datum(ty, value)? {
        Datum::Name(name) => Some(match name.strip_suffix('*') {
            Some(begin) => Pattern::Begins(begin.to_owned()),
            None => Pattern::Exactly(Datum::Name(name)),
        }),
        number => Some(Pattern::Exactly(number)),
    }
}

fn prefix_range(ty: Type, address: u128, length: u32) -> Option<Pattern> {
    let width = match ty {
        Type::Ipv4 => 32,
        Type::Ipv6 => 128,
        _ => return None,
    };
    let host_bits = width - length.min(width);
    let host = if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 };
    Some(Pattern::Within(address & !host, address | host))
}

fn number(ty: Type, value: &Value) -> Option<u128> {
    if let Some(n) = value.as_u64() {
        return Some(u128::from(n));
    }
    let word = value.as_str()?;
    let known = match ty {
        Type::Name => None,
        Type::Ipv4 => word.parse::<Ipv4Addr>().ok().map(|a| u128::from(a.to_bits())),
        Type::Ipv6 => word.parse::<Ipv6Addr>().ok().map(|a| a.to_bits()),
        Type::Ether => ether(word),
        Type::Protocol => protocol(word),
        Type::Family => index(word, &[(2, "ipv4"), (10, "ipv6")]),
        Type::CtState => {
            index(word, &[(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")])
        }
        Type::CtDirection => index(word, &[(0, "original"), (1, "reply")]),
        Type::TcpFlags => index(
            word,
            &[
                (0x01, "fin"),
                (0x02, "syn"),
                (0x04, "rst"),
                (0x08, "psh"),
                (0x10, "ack"),
                (0x20, "urg"),
                (0x40, "ecn"),
                (0x80, "cwr"),
            ],
        ),
        Type::IcmpType(1) => index(
            word,
            &[(0, "echo-reply"), (5, "redirect"), (8, "echo-request"), (9, "router-advertisement")],
        ),
        Type::IcmpType(_) => index(
            word,
            &[
                (128, "echo-request"),
                (129, "echo-reply"),
                (133, "nd-router-solicit"),
                (134, "nd-router-advert"),
                (135, "nd-neighbor-solicit"),
                (136, "nd-neighbor-advert"),
                (137, "nd-redirect"),
            ],
        ),
        Type::Number => None,
    };
    known.or_else(|| word.parse().ok()).or_else(|| u128::from_str_radix(word.strip_prefix("0x")?, 16).ok())
}

/// `aa:bb:cc:dd:ee:ff`
fn ether(word: &str) -> Option<u128> {
    let bytes = word.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect::<Option<Vec<u8>>>()?;
    (bytes.len() == 6).then(|| bytes.iter().fold(0, |all, b| all << 8 | u128::from(*b)))
}

fn protocol(word: &str) -> Option<u128> {
    index(
        word,
        &[
            (0, "ip"),
            (0, "hopopt"),
            (1, "icmp"),
            (2, "igmp"),
            (6, "tcp"),
            (17, "udp"),
            (33, "dccp"),
            (47, "gre"),
            (50, "esp"),
            (51, "ah"),
            (58, "ipv6-icmp"),
            (58, "icmpv6"),
            (108, "comp"),
            (132, "sctp"),
            (136, "udplite"),
        ],
    )
}

fn index(word: &str, words: &[(u128, &str)]) -> Option<u128> {
    words.iter().find(|(_, w)| *w == word).map(|(n, _)| *n)
}
