//! Does to the lab what the plan says, while packets flow.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use moat_policies::{Endpoint, Family, Key, NamespacedName, Object, Objects, Pod, Protocol};
use tokio::sync::watch;

use super::ChaosOptions;
use super::clock::{Clock, Moment};
use super::journal::Journal;
use super::judge::{Event, Judge};
use super::mind::{Epochs, Mind};
use super::outsider::{self, Answer};
use super::plan::{Edit, Fault, FaultKind, Plan, Stage};
use super::prepare::{FILLERS, pod_file, policy_file, put, put_pod};
use super::report::{ChaosReport, Restarts};
use super::traffic::Generators;
use super::views::Epoch;
use crate::cells::{Host, served_ports};
use crate::error::{LabError, Trying as _};
use crate::lab::{Lab, Tell};
use crate::policy_text;
use crate::predict;
use crate::topology::{Placed, node_addresses};

/// Packets flow for so long before the first fault, and after the last.
const QUIET: Duration = Duration::from_millis(500);
/// How long unguarded tables may stay as somebody else left them.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);
/// How often an ADD is tried, as a kubelet would.
const TRIES: u32 = 5;

/// Runs faults and traffic for as long as the options say, or until `stop` says so.
pub(crate) async fn run(
    lab: &mut Lab,
    options: &ChaosOptions,
    stop: watch::Receiver<bool>,
    tell: Tell<'_>,
) -> Result<ChaosReport, LabError> {
    lab.stop_prober().await;
    let loaded = lab.load()?;
    let placed = lab.follow_placing(&loaded, tell).await?;
    lab.rooms.wait_until_applied(false).await?;
    let hosts = lab.hosts(&placed);
    let objects = predict::with_places(&loaded.objects, &placed, &hosts, false);
    let asked: Vec<Host> = hosts.into_iter().filter(|h| !is_filler(&h.endpoint)).collect();
    let court = Court::open(lab, objects.clone())?;
    let mut run = Run::new(lab, options, objects, asked, &court)?;
    let ended = run.until_the_end(options, stop, &court, tell).await;
    run.generators.hush();
    let interrupted = ended?;
    tokio::time::sleep(QUIET).await;
    let away = run.minds.iter().flat_map(Mind::away).collect();
    let notes = run.notes();
    let mut report = court.close()?;
    report.seed = options.seed;
    report.interrupted = interrupted;
    report.restarts = restarts(away);
    report.notes = notes;
    Ok(report)
}

fn is_filler(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Pod(name) if &*name.namespace == FILLERS)
}

/// The judge, on a thread of its own.
struct Court {
    journal: Journal,
    closing: Arc<AtomicBool>,
    judged: Arc<[AtomicUsize; 2]>,
    thread: JoinHandle<ChaosReport>,
}

impl Court {
    fn open(lab: &Lab, objects: Objects) -> Result<Self, LabError> {
        let nodes = lab.rooms.nodes();
        let own = |address| IpNet::from(address);
        let blocks = nodes.iter().map(|node| {
            node.pod_cidrs.iter().copied().chain(node_addresses(node).into_iter().map(own)).collect()
        });
        let mut judge = Judge::new(blocks.collect(), objects);
        let (sender, receiver) = mpsc::channel();
        let clock = Clock::start();
        let journal = Journal::new(clock, sender);
        let (closing, judged) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicUsize; 2]>::default());
        let (close, count) = (closing.clone(), judged.clone());
        let work = move || {
            while !close.load(Ordering::Relaxed) {
                if let Ok(event) = receiver.recv_timeout(Duration::from_millis(50)) {
                    judge.note(event);
                    receiver.try_iter().for_each(|event| judge.note(event));
                }
                // What was written down before now has been read.
                judge.settle(clock.now());
                let (judged, wrong) = judge.progress();
                count[0].store(judged, Ordering::Relaxed);
                count[1].store(wrong, Ordering::Relaxed);
            }
            let end = clock.now();
            receiver.try_iter().for_each(|event| judge.note(event));
            judge.report(end)
        };
        let thread = std::thread::Builder::new().name("judge".into()).spawn(work);
        Ok(Self { journal, closing, judged, thread: thread.trying(|| "cannot start a thread".into())? })
    }

    fn close(self) -> Result<ChaosReport, LabError> {
        self.closing.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| LabError::Told("the judge failed; see the lab's log".into()))
    }
}

/// A run that goes on.
struct Run<'l> {
    lab: &'l mut Lab,
    journal: Journal,
    folder: PathBuf,
    /// As the folder says now, with the pods' addresses.
    objects: Objects,
    epoch: Epoch,
    epochs: Epochs,
    hosts: Vec<Host>,
    generators: Generators,
    minds: Vec<Mind>,
    plan: Plan,
    step: usize,
    kills: Arc<AtomicUsize>,
    retried: usize,
    edits: [usize; 2],
    no_nft: bool,
    allow_for_load: bool,
}

impl<'l> Run<'l> {
    fn new(
        lab: &'l mut Lab,
        options: &ChaosOptions,
        objects: Objects,
        hosts: Vec<Host>,
        court: &Court,
    ) -> Result<Self, LabError> {
        let journal = court.journal.clone();
        let epochs = Epochs::default();
        let nodes = lab.rooms.nodes();
        let minds = nodes.iter().enumerate().map(|(number, node)| {
            let agent = lab.rooms.agent_of(&node.name).0.clone();
            Mind::new(number, node.name.clone(), agent, journal.clone(), epochs.clone())
        });
        let minds = minds.collect();
        let pods = objects.pods().iter().filter(|p| !p.host_network && &*p.name.namespace != FILLERS);
        let stage = Stage {
            pods: pods.map(|p| p.name).collect(),
            ports: served_ports(&hosts).into_iter().flatten().filter(|(p, _)| *p != Protocol::Sctp).collect(),
            objects: objects.clone(),
        };
        let generators = Generators::new(journal.clone(), options.rate);
        let folder = lab.options.folder.clone();
        let plan = Plan::new(options.seed, &options.kinds, stage);
        let mut run = Self {
            lab,
            journal,
            folder,
            objects,
            epoch: 0,
            epochs,
            hosts,
            generators,
            minds,
            plan,
            step: 0,
            kills: Arc::default(),
            retried: 0,
            edits: [0; 2],
            no_nft: false,
            allow_for_load: options.allow_for_load,
        };
        run.remember()?;
        Ok(run)
    }

    /// Returns whether it was told to stop.
    async fn until_the_end(
        &mut self,
        options: &ChaosOptions,
        mut stop: watch::Receiver<bool>,
        court: &Court,
        tell: Tell<'_>,
    ) -> Result<bool, LabError> {
        for host in self.hosts.clone() {
            self.begin(&host).await?;
        }
        self.generators.order(&self.hosts);
        let end = self.journal.clock.now() + Duration::from_millis(options.millis);
        let mut pause = QUIET;
        loop {
            let now = self.journal.clock.now();
            let left = end.since(now);
            let enough = options.kills.is_some_and(|kills| self.kills.load(Ordering::Relaxed) >= kills);
            if left.is_zero() || enough {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(left)) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(true),
            }
            if pause >= left {
                break;
            }
            let [judged, wrong] = [0, 1].map(|n| court.judged[n].load(Ordering::Relaxed));
            let (done, all) = (now.offset().as_secs(), Duration::from_millis(options.millis).as_secs());
            tell(&format!(
                "{done} s of {all} s: {} faults, {judged} packets judged, {wrong} wrong",
                self.step
            ));
            // Some things cannot be done now; a plan of nothing but those is a quiet one.
            match (0..20).find_map(|_| self.plan.next()) {
                Some(step) => {
                    pause = step.pause;
                    self.step += 1;
                    if step.patient {
                        self.until_ready().await;
                    }
                    self.fault(step.fault).await?;
                }
                None => pause = Duration::from_secs(1),
            }
        }
        // The last changes are seen through.
        self.until_ready().await;
        tokio::time::sleep(QUIET).await;
        Ok(false)
    }

    /// Waits until every agent that was killed is back; one that does not come back is found out elsewhere.
    async fn until_ready(&self) {
        let deadline = self.journal.clock.now() + Duration::from_secs(20);
        while !self.minds.iter().all(Mind::is_ready) && self.journal.clock.now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn begin(&mut self, host: &Host) -> Result<(), LabError> {
        let space = self.lab.space_of(&host.endpoint)?.clone();
        let started = self.generators.start(host, &self.hosts, &space).await;
        started.trying(|| format!("cannot serve as {}", host.endpoint))
    }

    fn say(&self, kind: FaultKind, at: Moment, words: &str) {
        let kind = match kind {
            FaultKind::Kills => "kills",
            FaultKind::Tables => "edits of tables",
            FaultKind::Policies => "writes of policies",
            FaultKind::Pods => "moves of pods",
            FaultKind::Links => "cut links",
        };
        self.journal.note(Event::Fault { at, kind, words: format!("step {}, {words}", self.step) });
    }

    async fn fault(&mut self, fault: Fault) -> Result<(), LabError> {
        let at = self.journal.clock.now();
        match fault {
            Fault::Kill { node } => {
                let mind = &self.minds[self.number_of(&node)];
                self.say(FaultKind::Kills, at, &format!("kill -9 of the agent of {node}"));
                self.kills.fetch_add(usize::from(mind.kill()?), Ordering::Relaxed);
                Ok(())
            }
            Fault::Edit { node, edit } => self.edit(&node, edit).await,
            Fault::Policy(policy) => {
                let verb =
                    if self.objects.policies().contains_key(&policy.name) { "changed" } else { "added" };
                self.say(FaultKind::Policies, at, &format!("policy {} {verb}", policy.name));
                let (folder, name) = (self.folder.clone(), policy_file(&policy.name));
                let document = policy_text::policy(&policy);
                self.write(
                    Vec::new(),
                    |o| o.insert(Object::Policy(policy)),
                    |_| put(&folder, &name, &document),
                )
            }
            Fault::NoPolicy(name) => {
                self.say(FaultKind::Policies, at, &format!("policy {name} removed"));
                let file = self.folder.join(policy_file(&name));
                self.write(Vec::new(), |o| o.remove(&Key::Policy(name)), |_| remove(file))
            }
            Fault::Pods { gone, come, kill_after } => self.pods(gone, come, kill_after).await,
            Fault::Cut { node, lasts } => {
                let number = self.number_of(&node);
                self.say(FaultKind::Links, at, &format!("cable of {node} out for {} ms", lasts.as_millis()));
                self.lab.fabric.plug(number, false).await?;
                tokio::time::sleep(lasts).await;
                self.lab.fabric.plug(number, true).await?;
                self.journal.note(Event::Cut { node: number, from: at, until: self.journal.clock.now() });
                Ok(())
            }
        }
    }

    async fn edit(&mut self, node: &str, edit: Edit) -> Result<(), LabError> {
        let from = self.journal.clock.now();
        let command = edit.command();
        self.say(FaultKind::Tables, from, &format!("nft {command} on {node}"));
        let space = self.lab.rooms.agent_of(node).1.clone();
        let answer = outsider::edit(&space, edit).await.trying(|| "cannot run nft".into())?;
        let now = self.journal.clock.now();
        match answer {
            Answer::NoNft => self.no_nft = true,
            Answer::Refused(_) => self.edits[0] += 1,
            Answer::Done => {
                self.edits[1] += 1;
                if !self.lab.options.owner {
                    let (node, until) = (self.number_of(node), now + RESTORED_WITHIN);
                    self.journal.note(Event::Damaged { node, from, until });
                } else if edit != Edit::FlushRuleset {
                    // A flush leaves out what it may not touch, and says nothing.
                    let what = format!("nft {command} on {node} was carried out: nobody guarded its tables");
                    self.journal.note(Event::Found { at: now, what });
                }
            }
        }
        Ok(())
    }

    async fn pods(
        &mut self,
        gone: Option<Pod>,
        come: Option<Pod>,
        kill_after: Option<Duration>,
    ) -> Result<(), LabError> {
        let at = self.journal.clock.now();
        let name = |pod: &Option<Pod>| pod.as_ref().map(|p| p.name.to_string());
        let words = match (name(&gone), name(&come)) {
            (Some(gone), Some(come)) => format!("pod {gone} replaced by {come}"),
            (Some(gone), None) => format!("pod {gone} removed"),
            (None, Some(come)) => format!("pod {come} added"),
            (None, None) => return Ok(()),
        };
        let node = gone.as_ref().or(come.as_ref()).and_then(|p| p.node.clone());
        let number = node.as_ref().map(|n| self.number_of(n)).unwrap_or_default();
        if let Some(after) = kill_after {
            self.say(
                FaultKind::Kills,
                at,
                &format!("kill -9 of its agent {} ms into: {words}", after.as_millis()),
            );
            let (mind, kills) = (self.minds[number].clone(), self.kills.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                kills.fetch_add(usize::from(mind.kill().unwrap_or(false)), Ordering::Relaxed);
            });
        }
        self.say(FaultKind::Pods, at, &words);
        let place = match gone {
            Some(pod) => Some(self.go(&pod.name, number).await?),
            None => None,
        };
        if let Some(pod) = come {
            self.come(pod, number, place).await?;
        }
        self.generators.order(&self.hosts);
        Ok(())
    }

    /// A pod goes. Its host stays among those that are asked: nobody should answer. Returns where it stands among them.
    async fn go(&mut self, name: &NamespacedName, node: usize) -> Result<usize, LabError> {
        let endpoint = Endpoint::Pod(name.clone());
        self.generators.stop(&endpoint);
        let early = vec![(node, self.journal.clock.now())];
        self.lab.rooms.detach(name).await?;
        let without_address = |o: &mut Objects| {
            if let Some(pod) = o.pods().get(name) {
                o.insert(Object::Pod(Pod { addresses: Vec::new(), ..pod }));
            }
        };
        self.write(early.clone(), without_address, |lab| lab.rooms.forget(name))?;
        let file = self.folder.join(pod_file(name));
        self.write(early, |o| o.remove(&Key::Pod(name.clone())), |_| remove(file))?;
        Ok(self.hosts.iter().position(|h| h.endpoint == endpoint).unwrap_or_default())
    }

    /// A pod comes, in the place of whoever had its address.
    async fn come(&mut self, pod: Pod, node: usize, place: Option<usize>) -> Result<(), LabError> {
        let folder = self.folder.clone();
        let described = Pod { addresses: Vec::new(), ..pod.clone() };
        self.write(
            Vec::new(),
            |o| o.insert(Object::Pod(described.clone())),
            |_| put_pod(&folder, &described),
        )?;
        let name = pod.name.clone();
        let node_name = pod.node.clone().unwrap_or_else(|| "".into());
        let placed = Placed { pod: pod.clone(), node: node_name.clone() };
        let began = self.journal.clock.now();
        let mut tries = 1;
        let addresses = loop {
            match self.lab.rooms.attach(&placed).await {
                Ok(addresses) => break addresses,
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => {
                    tries += 1;
                    self.retried += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let located = Object::Pod(Pod { addresses: addresses.clone(), ..pod.clone() });
        self.write(vec![(node, began)], |o| o.insert(located), |lab| lab.rooms.announce(&name))?;
        let ports = pod.ports.iter().filter(|c| c.protocol != Protocol::Sctp);
        let host = Host {
            endpoint: Endpoint::Pod(name),
            node: Some(node_name),
            ports: ports.map(|c| (c.protocol, c.port)).collect(),
            addresses,
        };
        let same = |h: &Host| {
            Family::ALL.iter().any(|f| h.address(*f).is_some() && h.address(*f) == host.address(*f))
        };
        match place.or_else(|| self.hosts.iter().position(same)) {
            Some(place) => self.hosts[place] = host.clone(),
            None => self.hosts.push(host.clone()),
        }
        self.begin(&host).await
    }

    /// A write of the folder, and a new epoch.
    fn write(
        &mut self,
        early: Vec<(usize, Moment)>,
        change: impl FnOnce(&mut Objects),
        act: impl FnOnce(&Lab) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        change(&mut self.objects);
        let objects = Box::new(self.objects.clone());
        let waits: Vec<_> =
            self.minds.iter().map(|mind| self.allow_for_load.then(|| mind.waits())?).collect();
        let before = self.journal.clock.now();
        act(self.lab)?;
        let after = self.journal.clock.now();
        self.journal.note(Event::Written { objects, before, after, early });
        self.epoch += 1;
        for (mind, waits) in self.minds.iter().zip(waits) {
            if let Some(waits) = waits {
                tokio::spawn(mind.clone().follow(waits, self.epoch, after));
            }
        }
        self.remember()
    }

    /// By what agents call this epoch.
    fn remember(&mut self) -> Result<(), LabError> {
        let fingerprint = self.lab.rooms.fingerprint()?;
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).insert(fingerprint, self.epoch);
        Ok(())
    }

    fn number_of(&self, node: &str) -> usize {
        self.lab.rooms.nodes().iter().position(|n| &*n.name == node).unwrap_or_default()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.no_nft {
            notes.push("nft is not installed: nobody edited the tables".to_owned());
        }
        let [refused, done] = self.edits;
        if refused + done > 0 {
            notes.push(format!("edits of tables: {refused} refused, {done} accepted (a flush is, and leaves guarded tables alone)"));
        }
        if self.retried > 0 {
            notes.push(format!(
                "{} times an ADD failed while its agent was killed, and was tried again",
                self.retried
            ));
        }
        notes
    }
}

fn remove(file: PathBuf) -> Result<(), LabError> {
    std::fs::remove_file(&file).trying(|| format!("cannot remove {}", file.display()))
}

fn restarts(mut away: Vec<Duration>) -> Restarts {
    away.sort_unstable();
    let millis = |d: &Duration| d.as_secs_f64() * 1e3;
    Restarts {
        count: away.len(),
        p50_ms: away.get(away.len() / 2).map(millis).unwrap_or_default(),
        max_ms: away.last().map(millis).unwrap_or_default(),
    }
}
