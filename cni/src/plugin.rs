//! One run of the plugin: from environment and stdin to what is printed and the exit status.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::client;
use crate::config::{self, NetworkConfig};
use crate::environment::{Environment, Verb};
use crate::error::{CniError, code};
use crate::protocol::{Add, Check, Command, Del, Gc, Outcome, Status};
use crate::removal;
use crate::result::{Failure, Success, Versions};
use crate::version::SpecVersion;

/// How long the agent may take to answer. A pod's start is retried by its runtime; a runtime that hangs is not.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a run leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// What goes to stdout: one JSON document, or nothing.
    pub stdout: Option<String>,
    /// Whether the exit status is 0.
    pub success: bool,
}

/// Runs the command `command` (the value of `CNI_COMMAND`) with the environment that `get` reads.
pub fn run(command: &str, get: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Output {
    run_asking(command, get, stdin, |socket, command| match command {
        // A container must be able to go at any time.
        Command::Del(del) => removal::remove(socket, del, PATIENCE),
        other => Ok(client::call(socket, other, PATIENCE)?),
    })
}

/// [`run`], with another way of asking the agent that listens on a socket.
pub fn run_asking(
    command: &str,
    get: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    agent: impl Fn(&Path, Command) -> Result<Outcome, CniError>,
) -> Output {
    let mut version = SpecVersion::NEWEST;
    match execute(command, get, stdin, agent, &mut version) {
        Ok(stdout) => Output { stdout, success: true },
        Err(error) => Output { stdout: Some(json(&Failure::new(version, &error))), success: false },
    }
}

/// Executes the command; `version` becomes the version to answer in as soon as it is known.
fn execute(
    command: &str,
    get: impl Fn(&str) -> Option<String>,
    stdin: impl Read,
    agent: impl Fn(&Path, Command) -> Result<Outcome, CniError>,
    version: &mut SpecVersion,
) -> Result<Option<String>, CniError> {
    let verb = Verb::parse(command)?;
    let text = config::read(stdin)?;
    *version = config::answer_version(&text);
    if verb == Verb::Version {
        return Ok(Some(json(&Versions::new(asked_version(&text)))));
    }
    let environment = Environment::read(get);
    let config = NetworkConfig::parse(&text, verb)?;
    require_version(verb, config.version)?;
    let ask = |command| match agent(&config.agent_socket, command)? {
        Outcome::Refused(error) => Err(error),
        outcome => Ok(outcome),
    };
    match verb {
        Verb::Add => {
            let request = add_request(&environment, &config)?;
            match ask(Command::Add(request.clone()))? {
                Outcome::Attached(attached) => Ok(Some(json(&Success::new(
                    config.version,
                    &attached,
                    &request.ifname,
                    &request.netns,
                    &config.dns,
                )))),
                other => Err(CniError::new(
                    code::DECODING_FAILURE,
                    "the agent's answer is to another question",
                    format!("{other:?}"),
                )),
            }
        }
        Verb::Del => {
            let container_id = environment.container_id()?;
            let ifname = environment.ifname()?;
            ask(Command::Del(Del { network: config.name.clone(), container_id, ifname })).map(|_| None)
        }
        Verb::Check => {
            let ifname = environment.ifname()?;
            let expected = config.expected(&ifname)?;
            ask(Command::Check(Check {
                network: config.name.clone(),
                container_id: environment.container_id()?,
                ifname,
                netns: environment.netns()?,
                addresses: expected.addresses,
                gateways: expected.gateways,
                host_ports: config.host_ports.clone(),
            }))
            .map(|_| None)
        }
        Verb::Gc => match config.valid_attachments()? {
            Some(valid) => ask(Command::Gc(Gc { network: config.name.clone(), valid })).map(|_| None),
            // The reference library does this when its caller has no list; it has then removed what it knew of by DEL.
            None => {
                eprintln!("moat-cni: no cni.dev/valid-attachments in the configuration: nothing is removed");
                Ok(None)
            }
        },
        // The specification has a code of its own for STATUS: the question is not worth trying again, the answer is no.
        Verb::Status => match ask(Command::Status(Status { network: config.name.clone() })) {
            Err(error) if error.code == code::TRY_AGAIN => {
                Err(CniError { code: code::NOT_AVAILABLE, ..error })
            }
            other => other.map(|_| None),
        },
        Verb::Version => Ok(None),
    }
}

fn add_request(environment: &Environment, config: &NetworkConfig) -> Result<Add, CniError> {
    let container_id = environment.container_id()?;
    let ifname = environment.ifname()?;
    let netns = environment.netns()?;
    if config.has_prev_result() {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "the field prevResult is there: moat-cni is not the first plugin of its list",
            "moat-cni makes the pod's interface; put it first, and plugins that change the interface after it",
        ));
    }
    let mut args = environment.args()?;
    let mut argument = |name: &str| args.remove(name).filter(|value| !value.is_empty());
    let mut identity = |name: &str| {
        argument(name).ok_or_else(|| {
            CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_ARGS has no {name}"),
                "policy is about pods: the runtime must say which pod the container is, as those of Kubernetes do",
            )
        })
    };
    Ok(Add {
        network: config.name.clone(),
        container_id,
        ifname,
        netns,
        pod_namespace: identity("K8S_POD_NAMESPACE")?,
        pod_name: identity("K8S_POD_NAME")?,
        pod_uid: argument("K8S_POD_UID"),
        host_ports: config.host_ports.clone(),
    })
}

/// A command that a version of the specification does not have is refused in that version.
fn require_version(verb: Verb, version: SpecVersion) -> Result<(), CniError> {
    let (name, since) = match verb {
        Verb::Check => ("CHECK", SpecVersion::V0_4_0),
        Verb::Gc => ("GC", SpecVersion::V1_1_0),
        Verb::Status => ("STATUS", SpecVersion::V1_1_0),
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    Err(CniError::new(
        code::INCOMPATIBLE_VERSION,
        format!("CNI version {version} has no {name}"),
        format!("{name} came with {since}; raise cniVersion in the network configuration"),
    ))
}

/// The version that a runtime which asks VERSION says it uses; any text may come, also none.
fn asked_version(text: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(text).ok()?;
    Some(value.get("cniVersion")?.as_str()?.to_owned())
}

fn json<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists of them: nothing here can fail to become JSON.
    serde_json::to_string(value).unwrap_or_default()
}
