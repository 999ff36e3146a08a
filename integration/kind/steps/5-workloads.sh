#!/usr/bin/env bash
# helloworld in both clusters, each its own version, and the callers in east.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"

say "helloworld v1 in east, v2 in west"
for cluster in "${CLUSTERS[@]}"; do
  k "$cluster" apply -f "$REPOSITORY/examples/two-domains-istio/$cluster/workloads.yaml"
done
k east rollout status -n helloworld deployment/helloworld-v1 --timeout 180s
k west rollout status -n helloworld deployment/helloworld-v2 --timeout 180s
k east wait -n callers --for condition=Ready pod --all --timeout 180s
