//! Connections that are there when a policy changes: what is denied now is cut, and nobody else notices.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Suite;
use super::probe::Expect;
use super::stage::{PATIENCE, Pod, Stage, cells, pod};
use super::stream::Stream;
use crate::api::Kind;

pub(super) const SUITE: Suite =
    Suite { name: "flows", about: "a deny cuts connections that are there, and no others", play };

/// In these, a stream that was cut asks more than fifty times.
const CUT: Duration = Duration::from_millis(300);

fn play(stage: &mut Stage) -> Result<()> {
    let mut pods = stage.start(&[
        pod("server", "node2", &[]),
        pod("friend", "node1", &[("side", "friend")]),
        pod("other", "node1", &[]),
        pod("near", "node2", &[]),
    ])?;
    let near = pods.remove(3);
    let [server, friend, other] = &pods[..] else { anyhow::bail!("three pods were started") };
    // Of the two that are to be cut, one is on the server's own node.
    let mut cut = stage.streams(other, server, 80)?;
    cut.extend(stage.streams(&near, server, 80)?);
    let mut kept = stage.streams(friend, server, 80)?;
    // The other way round: these the server has opened.
    kept.extend(stage.streams(server, &near, 81)?);
    kept.extend(stage.streams(other, friend, 80)?);

    let only_friend = json!([{ "from": [{ "podSelector": { "matchLabels": { "side": "friend" } } }] }]);
    stage.policy("ingress", selecting(server, "Ingress", "ingress", only_friend))?;
    is_cut(stage, "an ingress policy cuts what it does not allow, TCP and UDP", &cut, &kept)?;
    let mut asked = cells(other, server, 80, Expect::Blocked);
    asked.extend(cells(&near, server, 80, Expect::Blocked));
    asked.extend(cells(friend, server, 80, Expect::PASSES));
    stage.check("new connections fare the same", &asked)?;

    stage.remove_policy("ingress")?;
    resume(stage, "the same connections go on when the policy is gone", &cut)?;

    let to_others = json!([{ "to": [{ "podSelector": { "matchLabels": { "pod": "friend" } } }] }]);
    stage.policy("egress", selecting(other, "Egress", "egress", to_others))?;
    let (by_egress, rest) = cut.split_at(cut.len() / 2);
    let kept_and_near: Vec<&Stream> = kept.iter().chain(rest).collect();
    is_cut_of(
        stage,
        "an egress policy cuts what it does not allow",
        &by_egress.iter().collect::<Vec<_>>(),
        &kept_and_near,
    )?;
    stage.remove_policy("egress")?;
    resume(stage, "and these go on as well when it is gone", by_egress)?;

    // The policy stays, and a pod's label goes.
    let only_friend = json!([{ "from": [{ "podSelector": { "matchLabels": { "side": "friend" } } }] }]);
    relabel(stage, "other", json!("friend"))?;
    relabel(stage, "near", json!("friend"))?;
    stage.policy("ingress", selecting(server, "Ingress", "ingress", only_friend))?;
    stage.check("a label lets a pod in", &cells(&near, server, 80, Expect::PASSES))?;
    relabel(stage, "other", Value::Null)?;
    relabel(stage, "near", Value::Null)?;
    is_cut(stage, "a label that goes cuts connections", &cut, &kept)?;
    Ok(())
}

/// A policy about one pod.
fn selecting(subject: &Pod, kind: &str, rules_of: &str, rules: Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "pod": subject.name } }, "policyTypes": [kind], rules_of: rules })
}

fn relabel(stage: &Stage, name: &str, side: Value) -> Result<()> {
    let patch = json!({ "metadata": { "labels": { "side": side } } });
    stage.field.api.merge(Kind::POD, &stage.namespace, name, patch)?;
    Ok(())
}

fn is_cut(stage: &mut Stage, what: &str, cut: &[Stream], kept: &[Stream]) -> Result<()> {
    is_cut_of(stage, what, &cut.iter().collect::<Vec<_>>(), &kept.iter().collect::<Vec<_>>())
}

/// That some connections fall silent in both directions and stay so, and that others lose nothing meanwhile.
fn is_cut_of(stage: &mut Stage, what: &str, cut: &[&Stream], kept: &[&Stream]) -> Result<()> {
    let before: Vec<usize> = kept.iter().map(|stream| stream.next()).collect();
    stage.comes(what, PATIENCE, || Ok(cut.iter().all(|stream| stream.silent_for(CUT))))?;
    let arrived = |stage: &Stage| -> Vec<u64> {
        cut.iter().map(|stream| stage.echo.arrived(stream.id).map_or(0, |arrived| arrived.packets)).collect()
    };
    let then = arrived(stage);
    stage.field.hold_for(Duration::from_secs(1))?;
    let now = arrived(stage);
    let grown = cut.iter().zip(then.iter().zip(&now)).filter(|(_, (then, now))| now > then);
    let wrong: Vec<String> =
        grown.map(|(stream, (then, now))| format!("{}: {} more arrived", stream.name, now - then)).collect();
    stage.verdict("they stay cut while they go on trying", &wrong);
    let broken: Vec<String> =
        kept.iter().zip(before).filter_map(|(stream, number)| stream.broken_since(number)).collect();
    stage.verdict("the others do not notice", &broken);
    Ok(())
}

fn resume(stage: &mut Stage, what: &str, streams: &[Stream]) -> Result<()> {
    let before: Vec<usize> = streams.iter().map(Stream::next).collect();
    stage.comes(what, PATIENCE, || {
        Ok(streams.iter().zip(&before).all(|(stream, number)| stream.answered_since(*number)))
    })
}
