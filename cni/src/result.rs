//! What the plugin prints: the specification's results, each in the form of the asked version.

use std::path::Path;

use serde::Serialize;

use crate::config::Dns;
use crate::error::CniError;
use crate::protocol::Attached;
use crate::version::SpecVersion;

/// The result of ADD.
#[derive(Debug, Serialize)]
pub struct Success<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    interfaces: [Interface<'a>; 2],
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: &'a Dns,
}

#[derive(Debug, Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: &'a str,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
struct Ip {
    /// Before 1.0.0: "4" or "6".
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    interface: usize,
    address: String,
    gateway: String,
}

#[derive(Debug, Serialize)]
struct Route {
    dst: &'static str,
    gw: String,
}

/// The pod's end in [`Success::interfaces`].
const POD_END: usize = 1;

impl<'a> Success<'a> {
    /// What ADD answers in `version` about the interface `ifname` of the namespace `netns`.
    pub fn new(
        version: SpecVersion,
        attached: &'a Attached,
        ifname: &'a str,
        netns: &'a Path,
        dns: &'a Dns,
    ) -> Self {
        let mtu = (version >= SpecVersion::V1_1_0).then_some(attached.mtu);
        Self {
            cni_version: version.as_str(),
            interfaces: [
                Interface { name: &attached.host_ifname, mac: &attached.host_mac, mtu, sandbox: None },
                Interface { name: ifname, mac: &attached.pod_mac, mtu, sandbox: Some(netns) },
            ],
            ips: attached
                .addresses
                .iter()
                .map(|a| Ip {
                    version: (version < SpecVersion::V1_0_0).then_some(if a.address.is_ipv4() {
                        "4"
                    } else {
                        "6"
                    }),
                    interface: POD_END,
                    address: format!("{}/{}", a.address, if a.address.is_ipv4() { 32 } else { 128 }),
                    gateway: a.gateway.to_string(),
                })
                .collect(),
            routes: attached
                .addresses
                .iter()
                .map(|a| Route {
                    dst: if a.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" },
                    gw: a.gateway.to_string(),
                })
                .collect(),
            dns,
        }
    }
}

/// The result of VERSION.
#[derive(Debug, Serialize)]
pub struct Versions {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    #[serde(rename = "supportedVersions")]
    supported_versions: [&'static str; 4],
}

impl Versions {
    /// What VERSION answers to a runtime that uses the version `asked`.
    pub fn new(asked: Option<String>) -> Self {
        Self {
            cni_version: asked.unwrap_or_else(|| SpecVersion::NEWEST.to_string()),
            supported_versions: SpecVersion::ALL.map(SpecVersion::as_str),
        }
    }
}

/// An error as it is printed.
#[derive(Debug, Serialize)]
pub struct Failure<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    #[serde(flatten)]
    error: &'a CniError,
}

impl<'a> Failure<'a> {
    /// `error`, in `version`.
    pub fn new(version: SpecVersion, error: &'a CniError) -> Self {
        Self { cni_version: version.as_str(), error }
    }
}
