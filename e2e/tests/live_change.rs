//! A lab that is up follows its folder.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;

use common::UpLab;
use moat_lab::{Observed, Report};

fn allowed(report: &Report, source: &str, destination: &str, port: u16) -> Option<bool> {
    let cell = report.cells.iter().find(|c| {
        c.source == source && c.destination == destination && c.port == Some(port) && c.protocol == "TCP"
    })?;
    Some(cell.observed == Some(Observed::Allowed))
}

/// Probes, and expects no difference.
fn probe(lab: &UpLab) -> Report {
    let (status, report) = lab.probe(&["--no-expected"]);
    let report = report.unwrap();
    assert_eq!((status, common::differences(&report)), (0, vec![]));
    report
}

#[test]
fn policies_labels_and_pods_may_come_and_go() {
    let folder = common::copy_of("three-tier-web");
    let file = |name: &str| folder.path().join(name);
    let lab = UpLab::up(folder.path(), &[]);
    assert_eq!(lab.probe(&[]).0, 0);
    assert_eq!(allowed(&probe(&lab), "default/visitor", "shop/db-0", 5432), Some(false));

    // A policy more.
    fs::write(
        file("open.yaml"),
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: open, namespace: shop }
spec:
  podSelector: {}
  ingress: [{}]
",
    )
    .unwrap();
    assert_eq!(allowed(&probe(&lab), "default/visitor", "shop/db-0", 5432), Some(true));
    let (status, report) = lab.probe(&[]);
    assert_eq!(status, 1, "expected.txt says otherwise now");
    assert!(report.unwrap().differences().all(|c| c.observed.as_ref().is_some_and(|o| o.is(c.predicted))));

    // And gone again, with a new pod in its place.
    fs::remove_file(file("open.yaml")).unwrap();
    let pod = "apiVersion: v1
kind: Pod
metadata: { name: late, namespace: shop, labels: { LABEL } }
spec: { containers: [{ name: c, image: none, ports: [{ containerPort: 7000 }] }] }
";
    fs::write(file("late.yaml"), pod.replace("LABEL", "some: label")).unwrap();
    let report = probe(&lab);
    assert_eq!(allowed(&report, "default/visitor", "shop/db-0", 5432), Some(false));
    assert_eq!(allowed(&report, "shop/late", "shop/db-0", 5432), Some(false));
    assert_eq!(allowed(&report, "shop/web-0", "shop/late", 7000), Some(false));

    // It gets the label of those who may.
    fs::write(file("late.yaml"), pod.replace("LABEL", "tier: api")).unwrap();
    assert_eq!(allowed(&probe(&lab), "shop/late", "shop/db-0", 5432), Some(true));

    // What cannot be read is said, and changes nothing.
    fs::write(file("late.yaml"), "kind: [").unwrap();
    let (status, told) = lab.probe(&[]);
    assert_eq!(status, 2);
    assert!(told.unwrap_err().contains("late.yaml"));
    fs::remove_file(file("late.yaml")).unwrap();
    let report = probe(&lab);
    assert!(report.hosts.iter().all(|h| h.name != "shop/late"));
    assert_eq!(lab.probe(&[]).0, 0);
}
