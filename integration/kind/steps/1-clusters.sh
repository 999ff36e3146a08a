#!/usr/bin/env bash
# Two kind clusters whose load balancers have addresses that both can reach.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"

# The network of all kind nodes is there once the first cluster is; it is a /16: 172.18.0.0/16 -> 172.18.
prefix() {
  docker network inspect kind --format '{{range .IPAM.Config}}{{.Subnet}} {{end}}' |
    tr ' ' '\n' | grep -F . | head -n 1 | cut -d. -f1-2
}

third=240
for cluster in "${CLUSTERS[@]}"; do
  say "cluster $cluster"
  if ! kind get clusters 2>/dev/null | grep -qx "entente-$cluster"; then
    kind create cluster --name "entente-$cluster" --image "$KIND_NODE_IMAGE" --config "$HERE/manifests/kind-cluster.yaml" --wait 120s
  fi
  k "$cluster" apply -f "https://raw.githubusercontent.com/metallb/metallb/$METALLB_VERSION/config/manifests/metallb-native.yaml"
  k "$cluster" rollout status -n metallb-system deployment/controller --timeout 180s
  k "$cluster" rollout status -n metallb-system daemonset/speaker --timeout 180s
  range="$(prefix).$third.1-$(prefix).$third.250"
  sed "s|\${RANGE}|$range|" "$HERE/manifests/metallb-pool.yaml.tmpl" >"$WORK/pool-$cluster.yaml"
  eventually 60 "MetalLB takes its pool" k "$cluster" apply -f "$WORK/pool-$cluster.yaml"
  third=$((third + 1))
done
