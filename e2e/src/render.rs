//! The matrix as text: rows are who answers, columns who asks, each cell predicted beside observed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::{Observed, Report, ReportCell};

/// How many differing cells are named one by one.
const NAMED: usize = 40;

/// Whether to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Red, green and grey.
    On,
    /// None.
    Off,
}

impl Colour {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Colour::On => format!("\x1b[{code}m{text}\x1b[0m"),
            Colour::Off => text.to_owned(),
        }
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// The matrix, the differing cells by name, and a sentence that sums up.
pub fn text(report: &Report, colour: Colour) -> String {
    let mut out = String::new();
    matrix(&mut out, report, colour);
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    let differing: Vec<&ReportCell> = report.differences().collect();
    for cell in differing.iter().take(NAMED) {
        let _ = writeln!(out, "{}", colour.red(&cell.to_string()));
    }
    if differing.len() > NAMED {
        let _ = writeln!(out, "{}", colour.red(&format!("… and {} more", differing.len() - NAMED)));
    }
    if report.baseline > 0 {
        let _ = writeln!(out, "With no policy in force, all {} cells passed. With them:", report.baseline);
    }
    let _ = writeln!(out, "{}", summary(report, differing.len(), colour));
    out
}

fn summary(report: &Report, differing: usize, colour: Colour) -> String {
    let cells = report.cells.len();
    let allowed = report.cells.iter().filter(|c| c.predicted).count();
    let probed = report.cells.iter().any(|c| c.observed.is_some());
    let expected = report.cells.iter().any(|c| c.expected.is_some());
    let compared = match (probed, expected) {
        (true, true) => "prediction, packets and expected.txt",
        (true, false) => "prediction and packets",
        (false, true) => "prediction and expected.txt",
        (false, false) => "nothing",
    };
    let mut line = format!("{cells} cells, {allowed} allowed, {} denied: ", cells - allowed);
    if differing == 0 {
        line += &colour.green(&format!("{compared} agree on all of them"));
    } else {
        line += &colour.red(&format!("{compared} differ on {differing}"));
    }
    match report.retried {
        0 => {}
        1 => line += " (1 cell passed only at a second, longer try)",
        n => _ = write!(line, " ({n} cells passed only at a second, longer try)"),
    }
    line
}

fn matrix(out: &mut String, report: &Report, colour: Colour) {
    let column: BTreeMap<&str, usize> = (0..).zip(&report.hosts).map(|(at, h)| (&*h.name, at)).collect();
    // (destination, traffic, family) in the order of the columns; for each, what each source gets.
    let mut rows: BTreeMap<(usize, &str, String), Vec<Option<&ReportCell>>> = BTreeMap::new();
    for cell in &report.cells {
        let (Some(&to), Some(&from)) = (column.get(&*cell.destination), column.get(&*cell.source)) else {
            continue;
        };
        // ICMP last.
        let sort = format!("{}{}{:05}", cell.port.is_none(), cell.protocol, cell.port.unwrap_or_default());
        let row = rows.entry((to, &cell.family, sort)).or_insert_with(|| vec![None; report.hosts.len()]);
        row[from] = Some(cell);
    }
    let number = |at: usize| (at + 1).to_string();
    let name = |at: usize| format!("{:>2} {}", number(at), report.hosts[at].name);
    let width = (0..report.hosts.len()).map(|at| name(at).chars().count()).max().unwrap_or(0).max(11);
    let columns: String = (0..report.hosts.len()).map(|at| format!("{:>4}", number(at))).collect();
    let _ = writeln!(
        out,
        "{}",
        colour.dim(
            "Rows answer, columns ask (by number). + allowed, - denied; first predicted, then observed."
        )
    );
    let _ = writeln!(out, "{:<width$}  {:<9} {:<4} {columns}", "DESTINATION", "TRAFFIC", "IP");
    let mut last = None;
    for ((to, family, _), cells) in &rows {
        let Some(first) = cells.iter().flatten().next() else { continue };
        let label = if last == Some(*to) { String::new() } else { name(*to) };
        last = Some(*to);
        let _ =
            write!(out, "{label:<width$}  {:<9} {:<4} ", first.traffic(), family.trim_start_matches("IP"));
        for (from, cell) in cells.iter().enumerate() {
            out.push_str("  ");
            match cell {
                Some(cell) => out.push_str(&symbols(cell, colour)),
                None => out.push_str(&colour.dim(if from == *to { " \\" } else { "  " })),
            }
        }
        let end = out.trim_end().len();
        out.truncate(end);
        out.push('\n');
    }
}

fn symbols(cell: &ReportCell, colour: Colour) -> String {
    let sign = |allowed| if allowed { '+' } else { '-' };
    let mut text = String::from(sign(cell.predicted));
    text.push(match &cell.observed {
        None => ' ',
        Some(Observed::Allowed) => '+',
        Some(Observed::Denied) => '-',
        Some(Observed::Other(_)) => '!',
    });
    match (cell.differs(), cell.predicted) {
        (true, _) => colour.red(&text),
        (false, true) => colour.green(&text),
        (false, false) => colour.dim(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ReportHost;

    fn report(observed: Observed) -> Report {
        let host = |name: &str| ReportHost { name: name.into(), node: None, addresses: vec![] };
        let cell = |source: &str, destination: &str, port, predicted, observed| ReportCell {
            source: source.into(),
            destination: destination.into(),
            protocol: if port == 0 { "ICMP".into() } else { "TCP".into() },
            port: (port != 0).then_some(port),
            family: "IPv4".into(),
            predicted,
            observed: Some(observed),
            expected: None,
        };
        Report {
            hosts: vec![host("shop/web-0"), host("shop/db-0")],
            cells: vec![
                cell("shop/web-0", "shop/db-0", 5432, true, Observed::Allowed),
                cell("shop/web-0", "shop/db-0", 0, false, observed),
                cell("shop/db-0", "shop/web-0", 80, false, Observed::Denied),
            ],
            baseline: 3,
            retried: 0,
            notes: vec![],
        }
    }

    #[test]
    fn predicted_beside_observed() {
        let expected = "\
Rows answer, columns ask (by number). + allowed, - denied; first predicted, then observed.
DESTINATION    TRAFFIC   IP      1   2
 1 shop/web-0  80/TCP    v4      \\  --
 2 shop/db-0   5432/TCP  v4     ++   \\
               ICMP      v4     --   \\
With no policy in force, all 3 cells passed. With them:
3 cells, 1 allowed, 2 denied: prediction and packets agree on all of them
";
        assert_eq!(text(&report(Observed::Denied), Colour::Off), expected);
    }

    #[test]
    fn a_difference_is_red_and_named() {
        let shown = text(&report(Observed::Allowed), Colour::On);
        assert!(shown.contains("\x1b[1;31m-+\x1b[0m"), "{shown}");
        let named = "shop/web-0 -> shop/db-0 ICMP IPv4: predicted denied, observed allowed";
        assert!(shown.contains(named), "{shown}");
        assert!(shown.contains("differ on 1"), "{shown}");
    }
}
