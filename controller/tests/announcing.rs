//! What is answered when, to agents that say which interfaces their nodes have.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_api::{Announced, Attached, Attachments, Hello, LEVEL, Told, wire};
use moat_controller::index::{AgentId, Index};
use moat_manifests::Changes;
use moat_policies::{Key, Limits, NamespacedName};
use tokio::sync::Notify;

/// Two nodes with a pod each; that of `there` lets that of `here` in.
fn index() -> Index {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: here}, spec: {podCIDR: 10.1.0.0/24}}
- {apiVersion: v1, kind: Node, metadata: {name: there}, spec: {podCIDR: 10.2.0.0/24}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {nodeName: here, containers: [{name: c, image: i}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, labels: {app: api}}, spec: {nodeName: there, containers: [{name: c, image: i}]}}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: api}, spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
";
    let mut index = Index::new(Limits::default());
    let apply = moat_manifests::decode([("objects.yaml", text.as_bytes())]).unwrap().objects;
    index.read(Changes { apply, ..Changes::default() });
    index
}

fn join_as(index: &mut Index, node: &str, life: &str, announces_only: bool) -> AgentId {
    let (version, held) = (String::new(), Told::default().held());
    let hello = Hello { level: LEVEL, node: node.into(), version, held, announces_only, life: life.into() };
    index.join(&hello, Arc::new(Notify::new()))
}

fn join(index: &mut Index, node: &str) -> AgentId {
    join_as(index, node, "one", false)
}

fn web() -> NamespacedName {
    NamespacedName::new("default", "web")
}

/// What `here` says of its pod `web`.
fn say(index: &mut Index, agent: AgentId, number: u64, whole: bool, address: Option<&str>) {
    let attached = address.map(|a| Attached { uid: None, addresses: vec![a.parse().unwrap()] });
    let mut pods = BTreeMap::from([(web(), attached)]);
    pods.retain(|_, attached| attached.is_some() || !whole);
    index.attached(agent, &Attachments { number, whole, pods });
}

/// The agent reads what there is for it. Returns the revision that it was told.
fn read(index: &mut Index, agent: AgentId) -> Option<u64> {
    Some(index.take(agent).unwrap().change?.0)
}

/// New connections follow, or also those that were there.
fn acknowledge(index: &mut Index, agent: AgentId, revision: u64, followed: u64) {
    index.applied(agent, &wire::Applied { revision, followed, ..Default::default() });
}

fn catch_up(index: &mut Index, agent: AgentId) {
    if let Some(revision) = read(index, agent) {
        acknowledge(index, agent, revision, revision);
    }
}

fn answer(index: &mut Index, agent: AgentId) -> Option<Announced> {
    index.take(agent).unwrap().announced
}

/// Both agents, current, and the pod `web` announced and answered as number 1.
fn announced(index: &mut Index) -> (AgentId, AgentId) {
    let (here, there) = (join(index, "here"), join(index, "there"));
    say(index, here, 1, true, Some("10.1.0.1"));
    catch_up(index, there);
    catch_up(index, here);
    assert_eq!(answer(index, here), Some(Announced { number: 1, gone: 1 }));
    (here, there)
}

#[test]
fn what_goes_is_answered_when_nobody_has_anything_of_it() {
    let mut index = index();
    let (here, there) = announced(&mut index);
    say(&mut index, here, 2, false, None);
    catch_up(&mut index, here);
    let revision = read(&mut index, there).unwrap();
    acknowledge(&mut index, there, revision, 0);
    let early = answer(&mut index, here).unwrap_or_default();
    assert!(early.gone < 2, "connections that were there do not follow yet");
    acknowledge(&mut index, there, revision, revision);
    assert_eq!(answer(&mut index, here), Some(Announced { number: 2, gone: 2 }));
}

#[test]
fn a_pod_that_starts_does_not_wait_for_one_that_ended() {
    let mut index = index();
    let (here, there) = announced(&mut index);
    say(&mut index, here, 2, false, None);
    say(&mut index, here, 3, false, Some("10.1.0.2"));
    let revision = read(&mut index, there).unwrap();
    catch_up(&mut index, here);
    acknowledge(&mut index, there, revision, 0);
    assert_eq!(answer(&mut index, here), Some(Announced { number: 3, gone: 1 }));
}

/// The source may say first that a pod is gone: then its agent's word changes nothing, and says nothing of who follows.
#[test]
fn what_the_source_took_away_before_is_waited_for_all_the_same() {
    let mut index = index();
    let (here, there) = announced(&mut index);
    index.read(Changes { delete: vec![Key::Pod(web())], ..Changes::default() });
    say(&mut index, here, 2, false, None);
    catch_up(&mut index, here);
    assert_eq!(answer(&mut index, here), None);
    catch_up(&mut index, there);
    assert_eq!(answer(&mut index, here), Some(Announced { number: 2, gone: 2 }));
}

#[test]
fn who_connects_again_is_answered_no_earlier() {
    let mut index = index();
    let (here, there) = announced(&mut index);
    say(&mut index, here, 2, false, None);
    index.leave(here);
    let here = join(&mut index, "here");
    say(&mut index, here, 2, true, None);
    catch_up(&mut index, here);
    assert_eq!(answer(&mut index, here), None, "the other one has not read it yet");
    let revision = read(&mut index, there).unwrap();
    assert_eq!(answer(&mut index, here), None, "nor said that it follows");
    acknowledge(&mut index, there, revision, revision);
    assert_eq!(answer(&mut index, here), Some(Announced { number: 2, gone: 2 }));
}

#[test]
fn nobody_waits_for_who_is_not_connected() {
    let mut index = index();
    let (here, there) = announced(&mut index);
    say(&mut index, here, 2, false, None);
    catch_up(&mut index, here);
    assert_eq!(answer(&mut index, here), None);
    index.leave(there);
    assert_eq!(answer(&mut index, here), Some(Announced { number: 2, gone: 2 }));
}

/// An agent that follows another replica says here what it says there, holds nothing, and is answered for those that follow this one.
#[test]
fn who_only_announces_is_told_nothing_else() {
    let mut index = index();
    let here = join_as(&mut index, "here", "one", true);
    let there = join(&mut index, "there");
    catch_up(&mut index, there);
    say(&mut index, here, 1, true, Some("10.1.0.1"));
    let outgoing = index.take(here).unwrap();
    assert_eq!((outgoing.change, outgoing.announced), (None, None));
    assert_eq!(index.agents().count(), 1, "nobody waits for it");
    catch_up(&mut index, there);
    let outgoing = index.take(here).unwrap();
    assert_eq!((outgoing.change, outgoing.announced), (None, Some(Announced { number: 1, gone: 1 })));
    let pod = index.objects().pods().get(&web()).unwrap();
    assert_eq!(pod.addresses, ["10.1.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

/// For a moment an agent may speak by two connections. What the slower one brings is older than what is known.
#[test]
fn of_two_connections_the_newer_word_counts() {
    let mut index = index();
    let announces = join_as(&mut index, "here", "one", true);
    say(&mut index, announces, 1, true, Some("10.1.0.1"));
    let follows = join_as(&mut index, "here", "one", false);
    say(&mut index, follows, 3, true, None);
    say(&mut index, announces, 2, false, Some("10.1.0.2"));
    let address = |index: &Index| index.objects().pods().get(&web()).unwrap().addresses;
    assert!(address(&index).is_empty(), "it is gone by now");
    assert!(index.take(announces).is_some(), "both are there");

    // Another process of the agent begins to count anew, and takes the place of both.
    let next = join_as(&mut index, "here", "two", false);
    assert_eq!((index.take(announces), index.take(follows)), (None, None));
    say(&mut index, next, 1, true, Some("10.1.0.3"));
    assert_eq!(address(&index), ["10.1.0.3".parse::<std::net::IpAddr>().unwrap()]);
}
