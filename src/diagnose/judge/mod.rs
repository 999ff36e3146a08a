//! From what was seen to checks, in the order of the path. Pure: no I/O, no clock.

mod agent;
mod bundle;
mod gateways;
mod mesh;
mod own;
mod registration;
mod spire;
#[cfg(test)]
mod tests;

use crate::model::diagnosis::Outcome;
use crate::model::trust::SpireState;
use crate::model::{Peer, World};

use super::check::{Broken, Check, Checks, Diagnosis, Finding, Side, Step, Verdict};
use super::evidence::{Evidence, PeerWord};

/// Every check, in order.
#[must_use]
pub fn checks(evidence: &Evidence) -> Vec<Check> {
    let mut checks = Checks::default();
    for step in Step::ALL {
        checks.look(*step, || look(evidence, *step));
    }
    checks.into_list()
}

fn look(evidence: &Evidence, step: Step) -> Finding {
    match step {
        Step::PeerObject => return own::peer_object(evidence),
        Step::WorkloadApi => return own::workload_api(evidence),
        Step::OwnSvid => return own::svid(evidence),
        Step::SpireServer => return own::spire_server(evidence),
        Step::Leadership => return own::leadership(evidence),
        _ => {}
    }
    let Some(peer) = evidence.world.peers.get(&evidence.trust_domain) else {
        return Finding::skipped("there is nothing to go by");
    };
    let view = View { evidence, world: &evidence.world, peer };
    match step {
        Step::EndpointDns => bundle::dns(view),
        Step::EndpointTcp => bundle::tcp(view),
        Step::EndpointTls => bundle::tls(view),
        Step::EndpointHttp => bundle::http(view),
        Step::BundleDocument => bundle::document(view),
        Step::BundleAuthorities => bundle::authorities(view),
        Step::BundleAlarms => bundle::alarms(view),
        Step::Relationship => spire::relationship(view),
        Step::BundleInSpire => spire::bundle(view),
        Step::AgentRegistration => registration::agent(view),
        Step::BundleInWorkloadApi => spire::delivered(view),
        Step::WorkloadRegistrations => registration::workloads(view),
        Step::Mesh => mesh::mesh(view),
        Step::Gateways => gateways::gateways(view),
        Step::AgentDns => agent::dns(view),
        Step::AgentTcp => agent::tcp(view),
        Step::AgentMtls => agent::mtls(view),
        Step::Session => agent::session(view),
        Step::PeerView => agent::peer_view(view),
        Step::OurBundleAtPeer => agent::our_bundle(view),
        Step::ClockSkew => agent::clock_skew(view),
        Step::PeerObject | Step::WorkloadApi | Step::OwnSvid | Step::SpireServer | Step::Leadership => {
            Finding::skipped("")
        }
    }
}

/// What a step about a peer that there is looks at.
#[derive(Clone, Copy)]
struct View<'a> {
    evidence: &'a Evidence,
    world: &'a World,
    peer: &'a Peer,
}

impl<'a> View<'a> {
    /// What SPIRE holds; where its API does not answer, nothing is judged by what it once held.
    fn spire(self) -> Result<&'a SpireState, Finding> {
        match &self.evidence.spire {
            Ok(Some(state)) => Ok(state),
            Ok(None) => Err(Finding::skipped("our own trust domain is not known yet")),
            Err(_) => Err(Finding::skipped("SPIRE's server API does not answer")),
        }
    }

    /// The object that an operator edits.
    fn object(self) -> String {
        format!("TrustDomainPeer {}", self.peer.object)
    }
}

/// What is concluded: the first step that failed is the broken link, on whatever side.
#[must_use]
pub fn conclude(evidence: &Evidence, checks: Vec<Check>) -> Diagnosis {
    let told = match &evidence.word {
        PeerWord::Told(told) => Some(told.clone()),
        PeerWord::NotAsked | PeerWord::Silent(_) => None,
    };
    let failed = checks.iter().find(|check| check.outcome == Outcome::Failed);
    let broken = failed.map(|check| Broken {
        side: check.side.unwrap_or(Side::Between),
        step: match (check.step, told.as_deref().and_then(agent::first_failed)) {
            (Step::PeerView, Some(told)) => told.step.clone(),
            (step, _) => step.as_str().to_owned(),
        },
        told_by_peer: check.step == Step::PeerView,
        message: check.message.clone(),
        remedy: check.remedy.clone().unwrap_or_default(),
    });
    let verdict = match (&broken, evidence.leads) {
        (Some(_), _) => Verdict::Broken,
        (None, true) => Verdict::Healthy,
        (None, false) => Verdict::Incomplete,
    };
    Diagnosis {
        own_trust_domain: evidence.world.own_trust_domain().map(ToString::to_string),
        peer_trust_domain: evidence.trust_domain.to_string(),
        object: evidence.world.peers.get(&evidence.trust_domain).map(|peer| peer.object.clone()),
        verdict,
        broken,
        checks,
        told,
    }
}
