#!/usr/bin/env bash
# The agents: the image of this checkout, and this chart. And the command line, for the operator's side.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"

say "the image $IMAGE, and the command line"
docker build --tag "$IMAGE" "$REPOSITORY"
[[ -n ${ENTENTE:-} ]] || cargo build --manifest-path "$REPOSITORY/Cargo.toml" --locked --release

for cluster in "${CLUSTERS[@]}"; do
  say "the agent in $cluster"
  kind load docker-image "$IMAGE" --name "entente-$cluster"
  h "$cluster" upgrade --install entente "$REPOSITORY/charts/entente" --namespace "$NAMESPACE" --create-namespace \
    --values "$HERE/values/entente.yaml" --set "trustDomain=$(domain "$cluster")" --wait --timeout 5m
  eventually 60 "the agent of $cluster has its SVID" entente "$cluster" about
done
