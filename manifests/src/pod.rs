//! `kind: Pod`, and the part of a Pod that workloads hold as a template.
//!
//! Of the fields that moat reads (containers with their names, images and ports, `hostNetwork`, `nodeName`,
//! `restartPolicy`, `status`), what the API server would refuse is refused. The others are not looked at.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{ContainerPort, Family, Labels, NamespacedName, Pod, Protocol};

use crate::fields::{Context, Path, address, shared};
use crate::meta::{Meta, Naming, metadata};
use crate::names::{dns_label, dns_subdomain, port_name, port_number};
use crate::policy::PROTOCOLS;
use crate::tree::{Node, Value};

/// What a Pod's `spec`, or a template's, decides.
pub(crate) struct PodSpec {
    pub node: Option<Arc<str>>,
    pub host_network: bool,
    pub ports: Vec<ContainerPort>,
    pub restart_policy: RestartPolicy,
}

impl PodSpec {
    /// A pod of this spec.
    pub(crate) fn pod(&self, name: NamespacedName, labels: Labels) -> Pod {
        Pod {
            name,
            labels,
            node: self.node.clone(),
            addresses: Vec::new(),
            ports: self.ports.clone(),
            host_network: self.host_network,
            finished: false,
            uid: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

const RESTART_POLICIES: &[(&str, RestartPolicy)] = &[
    ("Always", RestartPolicy::Always),
    ("OnFailure", RestartPolicy::OnFailure),
    ("Never", RestartPolicy::Never),
];

/// What a Pod's `status` says.
#[derive(Default)]
pub(crate) struct Status {
    pub addresses: Vec<IpAddr>,
    /// `hostIP`s.
    pub host_addresses: Vec<IpAddr>,
    pub finished: bool,
}

/// A Pod, and the owner that controls it. `None` only where something was refused.
pub(crate) fn pod(c: &mut Context<'_>, object: &Node) -> Option<(Pod, Meta)> {
    let root = Path::ROOT;
    c.object(object, &root, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let meta = metadata(c, object, Naming { namespaced: true, rule: dns_subdomain });
    let spec = c.require(object, &root, "spec").and_then(|spec| pod_spec(c, spec, &root.field("spec")));
    let status = status(c, object);
    let (meta, spec, status) = (meta?, spec?, status?);
    let mut pod = spec.pod(meta.namespaced_name(), meta.labels.clone());
    pod.finished = status.finished;
    pod.uid = meta.uid.clone();
    // A hostNetwork pod that does not say its address has its node's.
    pod.addresses = match pod.host_network && status.addresses.is_empty() {
        true => status.host_addresses,
        false => status.addresses,
    };
    Some((pod, meta))
}

/// A Pod's `spec`, or a template's.
pub(crate) fn pod_spec(c: &mut Context<'_>, spec: &Node, path: &Path<'_>) -> Option<PodSpec> {
    c.object(spec, path, POD_SPEC)?;
    let host_network = c.boolean(spec, path, "hostNetwork");
    let node = match spec.get("nodeName") {
        Some(node) if node.text() != Some("") => {
            c.parse(node, &path.field("nodeName"), |text| dns_subdomain(text).map(|()| shared(text)))
        }
        _ => None,
    };
    let restart_policy =
        c.word(spec, path, "restartPolicy", RESTART_POLICIES).unwrap_or(RestartPolicy::Always);
    let mut found = Containers { host_network, names: BTreeSet::new(), ports: Vec::new() };
    for field in ["initContainers", "containers"] {
        let list = path.field(field);
        let containers = c.list(spec, path, field);
        if containers.is_empty() && field == "containers" {
            let node = spec.get(field).unwrap_or(spec);
            c.refuse(node, &list, "a pod needs at least one container");
        }
        for (i, node) in containers.iter().enumerate() {
            found.read(c, node, &list.index(i), field == "initContainers");
        }
    }
    Some(PodSpec { node, host_network, ports: found.ports, restart_policy })
}

/// The containers read so far.
struct Containers<'n> {
    host_network: bool,
    names: BTreeSet<&'n str>,
    ports: Vec<ContainerPort>,
}

impl<'n> Containers<'n> {
    fn read(&mut self, c: &mut Context<'_>, node: &'n Node, path: &Path<'_>, init: bool) {
        if c.object(node, path, CONTAINER).is_none() {
            return;
        }
        if let Some(name) = c.require(node, path, "name") {
            let path = path.field("name");
            c.parse(name, &path, dns_label);
            if let Some(text) = name.text().filter(|text| !self.names.insert(text)) {
                c.refuse(name, &path, format!("another container has the name {text:?}"));
            }
        }
        if let Some(image) = c.require(node, path, "image")
            && c.text(image, &path.field("image")) == Some("")
        {
            c.refuse(image, &path.field("image"), "must not be empty");
        }
        let restart = c.word(node, path, "restartPolicy", RESTART_POLICIES);
        let path_ports = path.field("ports");
        let mut names = BTreeSet::new();
        for (i, node) in c.list(node, path, "ports").iter().enumerate() {
            let port = container_port(c, node, &path_ports.index(i), self.host_network, &mut names);
            // An init container's ports are open only if it keeps running beside the others.
            self.ports.extend(port.filter(|_| !init || restart == Some(RestartPolicy::Always)));
        }
    }
}

fn container_port(
    c: &mut Context<'_>,
    node: &Node,
    path: &Path<'_>,
    host_network: bool,
    names: &mut BTreeSet<Arc<str>>,
) -> Option<ContainerPort> {
    c.object(node, path, &["name", "hostPort", "containerPort", "protocol", "hostIP"])?;
    let given = |field: &str| node.get(field).filter(|n| n.text() != Some(""));
    let name = given("name").and_then(|name| {
        let path = path.field("name");
        let parsed = c.parse(name, &path, |text| port_name(text).map(|()| shared(text)))?;
        if !names.insert(parsed.clone()) {
            c.refuse(name, &path, format!("another port of this container has the name {parsed:?}"));
        }
        Some(parsed)
    });
    let protocol = match given("protocol") {
        Some(_) => c.word(node, path, "protocol", PROTOCOLS),
        None => Some(Protocol::Tcp),
    };
    c.require(node, path, "containerPort");
    let port = port_field(c, node, path, "containerPort");
    let host_port = match node.get("hostPort") {
        // As if it were missing.
        Some(Node { value: Value::Int(0), .. }) | None => None,
        Some(_) => port_field(c, node, path, "hostPort"),
    };
    if let (true, Some(at), Some(port)) = (host_network, host_port, port)
        && at != port
    {
        let node = node.get("hostPort").unwrap_or(node);
        c.refuse(
            node,
            &path.field("hostPort"),
            format!("must be the containerPort, {port}, in a hostNetwork pod"),
        );
    }
    Some(ContainerPort { name, protocol: protocol?, port: port? })
}

fn port_field(c: &mut Context<'_>, parent: &Node, path: &Path<'_>, field: &str) -> Option<u16> {
    let number = c.number(parent, path, field)?;
    let refuse = |reason| c.refuse(parent.get(field).unwrap_or(parent), &path.field(field), reason);
    port_number(number).map_err(refuse).ok()
}

/// A Pod's `status`.
pub(crate) fn status(c: &mut Context<'_>, object: &Node) -> Option<Status> {
    let path = Path::ROOT.field("status");
    let Some(status) = object.get("status") else { return Some(Status::default()) };
    c.object(status, &path, STATUS)?;
    let phases =
        [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true), ("Unknown", false)];
    let finished = match status.get("phase").filter(|n| n.text() != Some("")) {
        Some(_) => c.word(status, &path, "phase", &phases)?,
        None => false,
    };
    let addresses = addresses(c, status, &path, "podIPs", "podIP");
    let host_addresses = self::addresses(c, status, &path, "hostIPs", "hostIP");
    Some(Status { addresses: addresses?, host_addresses: host_addresses?, finished })
}

/// `podIPs` and `podIP`: at most one of each family, and the single field is the list's first.
fn addresses(
    c: &mut Context<'_>,
    status: &Node,
    path: &Path<'_>,
    list: &str,
    single: &str,
) -> Option<Vec<IpAddr>> {
    let path_list = path.field(list);
    let mut found: Vec<IpAddr> = Vec::new();
    let mut good = true;
    for (i, node) in c.list(status, path, list).iter().enumerate() {
        let path = path_list.index(i);
        let Some(ip) = c.object(node, &path, &["ip"]).and_then(|n| c.require(n, &path, "ip")) else {
            good = false;
            continue;
        };
        match c.parse(ip, &path.field("ip"), address) {
            Some(address) if found.iter().any(|f| Family::of(f) == Family::of(&address)) => {
                c.refuse(
                    ip,
                    &path.field("ip"),
                    format!("a second {} address; at most one of each family", Family::of(&address)),
                );
                good = false;
            }
            Some(address) => found.push(address),
            None => good = false,
        }
    }
    if let Some(node) = status.get(single).filter(|n| n.text() != Some("")) {
        let path = path.field(single);
        let one = c.parse(node, &path, address)?;
        match found.first() {
            None if good => found.push(one),
            Some(first) if *first != one => {
                c.refuse(node, &path, format!("{one} is not the first of {list}, {first}"));
                good = false;
            }
            _ => {}
        }
    }
    good.then_some(found)
}

const STATUS: &[&str] = &[
    "allocatedResources",
    "conditions",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "extendedResourceClaimStatus",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "nativeResourceClaimStatuses",
    "nodeAllocatableResourceClaimStatuses",
    "nominatedNodeName",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "resize",
    "resourceClaimStatuses",
    "resources",
    "startTime",
    "volumeStatuses",
];

const POD_SPEC: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "initContainers",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "schedulingGroup",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "workloadRef",
];

const CONTAINER: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];
