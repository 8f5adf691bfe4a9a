//! The API's rules for names, labels and ports.

/// A lower-case DNS label of RFC 1123: at most 63 of a-z, 0-9 and `-`, a letter or digit at both ends.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(format!("{} characters long; at most 63 are allowed", text.len()));
    }
    match is_dns_label(text) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} must consist of lower-case letters, digits and '-', and start and end with a letter or digit"
        )),
    }
}

/// A lower-case DNS subdomain of RFC 1123: labels separated by dots, at most 253 characters.
pub(crate) fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err(format!("{} characters long; at most 253 are allowed", text.len()));
    }
    match text.split('.').all(is_dns_label) {
        true => Ok(()),
        false => Err(format!(
            "{text:?} must consist of lower-case letters, digits, '-' and '.', and each part between dots start and \
             end with a letter or digit"
        )),
    }
}

fn is_dns_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The key of a label or an annotation: a name, before it perhaps a DNS subdomain and `/`.
pub(crate) fn label_key(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            if name.contains('/') {
                return Err(format!("the key {text:?} may hold one '/' only"));
            }
            if prefix.is_empty() {
                return Err(format!("the key {text:?} has nothing before its '/'"));
            }
            dns_subdomain(prefix).map_err(|e| format!("the key {text:?}, before its '/': {e}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err(format!("the key {text:?} has no name"));
    }
    qualified(name).map_err(|e| format!("the key {text:?}: {e}"))
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { qualified(text).map_err(|e| format!("the value {text:?}: {e}")) }
}

fn qualified(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(format!("{} characters long; at most 63 are allowed", text.len()));
    }
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if edge(text.bytes().next()) && edge(text.bytes().last()) && text.bytes().all(inside) {
        Ok(())
    } else {
        Err("must consist of letters, digits, '-', '_' and '.', and start and end with a letter or digit"
            .into())
    }
}

/// A port's name (IANA_SVC_NAME of RFC 6335).
pub(crate) fn port_name(text: &str) -> Result<(), String> {
    let problem = if text.is_empty() || text.len() > 15 {
        "a port's name has 1 to 15 characters"
    } else if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        "a port's name consists of lower-case letters, digits and '-'"
    } else if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        "a port's name holds at least one letter; a number stands without quotes"
    } else if text.contains("--") {
        "a port's name holds no two '-' in a row"
    } else if text.starts_with('-') || text.ends_with('-') {
        "a port's name does not start or end with '-'"
    } else {
        return Ok(());
    };
    Err(format!("{text:?}: {problem}"))
}

/// A port's number.
pub(crate) fn port_number(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} must lie between 1 and 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_api() {
        let long = |n: usize| "a".repeat(n);
        type Rule = fn(&str) -> Result<(), String>;
        let table: [(Rule, &[&str], &[&str]); 5] = [
            (dns_label, &["a", "a-b", "0", &long(63)], &["", "A", "a.b", "-a", "a-", "a_b", "ä", &long(64)]),
            (
                dns_subdomain,
                &["a", "a.b", "a-b.c", "1.2"],
                &["", ".", "a.", ".a", "a..b", "a.-b", "A", &long(254)],
            ),
            (
                label_key,
                &["a", "A_b.c-D", "app.kubernetes.io/name", &format!("x.y/{}", long(63))],
                &["", "/a", "a/", "a/b/c", "-a", "a-", "Upper/a", "a b", &long(64), "é"],
            ),
            (label_value, &["", "a", "A_b.c-1", &long(63)], &["-", "a-", ".a", "a b", "a/b", &long(64)]),
            (
                port_name,
                &["http", "a", "http-2", "8a", "fifteen-letters"],
                &["", "80", "HTTP", "a--b", "-a", "a-", "sixteen-letters-", "a_b"],
            ),
        ];
        for (i, (rule, good, bad)) in table.into_iter().enumerate() {
            good.iter().for_each(|text| assert_eq!(rule(text), Ok(()), "rule {i}: {text:?}"));
            bad.iter().for_each(|text| assert!(rule(text).is_err(), "rule {i}: {text:?}"));
        }
    }

    #[test]
    fn port_numbers_are_1_to_65535() {
        for (number, port) in
            [(1, Some(1)), (65535, Some(65535)), (0, None), (-1, None), (65536, None), (70000, None)]
        {
            assert_eq!(port_number(number).ok(), port, "{number}");
        }
    }
}
