#!/usr/bin/env bash
# Two kind clusters, SPIRE and Istio in each, this chart, and one service lent from one to the other.
#
#   run.sh            up, scenario, and down if it went well; logs are collected if it did not
#   run.sh up         the clusters, SPIRE, Istio and the agents; leaves them standing
#   run.sh scenario   invite, join, call, refuse, rotate, end
#   run.sh logs       what every pod said, and every object of ours, into .work/logs
#   run.sh down       deletes both clusters
# -E: what is done on a failure is done for one in a function, too.
set -Eeuo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=integration/kind/lib.sh
source "$HERE/lib.sh"

up() {
  "$HERE/steps/1-clusters.sh"
  "$HERE/steps/2-spire.sh"
  "$HERE/steps/3-istio.sh"
  "$HERE/steps/4-entente.sh"
  "$HERE/steps/5-workloads.sh"
}
scenario() { "$HERE/steps/6-scenario.sh"; }
logs() { "$HERE/steps/logs.sh"; }
down() { for cluster in "${CLUSTERS[@]}"; do kind delete cluster --name "entente-$cluster"; done; }

need
case ${1:-all} in
  up | scenario | logs | down) "$1" ;;
  all)
    trap 'trap - ERR; logs; echo "kind: it failed; the clusters are left: run.sh down deletes them" >&2' ERR
    up
    scenario
    down
    ;;
  *) fail "expected up, scenario, logs or down, not $1" ;;
esac
