//! The text of every configuration file. Pure.
//!
//! JSON is YAML, so what Kubernetes reads as YAML is written as JSON.

use serde_json::{Value, json};

use crate::plan::{API_PORT, CONTROL_PLANE, DNS_SERVICE, Node, Plan, ProxyMode, text};

/// As the image archives name it.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
/// Where containerd listens, in each node.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CNI_VERSION: &str = "1.0.0";

/// The API server's URL on the fabric.
pub(crate) fn inner_url() -> String {
    format!("https://{CONTROL_PLANE}:{API_PORT}")
}

/// A kubeconfig for the owner of a certificate.
pub(crate) fn kubeconfig(plan: &Plan, who: &str, server: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "moat", "cluster": {
            "server": server,
            "certificate-authority": text(plan.pki("ca.crt")),
        }}],
        "users": [{ "name": who, "user": {
            "client-certificate": text(plan.pki(&format!("{who}.crt"))),
            "client-key": text(plan.pki(&format!("{who}.key"))),
        }}],
        "contexts": [{ "name": "moat", "context": { "cluster": "moat", "user": who } }],
        "current-context": "moat",
    })
}

/// The kubelet's.
pub(crate) fn kubelet(plan: &Plan, node: &Node) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": text(plan.pki("ca.crt")) },
        },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        // The machine may have either version; moat does not care.
        "failCgroupV1": false,
        "cgroupRoot": node.cgroup,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        // Below 0 it would need CAP_SYS_RESOURCE, which a container may lack.
        "oomScoreAdj": 0,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": text(node.config("resolv.conf")),
        // All nodes share the machine's disk: a full one is no reason to evict pods from each of them.
        "evictionHard": { "memory.available": "1%", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "rotateCertificates": false,
        // Suites make and remove many pods at once: nothing here is to wait for a quota.
        "registryPullQPS": 0,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "nodeStatusUpdateFrequency": "5s",
    })
}

/// kube-proxy's. The conntrack table is the machine's: its size and its timeouts are left alone.
pub(crate) fn proxy(plan: &Plan, node: &Node) -> Value {
    let mode = match plan.proxy {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables => "iptables",
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clientConnection": { "kubeconfig": text(plan.inner_kubeconfig("proxy")) },
        "hostnameOverride": node.name,
        "clusterCIDR": plan.pod_cidrs(),
        "oomScoreAdj": 0,
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        mode: { "minSyncPeriod": "0s" },
    })
}

/// containerd's, for version 1.6 and newer.
pub(crate) fn containerd(runc: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Else runc fails where CAP_SYS_RESOURCE is missing.
  restrict_oom_score_adj = true
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"#
    )
}

/// Pods are to find the cluster's DNS; the machine's own is not reached from here.
pub(crate) fn resolv_conf() -> String {
    format!("nameserver {DNS_SERVICE}\n")
}

/// The network configuration for the reference plugins, on a node with these addresses for pods.
pub(crate) fn reference_cni(pod_cidrs: &[String]) -> Value {
    let ranges: Vec<Value> = pod_cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let default = |cidr: &String| json!({ "dst": if cidr.contains(':') { "::/0" } else { "0.0.0.0/0" } });
    let routes: Vec<Value> = pod_cidrs.iter().map(default).collect();
    json!({
        "cniVersion": CNI_VERSION,
        "name": "reference",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": routes,
            },
        }, { "type": "portmap", "capabilities": { "portMappings": true } }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn files_of_different_nodes_name_their_own_node_only() {
        let plan = plan(2);
        let nodes = plan.nodes();
        for (own, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            let files = format!("{} {}", kubelet(&plan, own), super::proxy(&plan, own));
            assert!(files.contains(&own.name) && !files.contains(&other.name), "{files}");
        }
    }

    #[test]
    fn the_kubelet_asks_nothing_that_a_container_may_not_do() {
        let plan = plan(1);
        let kubelet = kubelet(&plan, &plan.nodes()[0]);
        assert_eq!(kubelet["oomScoreAdj"], 0);
        assert_eq!(kubelet["failCgroupV1"], false);
        assert_eq!(kubelet["cgroupRoot"], "/moat-cluster-test/node1");
        assert_eq!(kubelet["enforceNodeAllocatable"], json!(["pods"]));
        assert!(containerd("/usr/sbin/runc").contains("restrict_oom_score_adj = true"));
    }

    #[test]
    fn kube_proxy_leaves_the_machines_conntrack_alone() {
        let mut plan = plan(1);
        for (mode, name) in [(ProxyMode::Nftables, "nftables"), (ProxyMode::Iptables, "iptables")] {
            plan.proxy = mode;
            let proxy = super::proxy(&plan, &plan.nodes()[0]);
            assert_eq!(proxy["mode"], name);
            assert!(proxy[name].is_object());
            assert_eq!(proxy["conntrack"]["maxPerCore"], 0);
        }
    }
}
