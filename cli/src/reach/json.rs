//! The answer for programs.

use std::io::{self, Write};

use moat_policies::{Candidate, Endpoint, Flow, Miss, Reason, Side};
use serde::Serialize;

use super::{Answer, Answers};
use crate::matrix::parts;

/// The whole answer. `egress`, `ingress` and their reasons are the deciding pair's; their `allowed` is for all pairs.
#[derive(Serialize)]
struct Reach<'a> {
    source: &'a str,
    destination: &'a str,
    protocol: &'a str,
    port: Option<u16>,
    allowed: bool,
    egress: SideJson,
    ingress: SideJson,
    families: Vec<FamilyJson>,
    /// Each pair of pods, where a workload stands for several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pairs: Vec<PairJson>,
}

#[derive(Serialize)]
struct PairJson {
    source: String,
    destination: String,
    port: Option<u16>,
    allowed: bool,
    egress: SideJson,
    ingress: SideJson,
    families: Vec<FamilyJson>,
}

#[derive(Serialize)]
struct FamilyJson {
    family: String,
    egress: bool,
    ingress: bool,
    allowed: bool,
}

#[derive(Serialize)]
struct SideJson {
    allowed: bool,
    /// A word of a closed list.
    reason: &'static str,
    /// The same in a sentence.
    text: String,
    /// The policies that isolate the pod in this direction.
    isolating: Vec<String>,
    /// The rule that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleJson>,
    /// What each rule lacks, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<CandidateJson>,
}

#[derive(Serialize)]
struct RuleJson {
    policy: String,
    direction: String,
    index: usize,
}

#[derive(Serialize)]
struct CandidateJson {
    #[serde(flatten)]
    rule: RuleJson,
    /// `peer`, `port` or `peer-and-port`.
    miss: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<String>,
    text: String,
}

pub(super) fn write(answers: &Answers, out: &mut dyn Write) -> io::Result<()> {
    let deciding = answers.deciding();
    let (protocol, port) = parts(deciding.flow.traffic);
    let PairJson { mut egress, mut ingress, families, .. } = pair(deciding);
    egress.allowed = answers.pairs.iter().all(|p| p.verdict.egress.allowed);
    ingress.allowed = answers.pairs.iter().all(|p| p.verdict.ingress.allowed);
    let one = |named: &crate::endpoint::Named, end: &Endpoint| match named.ends.len() {
        1 => end.to_string(),
        _ => named.shown.clone(),
    };
    let reach = Reach {
        source: &one(&answers.source, &deciding.flow.source),
        destination: &one(&answers.destination, &deciding.flow.destination),
        protocol,
        port,
        allowed: answers.allowed(),
        egress,
        ingress,
        families,
        pairs: match answers.pairs.len() {
            1 => Vec::new(),
            _ => answers.pairs.iter().map(pair).collect(),
        },
    };
    serde_json::to_writer_pretty(&mut *out, &reach)?;
    writeln!(out)
}

fn pair(answer: &Answer) -> PairJson {
    let Answer { flow, verdict, families } = answer;
    PairJson {
        source: flow.source.to_string(),
        destination: flow.destination.to_string(),
        port: parts(flow.traffic).1,
        allowed: verdict.allowed,
        egress: side(&verdict.egress, flow, &flow.destination),
        ingress: side(&verdict.ingress, flow, &flow.source),
        families: families
            .iter()
            .map(|(family, j)| FamilyJson {
                family: family.to_string(),
                egress: j.egress,
                ingress: j.ingress,
                allowed: j.allowed,
            })
            .collect(),
    }
}

fn side(side: &Side, flow: &Flow, peer: &Endpoint) -> SideJson {
    let (reason, isolating, rule, candidates) = match &side.reason {
        Reason::Itself => ("itself", None, None, None),
        Reason::OwnNode => ("own-node", None, None, None),
        Reason::HostNetwork => ("host-network", None, None, None),
        Reason::Outside => ("outside", None, None, None),
        Reason::NotIsolated => ("not-isolated", None, None, None),
        Reason::NoCommonFamily => ("no-common-family", None, None, None),
        Reason::Rule { isolating, by } => ("rule", Some(isolating), Some(rule_json(by)), None),
        Reason::NoRule { isolating, candidates } => ("no-rule", Some(isolating), None, Some(candidates)),
    };
    let candidate = |c: &Candidate| candidate_json(c, flow, peer);
    SideJson {
        allowed: side.allowed,
        reason,
        text: side.explain(flow),
        isolating: isolating.into_iter().flatten().map(ToString::to_string).collect(),
        rule,
        candidates: candidates.into_iter().flatten().map(candidate).collect(),
    }
}

fn rule_json(rule: &moat_policies::RuleRef) -> RuleJson {
    RuleJson { policy: rule.policy.to_string(), direction: rule.direction.to_string(), index: rule.index }
}

fn candidate_json(candidate: &Candidate, flow: &Flow, peer: &Endpoint) -> CandidateJson {
    let (miss, peers, ports) = match &candidate.miss {
        Miss::Port { allows } => ("port", None, Some(allows)),
        Miss::Peer { allows } => ("peer", Some(allows), None),
        Miss::PeerAndPort { peers, ports } => ("peer-and-port", Some(peers), Some(ports)),
    };
    CandidateJson {
        rule: rule_json(&candidate.rule),
        miss,
        peers: peers.map(ToString::to_string),
        ports: ports.map(ToString::to_string),
        text: candidate.explain(flow.traffic, peer),
    }
}
