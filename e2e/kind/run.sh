#!/usr/bin/env bash
# The upstream NetworkPolicy suite and moat's own ones on kind. Needs Docker, kind, kubectl, Rust and Go.
#
#   e2e/kind/run.sh up       make the cluster, deploy moat, wait until all nodes are ready
#   e2e/kind/run.sh e2e      the upstream suite (further arguments go to it)
#   e2e/kind/run.sh down     remove the cluster
#   e2e/kind/run.sh          all three
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
name="${MOAT_KIND_CLUSTER:-moat}"
kubeconfig="${MOAT_KIND_KUBECONFIG:-$here/kubeconfig.$name}"

need() {
    for program in "$@"; do
        if ! command -v "$program" >/dev/null; then
            echo "$program is not on the path" >&2
            exit 1
        fi
    done
}

up() {
    need cargo docker kind kubectl
    local archive
    archive="$(mktemp -d)/moat.tar"
    (cd "$root" && cargo xtask image --output "$archive")
    kind create cluster --name "$name" --config "$here/kind.yaml" --kubeconfig "$kubeconfig"
    kind load image-archive "$archive" --name "$name"
    rm -r "$(dirname "$archive")"
    export KUBECONFIG="$kubeconfig"
    kubectl apply --server-side -k "$root/deploy/overlays/kind"
    kubectl --namespace moat-system rollout status --timeout=300s deployment/moat-controller
    kubectl --namespace moat-system rollout status --timeout=300s daemonset/moat-agent
    kubectl wait --for=condition=Ready --timeout=300s node --all
}

# Kubernetes' own end-to-end tests are a program that is built once, from public Go modules, into the cache.
e2e() {
    need cargo go
    local program
    program="$(cd "$root" && cargo xtask setup --kubernetes | grep '/netpol\.test$')"
    "$program" -kubeconfig="$kubeconfig" -provider=skeleton -ginkgo.timeout=2h -ginkgo.v \
        -ginkgo.focus=Netpol -ginkgo.skip=SCTPConnectivity "$@"
}

down() {
    need kind
    kind delete cluster --name "$name" --kubeconfig "$kubeconfig"
    rm -f "$kubeconfig"
}

case "${1:-all}" in
    up) up ;;
    e2e)
        shift
        e2e "$@"
        ;;
    down) down ;;
    all)
        trap down EXIT
        up
        e2e
        ;;
    *)
        sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
