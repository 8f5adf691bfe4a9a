//! What is read of iptables-legacy is what its own command wrote.

use moat_nfnetlink::xtables::{Rule, read};

use crate::support::in_namespace;

fn iptables(command: &str) {
    for line in command.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_policy_and_the_rules_of_forward_are_read() {
    in_namespace(|| {
        assert_eq!(read(false).unwrap(), None, "nobody asked for the table before");
        assert_eq!(read(true).unwrap(), None);
        for (ipv6, command) in [(false, "iptables-legacy"), (true, "ip6tables-legacy")] {
            iptables(&format!("{command} -N ufw-before-forward"));
            let filter = read(ipv6).unwrap().unwrap();
            assert!(!filter.drops && filter.forward.is_empty(), "{filter:?}");
            assert_eq!(filter.chains, ["ufw-before-forward"]);
            iptables(&format!(
                "{command} -P FORWARD DROP
                 {command} -A INPUT -i lo -j ACCEPT
                 {command} -A FORWARD -i moat+ -j ACCEPT
                 {command} -A FORWARD -o eth0 -p tcp --dport 80 -j ACCEPT
                 {command} -A FORWARD -i eth+ -p udp -j ACCEPT
                 {command} -A FORWARD -o moat+ -j DROP"
            ));
            let filter = read(ipv6).unwrap().unwrap();
            assert!(filter.drops);
            let rule =
                |i: &str, o: &str, accepts| Rule { in_interface: i.into(), out_interface: o.into(), accepts };
            assert_eq!(
                filter.forward,
                [
                    rule("moat+", "", true),
                    rule("", "eth0", false),
                    rule("eth+", "", false),
                    rule("", "moat+", false)
                ]
            );
        }
    });
}
