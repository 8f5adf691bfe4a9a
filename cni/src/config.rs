//! The network configuration that a runtime hands over on stdin.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::environment::{Verb, is_identifier};
use crate::error::{CniError, code};
use crate::port::{self, HostPort};
use crate::protocol::ValidAttachment;
use crate::version::SpecVersion;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/moat/agent.sock";

/// The longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// The fields that a configuration may have: the specification's own, and ours. One in a name space
/// of somebody's (`cni.dev/…`) may be there too.
const FIELDS: [&str; 14] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "dns",
    "ipMasq",
    "ipam",
    "prevResult",
    "disableCheck",
    "disableGC",
    "agentSocket",
];

/// A network configuration, checked.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub name: String,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `dns`, which a result repeats.
    pub dns: Dns,
    /// `runtimeConfig.portMappings`. Only of ADD and CHECK: nothing about them keeps a container from going.
    pub host_ports: Vec<HostPort>,
    prev_result: Option<Value>,
    valid_attachments: Option<Value>,
}

/// What a configuration and a result say about name servers. moat has no opinion on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What `prevResult` says about one interface of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateways of the pod's default routes.
    pub gateways: Vec<IpAddr>,
}

impl NetworkConfig {
    /// The configuration in `text`, for `verb`.
    ///
    /// DEL and GC take what an older release may have accepted: what cannot be removed is worse than a field too many.
    pub fn parse(text: &[u8], verb: Verb) -> Result<Self, CniError> {
        let mut fields = object(text)?;
        let version = match fields.get("cniVersion") {
            // What the specification says a configuration without the field means.
            None => return Err(incompatible("0.1.0", "the field cniVersion is missing, which means 0.1.0")),
            Some(Value::String(text)) => {
                SpecVersion::parse(text).ok_or_else(|| incompatible(text, "the plugin does not speak it"))?
            }
            Some(other) => return Err(wrong("cniVersion", other, "it must be a string")),
        };
        let name = match fields.get("name") {
            Some(Value::String(name)) if is_identifier(name) => name.clone(),
            Some(other) => return Err(wrong("name", other, "it must be letters, digits, '_', '.' and '-'")),
            None => return Err(CniError::new(code::INVALID_CONFIG, "the field name is missing", "")),
        };
        let agent_socket = match fields.get("agentSocket") {
            None => PathBuf::from(DEFAULT_SOCKET),
            Some(Value::String(path)) if path.starts_with('/') => PathBuf::from(path),
            Some(other) => return Err(wrong("agentSocket", other, "it must be an absolute path")),
        };
        let dns = match fields.remove("dns") {
            None | Some(Value::Null) => Dns::default(),
            Some(dns) => Dns::deserialize(&dns).map_err(|error| wrong("dns", &dns, &error.to_string()))?,
        };
        if verb == Verb::Add {
            refuse_unsupported(&fields)?;
        }
        let host_ports = match fields.get("runtimeConfig").and_then(|config| config.get("portMappings")) {
            Some(ports) if matches!(verb, Verb::Add | Verb::Check) => port::decode(ports)?,
            _ => Vec::new(),
        };
        // The second name is what early implementations of GC wrote.
        let valid_attachments =
            fields.remove("cni.dev/valid-attachments").or_else(|| fields.remove("cni.dev/attachments"));
        let prev_result = fields.remove("prevResult").filter(|value| !value.is_null());
        Ok(Self { version, name, agent_socket, dns, host_ports, prev_result, valid_attachments })
    }

    /// Whether the plugin is one of a chain, with others before it.
    pub fn has_prev_result(&self) -> bool {
        self.prev_result.is_some()
    }

    /// What `prevResult` says about the interface `ifname` of the pod: what CHECK compares with.
    pub fn expected(&self, ifname: &str) -> Result<Expected, CniError> {
        let Some(value) = &self.prev_result else {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                "the field prevResult is missing",
                "CHECK compares with what ADD answered; the runtime must hand it over",
            ));
        };
        let result = PrevResult::deserialize(value).map_err(|error| {
            CniError::new(code::DECODING_FAILURE, "the field prevResult cannot be read", error.to_string())
        })?;
        // An address without an interface is the pod's: it is how results of one interface may be written.
        let ours = |index: Option<usize>| match index {
            None => true,
            Some(index) => result
                .interfaces
                .get(index)
                .is_some_and(|i| i.name == ifname && i.sandbox.as_deref().is_some_and(|s| !s.is_empty())),
        };
        let ips: Vec<&PrevIp> = result.ips.iter().filter(|ip| ours(ip.interface)).collect();
        let gateways = result
            .routes
            .iter()
            .filter(|route| route.dst.prefix_len() == 0)
            .filter_map(|route| {
                let same_family = |ip: &&&PrevIp| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4();
                route.gw.or_else(|| ips.iter().find(same_family).and_then(|ip| ip.gateway))
            })
            .collect();
        Ok(Expected { addresses: ips.iter().map(|ip| ip.address.addr()).collect(), gateways })
    }

    /// `cni.dev/valid-attachments`: what GC must keep. `None` where the runtime handed no list over: that is not
    /// an empty one, by which every attachment would go.
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        match &self.valid_attachments {
            None => Ok(None),
            // What a Go runtime writes for an empty list.
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(list) => Vec::deserialize(list).map(Some).map_err(|error| {
                CniError::new(
                    code::DECODING_FAILURE,
                    "the field cni.dev/valid-attachments cannot be read",
                    error.to_string(),
                )
            }),
        }
    }
}

/// Reads a configuration to its end.
pub fn read(from: impl Read) -> Result<Vec<u8>, CniError> {
    let mut text = Vec::new();
    match from.take(MAX_CONFIG + 1).read_to_end(&mut text) {
        Ok(_) if text.len() as u64 > MAX_CONFIG => Err(CniError::new(
            code::INVALID_CONFIG,
            "the network configuration is too long",
            format!("it has more than {MAX_CONFIG} bytes"),
        )),
        Ok(_) => Ok(text),
        Err(error) => Err(CniError::new(
            code::IO_FAILURE,
            "the network configuration cannot be read",
            error.to_string(),
        )),
    }
}

/// The CNI version to answer in when all that is sure is that `text` was on stdin.
pub fn answer_version(text: &[u8]) -> SpecVersion {
    object(text)
        .ok()
        .and_then(|fields| SpecVersion::parse(fields.get("cniVersion")?.as_str()?))
        .unwrap_or(SpecVersion::NEWEST)
}

fn object(text: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(text).map_err(|error| {
        CniError::new(
            code::DECODING_FAILURE,
            "the network configuration on stdin is not a JSON object",
            error.to_string(),
        )
    })
}

fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), CniError> {
    let unsupported = |field: &str, value: &Value, why: &str| {
        Err(CniError::new(
            code::UNSUPPORTED_FIELD,
            format!("the field {field} with the value {value} is not supported"),
            why,
        ))
    };
    for (field, value) in fields {
        match field.as_str() {
            "ipam" if !is_empty(value) => {
                return unsupported(
                    field,
                    value,
                    "moat's agent hands out the addresses of the node's podCIDRs",
                );
            }
            "ipMasq" if *value != Value::Bool(false) => {
                return unsupported(field, value, "masquerade is not a matter of one pod's interface");
            }
            "runtimeConfig" => {
                let capabilities = match value {
                    Value::Object(capabilities) => capabilities,
                    Value::Null => continue,
                    _ => return Err(wrong(field, value, "it must be an object")),
                };
                let foreign = |(name, value): &(&String, &Value)| *name != "portMappings" && !is_empty(value);
                if let Some((name, value)) = capabilities.iter().find(foreign) {
                    let why = "portMappings is the capability that moat-cni has; remove this one from the network configuration";
                    return unsupported(&format!("runtimeConfig.{name}"), value, why);
                }
            }
            known if FIELDS.contains(&known) || known.contains('/') => {}
            _ => {
                return unsupported(
                    field,
                    value,
                    "no field of the specification or of moat-cni has this name",
                );
            }
        }
    }
    Ok(())
}

/// Whether a value says nothing, however deep its containers go.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

fn incompatible(version: &str, why: &str) -> CniError {
    let spoken: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    CniError::new(
        code::INCOMPATIBLE_VERSION,
        format!("CNI version {version:?} is not supported"),
        format!("{why}; the plugin speaks {}", spoken.join(", ")),
    )
}

fn wrong(field: &str, value: &Value, why: &str) -> CniError {
    CniError::new(code::INVALID_CONFIG, format!("the field {field} is {value}"), why)
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct PrevResult {
    #[serde(default, deserialize_with = "null_as_default")]
    interfaces: Vec<PrevInterface>,
    #[serde(default, deserialize_with = "null_as_default")]
    ips: Vec<PrevIp>,
    #[serde(default, deserialize_with = "null_as_default")]
    routes: Vec<PrevRoute>,
}

#[derive(Deserialize)]
struct PrevInterface {
    name: String,
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct PrevIp {
    address: IpNet,
    interface: Option<usize>,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
struct PrevRoute {
    dst: IpNet,
    gw: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConfig, CniError> {
        NetworkConfig::parse(text.as_bytes(), Verb::Add)
    }

    #[test]
    fn each_wrong_configuration_has_its_code() {
        for (text, expected) in [
            ("", code::DECODING_FAILURE),
            ("[]", code::DECODING_FAILURE),
            (r#"{"name":"n","type":"moat-cni"}"#, code::INCOMPATIBLE_VERSION),
            (r#"{"cniVersion":"0.2.0","name":"n"}"#, code::INCOMPATIBLE_VERSION),
            (r#"{"cniVersion":"2.0.0","name":"n"}"#, code::INCOMPATIBLE_VERSION),
            (r#"{"cniVersion":1,"name":"n"}"#, code::INVALID_CONFIG),
            (r#"{"cniVersion":"1.1.0"}"#, code::INVALID_CONFIG),
            (r#"{"cniVersion":"1.1.0","name":"a b"}"#, code::INVALID_CONFIG),
            (r#"{"cniVersion":"1.1.0","name":"n","agentSocket":"x.sock"}"#, code::INVALID_CONFIG),
            (r#"{"cniVersion":"1.1.0","name":"n","dns":{"nameserver":[]}}"#, code::INVALID_CONFIG),
            (r#"{"cniVersion":"1.1.0","name":"n","agentsocket":"/x"}"#, code::UNSUPPORTED_FIELD),
            (r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"host-local"}}"#, code::UNSUPPORTED_FIELD),
            (r#"{"cniVersion":"1.1.0","name":"n","ipMasq":true}"#, code::UNSUPPORTED_FIELD),
            (
                r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"bandwidth":{"ingressRate":1}}}"#,
                code::UNSUPPORTED_FIELD,
            ),
            (r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":[]}"#, code::INVALID_CONFIG),
            (
                r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":80}]}}"#,
                code::INVALID_CONFIG,
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().code, expected, "{text}");
        }
    }

    #[test]
    fn an_unsupported_field_is_named_with_its_value() {
        let error = parse(r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"dhcp"}}"#).unwrap_err();
        assert!(error.msg.contains("ipam") && error.msg.contains(r#"{"type":"dhcp"}"#), "{error}");
    }

    #[test]
    fn what_a_runtime_adds_is_taken() {
        let config = parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"moat-cni","ipam":{},"runtimeConfig":{"portMappings":[]},
               "dns":{"nameservers":["10.96.0.10"],"search":null},"cni.dev/anything":1,"args":{"cni":{}}}"#,
        )
        .unwrap();
        assert_eq!(config.agent_socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(config.dns.nameservers, ["10.96.0.10"]);
        assert!(!config.has_prev_result());
    }

    #[test]
    fn removal_takes_fields_that_adding_refuses() {
        let text = br#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"dhcp"},"x":1,
                        "runtimeConfig":{"portMappings":[{"hostPort":0}]}}"#;
        assert!(NetworkConfig::parse(text, Verb::Del).is_ok());
        assert!(NetworkConfig::parse(text, Verb::Gc).is_ok());
    }

    #[test]
    fn the_previous_result_is_read_in_every_form() {
        for ips in [
            r#"[{"version":"4","interface":1,"address":"10.1.0.5/32","gateway":"169.254.1.1"},
                {"version":"4","interface":0,"address":"10.9.9.9/32"}]"#,
            r#"[{"address":"10.1.0.5/32","gateway":"169.254.1.1"}]"#,
        ] {
            let config = parse(&format!(
                r#"{{"cniVersion":"0.4.0","name":"n","prevResult":{{"cniVersion":"0.4.0","ips":{ips},
                    "interfaces":[{{"name":"moat01"}},{{"name":"eth0","sandbox":"/run/netns/x"}}],
                    "routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"10.0.0.0/8","gw":"10.1.1.1"}}]}}}}"#
            ))
            .unwrap();
            let expected = config.expected("eth0").unwrap();
            assert_eq!(expected.addresses, ["10.1.0.5".parse::<IpAddr>().unwrap()]);
            assert_eq!(expected.gateways, ["169.254.1.1".parse::<IpAddr>().unwrap()]);
        }
    }

    #[test]
    fn a_missing_list_of_attachments_is_not_an_empty_one() {
        let gc = |field: &str| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n"{field}}}"#);
            NetworkConfig::parse(text.as_bytes(), Verb::Gc).unwrap().valid_attachments()
        };
        assert_eq!(gc("").unwrap(), None);
        assert_eq!(gc(r#","cni.dev/valid-attachments":[]"#).unwrap(), Some(Vec::new()));
        assert_eq!(gc(r#","cni.dev/valid-attachments":null"#).unwrap(), Some(Vec::new()));
        assert_eq!(
            gc(r#","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]"#).unwrap().unwrap().len(),
            1
        );
        assert_eq!(
            gc(r#","cni.dev/valid-attachments":[{"id":"c"}]"#).unwrap_err().code,
            code::DECODING_FAILURE
        );
    }
}
