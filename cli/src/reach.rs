//! `moat reach`: one question, with reasons.

mod json;
mod text;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use moat_policies::{
    Direction, Endpoint, Evaluator, Family, Flow, Judgement, NamespacedName, NetworkPolicy, Objects, Peer,
    Peers, Reason, Side, Traffic, Verdict,
};

use crate::endpoint::{Named, find};
use crate::input::{Input, Loaded, PodToNode, warn_of_contested};
use crate::output::{self, Format};
use crate::port::Port;

/// May A talk to B, and why
///
/// A and B are each one of
///   NAMESPACE/POD         a pod
///   pod/NAME              a pod of the namespace that -n names
///   deploy/NAME           a workload of that namespace: deploy, sts, ds, rs, job or cronjob; also NAMESPACE/deploy/NAME
///   10.0.0.7, 2001:db8::7 an address: the pod or the node that has it, or somebody outside the cluster
///
/// A question about a workload is one about every pod that it stands for; the answer is allowed if it is for each.
///
/// Without -f it asks about what is in the cluster now.
///
/// Exit status: 0 allowed, 1 denied, 2 error.
#[derive(clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  moat reach shop/web shop/api --port 8080/TCP
  moat reach deploy/web sts/db -n shop --port 5432 --context production
  moat reach shop/web shop/api --port 8080/TCP -f manifests/
  moat reach deploy/web deploy/api -n shop --port http -f manifests/
  moat reach 203.0.113.9 shop/web --port 443 -f manifests/
  moat reach shop/web 10.20.0.5 --port icmp -o json -f namespaces.yaml -f pods.yaml -f policies.yaml"
)]
pub(crate) struct Args {
    /// Who opens the connection
    #[arg(value_name = "A")]
    source: String,
    /// Who is to answer
    #[arg(value_name = "B")]
    destination: String,
    /// B's port and protocol (80/TCP, 53/UDP; TCP if left out), a container port's name (http, dns/UDP), or icmp
    #[arg(long, value_name = "PORT")]
    port: Port,
    #[command(flatten)]
    input: Input,
    /// The namespace of what is written without one [default: that of the kubeconfig's context; with -f, default]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Who decides what a pod may send to its own node: what moat-agent's flag of this name says
    #[arg(long, value_enum, default_value_t)]
    pod_to_node: PodToNode,
    /// How to print the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// The answer for one pair of ends.
struct Answer {
    flow: Flow,
    verdict: Verdict,
    /// What each family says by itself, where there is more than one.
    families: Vec<(Family, Judgement)>,
}

/// The answers for all pairs; never empty.
struct Answers {
    source: Named,
    destination: Named,
    pairs: Vec<Answer>,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Loaded { manifests, namespace } = args.input.load()?;
    let objects = manifests.to_objects();
    let namespace = args.namespace.as_deref().unwrap_or(&namespace);
    let end = |word: &str| find(word, namespace, &manifests, &objects);
    let (source, destination) = (end(&args.source)?, end(&args.destination)?);
    let answers = Answers::ask(&objects, args.pod_to_node, source, destination, &args.port)?;
    if let Some(pod) = answers.unknown_address(&objects) {
        output::note(format_args!(
            "the address of {pod} is not known (status.podIPs), so no ipBlock matches it; in a cluster one may"
        ));
    }
    output::print(|out| match args.output {
        Format::Json => json::write(&answers, out),
        Format::Text => text::write(&answers, output::colours(), out),
    })?;
    Ok(ExitCode::from(u8::from(!answers.allowed())))
}

impl Answers {
    fn ask(
        objects: &Objects,
        pod_to_node: PodToNode,
        source: Named,
        destination: Named,
        port: &Port,
    ) -> Result<Self> {
        let evaluator = pod_to_node.evaluator(objects);
        warn_of_contested(&evaluator, objects);
        let resolve =
            |named: &Named| -> Vec<Endpoint> { named.ends.iter().map(|e| evaluator.resolve(e)).collect() };
        let (from, to) = (resolve(&source), resolve(&destination));
        let contested = evaluator.contested();
        for end in from.iter().chain(&to) {
            let several =
                matches!(end, Endpoint::Address(address) if contested.binary_search(address).is_ok());
            ensure!(
                !several,
                "several pods claim {end}, so it names none of them; ask about each by its name"
            );
        }
        // A workload's question about itself is one about its pods among each other, where there is more than one.
        let among_themselves = from.len() > 1 && from == to;
        let mut pairs = Vec::new();
        for a in &from {
            for b in to.iter().filter(|b| !(among_themselves && a == *b)) {
                let traffic = traffic(objects, b, port)?;
                pairs.push(answer(
                    &evaluator,
                    Flow { source: a.clone(), destination: b.clone(), traffic, family: None },
                )?);
            }
        }
        Ok(Self { source, destination, pairs })
    }

    /// A pod whose missing address may be why the answer is what it is: a side that denies it names an ipBlock.
    fn unknown_address(&self, objects: &Objects) -> Option<NamespacedName> {
        let Answer { flow, verdict, .. } = self.deciding();
        let names_block = |side: &Side| match &side.reason {
            Reason::NoRule { isolating, .. } => isolating
                .iter()
                .filter_map(|name| objects.policies().get(name))
                .any(|p| has_block(p, side.direction)),
            _ => false,
        };
        [(&verdict.egress, &flow.destination), (&verdict.ingress, &flow.source)]
            .into_iter()
            .filter(|(side, _)| names_block(side))
            .find_map(|(_, peer)| match peer {
                Endpoint::Pod(name) => objects.pods().get(name).filter(|pod| pod.addresses.is_empty()),
                Endpoint::Address(_) => None,
            })
            .map(|pod| pod.name)
    }

    fn allowed(&self) -> bool {
        self.pairs.iter().all(|p| p.verdict.allowed)
    }

    /// The pair whose reasons are the answer's: the first that is denied, where there is one.
    fn deciding(&self) -> &Answer {
        self.pairs.iter().find(|p| !p.verdict.allowed).unwrap_or(&self.pairs[0])
    }
}

fn has_block(policy: &NetworkPolicy, direction: Direction) -> bool {
    let peers = policy.rules(direction).unwrap_or_default().iter().map(|rule| &rule.peers);
    peers
        .filter_map(|peers| if let Peers::Of(list) = peers { Some(list) } else { None })
        .flatten()
        .any(|peer| matches!(peer, Peer::Block(_)))
}

fn answer(evaluator: &Evaluator<'_>, flow: Flow) -> Result<Answer> {
    let verdict = evaluator.evaluate(&flow)?;
    let (source, destination) = (evaluator.party(&flow.source)?, evaluator.party(&flow.destination)?);
    let alone =
        |family: &Family| (*family, evaluator.judge(&source, &destination, flow.traffic, Some(*family)));
    let families = verdict.families.iter().map(alone).collect();
    Ok(Answer { flow, verdict, families })
}

/// The question's traffic: a name is looked up on the destination.
fn traffic(objects: &Objects, destination: &Endpoint, port: &Port) -> Result<Traffic> {
    let (protocol, name) = match port {
        Port::Traffic(traffic) => return Ok(*traffic),
        Port::Named(protocol, name) => (*protocol, name),
    };
    let pod = match destination {
        Endpoint::Pod(pod) => objects.pods().get(pod),
        Endpoint::Address(_) => None,
    };
    let Some(pod) = pod else {
        bail!("--port {name}: {destination} is no pod, so it has no port names; write a number");
    };
    let named = |p: &&moat_policies::ContainerPort| p.name.as_ref() == Some(name) && p.protocol == protocol;
    let mut numbers: Vec<u16> = pod.ports.iter().filter(named).map(|p| p.port).collect();
    numbers.sort_unstable();
    numbers.dedup();
    match numbers[..] {
        [port] => Ok(Traffic::Port(protocol, port)),
        [] => {
            let there: Vec<String> = pod
                .ports
                .iter()
                .filter_map(|p| Some(format!("{}/{}", p.name.as_ref()?, p.protocol)))
                .collect();
            ensure!(!there.is_empty(), "--port {name}: {destination} names no port; write a number");
            bail!("--port {name}: {destination} has no port {name}/{protocol}; it has {}", there.join(", "))
        }
        _ => bail!("--port {name}: {destination} has several ports of that name; write a number"),
    }
}
