//! What a person can do about a cluster that does not answer.

use std::error::Error;

use anyhow::anyhow;
use kube::config::KubeconfigError;

/// What the API server said, or why it could not be asked, and what to do about it. `needs` completes "this needs to …".
pub(crate) fn explain(error: &kube::Error, needs: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => anyhow!(
                "the API server does not know who asks (401 Unauthorized): log in again, or take another context with --context"
            ),
            403 => anyhow!(
                "not permitted: {}; this needs to {needs}, which the ClusterRole moat-viewer allows: kubectl create \
                 clusterrolebinding moat-viewer-ME --clusterrole=moat-viewer --user=ME",
                status.message
            ),
            _ => anyhow!("the API server refuses to {needs}: {}", status.message),
        },
        kube::Error::Service(_) | kube::Error::HyperError(_) => anyhow!(
            "cannot reach the API server: {}; is the cluster up, and is it the one that is meant (kubectl config \
             current-context; another one with --context)?",
            root(error)
        ),
        kube::Error::Auth(_) => {
            anyhow!("the kubeconfig's user has nothing to log in with: {}", root(error))
        }
        _ => anyhow!("cannot {needs}: {}", root(error)),
    }
}

/// Why there is no client, or no list.
pub(crate) fn access(error: moat_apiserver::Error) -> anyhow::Error {
    use moat_apiserver::Error::{Kubeconfig, List, NoKubeconfig};
    match &error {
        List { source, .. } => {
            explain(source, "list pods, namespaces, nodes and networkpolicies of all namespaces")
        }
        Kubeconfig { source, .. } | NoKubeconfig(source) => match (&**source, &error) {
            (KubeconfigError::LoadContext(name), _) => anyhow!(
                "the kubeconfig has no context {name:?}; kubectl config get-contexts lists those that it has"
            ),
            (KubeconfigError::ReadConfig(why, path), Kubeconfig { .. }) => {
                anyhow!("cannot read the kubeconfig {}: {why}", path.display())
            }
            (KubeconfigError::ReadConfig(why, path), _) => anyhow!(
                "no kubeconfig: set KUBECONFIG, or name a file with --kubeconfig ({}: {why})",
                path.display()
            ),
            (other, _) => anyhow!("the kubeconfig cannot be used: {other}"),
        },
        _ => error.into(),
    }
}

/// The last of the causes: the others say the same with more words.
fn root(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn says(code: u16, message: &str) -> String {
        let status = Status { code, message: message.into(), ..Status::success() };
        explain(&kube::Error::Api(status.boxed()), "list nodes").to_string()
    }

    #[test]
    fn a_missing_right_is_named_with_the_role_that_has_it() {
        let said = says(403, "nodes is forbidden: User \"eve\" cannot list resource \"nodes\"");
        assert!(said.contains("User \"eve\" cannot list resource \"nodes\""), "{said}");
        assert!(said.contains("--clusterrole=moat-viewer"), "{said}");
    }

    #[test]
    fn who_is_not_known_is_told_to_log_in() {
        assert!(says(401, "Unauthorized").contains("log in again"));
    }
}
