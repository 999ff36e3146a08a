# What the steps share. Sourced, not run.
# shellcheck shell=bash disable=SC2034

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)
# shellcheck source=integration/kind/versions.env
source "$HERE/versions.env"

CLUSTERS=(east west)
NAMESPACE=entente-system
IMAGE=entente:kind
WORK=${ENTENTE_KIND_WORK:-$HERE/.work}
mkdir -p "$WORK"

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'kind: %s\n' "$*" >&2; exit 1; }

# The trust domain of a cluster, and the other cluster.
domain() { echo "$1.example"; }
other() { if [[ $1 == east ]]; then echo west; else echo east; fi; }

# kubectl and helm in a cluster: `k east get pods`.
k() { local cluster=$1; shift; kubectl --context "kind-entente-$cluster" "$@"; }
h() { local cluster=$1; shift; helm --kube-context "kind-entente-$cluster" "$@"; }

# The command line of the agent in a cluster: found by the kubeconfig.
entente() {
  local cluster=$1; shift
  "${ENTENTE:-$REPOSITORY/target/release/entente}" --context "kind-entente-$cluster" -n "$NAMESPACE" "$@"
}

# Runs a command until it succeeds, for at most so many seconds: `eventually 60 "what it waits for" command...`.
eventually() {
  local seconds=$1 what=$2 end=$((SECONDS + $1)); shift 2
  until "$@" >"$WORK/last" 2>&1; do
    ((SECONDS < end)) || { cat "$WORK/last" >&2; fail "not so after $seconds s: $what"; }
    sleep 1
  done
}

# The address that the load balancer gave to a Service.
address_of() {
  local cluster=$1 namespace=$2 name=$3
  eventually 120 "Service $namespace/$name of $cluster has an address" has_address "$cluster" "$namespace" "$name"
  k "$cluster" get service -n "$namespace" "$name" -o jsonpath='{.status.loadBalancer.ingress[0].ip}'
}
has_address() {
  [[ -n $(k "$1" get service -n "$2" "$3" -o jsonpath='{.status.loadBalancer.ingress[0].ip}') ]]
}

need() {
  local missing=0 program
  for program in docker kind kubectl helm; do
    command -v "$program" >/dev/null && continue
    missing=1
    case $program in
      docker) echo "kind: docker is missing: https://docs.docker.com/engine/install/" >&2 ;;
      kind) echo "kind: kind is missing: https://kind.sigs.k8s.io/docs/user/quick-start/#installation" >&2 ;;
      kubectl) echo "kind: kubectl is missing: https://kubernetes.io/docs/tasks/tools/" >&2 ;;
      helm) echo "kind: helm is missing: https://helm.sh/docs/intro/install/" >&2 ;;
    esac
  done
  ((missing == 0)) || exit 1
}
