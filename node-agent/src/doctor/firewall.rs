//! Other people's firewalls: whose chains a forwarded packet has to pass besides ours.

use super::{Facts, Finding, ForwardChain, Severity};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        facts.forward_chains.iter().filter(|chain| concerns(facts, chain)).map(drops).collect();
    findings.extend(firewalld(facts));
    findings
}

/// Whether pods' packets go through a chain and are dropped at its end.
fn concerns(facts: &Facts, chain: &ForwardChain) -> bool {
    let family = |ipv6: bool| {
        // Without podCIDRs nobody knows which families pods will have.
        facts.pod_cidrs.is_empty() || facts.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6() == ipv6)
    };
    let seen = chain.ipv4 && family(false) || chain.ipv6 && family(true);
    seen && chain.drops && !(chain.accepts_from_pods && chain.accepts_to_pods)
}

fn drops(chain: &ForwardChain) -> Finding {
    let ForwardChain { table, chain: name, .. } = chain;
    let iptables = chain.legacy || (name == "FORWARD" && (table == "ip filter" || table == "ip6 filter"));
    let (check, what, to_do) = if iptables && chain.others.iter().any(|other| other.starts_with("ufw")) {
        let (file, ufw) = if chain.ipv4 { ("before", "ufw") } else { ("before6", "ufw6") };
        (
            "ufw",
            format!(
                "ufw drops what this node forwards, pods' packets with it ({name} of {} has the policy DROP)",
                family(chain)
            ),
            format!(
                "in /etc/ufw/{file}.rules, before COMMIT, add the lines \"-A {ufw}-before-forward -i moat+ -j ACCEPT\" and \
                 \"-A {ufw}-before-forward -o moat+ -j ACCEPT\", then run: ufw reload"
            ),
        )
    } else if iptables {
        let command = match (chain.ipv4, chain.legacy) {
            (true, true) => "iptables-legacy",
            (true, false) => "iptables-nft",
            (false, true) => "ip6tables-legacy",
            (false, false) => "ip6tables-nft",
        };
        (
            "forward-drop",
            format!(
                "{command} drops what this node forwards, pods' packets with it (FORWARD has the policy DROP)"
            ),
            format!("run: {command} -I FORWARD -i moat+ -j ACCEPT; {command} -I FORWARD -o moat+ -j ACCEPT"),
        )
    } else {
        (
            "forward-drop",
            format!("the chain {name} of table {table} drops what this node forwards, pods' packets with it"),
            format!(
                "run: nft insert rule {table} {name} iifname \"moat*\" accept; nft insert rule {table} {name} oifname \"moat*\" \
                 accept"
            ),
        )
    };
    let to_do =
        format!("{to_do} (and keep that over a reboot); moat's own tables go on deciding what pods may do");
    Finding { severity: Severity::Warning, check, what, to_do }
}

fn family(chain: &ForwardChain) -> &'static str {
    if chain.ipv4 { "iptables" } else { "ip6tables" }
}

/// firewalld rejects at the end of its chain, with a policy that accepts.
fn firewalld(facts: &Facts) -> Option<Finding> {
    let (table, chains) = facts.tables.iter().find(|(table, _)| table.ends_with(" firewalld"))?;
    // It makes a zone's chains once something is in the zone.
    if chains.iter().any(|chain| chain == "filter_FWD_trusted") {
        return None;
    }
    let cidrs: Vec<String> = facts.pod_cidrs.iter().map(|cidr| format!("--add-source={cidr}")).collect();
    let sources = if cidrs.is_empty() { "--add-source=CIDR".to_owned() } else { cidrs.join(" ") };
    Some(Finding {
        severity: Severity::Warning,
        check: "firewalld",
        what: format!(
            "firewalld runs (table {table}): it rejects what this node forwards unless a zone lets it"
        ),
        to_do: format!(
            "run: firewall-cmd --permanent --zone=trusted {sources}; firewall-cmd --reload; the same for the podCIDRs of the \
             other nodes; moat's own tables go on deciding what pods may do"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str) -> ForwardChain {
        ForwardChain {
            table: table.into(),
            chain: name.into(),
            ipv4: !table.starts_with("ip6"),
            ipv6: !table.starts_with("ip "),
            drops: true,
            ..ForwardChain::default()
        }
    }

    fn found(chain: ForwardChain, cidrs: &[&str]) -> Option<(&'static str, String)> {
        let facts = Facts {
            forward_chains: vec![chain],
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..Facts::default()
        };
        let findings = judge(&facts);
        assert!(findings.len() <= 1 && findings.iter().all(|f| f.severity == Severity::Warning));
        findings.into_iter().next().map(|f| (f.check, f.to_do))
    }

    #[test]
    fn whoever_drops_is_named_with_what_to_do() {
        let legacy = ForwardChain { legacy: true, ..chain("ip filter", "FORWARD") };
        let ufw = ForwardChain { others: vec!["ufw-before-forward".into()], ..chain("ip filter", "FORWARD") };
        for (chain, check, to_do) in [
            (chain("ip filter", "FORWARD"), "forward-drop", "iptables-nft -I FORWARD -i moat+ -j ACCEPT"),
            (chain("ip6 filter", "FORWARD"), "forward-drop", "ip6tables-nft -I FORWARD -o moat+ -j ACCEPT"),
            (legacy, "forward-drop", "iptables-legacy -I FORWARD -i moat+ -j ACCEPT"),
            (ufw, "ufw", "/etc/ufw/before.rules"),
            (
                chain("inet corp", "fwd"),
                "forward-drop",
                "nft insert rule inet corp fwd iifname \"moat*\" accept",
            ),
        ] {
            let (found, said) = found(chain, &[]).unwrap();
            assert_eq!(found, check);
            assert!(said.contains(to_do), "{to_do} not in {said}");
        }
    }

    #[test]
    fn nothing_is_said_where_pods_pass() {
        let drops = || chain("ip filter", "FORWARD");
        assert_eq!(found(ForwardChain { drops: false, ..drops() }, &[]), None);
        let half = ForwardChain { accepts_from_pods: true, ..drops() };
        assert!(found(half.clone(), &[]).is_some(), "one way is not enough");
        assert_eq!(found(ForwardChain { accepts_to_pods: true, ..half }, &[]), None);
        // A family that no pod has.
        assert_eq!(found(drops(), &["fd00::/64"]), None);
        assert!(found(drops(), &["fd00::/64", "10.1.0.0/24"]).is_some());
        assert_eq!(found(chain("ip6 filter", "FORWARD"), &["10.1.0.0/24"]), None);
        assert!(found(chain("inet corp", "fwd"), &["fd00::/64"]).is_some());
    }

    #[test]
    fn firewalld_wants_the_pods_in_a_zone() {
        let mut facts = Facts { pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()], ..Facts::default() };
        facts.tables.insert("inet firewalld".into(), vec!["filter_FORWARD".into()]);
        let [finding] = &judge(&facts)[..] else { panic!("one") };
        assert_eq!(finding.check, "firewalld");
        assert!(finding.to_do.contains("--zone=trusted --add-source=10.1.0.0/24"), "{finding}");
        facts.tables.insert("inet firewalld".into(), vec!["filter_FWD_trusted".into()]);
        assert_eq!(judge(&facts), []);
    }
}
