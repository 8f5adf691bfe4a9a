//! What came of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Fewer packets than this in a class prove nothing about it.
const AT_LEAST: usize = 1000;
/// A larger share in grace leaves too much unjudged.
const AT_MOST_IN_GRACE: f64 = 0.05;

/// Something that happened at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Seconds since the beginning.
    pub at: f64,
    /// What.
    pub what: String,
}

/// How agents that were killed came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Restarts {
    /// How often.
    pub count: usize,
    /// From the kill until it said that the newest policies are in force, in milliseconds: the median.
    pub p50_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChaosReport {
    /// The seed of its faults.
    pub seed: u64,
    /// How long it went on.
    pub seconds: f64,
    /// Whether somebody ended it early.
    pub interrupted: bool,
    /// Packets that were allowed, and arrived.
    pub allowed: usize,
    /// Packets that were denied, and did not.
    pub denied: usize,
    /// Packets that were allowed and did not arrive; each is among `wrong`.
    pub wrong_allowed: usize,
    /// Packets that were denied and arrived; each is among `wrong`.
    pub wrong_denied: usize,
    /// Packets at a change of their verdict: either outcome is right.
    pub grace: usize,
    /// Those among them whose change came while the agent that had to make it was being started again.
    pub grace_waiting: usize,
    /// How often the grace of a node was longer, because its agent waited for a processor meanwhile: by so long.
    pub lengthened: usize,
    /// The longest of these waits, in milliseconds.
    pub lengthened_max_ms: f64,
    /// Packets at nodes whose unguarded tables somebody had just changed.
    pub restoring: usize,
    /// Packets of UDP conversations that the answering side may have opened anew, after the tables had been gone.
    pub turned: usize,
    /// Packets that did not arrive on flows that had been denied before and were allowed again: they may go on, and need not.
    pub resumed: usize,
    /// Packets that had no way: a cut link, a pod that was away.
    pub undeliverable: usize,
    /// Every wrong verdict.
    pub wrong: Vec<Finding>,
    /// Every allowed connection that broke.
    pub broken: Vec<Finding>,
    /// What else must not be.
    pub found: Vec<Finding>,
    /// How many faults of each kind.
    pub faults: BTreeMap<String, usize>,
    /// Each of them.
    pub done: Vec<Finding>,
    /// Agents that came back.
    pub restarts: Restarts,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl ChaosReport {
    /// Packets that were held against a verdict.
    pub fn judged(&self) -> usize {
        self.allowed + self.denied + self.wrong_allowed + self.wrong_denied
    }

    /// The share of packets at a change.
    pub fn grace_share(&self) -> f64 {
        self.grace as f64 / (self.judged() + self.grace).max(1) as f64
    }

    /// Why it is a failure; nothing where it is none.
    pub fn failures(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut some = |number: usize, what: &str| {
            if number > 0 {
                all.push(format!("{number} {what}"));
            }
        };
        some(self.wrong.len(), "wrong verdicts");
        some(self.broken.len(), "broken allowed flows");
        some(self.found.len(), "other findings");
        for (class, number) in
            [("allowed", self.allowed + self.wrong_allowed), ("denied", self.denied + self.wrong_denied)]
        {
            if number < AT_LEAST {
                all.push(format!(
                    "only {number} {class} packets were judged: fewer than {AT_LEAST} prove nothing"
                ));
            }
        }
        if self.grace_share() > AT_MOST_IN_GRACE {
            let (share, most) = (self.grace_share() * 100.0, AT_MOST_IN_GRACE * 100.0);
            all.push(format!(
                "{share:.1}% of the packets were in grace: more than {most:.0}% leave too much unjudged"
            ));
        }
        all
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let faults: Vec<String> = self.faults.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let early = if self.interrupted { ", interrupted" } else { "" };
        let _ = writeln!(text, "seed {}, {:.1} s{early}", self.seed, self.seconds);
        let _ = writeln!(
            text,
            "faults           {}",
            if faults.is_empty() { "none".into() } else { faults.join(", ") }
        );
        if self.restarts.count > 0 {
            let Restarts { count, p50_ms, max_ms } = self.restarts;
            let _ = writeln!(
                text,
                "restarts         {count}; killed to ready: half within {p50_ms:.0} ms, all within {max_ms:.0} ms"
            );
        }
        let mut line = |name: &str, number: usize, more: String| {
            let _ =
                writeln!(text, "{name:<16} {number:>8}{}{more}", if more.is_empty() { "" } else { "   " });
        };
        line("packets judged", self.judged(), String::new());
        line(
            "  allowed",
            self.allowed + self.wrong_allowed,
            format!("{} did not arrive", self.wrong_allowed),
        );
        line("  denied", self.denied + self.wrong_denied, format!("{} arrived", self.wrong_denied));
        let waiting =
            format!("{:.2}%; {} of them waited for an agent", self.grace_share() * 100.0, self.grace_waiting);
        line("in grace", self.grace, waiting);
        if self.lengthened_max_ms >= 5.0 {
            let longest = format!(
                "times an agent waited for a processor, for up to {:.0} ms; the grace was longer by that",
                self.lengthened_max_ms
            );
            line("busy machine", self.lengthened, longest);
        }
        for (name, number, what) in [
            ("tables edited", self.restoring, "at nodes whose tables somebody had just changed"),
            ("turned", self.turned, "UDP that its other end, which may, opened anew after tables were gone"),
            ("resumed", self.resumed, "lost on flows that were denied for a while: they need not go on"),
            ("no way", self.undeliverable, "a cut link, or a pod that was away"),
        ] {
            if number > 0 {
                line(name, number, what.to_owned());
            }
        }
        for (title, findings) in [
            ("WRONG VERDICTS", &self.wrong),
            ("BROKEN ALLOWED FLOWS", &self.broken),
            ("ALSO FOUND", &self.found),
        ] {
            if !findings.is_empty() {
                let _ = writeln!(text, "\n{title}");
                for Finding { at, what } in findings {
                    let _ = writeln!(text, "  {at:9.4} s  {what}");
                }
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let failures = self.failures();
        if failures.is_empty() {
            let _ = writeln!(text, "\nevery verdict was right");
        } else {
            let _ = writeln!(text, "\nFAILED: {}", failures.join("; "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enough() -> ChaosReport {
        ChaosReport { allowed: 1000, denied: 1000, ..ChaosReport::default() }
    }

    #[test]
    fn a_run_that_proves_too_little_is_a_failure() {
        assert_eq!(enough().failures(), [""; 0]);
        let few = ChaosReport { allowed: 999, ..enough() };
        assert_eq!(few.failures(), ["only 999 allowed packets were judged: fewer than 1000 prove nothing"]);
        let few = ChaosReport { denied: 0, ..enough() };
        assert_eq!(few.failures(), ["only 0 denied packets were judged: fewer than 1000 prove nothing"]);
        // 5% of all is 2,000 of 40,000; one more is too many.
        let grace = |grace| ChaosReport { allowed: 37_000, grace, ..enough() }.failures();
        assert_eq!(grace(2_000), [""; 0]);
        assert_eq!(grace(2_001), ["5.0% of the packets were in grace: more than 5% leave too much unjudged"]);
    }

    #[test]
    fn every_finding_is_printed_with_its_moment() {
        let at = |at: f64, what: &str| Finding { at, what: what.to_owned() };
        let report = ChaosReport {
            wrong: vec![at(1.25, "UDP a to b was denied, but it arrived")],
            wrong_denied: 1,
            broken: vec![at(2.5, "TCP c to d was reset")],
            grace: 20,
            ..enough()
        };
        assert_eq!(report.failures(), ["1 wrong verdicts", "1 broken allowed flows"]);
        let text = report.text();
        for words in [
            "packets judged       2001",
            "  allowed            1000   0 did not arrive",
            "  denied             1001   1 arrived",
            "in grace               20   0.99%",
            "   1.2500 s  UDP a to b was denied, but it arrived",
            "   2.5000 s  TCP c to d was reset",
            "FAILED: 1 wrong verdicts; 1 broken allowed flows",
        ] {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
    }
}
