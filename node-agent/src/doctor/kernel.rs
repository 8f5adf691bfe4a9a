//! What the kernel can and cannot do, and what follows from that.

use super::{Facts, Feature, Finding, Probe, Severity};

/// The oldest kernel that moat is made for.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((major, minor)) = version(&facts.release)
        && (major, minor) < OLDEST
    {
        findings.push(Finding {
            severity: Severity::Warning,
            check: "kernel-version",
            what: format!(
                "Linux {} is older than {}.{}, the oldest that moat is made for: what it needs was tried one by one, the rest is \
                 not known",
                facts.release, OLDEST.0, OLDEST.1
            ),
            to_do: format!("use Linux {}.{} or newer, or a vendor's kernel that you trust to have its fixes", OLDEST.0, OLDEST.1),
        });
    }
    let ipv6 = facts.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6());
    findings.extend(facts.probes.iter().filter_map(|(feature, probe)| missing(*feature, probe, ipv6)));
    findings
}

/// What is said of a feature: nothing where it works.
fn missing(feature: Feature, probe: &Probe, ipv6: bool) -> Option<Finding> {
    let what = feature.describe();
    match probe {
        Probe::Works => None,
        Probe::Unknown(why) => Some(Finding {
            severity: Severity::Note,
            check: "kernel-feature",
            what: format!("whether this kernel has {what} is not known: {why}"),
            to_do: "look again as root".into(),
        }),
        Probe::Missing(why) => {
            let (severity, to_do) = match feature.fallback(ipv6) {
                Some(fallback) => (Severity::Note, fallback.to_owned()),
                None => (
                    Severity::Refused,
                    format!(
                        "use a kernel with {}, or load that module before the agent starts",
                        feature.option()
                    ),
                ),
            };
            let what = format!("this kernel does not have {what}: {why}");
            Some(Finding { severity, check: "kernel-feature", what, to_do })
        }
    }
}

/// Major and minor of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_whatever_follows() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.14.0-503.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("6.1-rc3"), Some((6, 1)));
        assert_eq!(version("custom"), None);
    }

    fn of(release: &str, feature: Feature, probe: Probe, cidr: &str) -> Vec<Severity> {
        let facts = Facts {
            release: release.into(),
            probes: [(feature, probe)].into(),
            pod_cidrs: vec![cidr.parse().unwrap()],
            ..Facts::default()
        };
        judge(&facts).into_iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn what_is_missing_has_a_fallback_or_is_refused() {
        use Severity::{Note, Refused, Warning};
        let missing = || Probe::Missing("Operation not supported".into());
        let new = |feature, cidr| of("6.1.0", feature, missing(), cidr);
        for feature in Feature::ALL {
            assert_eq!(of("6.1.0", feature, Probe::Works, "10.1.0.0/24"), []);
            let fallback = feature.fallback(false).is_some();
            assert_eq!(new(feature, "10.1.0.0/24"), [if fallback { Note } else { Refused }], "{feature:?}");
        }
        assert_eq!(new(Feature::Ipv6, "10.1.0.0/24"), [Note]);
        assert_eq!(new(Feature::Ipv6, "fd00::/64"), [Refused], "pods would need it");
        assert_eq!(of("6.1.0", Feature::Tables, Probe::Unknown("no root".into()), "10.1.0.0/24"), [Note]);
        // An old kernel is no refusal: vendors put new code into old versions.
        assert_eq!(of("5.14.0", Feature::Tables, Probe::Works, "10.1.0.0/24"), [Warning]);
        assert_eq!(of("5.15.0", Feature::Tables, Probe::Works, "10.1.0.0/24"), []);
    }
}
