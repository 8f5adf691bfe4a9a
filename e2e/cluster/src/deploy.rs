//! What is deployed on the cluster, as on any other: moat by `kubectl apply -k`, and CoreDNS.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kubectl::kubectl;
use crate::plan::{Plan, text};

/// CoreDNS and what belongs to it.
const DNS: &str = include_str!("coredns.yaml");
/// What has to be ready before anybody can use the cluster: of moat, and of DNS.
const MOAT: [&str; 2] = ["deployment/moat-controller", "daemonset/moat-agent"];
const MOAT_NAMESPACE: &str = "moat-system";

/// Hands everything to the API server. Nothing runs before there are nodes.
pub(crate) fn begin(plan: &Plan) -> Result<()> {
    if let Some(moat) = &plan.moat {
        let folder = text(moat);
        run(admin(plan).args(["apply", "--server-side", "-k", &folder]), "")
            .with_context(|| format!("cannot deploy moat from {folder}"))?;
    }
    run(admin(plan).args(["apply", "--server-side", "-f", "-"]), DNS).context("cannot deploy CoreDNS")
}

/// Waits until all of it is ready.
pub(crate) fn wait(plan: &Plan, patience: Duration) -> Result<()> {
    let moat = plan.moat.iter().flat_map(|_| MOAT.map(|what| (MOAT_NAMESPACE, what)));
    for (namespace, what) in moat.chain([("kube-system", "deployment/coredns")]) {
        let timeout = format!("--timeout={}s", patience.as_secs());
        run(admin(plan).args(["--namespace", namespace, "rollout", "status", what, &timeout]), "")
            .with_context(|| format!("{what} is not ready"))?;
    }
    Ok(())
}

fn admin(plan: &Plan) -> Command {
    kubectl(plan, &plan.inner_kubeconfig("admin"))
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("kubectl: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use super::*;

    const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base");

    /// Every document of a file of the base.
    fn documents(file: &str) -> Vec<Value> {
        serde_saphyr::from_multiple(&std::fs::read_to_string(Path::new(BASE).join(file)).unwrap()).unwrap()
    }

    fn containers() -> Vec<Value> {
        let workloads = ["agent.yaml", "controller.yaml", "guard.yaml"].into_iter().flat_map(documents);
        let pods =
            workloads.map(|object| object["spec"]["template"]["spec"].clone()).filter(|pod| !pod.is_null());
        let lists = pods.flat_map(|pod| [pod["initContainers"].clone(), pod["containers"].clone()]);
        lists.filter_map(|list| list.as_array().cloned()).flatten().collect()
    }

    fn words(list: &Value) -> Vec<&str> {
        list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
    }

    /// Where moat's programs are: as built for all tests, or built for this one.
    fn programs() -> PathBuf {
        if let Some(folder) = std::env::var_os("MOAT_BIN_DIR") {
            return folder.into();
        }
        // target/PROFILE/deps/this-test
        let own = std::env::current_exe().unwrap();
        let profile = own.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "moat-agent", "-p", "moat-controller", "--target-dir"]);
        build.arg(profile.parent().unwrap()).current_dir(BASE);
        assert!(build.status().unwrap().success());
        profile.to_owned()
    }

    #[test]
    fn the_programs_take_every_flag_that_the_manifests_give_them() {
        let folder = programs();
        let containers = containers();
        assert_eq!(containers.len(), 3, "guard, agent, controller");
        for container in containers {
            let command = words(&container["command"]);
            let program = folder.join(Path::new(command[0]).file_name().unwrap());
            // The kubelet puts what it knows in the place of $(NAME); any number will do for that.
            let in_place = |word: &str| {
                let parts =
                    word.split("$(").map(|part| part.split_once(')').map_or(part, |(_, after)| after));
                parts.collect::<Vec<_>>().join("1")
            };
            let arguments: Vec<String> = words(&container["args"]).into_iter().map(in_place).collect();
            // What it does not know it refuses before it comes to the help.
            let output = Command::new(program).args(&arguments).arg("--help").output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn the_image_is_of_this_version_and_every_container_is_of_it() {
        let image = &documents("kustomization.yaml")[0]["images"][0];
        assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
        for container in containers() {
            assert_eq!(container["image"], image["name"]);
        }
    }

    #[test]
    fn the_agent_has_no_rights_in_the_api_server() {
        let bindings = documents("controller-rights.yaml").into_iter().chain(documents("agent.yaml"));
        for binding in bindings.filter(|object| !object["subjects"].is_null()) {
            let names: Vec<&Value> =
                binding["subjects"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
            assert_eq!(names, ["moat-controller"]);
        }
        let agent = documents("agent.yaml").into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        assert_eq!(agent["spec"]["template"]["spec"]["automountServiceAccountToken"], false);
    }
}
