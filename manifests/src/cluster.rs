//! `kind: Namespace` and `kind: Node`.

use moat_policies::{Family, Namespace, Node as ClusterNode};

use crate::fields::{Context, Path, address};
use crate::meta::{Naming, metadata};
use crate::names::{dns_label, dns_subdomain};
use crate::tree::Node;

/// A Namespace. `None` only where something was refused.
pub(crate) fn namespace(c: &mut Context<'_>, object: &Node) -> Option<Namespace> {
    c.object(object, &Path::ROOT, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let meta = metadata(c, object, Naming { namespaced: false, rule: dns_label })?;
    Some(Namespace { name: meta.name, labels: meta.labels })
}

/// A Node. `None` only where something was refused.
pub(crate) fn node(c: &mut Context<'_>, object: &Node) -> Option<ClusterNode> {
    let root = Path::ROOT;
    c.object(object, &root, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let meta = metadata(c, object, Naming { namespaced: false, rule: dns_subdomain });
    let pod_cidrs = pod_cidrs(c, object);
    let addresses = addresses(c, object);
    Some(ClusterNode { name: meta?.name, addresses, pod_cidrs })
}

fn pod_cidrs(c: &mut Context<'_>, object: &Node) -> Vec<ipnet::IpNet> {
    let path = Path::ROOT.field("spec");
    let known =
        &["podCIDR", "podCIDRs", "providerID", "unschedulable", "taints", "configSource", "externalID"];
    let Some(spec) = object.get("spec").and_then(|n| c.object(n, &path, known)) else { return Vec::new() };
    let path_list = path.field("podCIDRs");
    let mut found: Vec<ipnet::IpNet> = Vec::new();
    for (i, node) in c.list(spec, &path, "podCIDRs").iter().enumerate() {
        let path = path_list.index(i);
        let Some(net) = c.cidr(node, &path) else { continue };
        let family = Family::of(&net.addr());
        match found.iter().any(|f| Family::of(&f.addr()) == family) {
            true => c.refuse(node, &path, format!("a second {family} CIDR; at most one of each family")),
            false => found.push(net),
        }
    }
    if let Some(node) = spec.get("podCIDR").filter(|n| n.text() != Some("")) {
        let path = path.field("podCIDR");
        if let Some(net) = c.cidr(node, &path) {
            match found.first() {
                None => found.push(net),
                Some(first) if *first != net => {
                    c.refuse(node, &path, format!("{net} is not the first of podCIDRs, {first}"));
                }
                Some(_) => {}
            }
        }
    }
    found
}

/// Addresses of type InternalIP and ExternalIP, in their order. Host names are of no use to policies.
fn addresses(c: &mut Context<'_>, object: &Node) -> Vec<std::net::IpAddr> {
    let path = Path::ROOT.field("status");
    let Some(status) = object.get("status") else { return Vec::new() };
    let path_list = path.field("addresses");
    let mut found = Vec::new();
    for (i, node) in c.list(status, &path, "addresses").iter().enumerate() {
        let path = path_list.index(i);
        if c.object(node, &path, &["type", "address"]).is_none() {
            continue;
        }
        let types = [
            ("InternalIP", true),
            ("ExternalIP", true),
            ("Hostname", false),
            ("InternalDNS", false),
            ("ExternalDNS", false),
        ];
        c.require(node, &path, "type");
        let is_ip = c.word(node, &path, "type", &types) == Some(true);
        if let Some(text) = c.require(node, &path, "address").filter(|_| is_ip) {
            found.extend(c.parse(text, &path.field("address"), address));
        }
    }
    found
}
