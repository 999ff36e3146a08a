#!/usr/bin/env bash
# Istio, its certificates from SPIRE, with an east-west gateway.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"
CHARTS=https://istio-release.storage.googleapis.com/charts

for cluster in "${CLUSTERS[@]}"; do
  say "Istio in $cluster"
  h "$cluster" upgrade --install istio-base base --repo "$CHARTS" --version "$ISTIO_CHART" \
    --namespace istio-system --create-namespace
  h "$cluster" upgrade --install istiod istiod --repo "$CHARTS" --version "$ISTIO_CHART" --namespace istio-system \
    --values "$HERE/values/istiod.yaml" \
    --set "meshConfig.trustDomain=$(domain "$cluster")" \
    --set "meshConfig.caCertificates[0].trustDomains[0]=$(domain "$(other "$cluster")")" \
    --wait --timeout 5m
  h "$cluster" upgrade --install istio-eastwestgateway gateway --repo "$CHARTS" --version "$ISTIO_CHART" \
    --namespace istio-system --values "$HERE/values/eastwest-gateway.yaml" --wait --timeout 5m
done
