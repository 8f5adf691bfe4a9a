//! The environment variables by which a runtime says what it wants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{CniError, code};

/// The value of `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Give a container an interface.
    Add,
    /// Take it away.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Remove whatever belongs to no container that still exists.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions of the specification are spoken?
    Version,
}

impl Verb {
    /// The verb that `CNI_COMMAND` names.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Ok(match text {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => {
                return Err(CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_COMMAND is {text:?}"),
                    "it must be one of ADD, DEL, CHECK, GC, STATUS, VERSION",
                ));
            }
        })
    }
}

/// The variables that describe one attachment, as far as the runtime set them.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    container_id: Option<String>,
    netns: Option<String>,
    ifname: Option<String>,
    args: Option<String>,
}

impl Environment {
    /// Reads the variables through `get`; an empty one counts as missing.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| get(name).filter(|value| !value.is_empty());
        Self {
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
        }
    }

    /// `CNI_CONTAINERID`.
    pub fn container_id(&self) -> Result<String, CniError> {
        let id = required("CNI_CONTAINERID", &self.container_id)?;
        if is_identifier(id) {
            Ok(id.to_owned())
        } else {
            Err(invalid(
                "CNI_CONTAINERID",
                id,
                "it must begin with a letter or digit and go on with letters, digits, '_', '.' or '-'",
            ))
        }
    }

    /// `CNI_IFNAME`.
    pub fn ifname(&self) -> Result<String, CniError> {
        let name = required("CNI_IFNAME", &self.ifname)?;
        let reason = if name.len() > 15 {
            "an interface's name has at most 15 bytes"
        } else if matches!(name, "." | "..")
            || name.contains(['/', ':', '\0'])
            || name.contains(char::is_whitespace)
        {
            "an interface's name is not '.' or '..' and has no '/', ':' or whitespace"
        } else if name == "lo" {
            "that is the loopback interface"
        } else {
            return Ok(name.to_owned());
        };
        Err(invalid("CNI_IFNAME", name, reason))
    }

    /// `CNI_NETNS`, where it must be given.
    pub fn netns(&self) -> Result<PathBuf, CniError> {
        let path = PathBuf::from(required("CNI_NETNS", &self.netns)?);
        if path.is_absolute() {
            Ok(path)
        } else {
            // The agent has another working directory than the runtime.
            Err(invalid("CNI_NETNS", &path.to_string_lossy(), "it must be an absolute path"))
        }
    }

    /// The pairs of `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`.
    pub fn args(&self) -> Result<BTreeMap<String, String>, CniError> {
        let text = self.args.as_deref().unwrap_or_default();
        text.split(';')
            .filter(|pair| !pair.is_empty())
            .map(|pair| match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                _ => Err(invalid("CNI_ARGS", text, "it must be KEY=VALUE pairs separated by ';'")),
            })
            .collect()
    }
}

/// Whether a container id or a network's name is one by the specification's rule.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn required<'a>(name: &str, value: &'a Option<String>) -> Result<&'a str, CniError> {
    value.as_deref().ok_or_else(|| {
        CniError::new(code::INVALID_ENVIRONMENT, format!("{name} is missing"), "the runtime must set it")
    })
}

fn invalid(name: &str, value: &str, reason: &str) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, format!("{name} is {value:?}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn every_variable_is_checked_by_the_specifications_rule() {
        for (name, bad) in [
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", ""),
            ("CNI_IFNAME", "sixteen-bytes-xx"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "lo"),
            ("CNI_NETNS", "netns/x"),
            ("CNI_ARGS", "K8S_POD_NAME"),
        ] {
            let environment = environment(&[(name, bad)]);
            let error = match name {
                "CNI_CONTAINERID" => environment.container_id().unwrap_err(),
                "CNI_IFNAME" => environment.ifname().unwrap_err(),
                "CNI_NETNS" => environment.netns().unwrap_err(),
                _ => environment.args().unwrap_err(),
            };
            assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{name}={bad}");
            assert!(error.msg.contains(name), "the message must name the variable: {error}");
        }
    }

    #[test]
    fn arguments_are_pairs() {
        let args = environment(&[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;EMPTY=;")]).args().unwrap();
        assert_eq!(args["K8S_POD_NAME"], "web");
        assert_eq!(args["EMPTY"], "");
        assert!(environment(&[]).args().unwrap().is_empty());
    }
}
