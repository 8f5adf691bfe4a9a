//! The command lines of etcd and the control plane. Pure.

use crate::config::inner_url;
use crate::daemon::Daemon;
use crate::plan::{API_PORT, CONTROL_PLANE, Plan, text};

const ETCD: &str = "http://127.0.0.1:2379";

/// etcd, with its data where it vanishes with the cluster.
pub(crate) fn etcd(plan: &Plan, data: &str) -> Daemon {
    let arguments = [
        format!("--data-dir={data}"),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        "--log-level=warn".into(),
    ];
    Daemon::new("etcd", "etcd", arguments, plan.logs())
}

/// The API server.
pub(crate) fn api_server(plan: &Plan) -> Daemon {
    let pki = |flag: &str, file: &str| format!("--{flag}={}", text(plan.pki(file)));
    let arguments = [
        format!("--advertise-address={CONTROL_PLANE}"),
        format!("--secure-port={API_PORT}"),
        format!("--etcd-servers={ETCD}"),
        format!("--service-cluster-ip-range={}", plan.service_cidrs()),
        "--allow-privileged=true".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        pki("client-ca-file", "ca.crt"),
        pki("tls-cert-file", "apiserver.crt"),
        pki("tls-private-key-file", "apiserver.key"),
        pki("kubelet-client-certificate", "kubelet-client.crt"),
        pki("kubelet-client-key", "kubelet-client.key"),
        pki("service-account-key-file", "service-accounts.pub"),
        pki("service-account-signing-key-file", "service-accounts.key"),
    ];
    Daemon::new("kube-apiserver", plan.kubernetes("kube-apiserver"), arguments, plan.logs())
}

/// The controller manager, which also gives each node its pods' addresses.
pub(crate) fn controller_manager(plan: &Plan) -> Daemon {
    let arguments = [
        format!("--kubeconfig={}", text(plan.inner_kubeconfig("controller-manager"))),
        format!("--cluster-cidr={}", plan.pod_cidrs()),
        format!("--service-cluster-ip-range={}", plan.service_cidrs()),
        "--allocate-node-cidrs=true".into(),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--root-ca-file={}", text(plan.pki("ca.crt"))),
        format!("--service-account-private-key-file={}", text(plan.pki("service-accounts.key"))),
        format!("--cluster-signing-cert-file={}", text(plan.pki("ca.crt"))),
        format!("--cluster-signing-key-file={}", text(plan.pki("ca.key"))),
        format!("--master={}", inner_url()),
    ];
    Daemon::new("kube-controller-manager", plan.kubernetes("kube-controller-manager"), arguments, plan.logs())
}

/// The scheduler.
pub(crate) fn scheduler(plan: &Plan) -> Daemon {
    let arguments = [
        format!("--kubeconfig={}", text(plan.inner_kubeconfig("scheduler"))),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
    ];
    Daemon::new("kube-scheduler", plan.kubernetes("kube-scheduler"), arguments, plan.logs())
}
