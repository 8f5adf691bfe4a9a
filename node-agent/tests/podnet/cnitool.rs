//! The plugin under the CNI project's own library, by its `cnitool`.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::world::{Namespace, TestNode, addresses, in_world, plugin_binary, tcp};

/// Where `cnitool` is: in the cache of tools, or installed.
fn cnitool() -> PathBuf {
    let cache = std::env::var_os("MOAT_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/moat")));
    let cached = cache.map(|cache| cache.join("bin/cnitool"));
    let installed = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|folder| folder.join("cnitool")).collect::<Vec<_>>());
    cached
        .into_iter()
        .chain(installed.into_iter().flatten())
        .find(|path| path.is_file())
        .expect("cnitool is missing: `cargo xtask setup` puts it into ~/.cache/moat/bin")
}

#[test]
fn the_reference_library_drives_the_plugin() {
    in_world(|| {
        let node = TestNode::new(&["10.1.0.0/24", "fd00:1::/64"]);
        let folder = tempfile::tempdir().unwrap();
        let tool = cnitool();
        for (list, version) in [("old", "0.4.0"), ("moat", "1.1.0")] {
            let config = json!({
                "cniVersion": version, "name": list,
                "plugins": [{"type": "moat-cni", "agentSocket": node.socket()}],
            });
            std::fs::write(folder.path().join(format!("{list}.conflist")), config.to_string()).unwrap();
            let run = |command: &str, ns: &Namespace| {
                // The library keeps its results below /var/lib; in these tests, somewhere else.
                let output = Command::new("unshare")
                    .args(["--mount", "sh", "-ec", r#"mount --bind "$STATE" /var/lib; exec "$@""#, "sh"])
                    .arg(&tool)
                    .args([command, list])
                    .arg(&ns.path)
                    .env("STATE", folder.path())
                    .env("NETCONFPATH", folder.path())
                    .env("CNI_PATH", plugin_binary().parent().unwrap())
                    .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web")
                    .output()
                    .unwrap();
                let (out, err) =
                    (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                assert!(output.status.success(), "cnitool {command} {list}: {out} {err}");
                serde_json::from_str::<Value>(&out).unwrap_or_default()
            };
            let (a, b) = (Namespace::new(), Namespace::new());
            if version == "1.1.0" {
                run("status", &a);
            }
            let (result, other) = (run("add", &a), run("add", &b));
            assert_eq!(result["cniVersion"], version);
            run("check", &a);
            for to in addresses(&other) {
                tcp(&a, &b, to);
            }
            assert_eq!(node.pod_links().len(), 2);
            run("del", &a);
            run("del", &a);
            if version == "1.1.0" {
                run("gc", &b);
            } else {
                run("del", &b);
            }
            assert_eq!(node.pod_links().len(), 0, "after {list}");
        }
    });
}
