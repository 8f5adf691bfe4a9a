//! The matrix: what was predicted, what was seen, what a person wrote, and where they differ.

use std::fmt;

use moat_policies::{Endpoint, Traffic};
use serde::{Deserialize, Serialize};

use crate::cells::{Cell, Host};

/// What the packets did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "result", content = "detail")]
pub enum Observed {
    /// The destination recorded the probe, and its answer came back.
    Allowed,
    /// The destination never saw it, and nobody answered.
    Denied,
    /// Neither: what happened, in plain words. Equal to no prediction.
    Other(String),
}

impl Observed {
    /// Whether this is what a verdict promises.
    pub fn is(&self, allowed: bool) -> bool {
        *self == if allowed { Observed::Allowed } else { Observed::Denied }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Observed::Allowed => f.write_str("allowed"),
            Observed::Denied => f.write_str("denied"),
            Observed::Other(what) => f.write_str(what),
        }
    }
}

/// Everybody in the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportHost {
    /// `namespace/pod`, or an outside host's address.
    pub name: String,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// One cell, with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportCell {
    /// Who asks.
    pub source: String,
    /// Who is to answer.
    pub destination: String,
    /// `TCP`, `UDP` or `ICMP`.
    pub protocol: String,
    /// The destination port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// What the engine says.
    pub predicted: bool,
    /// What the packets did; `None` where none were sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub observed: Option<Observed>,
    /// What `expected.txt` says, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected: Option<bool>,
}

impl ReportCell {
    /// Whether prediction, packets and expectation are not all the same.
    pub fn differs(&self) -> bool {
        self.observed.as_ref().is_some_and(|o| !o.is(self.predicted))
            || self.expected.is_some_and(|e| e != self.predicted)
    }

    /// `8080/TCP` or `ICMP`.
    pub fn traffic(&self) -> String {
        self.port.map_or_else(|| self.protocol.clone(), |port| format!("{port}/{}", self.protocol))
    }
}

/// `shop/web-0 -> shop/db-0 5432/TCP IPv4: predicted denied, observed allowed`.
impl fmt::Display for ReportCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        write!(f, "{} -> {} {} {}: ", self.source, self.destination, self.traffic(), self.family)?;
        write!(f, "predicted {}", word(self.predicted))?;
        if let Some(observed) = &self.observed {
            write!(f, ", observed {observed}")?;
        }
        self.expected.map_or(Ok(()), |e| write!(f, ", expected {}", word(e)))
    }
}

/// A whole matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its rows and columns.
    pub hosts: Vec<ReportHost>,
    /// All cells, by source, destination, family and traffic.
    pub cells: Vec<ReportCell>,
    /// How many cells there were when the lab was built, all of which passed with no policy in force; 0 where no
    /// packets were sent.
    pub baseline: usize,
    /// How many cells that should pass needed a second, longer try.
    pub retried: usize,
    /// What a reader should know besides: warnings, agents that do not run.
    pub notes: Vec<String>,
}

impl Report {
    /// Puts the columns together. `expected` and `observed` may be empty: then nothing is compared with them.
    pub fn new(
        hosts: &[Host],
        cells: &[Cell],
        predicted: &[bool],
        observed: Vec<Observed>,
        expected: &[bool],
    ) -> Self {
        let mut observed = observed.into_iter();
        let cells = cells.iter().enumerate().map(|(at, cell)| {
            let (protocol, port) = match cell.traffic {
                Traffic::Port(protocol, port) => (protocol.as_str(), Some(port)),
                Traffic::Other(_) => ("ICMP", None),
            };
            ReportCell {
                source: hosts[cell.source].endpoint.to_string(),
                destination: hosts[cell.destination].endpoint.to_string(),
                protocol: protocol.into(),
                port,
                family: cell.family.to_string(),
                predicted: predicted[at],
                observed: observed.next(),
                expected: expected.get(at).copied(),
            }
        });
        let cells = cells.collect();
        Self {
            hosts: hosts.iter().map(report_host).collect(),
            cells,
            baseline: 0,
            retried: 0,
            notes: Vec::new(),
        }
    }

    /// The cells where prediction, packets and expectation are not all the same.
    pub fn differences(&self) -> impl Iterator<Item = &ReportCell> {
        self.cells.iter().filter(|c| c.differs())
    }
}

fn report_host(host: &Host) -> ReportHost {
    ReportHost {
        name: match &host.endpoint {
            Endpoint::Pod(name) => name.to_string(),
            Endpoint::Address(address) => address.to_string(),
        },
        node: host.node.as_ref().map(ToString::to_string),
        addresses: host.addresses.iter().map(ToString::to_string).collect(),
    }
}
