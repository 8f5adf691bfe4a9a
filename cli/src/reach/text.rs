//! The answer for people.

use std::io::{self, Write};

use moat_policies::{Reason, Side};

use super::{Answer, Answers};
use crate::output::verdict;

/// How many rules that come near are told.
const NEAR: usize = 5;

pub(super) fn write(answers: &Answers, colours: bool, out: &mut dyn Write) -> io::Result<()> {
    let deciding = answers.deciding();
    let (from, to) = (shown(&answers.source, deciding, true), shown(&answers.destination, deciding, false));
    let word = verdict(answers.allowed(), colours);
    writeln!(out, "{from} to {to} on {}: {word}", deciding.flow.traffic)?;
    if answers.pairs.len() > 1 {
        let denied = answers.pairs.iter().filter(|p| !p.verdict.allowed).count();
        let Answer { flow, .. } = deciding;
        match denied {
            0 => writeln!(
                out,
                "  for each of {} pairs of pods; {} to {}:",
                answers.pairs.len(),
                flow.source,
                flow.destination
            )?,
            n => writeln!(
                out,
                "  denied for {n} of {} pairs of pods; {} to {}:",
                answers.pairs.len(),
                flow.source,
                flow.destination
            )?,
        }
    }
    for side in [&deciding.verdict.egress, &deciding.verdict.ingress] {
        write_side(side, deciding, colours, out)?;
    }
    let verdict = &deciding.verdict;
    if !verdict.allowed && verdict.egress.allowed && verdict.ingress.allowed {
        writeln!(out, "  {}", verdict.explain(&deciding.flow))?;
    }
    let differ = deciding.families.windows(2).any(|pair| pair[0].1 != pair[1].1);
    for (family, judgement) in deciding.families.iter().filter(|_| differ) {
        let side = |allowed| crate::output::verdict(allowed, colours);
        writeln!(
            out,
            "  {family}     egress {}, ingress {}",
            side(judgement.egress),
            side(judgement.ingress)
        )?;
    }
    Ok(())
}

fn write_side(side: &Side, answer: &Answer, colours: bool, out: &mut dyn Write) -> io::Result<()> {
    let flow = &answer.flow;
    // Padded by hand: colours have no width.
    let space = if side.allowed { " " } else { "  " };
    let direction = format!("{:<8}", side.direction.to_string());
    writeln!(out, "  {direction} {}{space}{}", verdict(side.allowed, colours), side.explain(flow))?;
    let Reason::NoRule { candidates, .. } = &side.reason else { return Ok(()) };
    let peer = match side.direction {
        moat_policies::Direction::Ingress => &flow.source,
        moat_policies::Direction::Egress => &flow.destination,
    };
    for candidate in candidates.iter().skip(1).take(NEAR - 1) {
        writeln!(out, "{:19}{}", "", candidate.explain(flow.traffic, peer))?;
    }
    if candidates.len() > NEAR {
        writeln!(out, "{:19}and {} more rules", "", candidates.len() - NEAR)?;
    }
    Ok(())
}

/// As the question has it; an address that a pod holds with the pod's name.
fn shown(named: &crate::endpoint::Named, answer: &Answer, source: bool) -> String {
    let end = if source { &answer.flow.source } else { &answer.flow.destination };
    match &named.ends[..] {
        [asked] if asked != end => format!("{} ({end})", named.shown),
        _ => named.shown.clone(),
    }
}
