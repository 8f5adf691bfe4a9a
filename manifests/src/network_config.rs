//! `kind: NetworkConfig`.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use moat_policies::{DenyAction, LogLimit, NetworkConfig, RouteMode};

use crate::fields::{Context, Path};
use crate::meta::{Naming, metadata};
use crate::names::dns_subdomain;
use crate::tree::Node;

/// The most prefixes that a list may have, as the type's definition says.
const MOST_CIDRS: usize = 64;

const ROUTE_MODES: &[(&str, RouteMode)] =
    &[("Auto", RouteMode::Auto), ("Routed", RouteMode::Routed), ("VXLAN", RouteMode::Vxlan)];

const DENY_ACTIONS: &[(&str, DenyAction)] = &[("Drop", DenyAction::Drop), ("Reject", DenyAction::Reject)];

/// A NetworkConfig. `None` only where something was refused.
pub(crate) fn network_config(c: &mut Context<'_>, object: &Node) -> Option<NetworkConfig> {
    let root = Path::ROOT;
    let before = c.errors.len();
    c.object(object, &root, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let meta = metadata(c, object, Naming { namespaced: false, rule: dns_subdomain });
    if meta.is_some_and(|meta| *meta.name != *NetworkConfig::NAME) {
        let path = root.field("metadata");
        let reason = format!("there is one NetworkConfig, and its name is {}", NetworkConfig::NAME);
        c.refuse(object.get("metadata").unwrap_or(object), &path.field("name"), reason);
    }
    let path = root.field("spec");
    let spec = c.require(object, &root, "spec")?;
    let known = &["clusterCIDRs", "routeMode", "mtu", "masquerade", "denyAction", "dropLog"];
    c.object(spec, &path, known)?;
    let mut config = NetworkConfig {
        cluster_cidrs: cidrs(c, spec, &path, "clusterCIDRs"),
        route_mode: c.word(spec, &path, "routeMode", ROUTE_MODES),
        mtu: number(c, spec, &path, "mtu", NetworkConfig::MTU),
        deny: c.word(spec, &path, "denyAction", DENY_ACTIONS),
        ..NetworkConfig::default()
    };
    if let Some(masquerade) = spec.get("masquerade") {
        let path = path.field("masquerade");
        if c.object(masquerade, &path, &["enabled", "exceptCIDRs"]).is_some() {
            config.masquerade = masquerade.get("enabled").map(|_| c.boolean(masquerade, &path, "enabled"));
            config.masquerade_except = cidrs(c, masquerade, &path, "exceptCIDRs");
        }
    }
    if let Some(log) = spec.get("dropLog") {
        let path = path.field("dropLog");
        if c.object(log, &path, &["ratePerSecond", "burst"]).is_some() {
            let rate = number(c, log, &path, "ratePerSecond", LogLimit::RATE);
            let burst = number(c, log, &path, "burst", LogLimit::BURST);
            if rate.is_none() && burst.is_some() {
                c.refuse(log, &path.field("burst"), "burst needs ratePerSecond");
            }
            config.drop_log = rate.map(|rate| LogLimit::new(rate, burst));
        }
    }
    (c.errors.len() == before).then_some(config)
}

fn cidrs(c: &mut Context<'_>, parent: &Node, path: &Path<'_>, name: &str) -> Vec<IpNet> {
    let list = c.list(parent, path, name);
    let path = path.field(name);
    if let Some(too_many) = list.get(MOST_CIDRS) {
        c.refuse(too_many, &path, format!("more than {MOST_CIDRS} prefixes"));
    }
    let mut found: Vec<IpNet> = Vec::new();
    for (i, node) in list.iter().enumerate().take(MOST_CIDRS) {
        let path = path.index(i);
        match c.cidr(node, &path) {
            Some(net) if found.contains(&net) => c.refuse(node, &path, format!("{net} is there already")),
            Some(net) => found.push(net),
            None => {}
        }
    }
    found
}

fn number(
    c: &mut Context<'_>,
    parent: &Node,
    path: &Path<'_>,
    name: &str,
    may_be: RangeInclusive<u32>,
) -> Option<u32> {
    let number = c.number(parent, path, name)?;
    let wanted = u32::try_from(number).ok().filter(|number| may_be.contains(number));
    if wanted.is_none() {
        let (least, most) = (may_be.start(), may_be.end());
        c.refuse(parent.get(name)?, &path.field(name), format!("must be {least} to {most}, not {number}"));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Errors, decode};
    use moat_policies::Object;

    fn read(spec: &str) -> Result<NetworkConfig, Errors> {
        named("default", spec)
    }

    fn named(name: &str, spec: &str) -> Result<NetworkConfig, Errors> {
        let head =
            format!("apiVersion: moat.dev/v1alpha1\nkind: NetworkConfig\nmetadata: {{name: {name}}}\n");
        let bytes = format!("{head}spec: {spec}\n").into_bytes();
        let manifests = decode([("config.yaml", bytes.as_slice())])?;
        match manifests.objects.as_slice() {
            [Object::Config(config)] => Ok(config.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_field_is_read() {
        let all = "{clusterCIDRs: [10.0.0.0/8, 'fd00::/8'], routeMode: VXLAN, mtu: 1400, \
                   masquerade: {enabled: false, exceptCIDRs: [192.0.2.0/24]}, denyAction: Reject, \
                   dropLog: {ratePerSecond: 3, burst: 4}}";
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let expected = NetworkConfig {
            cluster_cidrs: vec![net("10.0.0.0/8"), net("fd00::/8")],
            route_mode: Some(RouteMode::Vxlan),
            mtu: Some(1400),
            masquerade: Some(false),
            masquerade_except: vec![net("192.0.2.0/24")],
            deny: Some(DenyAction::Reject),
            drop_log: Some(LogLimit { rate: 3, burst: 4 }),
        };
        assert_eq!(read(all).unwrap(), expected);
        assert_eq!(read("{}").unwrap(), NetworkConfig::default());
        assert_eq!(
            read("{dropLog: {ratePerSecond: 0}}").unwrap().drop_log,
            Some(LogLimit { rate: 0, burst: 1 })
        );
    }

    #[test]
    fn what_is_wrong_is_told_by_the_name_of_its_field() {
        for (spec, field) in [
            ("{mtu: 1279}", "spec.mtu"),
            ("{mtu: 65536}", "spec.mtu"),
            ("{mtu: '1400'}", "spec.mtu"),
            ("{MTU: 1400}", "spec.MTU"),
            ("{routeMode: vxlan}", "spec.routeMode"),
            ("{denyAction: Deny}", "spec.denyAction"),
            ("{clusterCIDRs: [10.0.0.1/8]}", "spec.clusterCIDRs[0]"),
            ("{clusterCIDRs: [10.0.0.0/8, 10.0.0.0/8]}", "spec.clusterCIDRs[1]"),
            ("{masquerade: {exceptCIDRs: [ten]}}", "spec.masquerade.exceptCIDRs[0]"),
            ("{masquerade: {enabled: 'yes'}}", "spec.masquerade.enabled"),
            ("{dropLog: {ratePerSecond: 1001}}", "spec.dropLog.ratePerSecond"),
            ("{dropLog: {ratePerSecond: 1, burst: 0}}", "spec.dropLog.burst"),
            ("{dropLog: {burst: 5}}", "spec.dropLog.burst"),
        ] {
            let errors = read(spec).unwrap_err().to_string();
            assert!(errors.contains(&format!("{field}:")), "{spec}: {errors}");
        }
        assert!(named("other", "{}").unwrap_err().to_string().contains("metadata.name"));
    }
}
