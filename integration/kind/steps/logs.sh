#!/usr/bin/env bash
# What every pod said, and every object of ours and of Istio's, into .work/logs/<cluster>.
set -uo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"

KINDS=(trustdomainpeers federatedservices serviceexportrules importedservices clusterfederatedtrustdomains clusterspiffeids
  serviceentries virtualservices destinationrules gateways.networking.istio.io authorizationpolicies peerauthentications
  events pods services)
for cluster in "${CLUSTERS[@]}"; do
  folder="$WORK/logs/$cluster"
  mkdir -p "$folder"
  for kind in "${KINDS[@]}"; do
    k "$cluster" get "$kind" -A -o yaml >"$folder/$kind.yaml" 2>&1
  done
  entente "$cluster" status -o wide >"$folder/status.txt" 2>&1
  for namespace in entente-system spire-server istio-system helloworld callers; do
    for pod in $(k "$cluster" get pods -n "$namespace" -o name 2>/dev/null); do
      k "$cluster" logs -n "$namespace" "$pod" --all-containers --prefix --tail 5000 \
        >"$folder/$namespace-${pod#pod/}.log" 2>&1
    done
  done
done
say "logs are in $WORK/logs"
