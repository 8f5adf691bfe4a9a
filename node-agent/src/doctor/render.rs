//! Findings, for a person and for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};

use super::{Finding, Severity};

/// Writes findings: a table where somebody looks at a terminal, else a line each with tabs between its columns.
pub(super) fn people(findings: &[Finding], out: &mut impl Write, terminal: bool) -> io::Result<()> {
    if findings.is_empty() {
        return writeln!(out, "nothing to do");
    }
    if !terminal {
        for Finding { severity, check, what, to_do } in findings {
            writeln!(out, "{severity}\t{check}\t{what}\t{to_do}")?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["", "what", "what to do"]);
    for finding in findings {
        let mut severity = Cell::new(finding.severity).add_attribute(Attribute::Bold);
        if colours() {
            severity = severity.fg(match finding.severity {
                Severity::Refused => Color::Red,
                Severity::Warning => Color::Yellow,
                Severity::Note => Color::Cyan,
            });
        }
        table.add_row([severity, Cell::new(&finding.what), Cell::new(&finding.to_do)]);
    }
    writeln!(out, "{table}")
}

/// Writes one JSON array.
pub(super) fn json(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, findings)?;
    writeln!(out)
}

/// A terminal, and nobody has said NO_COLOR (<https://no-color.org>).
fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![Finding {
            severity: Severity::Warning,
            check: "tunnel",
            what: "tunl0 is up".into(),
            to_do: "set it down".into(),
        }]
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn each_reader_gets_its_form() {
        assert_eq!(
            text(|out| people(&findings(), out, false)),
            "warning\ttunnel\ttunl0 is up\tset it down\n"
        );
        let table = text(|out| people(&findings(), out, true));
        assert!(table.contains("what to do") && table.contains("tunl0 is up"), "{table}");
        assert_eq!(text(|out| people(&[], out, false)), "nothing to do\n");
        let json: serde_json::Value = serde_json::from_str(&text(|out| json(&findings(), out))).unwrap();
        assert_eq!(json[0]["severity"], "warning");
        assert_eq!(json[0]["to_do"], "set it down");
        assert_eq!(text(|out| super::json(&[], out)), "[]\n");
    }
}
