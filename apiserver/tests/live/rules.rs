//! What the API server takes as a NetworkConfig, and with what word about which field it refuses the rest.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, Status};
use moat_apiserver::Access;
use moat_crd::{NetworkConfig, NodeEnforcement};
use serde_json::{Value, json};

use crate::server::{Programs, Server, kubeconfig, until};

/// Names and specs that are refused, with what of the object the refusal names, and a word of it.
fn refused() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let prefix = "must be a prefix like 10.0.0.0/8 or fd00::/8";
    let many: Vec<String> = (0..65).map(|n| format!("10.{n}.0.0/16")).collect();
    vec![
        ("other", json!({}), "<nil>", "its name is default"),
        ("default", json!({"clusterCIDRs": ["10.0.0.1/8"]}), "spec.clusterCIDRs[0]", prefix),
        ("default", json!({"clusterCIDRs": ["fd00::/8", "fd00::1/8"]}), "spec.clusterCIDRs[1]", prefix),
        ("default", json!({"clusterCIDRs": ["10.0.0.0"]}), "spec.clusterCIDRs[0]", prefix),
        ("default", json!({"clusterCIDRs": ["10.0.0.0/33"]}), "spec.clusterCIDRs[0]", prefix),
        (
            "default",
            json!({"clusterCIDRs": ["10.0.0.0/8", "10.0.0.0/8"]}),
            "spec.clusterCIDRs[1]",
            "Duplicate",
        ),
        ("default", json!({"clusterCIDRs": many}), "spec.clusterCIDRs", "Too many"),
        ("default", json!({"clusterCIDRs": "10.0.0.0/8"}), "spec.clusterCIDRs", "array"),
        (
            "default",
            json!({"masquerade": {"exceptCIDRs": ["10.0.0.1/8"]}}),
            "spec.masquerade.exceptCIDRs[0]",
            prefix,
        ),
        ("default", json!({"masquerade": {"enabled": "no"}}), "spec.masquerade.enabled", "boolean"),
        ("default", json!({"mtu": 1279}), "spec.mtu", "1280"),
        ("default", json!({"mtu": 65536}), "spec.mtu", "65535"),
        ("default", json!({"routeMode": "Bridged"}), "spec.routeMode", "VXLAN"),
        ("default", json!({"denyAction": "Ignore"}), "spec.denyAction", "Reject"),
        ("default", json!({"dropLog": {"ratePerSecond": -1}}), "spec.dropLog.ratePerSecond", "0"),
        ("default", json!({"dropLog": {"ratePerSecond": 1001}}), "spec.dropLog.ratePerSecond", "1000"),
        ("default", json!({"dropLog": {"ratePerSecond": 1, "burst": 0}}), "spec.dropLog.burst", "1"),
        ("default", json!({"dropLog": {"ratePerSecond": 1, "burst": 10001}}), "spec.dropLog.burst", "10000"),
        ("default", json!({"dropLog": {"burst": 5}}), "spec.dropLog", "burst needs ratePerSecond"),
    ]
}

fn taken() -> Vec<Value> {
    vec![
        json!({}),
        json!({"clusterCIDRs": ["10.0.0.0/8", "fd00::/8", "10.1.2.3/32", "0.0.0.0/0"]}),
        json!({"mtu": 1280}),
        json!({"mtu": 65535}),
        json!({"routeMode": "Auto"}),
        json!({"routeMode": "Routed"}),
        json!({"routeMode": "VXLAN"}),
        json!({"masquerade": {"enabled": false, "exceptCIDRs": ["198.51.100.0/24"]}}),
        json!({"denyAction": "Drop"}),
        json!({"denyAction": "Reject"}),
        json!({"dropLog": {"ratePerSecond": 0}}),
        json!({"dropLog": {"ratePerSecond": 1000, "burst": 10000}}),
    ]
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    let whole = json!({"apiVersion": "moat.dev/v1alpha1", "kind": "NetworkConfig", "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(whole).unwrap()
}

fn refusal<T>(answer: Result<T, kube::Error>) -> Option<Box<Status>> {
    match answer {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_of_a_network_refuses_with_its_field_and_what_is_good_is_taken() {
    let Some(programs) = Programs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(programs, folder.path()).await;
    let access = Access::Kubeconfig { file: Some(kubeconfig(folder.path(), server.port())), context: None };
    let client = access.client().await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in moat_crd::definitions() {
        definitions.create(&PostParams::default(), &definition).await.unwrap();
    }
    let configs: Api<NetworkConfig> = Api::all(client.clone());
    let nodes: Api<NodeEnforcement> = Api::all(client.clone());
    until("the API server to know the types", async || {
        let lists = (configs.list(&Default::default()).await, nodes.list(&Default::default()).await);
        lists.0.is_ok() && lists.1.is_ok()
    })
    .await;

    // As a client without our types would say it: much of it is nothing that they could. Nothing is stored.
    let configs: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<NetworkConfig>(&()));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    for (name, spec, field, word) in refused() {
        let status = refusal(configs.create(&dry, &object(name, &spec)).await);
        let status = status.unwrap_or_else(|| panic!("taken: {name} {spec}"));
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        let said = causes.any(|cause| cause.field == field && cause.message.contains(word));
        assert!(status.code == 422 && said, "{name} {spec}: {status:?}");
    }
    for spec in taken() {
        if let Some(status) = refusal(configs.create(&dry, &object("default", &spec)).await) {
            panic!("refused: {spec}: {status:?}");
        }
    }

    // A change of one that is there is looked at as well.
    configs.create(&PostParams::default(), &object("default", &json!({"mtu": 1400}))).await.unwrap();
    let worse = Patch::Merge(json!({"spec": {"mtu": 70000}}));
    let status = refusal(configs.patch("default", &PatchParams::default(), &worse).await);
    let status = status.expect("a change is looked at");
    assert!(status.message.contains("spec.mtu"), "{status:?}");
}
