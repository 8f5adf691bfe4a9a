//! What came of the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::render::Colour;

/// One line of the table, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostileRow {
    /// What it is one of.
    pub group: String,
    /// What was sent.
    pub name: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The pod that sent it, or `uplink`.
    pub from: String,
    /// Where it had to be seen; nowhere where this is empty.
    pub expected: Vec<String>,
    /// Where it was seen, and what it changed.
    pub seen: Vec<String>,
}

impl HostileRow {
    /// Whether it was seen elsewhere than it had to be.
    pub fn differs(&self) -> bool {
        self.expected != self.seen
    }
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostileReport {
    /// How the nodes are joined.
    pub topology: String,
    /// Each row.
    pub rows: Vec<HostileRow>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl HostileReport {
    /// The rows that are not as they have to be.
    pub fn differences(&self) -> impl Iterator<Item = &HostileRow> {
        self.rows.iter().filter(|row| row.differs())
    }

    /// The table as a person reads it.
    pub fn text(&self, colour: Colour) -> String {
        let mut out = String::new();
        let mut group = None;
        for (at, pair) in self.pairs().into_iter().enumerate() {
            if group != Some(pair.group) {
                let blank = if at == 0 { "" } else { "\n" };
                let _ = writeln!(out, "{blank}{}", pair.group.to_uppercase());
                group = Some(pair.group);
            }
            out += &pair.line(colour);
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        let (rows, differing) = (self.rows.len(), self.differences().count());
        let arrived = self.rows.iter().filter(|row| !row.expected.is_empty()).count();
        let dropped = rows - arrived;
        let sum = format!("\n{}: {rows} rows, {dropped} to be dropped, {arrived} to arrive: ", self.topology);
        out += &sum;
        let _ = match differing {
            0 => writeln!(out, "{}", colour.green("all as expected")),
            n => writeln!(out, "{}", colour.red(&format!("{n} not as expected"))),
        };
        out
    }

    /// The rows, those that differ in nothing but the family together.
    fn pairs(&self) -> Vec<Line<'_>> {
        let mut order: Vec<Line<'_>> = Vec::new();
        let mut at: BTreeMap<(&str, &str, &str), Vec<usize>> = BTreeMap::new();
        for row in &self.rows {
            let places = at.entry((&row.group, &row.from, &row.name)).or_default();
            let same = places.iter().find(|at| {
                let first = order[**at].rows[0];
                first.expected == row.expected && first.seen == row.seen
            });
            match same {
                Some(at) => order[*at].rows.push(row),
                None => {
                    places.push(order.len());
                    order.push(Line { group: &row.group, rows: vec![row] });
                }
            }
        }
        // Groups in the order in which they came.
        let mut groups: Vec<&str> = Vec::new();
        order.iter().for_each(|line| {
            if !groups.contains(&line.group) {
                groups.push(line.group);
            }
        });
        order.sort_by_key(|line| groups.iter().position(|group| *group == line.group));
        order
    }
}

struct Line<'r> {
    group: &'r str,
    rows: Vec<&'r HostileRow>,
}

impl Line<'_> {
    fn line(&self, colour: Colour) -> String {
        let row = self.rows[0];
        let families: Vec<&str> = self.rows.iter().map(|r| r.family.trim_start_matches("IP")).collect();
        let families = families.join(" ");
        let words = |places: &[String]| match places {
            [] => "dropped".to_owned(),
            places => places.join(" "),
        };
        let (expected, seen) = (words(&row.expected), words(&row.seen));
        let line = format!("  {:<8} {:<52} {families:<6} {expected:<16}", row.from, row.name);
        match row.differs() {
            true => format!("{}\n", colour.red(&format!("{line} SEEN: {seen}"))),
            false => format!("{line} {}\n", colour.green(&seen)),
        }
    }
}
