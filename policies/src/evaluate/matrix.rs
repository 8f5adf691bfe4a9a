//! Many questions among the same pods.

use std::collections::HashMap;

use super::party::Families;
use super::{Decision, Evaluator, Judgement, Pair, Party};
use crate::{ContainerPort, Direction, Endpoint, Family, NamespacedName, Traffic, UnknownEndpoint};

/// Every endpoint of a list to every other, for some traffics.
///
/// Pods that the same policies isolate, and that have the same container ports, are answered alike by rules, whoever
/// the peer is. So each peer is asked about once a group of such pods, not once a pod.
#[derive(Debug)]
pub struct Matrix<'a> {
    parties: Vec<Party<'a>>,
    traffics: Vec<Traffic>,
    /// By direction: each party's group.
    groups: [Vec<Group>; 2],
    /// What rules said, by peer.
    answers: HashMap<Question, Vec<Option<bool>>>,
}

/// Which subjects are answered alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Group {
    number: usize,
    /// Nobody else is in it, so that no answer is worth keeping.
    single: bool,
}

/// What a group is asked about all peers.
type Question = (Direction, usize, usize, Option<Family>);

/// What makes pods alike: the policies that isolate them, and for ingress the ports that names stand for.
type Likeness<'p> = (Vec<&'p NamespacedName>, Option<&'p [ContainerPort]>);

impl<'a> Matrix<'a> {
    /// The matrix of these endpoints.
    pub fn new(
        evaluator: &Evaluator<'a>,
        endpoints: &[Endpoint],
        traffics: &[Traffic],
    ) -> Result<Self, UnknownEndpoint> {
        let parties = endpoints.iter().map(|e| evaluator.party(e)).collect::<Result<Vec<_>, _>>()?;
        let groups = Direction::ALL.map(|direction| groups(&parties, direction));
        Ok(Self { parties, traffics: traffics.to_vec(), groups, answers: HashMap::new() })
    }

    /// Whether the endpoint at one place of the list may talk to that at another, with the traffic at a place of its.
    pub fn judge(&mut self, source: usize, destination: usize, traffic: usize) -> Judgement {
        let families = Families::common(&self.parties[source], &self.parties[destination], None);
        Judgement::over(families, |family, direction| {
            let (subject, peer) = match direction {
                Direction::Ingress => (destination, source),
                Direction::Egress => (source, destination),
            };
            let pair = Pair {
                source: &self.parties[source],
                destination: &self.parties[destination],
                traffic: self.traffics[traffic],
                family,
            };
            let by_rules = || !matches!(pair.by_rules(direction), Decision::NoRule);
            let group = self.groups[direction as usize][subject];
            if pair.without_rules(direction).is_some() {
                true
            } else if group.single {
                by_rules()
            } else {
                let question = (direction, group.number, traffic, family);
                let answers = self.answers.entry(question).or_insert_with(|| vec![None; self.parties.len()]);
                *answers[peer].get_or_insert_with(by_rules)
            }
        })
    }
}

fn groups(parties: &[Party<'_>], direction: Direction) -> Vec<Group> {
    let mut numbers: HashMap<Likeness<'_>, usize> = HashMap::new();
    let of_each: Vec<usize> = parties
        .iter()
        .map(|party| {
            let policies = party.isolating(direction).iter().map(|p| &p.name).collect();
            let ports = party.ports().filter(|_| direction == Direction::Ingress);
            let next = numbers.len();
            *numbers.entry((policies, ports)).or_insert(next)
        })
        .collect();
    let mut members = vec![0; numbers.len()];
    of_each.iter().for_each(|&number| members[number] += 1);
    of_each.into_iter().map(|number| Group { number, single: members[number] == 1 }).collect()
}
