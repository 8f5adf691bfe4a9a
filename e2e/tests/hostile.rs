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

/// The same without the rows that fill a connection table: memory and some seconds, for what is the same everywhere else.
const NO_FLOOD: &str = "--no-flood";

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
    // Rows that are left out are named in a note.
    let services = report.rows.iter().any(|row| row.group == "Services");
    assert_eq!(services, report.notes.is_empty(), "{:?}", report.notes);
}

#[test]
fn on_one_link() {
    as_expected(&[NO_FLOOD], &["IPv4", "IPv6"]);
}

/// A pod that fills the connection table lets nothing through that is denied, takes from its neighbours what the documents say,
/// and is named.
#[test]
fn a_full_connection_table() {
    let (status, report) = hostile(&["--only", "full connection table"]);
    let wrong: Vec<_> = report.differences().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(status, 0);
    // Without nft, or with a larger table than can be filled soon, a note says so.
    assert_eq!(report.rows.is_empty(), report.notes.iter().any(|note| note.contains("no row about")));
}

#[test]
fn behind_a_router() {
    as_expected(&["--joined", "router", NO_FLOOD], &["IPv4", "IPv6"]);
}

#[test]
fn behind_a_router_that_filters_sources() {
    as_expected(&["--joined", "strict-router", NO_FLOOD], &["IPv4", "IPv6"]);
}

#[test]
fn ipv4_alone() {
    as_expected(&["--ipv4", NO_FLOOD], &["IPv4"]);
    as_expected(&["--ipv4", "--joined", "strict-router", NO_FLOOD], &["IPv4"]);
}

#[test]
fn ipv6_alone() {
    as_expected(&["--ipv6", NO_FLOOD], &["IPv6"]);
    as_expected(&["--ipv6", "--joined", "strict-router", NO_FLOOD], &["IPv6"]);
}

/// A slip in a word is no table that is as expected.
#[test]
fn a_word_that_no_row_contains_is_an_error() {
    let flags = ["lab", "hostile", "--ipv4", NO_FLOOD, "--only", "fragmants"];
    let output = common::moat().args(flags).output().unwrap();
    let said = common::stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("contains \"fragmants\""), "{said}");
}

/// What would be wrong if nobody watched over the pods is seen to be wrong.
#[test]
fn without_moats_tables_rows_differ() {
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return;
    }
    let (status, report) = hostile(&["--unprotected"]);
    assert_eq!(status, 1);
    let wrong: Vec<_> = report.differences().collect();
    for group in [
        "no trick",
        "spoofed source",
        "another hardware address",
        "VLAN tags",
        "fragments",
        "extension headers",
        "IPv4 options",
        "other protocols",
        "tunnels",
        "routers' messages",
        "who has an address",
        "ICMP errors",
        "TCP from nowhere",
        "UDP answers to nothing",
        "Services",
    ] {
        let seen = wrong.iter().filter(|row| row.group == group).count();
        assert!(seen > 0, "no row of {group} differs");
    }
    // What must arrive does so with moat and without.
    for row in report.rows.iter().filter(|row| row.group == "no trick" && !row.expected.is_empty()) {
        assert!(!row.differs(), "{row:?}");
    }
}
