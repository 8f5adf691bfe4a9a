//! `expected.txt`: what a person says the matrix must be.
//!
//! One line says something about many cells; the LAST line that matches a cell decides, so a file starts with the
//! rule and goes on with its exceptions. Every cell must be matched by some line. `#` starts a comment.
//!
//! ```text
//! # SOURCE    DESTINATION   TRAFFIC    VERDICT   FAMILY (both, where it is left out)
//! *           *             *          allow
//! *           shop/db-*     *          deny
//! shop/api-*  shop/db-*     5432/TCP   allow
//! *           shop/db-*     ICMP       deny      IPv6
//! ```
//!
//! SOURCE and DESTINATION are `namespace/pod` or an outside host's address, with `*` and `?`; TRAFFIC is `*`, `8080/TCP`,
//! `*/UDP` or `ICMP`; VERDICT is `allow` or `deny`.

use moat_policies::{Family, Protocol, Traffic};

use crate::cells::{Cell, Host};
use crate::glob;
use crate::textfile::{self, Line, LineError};

/// The file's name in a manifest folder.
pub const EXPECTED_FILE: &str = "expected.txt";

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    lines: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    line: Line,
    source: String,
    destination: String,
    traffic: TrafficPattern,
    family: Option<Family>,
    allow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrafficPattern {
    Any,
    Icmp,
    Protocol(Protocol),
    Port(Protocol, u16),
}

impl TrafficPattern {
    fn matches(self, traffic: Traffic) -> bool {
        match (self, traffic) {
            (TrafficPattern::Any, _) => true,
            (TrafficPattern::Icmp, Traffic::Other(_)) => true,
            (TrafficPattern::Protocol(wanted), Traffic::Port(protocol, _)) => wanted == protocol,
            (TrafficPattern::Port(wanted, number), Traffic::Port(protocol, port)) => {
                wanted == protocol && number == port
            }
            _ => false,
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(TrafficPattern::Any),
            "ICMP" => Ok(TrafficPattern::Icmp),
            "*/TCP" => Ok(TrafficPattern::Protocol(Protocol::Tcp)),
            "*/UDP" => Ok(TrafficPattern::Protocol(Protocol::Udp)),
            port => crate::world::port(port)
                .map(|(protocol, number)| TrafficPattern::Port(protocol, number))
                .map_err(|_| format!("`{port}` is not traffic: write *, 8080/TCP, */UDP or ICMP")),
        }
    }
}

impl Expected {
    /// Reads the text of an `expected.txt`.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let lines =
            textfile::lines(text).map(|(line, words)| statement(line, &words)).collect::<Result<_, _>>()?;
        Ok(Self { lines })
    }

    /// Whether the cell is to be allowed; `None`: no line speaks of it.
    pub fn verdict(&self, cell: &Cell, hosts: &[Host]) -> Option<bool> {
        let source = hosts[cell.source].endpoint.to_string();
        let destination = hosts[cell.destination].endpoint.to_string();
        self.lines
            .iter()
            .rev()
            .find(|s| {
                s.traffic.matches(cell.traffic)
                    && s.family.is_none_or(|f| f == cell.family)
                    && glob::matches(&s.source, &source)
                    && glob::matches(&s.destination, &destination)
            })
            .map(|s| s.allow)
    }

    /// The first line whose SOURCE or DESTINATION is nobody's name: most often a typing error, and then the line says
    /// nothing where its author thinks it does.
    pub fn line_about_nobody(&self, hosts: &[Host]) -> Option<LineError> {
        let names: Vec<String> = hosts.iter().map(|h| h.endpoint.to_string()).collect();
        let nobody = |pattern: &str| !names.iter().any(|n| glob::matches(pattern, n));
        self.lines.iter().find_map(|s| {
            let pattern = [&s.source, &s.destination].into_iter().find(|p| nobody(p))?;
            Some(s.line.error(format!("`{pattern}` is nobody in this lab")))
        })
    }
}

fn statement(line: Line, words: &[&str]) -> Result<Statement, LineError> {
    let (source, destination, traffic, verdict, family) = match *words {
        [source, destination, traffic, verdict] => (source, destination, traffic, verdict, None),
        [source, destination, traffic, verdict, family] => {
            (source, destination, traffic, verdict, Some(family))
        }
        _ => return Err(line.error("write SOURCE DESTINATION TRAFFIC VERDICT [FAMILY]")),
    };
    let family = match family {
        None => None,
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some(other) => return Err(line.error(format!("`{other}` is not a family: write IPv4 or IPv6"))),
    };
    let allow = match verdict {
        "allow" => true,
        "deny" => false,
        other => return Err(line.error(format!("`{other}` is not a verdict: write allow or deny"))),
    };
    let traffic = TrafficPattern::parse(traffic).map_err(|e| line.error(e))?;
    Ok(Statement { line, source: source.into(), destination: destination.into(), traffic, family, allow })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use moat_policies::{Endpoint, NamespacedName};

    use super::*;

    fn hosts() -> Vec<Host> {
        let host = |endpoint| Host { endpoint, node: None, addresses: vec![], ports: Default::default() };
        let pod = |name: &str| host(Endpoint::Pod(NamespacedName::new("shop", name)));
        let outside: IpAddr = "203.0.113.10".parse().unwrap();
        vec![pod("web-0"), pod("db-0"), host(Endpoint::Address(outside))]
    }

    fn cell(source: usize, destination: usize, traffic: Traffic, family: Family) -> Cell {
        Cell { source, destination, traffic, family }
    }

    #[test]
    fn the_last_line_that_matches_decides() {
        let text = "* * * allow\n* shop/db-* * deny # closed\nshop/web-* shop/db-* 5432/TCP allow IPv4\n";
        let expected = Expected::parse(text).unwrap();
        let postgres = Traffic::Port(Protocol::Tcp, 5432);
        let verdict = |c| expected.verdict(&c, &hosts());
        assert_eq!(verdict(cell(0, 1, postgres, Family::V4)), Some(true));
        assert_eq!(verdict(cell(0, 1, postgres, Family::V6)), Some(false));
        assert_eq!(verdict(cell(0, 1, Traffic::Other(1), Family::V4)), Some(false));
        assert_eq!(verdict(cell(2, 1, postgres, Family::V4)), Some(false));
        assert_eq!(verdict(cell(1, 0, postgres, Family::V4)), Some(true));
    }

    #[test]
    fn protocols_and_icmp_are_apart() {
        let expected = Expected::parse("* * */UDP deny\n203.0.113.* * ICMP allow").unwrap();
        let verdict = |c| expected.verdict(&c, &hosts());
        assert_eq!(verdict(cell(0, 1, Traffic::Port(Protocol::Udp, 53), Family::V4)), Some(false));
        assert_eq!(verdict(cell(0, 1, Traffic::Port(Protocol::Tcp, 53), Family::V4)), None);
        assert_eq!(verdict(cell(2, 1, Traffic::Other(58), Family::V6)), Some(true));
        assert_eq!(verdict(cell(0, 1, Traffic::Other(1), Family::V4)), None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("* * *", "line 1: write SOURCE DESTINATION TRAFFIC VERDICT [FAMILY]"),
            ("\n* * * yes", "line 2: `yes` is not a verdict: write allow or deny"),
            ("* * 80 allow", "line 1: `80` is not traffic: write *, 8080/TCP, */UDP or ICMP"),
            ("* * * allow v6", "line 1: `v6` is not a family: write IPv4 or IPv6"),
        ] {
            assert_eq!(Expected::parse(text).unwrap_err().to_string(), said);
        }
        let typo = Expected::parse("* * * allow\n* shop/bd-* * deny").unwrap();
        let error = typo.line_about_nobody(&hosts()).unwrap();
        assert_eq!(error.to_string(), "line 2: `shop/bd-*` is nobody in this lab");
    }
}
