//! The doctor on hosts that are as hosts are: each is made in a network namespace of its own.
//!
//! Needs root, or a kernel that lets everybody make user namespaces; and `ip`, `nft`, `iptables`, `sysctl` and `unshare`.

#[path = "../dataplane/space.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest")]
mod space;

use std::process::{Command, Output};

use serde_json::Value;
use space::{Space, privileged};

/// A host with this node's podCIDRs, and nothing wrong with it.
struct Host {
    space: Space,
}

/// `check` and all that is said, of one finding.
type Found = (String, String);

impl Host {
    fn new() -> Self {
        let space = Space::new("host");
        space.ip("link add eth0 type veth peer name outside");
        space.ip("link set outside up");
        space.ip("link set eth0 up");
        space.ip("addr add 192.0.2.1/24 dev eth0");
        let host = Self { space };
        assert_eq!(host.findings(), [], "before anything is wrong");
        host
    }

    fn doctor(&self, arguments: &'static [&'static str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
        command.args(["doctor", "--pod-cidr", "10.1.0.0/24", "--pod-cidr", "fd00:1::/64"]).args(arguments);
        self.space.run(move || command.output().expect("moat-agent runs"))
    }

    fn findings(&self) -> Vec<Found> {
        let output = self.doctor(&["--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let findings: Value = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let word = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
        let all: Vec<&Value> = findings.as_array().expect("a list").iter().collect();
        let to_do = all.iter().any(|finding| finding["severity"] != "note");
        assert_eq!(output.status.code(), Some(i32::from(to_do)), "{text}");
        // What this kernel cannot do is not the test's matter.
        let said = all.iter().filter(|finding| finding["check"] != "kernel-feature");
        said.map(|f| (word(f, "check"), format!("{}; {}", word(f, "what"), word(f, "to_do")))).collect()
    }

    /// One finding of this kind that says that.
    #[track_caller]
    fn finds(&self, check: &str, says: &str) {
        let findings = self.findings();
        let matches = |(found, said): &Found| found == check && said.contains(says);
        assert!(findings.iter().any(matches), "{check}: {says}; found {findings:#?}");
        assert_eq!(findings.len(), 1, "{findings:#?}");
    }

    /// Does what the finding says is to be done, and there is none any more.
    #[track_caller]
    fn heals(&self, commands: &[&str]) {
        let said = self.findings().remove(0).1;
        for command in commands {
            assert!(said.contains(command), "{command} is not what was said: {said}");
            self.shell(command);
        }
        assert_eq!(self.findings(), []);
    }

    fn shell(&self, line: &str) {
        let line = line.to_owned();
        let output = self.space.run(move || Command::new("sh").args(["-ec", &line]).output().expect("sh"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn nft(&self, text: &str) {
        // nft wants something between a statement and the end of its block.
        self.shell(&format!("nft -f - <<'END'\n{}\nEND", text.replace('}', "\n}")));
    }
}

#[test]
fn a_forward_policy_that_drops_is_found_whoever_made_it() {
    privileged(|| {
        let host = Host::new();
        // As iptables-nft makes it, and in its own words.
        host.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; } }");
        host.finds("forward-drop", "iptables-nft drops what this node forwards");
        host.heals(&[
            "iptables-nft -I FORWARD -i moat+ -j ACCEPT",
            "iptables-nft -I FORWARD -o moat+ -j ACCEPT",
        ]);
        host.shell("iptables-nft -P FORWARD ACCEPT; iptables-nft -F; ip6tables-nft -P FORWARD DROP");
        host.finds("forward-drop", "ip6tables-nft drops");
        host.shell("ip6tables-nft -P FORWARD ACCEPT");
        // The older iptables.
        host.shell("iptables-legacy -P FORWARD DROP");
        host.finds("forward-drop", "iptables-legacy drops");
        host.heals(&[
            "iptables-legacy -I FORWARD -i moat+ -j ACCEPT",
            "iptables-legacy -I FORWARD -o moat+ -j ACCEPT",
        ]);
        host.shell("iptables-legacy -F; iptables-legacy -N ufw-before-forward");
        host.finds("ufw", "-A ufw-before-forward -i moat+ -j ACCEPT");
        host.shell("iptables-legacy -P FORWARD ACCEPT");
        assert_eq!(host.findings(), []);
        // Somebody's own.
        host.nft("table inet corp { chain between { type filter hook forward priority -10; policy drop; } }");
        host.heals(&[
            "nft insert rule inet corp between iifname \"moat*\" accept",
            "nft insert rule inet corp between oifname \"moat*\" accept",
        ]);
        host.nft("table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; } }");
        host.finds("firewalld", "--zone=trusted --add-source=10.1.0.0/24 --add-source=fd00:1::/64");
    });
}

#[test]
fn asking_makes_no_table() {
    privileged(|| {
        let host = Host::new();
        let tables = "nft list tables; cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names";
        let out = host.space.run(move || Command::new("sh").args(["-c", tables]).output().expect("sh"));
        assert_eq!(String::from_utf8_lossy(&out.stdout), "");
    });
}

#[test]
fn kube_proxys_ipvs_is_refused() {
    privileged(|| {
        let host = Host::new();
        host.shell("ip link add kube-ipvs0 type bridge");
        host.finds("ipvs", "kube-proxy works in ipvs mode");
        let said = host.doctor(&[]);
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(text.starts_with("refused\tipvs\tkube-proxy works in ipvs mode"), "plain in a pipe: {text}");
        host.heals(&["ip link delete kube-ipvs0"]);
    });
}

/// An agent's output with this host, which it is not to run on for long.
fn agent(host: &Host) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let node = "{apiVersion: v1, kind: Node, metadata: {name: here}, spec: {podCIDR: 10.1.0.0/24}}";
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("manifests")).expect("a folder");
    std::fs::create_dir(path("run")).expect("a folder");
    std::fs::write(path("manifests/node.yaml"), node).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_moat-agent"));
    command.args(["run", "--node", "here", "--manifests"]).arg(path("manifests"));
    command.arg("--state-dir").arg(path("state")).arg("--run-dir").arg(path("run"));
    host.space.run(move || command.output().expect("moat-agent runs"))
}

#[test]
fn an_agent_does_not_start_where_policy_would_not_hold() {
    privileged(|| {
        let host = Host::new();
        host.shell("ip link add kube-ipvs0 type bridge; ip link set eth0 down; ip link set lo up");
        host.nft("table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; } }");
        let output = agent(&host);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(
            said.contains("this host is refused") && said.contains("kube-proxy works in ipvs mode"),
            "{said}"
        );
        assert!(
            said.contains("iptables-nft drops what this node forwards"),
            "the log has the others: {said}"
        );
        let tables = host.space.command("nft list tables");
        assert_eq!(tables.trim(), "table ip filter", "nothing was made");
    });
}

#[test]
fn an_advertised_default_route_must_be_renewed() {
    privileged(|| {
        let host = Host::new();
        host.shell(
            "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=1
             ip -6 addr add 2001:db8::2/64 dev eth0 nodad
             ip -6 route add default via 2001:db8::1 dev eth0 proto ra",
        );
        host.finds("router-advertisements", "the IPv6 default route by eth0");
        host.heals(&["sysctl -w net.ipv6.conf.eth0.accept_ra=2"]);
    });
}

#[test]
fn what_another_pod_network_left_is_listed() {
    privileged(|| {
        let host = Host::new();
        let pod = Space::new("leftover");
        host.space.ip(&format!("link add cali123 type veth peer name eth0 netns {}", pod.thread()));
        host.space.ip("link set cali123 up");
        host.space.ip("route add 10.1.0.77 dev cali123");
        host.finds(
            "other-pods",
            "cali123 is not moat's but, by its name, one of Calico; this node leads to it 10.1.0.77",
        );
        host.space.ip("link del cali123");
        assert_eq!(host.findings(), []);
        host.shell(
            "ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.1.0.1/24 dev cni0
             ip link add veth9 type veth peer name other; ip link set veth9 master cni0 up
             ip neigh add 10.1.0.88 lladdr 02:00:00:00:00:01 dev cni0 nud permanent",
        );
        host.finds(
            "other-pods",
            "this node leads to it 10.1.0.88; behind it are veth9: pods there are not protected",
        );
    });
}

#[test]
fn tunnels_that_are_up_are_named() {
    privileged(|| {
        let host = Host::new();
        host.shell(
            "ip link add wan type vxlan id 5 dstport 8472 dev eth0; ip link add tunl0 type veth peer name t",
        );
        assert_eq!(host.findings(), [], "they are down");
        host.shell("ip link set wan up");
        host.finds("tunnel", "wan (vxlan) is up");
        host.heals(&["ip link delete wan"]);
        // This kernel has no ipip; the name is what the module gives its link.
        host.shell("ip link set tunl0 up");
        host.heals(&["ip link set tunl0 down"]);
        host.shell(
            "ip link add vxlan-moat type vxlan id 27983 dstport 4789 dev eth0; ip link set vxlan-moat up",
        );
        assert_eq!(host.findings(), [], "moat's own");
    });
}

#[test]
fn without_power_it_says_so() {
    privileged(|| {
        let host = Host::new();
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
        command.arg(env!("CARGO_BIN_EXE_moat-agent")).arg("doctor");
        let output = host.space.run(move || command.output().expect("setpriv (util-linux) is installed"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("run it as root"), "{text}");
    });
}
