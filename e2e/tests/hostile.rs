//! Pods that mean harm: every frame is seen where it has to be, and nowhere else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use moat_lab::HostileReport;

/// Runs the table: the exit status, and the report.
fn hostile(flags: &[&str]) -> (i32, HostileReport) {
    let output = common::moat().args(["lab", "hostile", "--json"]).args(flags).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap_or(-1), report.unwrap_or_else(|_| panic!("{}", common::stderr(&output))))
}

/// Every row is as expected, in these families, and in each something arrives and something does not.
fn as_expected(flags: &[&str], families: &[&str]) {
    let (status, report) = hostile(flags);
    let wrong: Vec<_> = report.differences().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(status, 0);
    for family in families {
        let rows = || report.rows.iter().filter(|row| row.family == *family);
        assert!(rows().any(|row| row.expected.is_empty()) && rows().any(|row| !row.expected.is_empty()));
    }
    assert!(report.rows.iter().all(|row| families.contains(&&*row.family)));
}

#[test]
fn dual_stack() {
    as_expected(&[], &["IPv4", "IPv6"]);
}

#[test]
fn ipv4_alone() {
    as_expected(&["--ipv4"], &["IPv4"]);
}

#[test]
fn ipv6_alone() {
    as_expected(&["--ipv6"], &["IPv6"]);
}
