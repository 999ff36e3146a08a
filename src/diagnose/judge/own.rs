//! What stands on our own side before any peer is looked at.

use crate::diagnose::check::{Finding, Side};
use crate::diagnose::evidence::{Evidence, WorkloadSeen};
use crate::model::object::Kind;
use crate::model::replica::leader_lease;
use crate::model::{ObjectKey, Peer};
use crate::plan::ending;

pub(super) fn peer_object(evidence: &Evidence) -> Finding {
    let (world, trust_domain) = (&evidence.world, &evidence.trust_domain);
    let peer = world.peers.get(trust_domain);
    let of_peer = |key: &ObjectKey| peer.is_some_and(|peer| peer.object == key.name);
    let mut of_kind = world.rejected.iter().filter(|(key, _)| key.kind == Kind::TrustDomainPeer);
    let named = |key: &ObjectKey| peer.is_none() && key.name == evidence.asked;
    let rejected = of_kind
        .find(|(key, why)| of_peer(key) || why.trust_domain.as_ref() == Some(trust_domain) || named(key));
    if let Some((key, why)) = rejected {
        let last = if peer.is_some() { "; its last good version is in use" } else { "" };
        return Finding::failed(
            Side::Ours,
            format!("{key} is not accepted: {}{last}", why.message),
            format!("correct the field that is named in {key}"),
        );
    }
    match peer {
        Some(peer) => in_use(evidence, peer),
        None if !world.is_read() => Finding::failed(
            Side::Ours,
            "the agent has not read its objects yet",
            "see the agent's log: the API server must answer it and know the kinds that `entente crds` prints",
        ),
        None => Finding::failed(
            Side::Ours,
            format!("no TrustDomainPeer describes {trust_domain}"),
            format!("apply a TrustDomainPeer with spec.trustDomain: {trust_domain}"),
        ),
    }
}

fn in_use(evidence: &Evidence, peer: &Peer) -> Finding {
    let world = &evidence.world;
    let object = format!("TrustDomainPeer {}", peer.object);
    if let Some(stage) = ending::stage(world, peer) {
        return Finding::failed(
            Side::Ours,
            format!("{object} is to be deleted: the relationship ends, and waits {}", stage.waits_for(peer)),
            format!("nothing, where that is wanted; else apply {object} again once it is gone"),
        );
    }
    if peer.suspend {
        let message = format!("{object} has spec.suspend set: the exchange is stopped");
        return Finding::failed(Side::Ours, message, format!("unset spec.suspend of {object}"));
    }
    if peer.withdraw {
        let message =
            format!("{object} has spec.withdraw set: no registration federates with {}", peer.trust_domain);
        return Finding::failed(Side::Ours, message, format!("unset spec.withdraw of {object}"));
    }
    if let Some(Err(problem)) = world.bootstraps.get(&peer.trust_domain) {
        let remedy = format!("correct spec.bootstrapBundle of {object}, or what it names");
        return Finding::failed(Side::Ours, problem.clone(), remedy);
    }
    Finding::passed(format!("{object} is accepted and in use"))
}

pub(super) fn workload_api(evidence: &Evidence) -> Finding {
    let at = &evidence.workload_api;
    match &evidence.workload {
        WorkloadSeen::Unreachable(cause) => Finding::failed(
            Side::Ours,
            format!("the Workload API at {at} does not answer: {cause}"),
            "start the SPIRE agent beside this agent (`spire-agent healthcheck`), and check --workload-api",
        ),
        WorkloadSeen::Refused(_) | WorkloadSeen::Delivered(_) => {
            Finding::passed(format!("the Workload API at {at} answers"))
        }
    }
}

pub(super) fn svid(evidence: &Evidence) -> Finding {
    let register = "register the agent in SPIRE: a ClusterStaticEntry or ClusterSPIFFEID labelled \
                    entente.dev/agent: \"true\", or `spire-server entry create` with its selectors";
    match &evidence.workload {
        WorkloadSeen::Unreachable(_) => Finding::skipped("the Workload API does not answer"),
        WorkloadSeen::Refused(cause) => {
            Finding::failed(Side::Ours, format!("SPIRE gives the agent no SVID: {cause}"), register)
        }
        WorkloadSeen::Delivered(identity) if identity.not_after <= evidence.world.now => Finding::failed(
            Side::Ours,
            format!("the agent's SVID {} has expired at {}", identity.id, identity.not_after),
            "look at the SPIRE agent's log for why it is not renewed, and at this machine's clock",
        ),
        WorkloadSeen::Delivered(identity) => {
            Finding::passed(format!("the agent is {}, until {}", identity.id, identity.not_after))
        }
    }
}

pub(super) fn spire_server(evidence: &Evidence) -> Finding {
    let at = &evidence.spire_server;
    match &evidence.spire {
        Ok(state) => {
            let mut servers = state.iter().flat_map(|state| &state.servers);
            match servers.find_map(|(name, server)| Some((name, server.failure.as_ref()?))) {
                None => Finding::passed(format!("SPIRE's server API at {at} answers")),
                Some((name, cause)) => Finding::failed(
                    Side::Ours,
                    format!("the SPIRE server {name} cannot be read, of several: {cause}"),
                    format!(
                        "start it (`spire-server healthcheck`), or take it out of --spire-server: {name}"
                    ),
                ),
            }
        }
        Err(cause) => Finding::failed(
            Side::Ours,
            cause.clone(),
            format!(
                "start the SPIRE server (`spire-server healthcheck`), and check --spire-server, which is {at}"
            ),
        ),
    }
}

pub(super) fn leadership(evidence: &Evidence) -> Finding {
    if evidence.leads {
        return Finding::passed(format!("this replica ({}) leads", evidence.replica));
    }
    Finding::skipped(format!(
        "this replica ({}) does not lead, so it talks to no peer: ask the holder of the Lease {} in {}",
        evidence.replica,
        leader_lease(&evidence.world.settings.instance),
        evidence.world.settings.namespace
    ))
}
