#!/usr/bin/env bash
# Invite, join, call, refuse, rotate, end: what operators of both trust domains do, and what callers see.
set -euo pipefail
# shellcheck source=integration/kind/lib.sh
source "$(dirname "$0")/../lib.sh"

URL=http://helloworld.helloworld:5000/hello
FOREIGN=http://helloworld.helloworld.west.example:5000/hello

# What a pod of east is answered: `ask caller URL`.
ask() { k east exec -n callers "$1" -c curl -- curl -sSf --max-time 5 "$2"; }
# Which versions answer in so many calls, each once.
versions() { for ((i = 0; i < $3; i++)); do ask "$1" "$2"; done | grep -o 'version: v[12]' | sort -u | tr '\n' ' '; }
answers() { [[ $(versions "$1" "$2" "$3") == "$4" ]]; }
is_refused() { ! ask "$1" "$2"; }

# Where the other side reaches the agent and the bundle endpoint of a cluster.
reach() {
  echo "--advertise=$(address_of "$1" "$NAMESPACE" entente):7443"
  echo "--bundle-endpoint-url=https://$(address_of "$1" spire-server spire-server):8443"
}
condition() { k "$1" wait trustdomainpeer "$(domain "$(other "$1")")" --for "condition=$2" --timeout 180s; }

say "before: east's own version alone answers, and west's name leads nowhere"
eventually 60 "v1 answers in east" answers caller "$URL" 3 "version: v1 "
is_refused caller "$FOREIGN" || fail "west answers without a relationship"

say "west invites east; east looks, and joins"
mapfile -t west_reach < <(reach west)
mapfile -t east_reach < <(reach east)
entente west invite --trust-domain east.example "${west_reach[@]}" >"$WORK/token"
entente east join --dry-run "${east_reach[@]}" - <"$WORK/token"
entente east join "${east_reach[@]}" - <"$WORK/token"
rm -f "$WORK/token"
for cluster in "${CLUSTERS[@]}"; do condition "$cluster" Reciprocal; done

say "each says what it shares"
k east apply --server-side --field-manager platform -f "$HERE/manifests/east-admits.yaml"
k west apply --server-side --field-manager platform -f "$HERE/manifests/west-admits.yaml"
k west apply -f "$HERE/manifests/export.yaml"
k west wait federatedservice -n helloworld helloworld --for condition=Exported --timeout 120s
for cluster in "${CLUSTERS[@]}"; do
  condition "$cluster" Ready
  entente "$cluster" diagnose "$(domain "$(other "$cluster")")"
  entente "$cluster" status -o wide
done

say "the caller reaches west by its own name, and both at the local name"
eventually 60 "v2 answers at its federated name" answers caller "$FOREIGN" 5 "version: v2 "
eventually 60 "both answer at the local name" answers caller "$URL" 40 "version: v1 version: v2 "

# At the local name, which all callers share, it would be refused where a call comes to west.
say "the stranger is refused by west"
eventually 30 "the stranger is refused" is_refused stranger "$FOREIGN"

say "west rotates its authority, under load"
k east exec -n callers caller -c curl -- sh -c \
  "for i in \$(seq 1 120); do curl -sS --max-time 5 -o /dev/null -w '%{http_code}\n' $FOREIGN || echo failed; sleep 1; done" \
  >"$WORK/load" &
load=$!
trap 'kill "$load" 2>/dev/null || true' EXIT
entente west rotate x509 --timeout 10m
wait "$load"
[[ $(sort -u "$WORK/load") == 200 ]] || fail "calls failed during the rotation: $(sort "$WORK/load" | uniq -c | tr '\n' ';')"

say "east ends the relationship"
entente east peer end west.example --yes
eventually 120 "west is reached no more" is_refused caller "$FOREIGN"
eventually 60 "east's own version alone answers" answers caller "$URL" 5 "version: v1 "
k east get clusterfederatedtrustdomains -o name | grep -q . && fail "a ClusterFederatedTrustDomain is left in east"
say "west is told by whom it ended"
k west wait trustdomainpeer east.example --for 'jsonpath={.status.conditions[?(@.type=="Reciprocal")].reason}=PeerEnded' --timeout 60s

say "all of it went well"
