//! What the engine says of each flow in one epoch. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use moat_policies::{Endpoint, Evaluator, Family, Objects, Traffic};

/// A flow as a packet shows it: two addresses, and what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FlowKey {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) traffic: Traffic,
}

/// What each side says, where one could deny it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halves {
    pub(crate) egress: bool,
    pub(crate) ingress: bool,
}

/// The policies of one epoch, and what was asked about them so far.
#[derive(Debug)]
pub(crate) struct Law {
    objects: Objects,
    asked: HashMap<FlowKey, Halves>,
}

impl Law {
    /// The law of these objects; pods have their addresses.
    pub(crate) fn new(objects: Objects, flows: impl Iterator<Item = FlowKey>) -> Self {
        let mut law = Self { objects, asked: HashMap::new() };
        law.ask(flows);
        law
    }

    /// What it says of a flow. Asked once, kept.
    pub(crate) fn halves(&mut self, flow: FlowKey) -> Halves {
        if let Some(known) = self.asked.get(&flow) {
            return *known;
        }
        self.ask(std::iter::once(flow));
        // It was asked just now, and an address is always somebody's. In doubt nothing may pass.
        self.asked.get(&flow).copied().unwrap_or(Halves { egress: false, ingress: false })
    }

    fn ask(&mut self, flows: impl Iterator<Item = FlowKey>) {
        let evaluator = Evaluator::new(&self.objects);
        let mut parties = HashMap::new();
        for flow in flows {
            for address in [flow.source, flow.destination] {
                if !parties.contains_key(&address)
                    && let Ok(party) = evaluator.party(&Endpoint::Address(address))
                {
                    parties.insert(address, party);
                }
            }
            let (Some(from), Some(to)) = (parties.get(&flow.source), parties.get(&flow.destination)) else {
                continue;
            };
            let said = evaluator.judge(from, to, flow.traffic, Some(Family::of(&flow.source)));
            self.asked.insert(flow, Halves { egress: said.egress, ingress: said.ingress });
        }
    }

    /// Who holds an address.
    pub(crate) fn holder(&self, address: IpAddr) -> Endpoint {
        let holds = |pod: &moat_policies::Pod| pod.addresses.contains(&address);
        let pod = self.objects.pods().iter().find(holds);
        pod.map_or(Endpoint::Address(address), |pod| Endpoint::Pod(pod.name))
    }
}
