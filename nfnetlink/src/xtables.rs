//! The tables of the older iptables (*legacy*), which the kernel tells by socket options and not by netlink.
//!
//! Read only: whoever wants to know what else judges a packet. A table that is not there is not made by asking, which the
//! `iptables-legacy` command would do.

use std::fs;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::Error;
use crate::sys::read_option;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: name, hooks, five entries, five underflows, number, size.
const INFO: usize = 32 + 4 * 13;
/// `struct ipt_get_entries` before its entries, which are aligned to eight bytes.
const ENTRIES: usize = 40;
/// A table that is larger than this is not read.
const MOST: usize = 256 << 20;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// What the table `filter` says about forwarded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Whether the policy of FORWARD drops.
    pub drops: bool,
    /// The rules of FORWARD itself, in their order.
    pub forward: Vec<Rule>,
    /// The names of the chains that users made.
    pub chains: Vec<String>,
}

/// A rule, as far as interfaces decide about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `-i`, as iptables writes it: `moat+` is all whose name begins so; empty where the rule does not ask.
    pub in_interface: String,
    /// `-o`.
    pub out_interface: String,
    /// Whether it accepts whatever comes by those interfaces, and asks for nothing else.
    pub accepts: bool,
}

/// Where the fields of an entry are; the families differ in their addresses' lengths.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// `iniface`, then `outiface`, then their masks, 16 bytes each.
    interfaces: usize,
    /// `proto`, two bytes, and the flags behind it: where they begin and end.
    protocol: (usize, usize),
    /// `target_offset`, then `next_offset`.
    target: usize,
    /// The length of an entry without matches and target.
    length: usize,
}

const V4: Shape = Shape { interfaces: 16, protocol: (80, 84), target: 88, length: 112 };
const V6: Shape = Shape { interfaces: 64, protocol: (128, 133), target: 140, length: 168 };

/// Reads the table `filter` of a family in the network namespace of the calling thread; `None` where there is none.
pub fn read(ipv6: bool) -> Result<Option<Filter>, Error> {
    const DOING: &str = "read the table filter of iptables-legacy";
    let (family, level, names, shape) = match ipv6 {
        false => (AddressFamily::INET, libc::SOL_IP, "/proc/thread-self/net/ip_tables_names", V4),
        true => (AddressFamily::INET6, libc::SOL_IPV6, "/proc/thread-self/net/ip6_tables_names", V6),
    };
    // Asking for a table makes it, and its hooks cost every packet something.
    let there = fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "filter"));
    if !there {
        return Ok(None);
    }
    let failed = |source: std::io::Error| Error::Request { doing: DOING.to_owned(), message: None, source };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))
        .map_err(|errno| failed(errno.into()))?;
    let mut info = vec![0; INFO];
    info[..6].copy_from_slice(b"filter");
    read_option(socket.as_fd(), level, GET_INFO, &mut info).map_err(failed)?;
    let size = u32_at(&info, INFO - 4).unwrap_or_default() as usize;
    if size > MOST {
        return Err(Error::Malformed { doing: DOING });
    }
    let mut entries = vec![0; ENTRIES + size];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&(size as u32).to_ne_bytes());
    read_option(socket.as_fd(), level, GET_ENTRIES, &mut entries).map_err(failed)?;
    parse(&info, &entries[ENTRIES..], shape).ok_or(Error::Malformed { doing: DOING }).map(Some)
}

/// What the answers to both questions say.
fn parse(info: &[u8], entries: &[u8], shape: Shape) -> Option<Filter> {
    let hook = u32_at(info, 36 + 4 * FORWARD)? as usize;
    let underflow = u32_at(info, 56 + 4 * FORWARD)? as usize;
    let mut filter = Filter::default();
    let mut at = 0;
    while at < entries.len() {
        let entry = Entry::read(entries.get(at..)?, shape)?;
        if entry.target == "ERROR" {
            // The head of a chain that somebody made; the last of all says ERROR itself.
            let name = text(entry.verdict);
            if name != "ERROR" {
                filter.chains.push(name);
            }
        } else if at == underflow {
            filter.drops = entry.standard() == Some(DROP);
        } else if (hook..underflow).contains(&at) {
            filter.forward.push(entry.rule(shape));
        }
        at += entry.bytes.len();
    }
    Some(filter)
}

struct Entry<'a> {
    bytes: &'a [u8],
    /// Whether matches stand between it and its target.
    matches: bool,
    target: String,
    verdict: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(bytes: &'a [u8], shape: Shape) -> Option<Self> {
        let target = usize::from(u16_at(bytes, shape.target)?);
        let next = usize::from(u16_at(bytes, shape.target + 2)?);
        if target < shape.length || next < target + 32 {
            return None;
        }
        let bytes = bytes.get(..next)?;
        Some(Self {
            bytes,
            matches: target > shape.length,
            target: text(bytes.get(target + 2..target + 31)?),
            verdict: bytes.get(target + 32..)?,
        })
    }

    /// The verdict of the standard target, which has no name.
    fn standard(&self) -> Option<i32> {
        self.target.is_empty().then(|| u32_at(self.verdict, 0)).flatten().map(|verdict| verdict as i32)
    }

    fn rule(&self, shape: Shape) -> Rule {
        let field = |n: usize| self.bytes.get(shape.interfaces + 16 * n..shape.interfaces + 16 * (n + 1));
        let interface = |n: usize| interface(field(n).unwrap_or_default(), field(n + 2).unwrap_or_default());
        let addresses = self.bytes.get(..shape.interfaces).unwrap_or_default();
        let protocol = self.bytes.get(shape.protocol.0..shape.protocol.1).unwrap_or_default();
        let plain = addresses.iter().chain(protocol).all(|byte| *byte == 0) && !self.matches;
        Rule {
            in_interface: interface(0),
            out_interface: interface(1),
            accepts: plain && self.standard() == Some(ACCEPT),
        }
    }
}

/// A name and its mask, as iptables writes them.
fn interface(name: &[u8], mask: &[u8]) -> String {
    let asked = mask.iter().take_while(|byte| **byte == 0xff).count();
    let whole = text(name);
    // The mask of a whole name takes its end with it.
    if asked > whole.len() || asked == 0 { whole } else { format!("{}+", &whole[..asked.min(whole.len())]) }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].iter().map(|byte| char::from(*byte & 0x7f)).collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_may_come(
            info in prop::collection::vec(any::<u8>(), 0..INFO + 4),
            entries in prop::collection::vec(any::<u8>(), 0..600),
            v6: bool,
        ) {
            let _ = parse(&info, &entries, if v6 { V6 } else { V4 });
        }
    }

    #[test]
    fn names_are_written_as_iptables_does() {
        let name = |name: &str, asked: usize| {
            let (mut bytes, mut mask) = ([0; 16], [0; 16]);
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            mask[..asked].fill(0xff);
            interface(&bytes, &mask)
        };
        assert_eq!(name("moat", 4), "moat+");
        assert_eq!(name("moat", 5), "moat");
        assert_eq!(name("", 0), "");
    }
}
