#!/usr/bin/env bash
# SPIRE by its own charts: server, agents, spire-controller-manager and the CSI driver, with a bundle endpoint.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"
CHARTS=https://spiffe.github.io/helm-charts-hardened/

for cluster in "${CLUSTERS[@]}"; do
  say "SPIRE in $cluster, trust domain $(domain "$cluster")"
  h "$cluster" upgrade --install spire-crds spire-crds --repo "$CHARTS" --version "$SPIRE_CRDS_CHART" \
    --namespace spire-server --create-namespace
  h "$cluster" upgrade --install spire spire --repo "$CHARTS" --version "$SPIRE_CHART" --namespace spire-server \
    --values "$REPOSITORY/spire/helm/federation.yaml" --values "$REPOSITORY/spire/helm/istio.yaml" \
    --values "$HERE/values/spire.yaml" \
    --set "global.spire.trustDomain=$(domain "$cluster")" --set "global.spire.clusterName=$cluster" \
    --wait --timeout 5m
done
