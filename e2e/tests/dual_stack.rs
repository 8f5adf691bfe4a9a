//! Both families, each by itself; and one alone.

mod common;

use moat_lab::Observed;

#[test]
fn in_dual_stack_each_family_is_probed_by_itself() {
    let folder = common::examples_dir().join("monitoring");
    let (_, one) = common::run(&folder, &["--nodes", "3"]);
    let (status, both) = common::run(&folder, &["--nodes", "3", "--dual-stack"]);
    let (one, both) = (one.unwrap(), both.unwrap());
    assert_eq!((status, common::differences(&both)), (0, vec![]));
    assert_eq!(both.cells.len(), one.cells.len() * 2);
    assert!(both.hosts.iter().all(|h| h.addresses.len() == 2));
    let nodes: std::collections::BTreeSet<_> = both.hosts.iter().map(|h| h.node.clone()).collect();
    assert_eq!(nodes.len(), 3);
    for family in ["IPv4", "IPv6"] {
        for observed in [Observed::Allowed, Observed::Denied] {
            let seen =
                both.cells.iter().any(|c| c.family == family && c.observed.as_ref() == Some(&observed));
            assert!(seen, "{family} {observed}");
        }
    }
}

#[test]
fn ipv6_alone() {
    let (status, report) = common::run(&common::examples_dir().join("three-tier-web"), &["--ipv6"]);
    let report = report.unwrap();
    assert_eq!((status, common::differences(&report)), (0, vec![]));
    assert!(report.cells.iter().all(|c| c.family == "IPv6"));
}
