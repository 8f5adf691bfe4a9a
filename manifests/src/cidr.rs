//! CIDRs, as the API server takes them since v1.36 on create: no leading zeros, no bits beyond the prefix, no
//! IPv4-mapped IPv6.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fields::{address, leading_zeros};

/// A CIDR of a field that older servers read leniently; new objects are read strictly.
pub(crate) fn cidr(text: &str) -> Result<IpNet, String> {
    let no_cidr = || format!("{text:?} is not a CIDR such as 10.9.8.0/24 or 2001:db8::/64");
    let (ip, length) = text.split_once('/').ok_or_else(no_cidr)?;
    if leading_zeros(ip) {
        return Err(format!("{text:?} has leading zeros, which some read as octal"));
    }
    // Before the address's own message, which would speak of an address where a CIDR is wanted.
    ip.parse::<IpAddr>().map_err(|_| no_cidr())?;
    let ip = address(ip)?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no_cidr());
    }
    if length.len() > 1 && length.starts_with('0') {
        return Err(format!("{text:?} has leading zeros in its prefix length"));
    }
    let net = length.parse().ok().and_then(|length| IpNet::new(ip, length).ok()).ok_or_else(no_cidr)?;
    if net.trunc() != net {
        let whole = net.max_prefix_len();
        let (net, host) = (net.trunc(), net.addr());
        return Err(format!("{text:?} has bits beyond its prefix; write {net} or {host}/{whole}"));
    }
    Ok(net)
}

/// A CIDR in a form that servers before v1.36 took, and that is in their stores: leading zeros are decimal, bits beyond the prefix
/// are none, and IPv4-mapped IPv6 is IPv4, as Go's `ParseCIDRSloppy` and the masks made from it have it.
pub(crate) fn old_cidr(text: &str) -> Option<IpNet> {
    let (ip, length) = text.split_once('/')?;
    let length: u8 = Some(length).filter(|l| l.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    let net = match old_address(ip)? {
        IpAddr::V6(v6) if length >= 96 && v6.to_ipv4_mapped().is_some() => {
            IpNet::new(v6.to_ipv4_mapped()?.into(), length - 96)
        }
        ip => IpNet::new(ip, length),
    };
    net.ok().map(|net| net.trunc())
}

/// An address, of IPv4 with leading zeros, too.
fn old_address(text: &str) -> Option<IpAddr> {
    if !leading_zeros(text) {
        return text.parse().ok();
    }
    let octets: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_servers_took() {
        for (text, net) in [
            ("10.0.0.1/8", Some("10.0.0.0/8")),
            ("010.001.0.0/16", Some("10.1.0.0/16")),
            ("10.0.0.0/08", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3/104", Some("10.0.0.0/8")),
            ("2001:db8::1/64", Some("2001:db8::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("300.01.0.0/8", None),
            ("web/8", None),
        ] {
            assert_eq!(old_cidr(text), net.map(|net| net.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn one_form_only() {
        for good in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "2001:DB8::/32", "2001:db8:0::1/128"]
        {
            assert!(cidr(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("10.0.0.0", "not a CIDR"),
            ("10.0.0.0/", "not a CIDR"),
            ("10.0.0.0/33", "not a CIDR"),
            ("10.0.0.0/-1", "not a CIDR"),
            ("10.0.0.0/+8", "not a CIDR"),
            ("10.0.0/8", "not a CIDR"),
            ("10.0.0.0/255.0.0.0", "not a CIDR"),
            ("2001:db8::/129", "not a CIDR"),
            ("web", "not a CIDR"),
            ("", "not a CIDR"),
            ("10.0.0.0/08", "leading zeros"),
            ("010.0.0.0/8", "leading zeros"),
            ("10.0.0.1/8", "bits beyond its prefix; write 10.0.0.0/8 or 10.0.0.1/32"),
            ("2001:db8::1/64", "bits beyond its prefix; write 2001:db8::/64 or 2001:db8::1/128"),
            ("::ffff:10.0.0.0/104", "IPv4-mapped"),
        ] {
            let reason = cidr(bad).unwrap_err();
            assert!(reason.contains(word), "{bad}: {reason}");
        }
    }
}
