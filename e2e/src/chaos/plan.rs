//! What goes wrong, and in which order: follows from the seed and the folder. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use moat_policies::{
    Key, Labels, NAMESPACE_NAME_LABEL, NamespaceScope, NamespacedName, NetworkPolicy, Object, Objects, Peer,
    Peers, Pod, PortMatch, PortRef, Ports, Protocol, Rule, Selector,
};
use serde::{Deserialize, Serialize};

use super::random::Random;

/// Kinds of faults, to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// kill -9 of an agent.
    Kills,
    /// An outsider at the kernel's tables.
    Tables,
    /// Policies that come, change and go.
    Policies,
    /// Pods that come and go, also one in another's place.
    Pods,
    /// A node that is off the link for a while.
    Links,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 5] =
        [FaultKind::Kills, FaultKind::Tables, FaultKind::Policies, FaultKind::Pods, FaultKind::Links];

    /// Of so many faults in all, how many are of this kind.
    fn weight(self) -> usize {
        match self {
            FaultKind::Kills => 16,
            FaultKind::Tables => 6,
            FaultKind::Policies => 16,
            FaultKind::Pods => 4,
            FaultKind::Links => 1,
        }
    }
}

/// What an outsider does to a node's tables, by `nft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    FlushRuleset,
    DeleteTable,
    DeleteNetdevTable,
    InsertAccept,
    FlushForward,
}

impl Edit {
    const ALL: [Edit; 5] = [
        Edit::FlushRuleset,
        Edit::DeleteTable,
        Edit::DeleteNetdevTable,
        Edit::InsertAccept,
        Edit::FlushForward,
    ];

    /// The command, without `nft`.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Edit::FlushRuleset => "flush ruleset",
            Edit::DeleteTable => "delete table inet moat",
            Edit::DeleteNetdevTable => "delete table netdev moat",
            Edit::InsertAccept => "insert rule inet moat forward accept",
            Edit::FlushForward => "flush chain inet moat forward",
        }
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Fault {
    Kill {
        node: Arc<str>,
    },
    Edit {
        node: Arc<str>,
        edit: Edit,
    },
    Policy(NetworkPolicy),
    NoPolicy(NamespacedName),
    /// One pod goes, or one comes, or one after the other at the same address; the node's agent is killed so long
    /// after the beginning.
    Pods {
        gone: Option<Pod>,
        come: Option<Pod>,
        kill_after: Option<Duration>,
    },
    Cut {
        node: Arc<str>,
        lasts: Duration,
    },
}

/// A fault, and how long after the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) pause: Duration,
    /// Whether it waits until every agent is ready: one that is killed again and again before it is teaches little, and
    /// leaves whatever is written meanwhile unjudged.
    pub(crate) patient: bool,
    pub(crate) fault: Fault,
}

/// What there is to go wrong.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// As they are at the beginning.
    pub(crate) objects: Objects,
    /// The pods that may go.
    pub(crate) pods: BTreeSet<NamespacedName>,
    /// The ports that are asked for.
    pub(crate) ports: Vec<(Protocol, u16)>,
}

/// The faults, one after the other, without end.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    random: Random,
    kinds: Vec<FaultKind>,
    stage: Stage,
    nodes: Vec<Arc<str>>,
    /// The policies that are the plan's own.
    own: Vec<NamespacedName>,
    /// A policy of the folder that is away.
    missing: Option<NetworkPolicy>,
    /// A pod of the folder that is away, and who is in its place.
    away: Option<(Pod, Option<Pod>)>,
    numbers: usize,
    after_policy: bool,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64, kinds: &[FaultKind], stage: Stage) -> Self {
        let nodes = stage.objects.nodes().keys().cloned().collect();
        let mut kinds = kinds.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        let random = Random::new(seed);
        let (own, missing, away) = (Vec::new(), None, None);
        Self { random, kinds, stage, nodes, own, missing, away, numbers: 0, after_policy: false }
    }

    fn number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    fn millis(&mut self, first: usize, last: usize) -> Duration {
        Duration::from_millis((first + self.random.below(last - first + 1)) as u64)
    }

    fn node(&mut self) -> Option<Arc<str>> {
        self.random.pick(&self.nodes).cloned()
    }

    fn kind(&mut self) -> Option<FaultKind> {
        let all: usize = self.kinds.iter().map(|k| k.weight()).sum();
        let mut at = if all == 0 { return None } else { self.random.below(all) };
        for kind in &self.kinds {
            match at.checked_sub(kind.weight()) {
                Some(rest) => at = rest,
                None => return Some(*kind),
            }
        }
        None
    }

    fn policy(&mut self) -> Option<Fault> {
        if let Some(back) = self.missing.take_if(|_| self.random.one_in(2)) {
            return Some(self.put(back));
        }
        match self.random.below(4) {
            0 if self.missing.is_none() => {
                let theirs = |name: &&NamespacedName| !self.own.contains(name);
                let theirs: Vec<_> = self.stage.objects.policies().keys().filter(theirs).cloned().collect();
                let name = self.random.pick(&theirs)?.clone();
                self.missing = self.stage.objects.policies().get(&name).cloned();
                Some(self.take(name))
            }
            1 if !self.own.is_empty() => {
                let name = self.own[self.random.below(self.own.len())].clone();
                self.compose(name)
            }
            2 if !self.own.is_empty() => {
                let name = self.own.remove(self.random.below(self.own.len()));
                Some(self.take(name))
            }
            _ if self.own.len() >= 5 => {
                let name = self.own.remove(0);
                Some(self.take(name))
            }
            _ => {
                let pods: Vec<_> = self.stage.pods.iter().cloned().collect();
                let namespace = self.random.pick(&pods)?.namespace.clone();
                let name = NamespacedName::new(namespace, format!("chaos-{}", self.number()));
                let fault = self.compose(name.clone())?;
                self.own.push(name);
                Some(fault)
            }
        }
    }

    fn put(&mut self, policy: NetworkPolicy) -> Fault {
        self.stage.objects.insert(Object::Policy(policy.clone()));
        Fault::Policy(policy)
    }

    fn take(&mut self, name: NamespacedName) -> Fault {
        self.stage.objects.remove(&Key::Policy(name.clone()));
        Fault::NoPolicy(name)
    }

    /// A policy of this name that isolates some pods of its namespace in one direction, and lets few others in or out.
    fn compose(&mut self, name: NamespacedName) -> Option<Fault> {
        let pods: Vec<Pod> = self.stage.objects.pods().iter().filter(|p| !p.host_network).collect();
        let here: Vec<&Pod> = pods.iter().filter(|p| p.name.namespace == name.namespace).collect();
        let subject = *self.random.pick(&here)?;
        let subject =
            if self.random.one_in(5) { Selector::everything() } else { self.selector(&subject.labels) };
        let count = self.random.below(3);
        let rules: Vec<Rule> = (0..count).map(|_| self.rule(&pods)).collect();
        let (ingress, egress) = if self.random.one_in(3) { (None, Some(rules)) } else { (Some(rules), None) };
        Some(self.put(NetworkPolicy { name, subject, ingress, egress }))
    }

    fn rule(&mut self, pods: &[Pod]) -> Rule {
        let peers = match self.random.pick(pods) {
            Some(pod) if !self.random.one_in(4) => {
                let namespaces = Selector::label(NAMESPACE_NAME_LABEL, pod.name.namespace.clone());
                let pods = self.selector(&pod.labels);
                Peers::Of(vec![Peer::Pods { namespaces: NamespaceScope::Selected(namespaces), pods }])
            }
            _ => Peers::Any,
        };
        let ports = match self.random.pick(&self.stage.ports).copied() {
            Some((protocol, port)) if !self.random.one_in(3) => {
                Ports::Of(vec![PortMatch { protocol, port: PortRef::Range(port, port) }])
            }
            _ => Ports::Any,
        };
        Rule { peers, ports }
    }

    /// Selects by one of these labels.
    fn selector(&mut self, labels: &Labels) -> Selector {
        let labels: Vec<_> = labels.iter().collect();
        let label = self.random.pick(&labels);
        label.map_or_else(Selector::everything, |(key, value)| {
            Selector::label((*key).clone(), (*value).clone())
        })
    }

    fn pods(&mut self) -> Option<Fault> {
        let kill_after = if self.random.one_in(2) { Some(self.millis(0, 60)) } else { None };
        let kill_after = kill_after.filter(|_| self.kinds.contains(&FaultKind::Kills));
        let (gone, come) = match self.away.take() {
            // Whoever is in its place makes room again.
            Some((pod, Some(other))) => (Some(other), Some(pod)),
            Some((pod, None)) if self.random.one_in(2) => (None, Some(pod)),
            Some((pod, None)) => {
                let other = self.stand_in(&pod)?;
                self.away = Some((pod, Some(other.clone())));
                (None, Some(other))
            }
            None => {
                let pods: Vec<_> = self.stage.pods.iter().cloned().collect();
                let name = self.random.pick(&pods)?;
                let pod = self.stage.objects.pods().get(name)?;
                let other = if self.random.one_in(3) { None } else { self.stand_in(&pod) };
                self.away = Some((pod.clone(), other.clone()));
                (Some(pod), other)
            }
        };
        if let Some(gone) = &gone {
            self.stage.objects.remove(&Key::Pod(gone.name.clone()));
        }
        if let Some(come) = &come {
            self.stage.objects.insert(Object::Pod(come.clone()));
        }
        Some(Fault::Pods { gone, come, kill_after })
    }

    /// Somebody who is like another pod, for a pod's place.
    fn stand_in(&mut self, place: &Pod) -> Option<Pod> {
        let other = |p: &Pod| !p.host_network && p.name != place.name;
        let others: Vec<Pod> = self.stage.objects.pods().iter().filter(other).collect();
        let like = self.random.pick(&others)?.clone();
        let name = NamespacedName::new(like.name.namespace.clone(), format!("stand-in-{}", self.number()));
        Some(Pod { name, node: place.node.clone(), addresses: Vec::new(), uid: None, ..like })
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        // A kill amid a change is worth more than one in quiet times.
        if std::mem::take(&mut self.after_policy)
            && self.kinds.contains(&FaultKind::Kills)
            && self.random.one_in(3)
        {
            let (pause, node) = (self.millis(0, 20), self.node()?);
            return Some(Step { pause, patient: false, fault: Fault::Kill { node } });
        }
        let pause = self.millis(150, 450);
        let fault = match self.kind()? {
            FaultKind::Kills => Some(Fault::Kill { node: self.node()? }),
            FaultKind::Tables => {
                let edit = *self.random.pick(&Edit::ALL)?;
                Some(Fault::Edit { node: self.node()?, edit })
            }
            FaultKind::Policies => self.policy(),
            FaultKind::Pods => self.pods(),
            FaultKind::Links => Some(Fault::Cut { lasts: self.millis(100, 500), node: self.node()? }),
        };
        self.after_policy = matches!(fault, Some(Fault::Policy(_) | Fault::NoPolicy(_)));
        let patient = !self.random.one_in(4);
        Some(Step { pause, patient, fault: fault? })
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
