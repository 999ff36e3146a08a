//! The way to the peer's agent, the exchange with it, and what it says.

use super::View;
use crate::api::v1alpha1::conditions::{BundleEndpointReason, ReciprocalReason};
use crate::diagnose::check::{Finding, Side, Step};
use crate::diagnose::evidence::{AddressSeen, PeerWord};
use crate::model::condition::Truth;
use crate::model::diagnosis::{Outcome, ToldCheck};
use crate::model::session::{GoodbyeReason, LinkState, Refusal, SessionState, Trouble};
use crate::plan::verdict;

impl<'a> View<'a> {
    fn session(self) -> Option<&'a SessionState> {
        self.world.sessions.get(&self.peer.trust_domain)
    }

    fn is_connected(self) -> bool {
        self.evidence.leads && self.session().is_some_and(SessionState::is_connected)
    }

    fn addresses_field(self) -> String {
        format!("spec.agent.addresses of {}", self.object())
    }
}

const NO_ADDRESS: &str = "spec.agent.addresses is empty: the peer dials us";

/// What is wrong with every address; of some that are well nothing is said.
fn of_addresses(
    view: View<'_>,
    is_well: impl Fn(&AddressSeen) -> bool,
    well: &str,
    failed: impl FnOnce(&AddressSeen) -> Finding,
) -> Finding {
    let seen = &view.evidence.agent;
    let Some(first) = seen.first() else {
        let why = if view.peer.agent_addresses.is_empty() { NO_ADDRESS } else { "they were not tried" };
        return Finding::skipped(why);
    };
    if let Some(one) = seen.iter().find(|one| is_well(one)) {
        return Finding::passed(format!("{} {well}", one.address));
    }
    match failed(first) {
        Finding::Failed { message, remedy, .. } if view.is_connected() => {
            Finding::Skipped(format!("not needed, since the peer dialled us; but {message}: {remedy}"))
        }
        finding => finding,
    }
}

pub(super) fn dns(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    of_addresses(
        view,
        |one| one.dns.is_ok(),
        "resolves",
        |one| {
            let cause = one.dns.as_ref().err().map_or("", String::as_str);
            Finding::failed(
                Side::Ours,
                format!(
                    "the address {} of the agent of {trust_domain} does not resolve: {cause}",
                    one.address
                ),
                format!("correct {}, or our DNS", view.addresses_field()),
            )
        },
    )
}

pub(super) fn tcp(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    let is_well = |one: &AddressSeen| matches!(one.tcp, Some(Ok(_)));
    of_addresses(view, is_well, "takes connections", |one| match &one.tcp {
        Some(Err(failure)) if failure.is_refused => Finding::failed(
            Side::Theirs,
            format!(
                "nobody listens for us at {}, the agent of {trust_domain}: {}",
                one.address, failure.cause
            ),
            format!(
                "have the operator of {trust_domain} start the agent there, or correct {}",
                view.addresses_field()
            ),
        ),
        Some(Err(failure)) => Finding::failed(
            Side::Between,
            format!("the agent of {trust_domain} at {} cannot be reached: {}", one.address, failure.cause),
            format!("open the network between us and {}: firewalls, NetworkPolicies, routes", one.address),
        ),
        _ => Finding::skipped("it was not tried"),
    })
}

/// What says most of why there is no exchange: what was tried now, but for a goodbye, which stands until it is taken back.
fn link(view: View<'_>) -> Option<LinkState> {
    let known = view.session().map(|session| session.link.clone());
    if let Some(LinkState::Parted { reason, .. }) = &known
        && matches!(reason, GoodbyeReason::RelationshipEnded | GoodbyeReason::Suspended)
    {
        return known;
    }
    let tried = view.evidence.agent.iter().filter_map(|one| one.handshake.as_ref()?.as_ref().err());
    tried.max_by_key(|state| telling(state)).cloned().or(known)
}

fn telling(state: &LinkState) -> u8 {
    match state {
        LinkState::Refused { .. } => 3,
        LinkState::WrongPeerId { .. } => 2,
        LinkState::Unverified { .. } => 1,
        _ => 0,
    }
}

pub(super) fn mtls(view: View<'_>) -> Finding {
    if view.is_connected() {
        return Finding::passed("both agents accept each other's certificate and ID");
    }
    if !view.evidence.leads {
        return Finding::skipped("another replica talks to peers");
    }
    let trust_domain = &view.peer.trust_domain;
    match link(view) {
        Some(LinkState::Refused { by, message }) => refused(view, by, message),
        Some(LinkState::WrongPeerId { message }) => Finding::failed(
            Side::Ours,
            message,
            format!(
                "where its operator confirms that ID, put it into spec.agent.spiffeIDs of {}; else find out who \
                 answers there",
                view.object()
            ),
        ),
        Some(LinkState::Unverified { message }) => Finding::failed(
            Side::Ours,
            message,
            format!(
                "SPIRE must hold the present bundle of {trust_domain}: `spire-server federation refresh -id \
                 spiffe://{trust_domain}`; or correct {}",
                view.addresses_field()
            ),
        ),
        _ if view.evidence.agent.iter().any(|one| matches!(one.handshake, Some(Ok(_)))) => {
            Finding::passed(format!("the agent of {trust_domain} accepts our certificate and ID, and we its"))
        }
        _ => Finding::skipped("no handshake showed anything"),
    }
}

fn refused(view: View<'_>, by: Refusal, message: String) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    let own = view.world.identity.as_ref();
    let (us, our_id) = own.map_or_else(
        || ("us".to_owned(), "our SPIFFE ID".to_owned()),
        |identity| (identity.trust_domain.to_string(), identity.id.to_string()),
    );
    match by {
        Refusal::UnknownAuthority => Finding::failed(
            Side::Theirs,
            message,
            format!(
                "the operator of {trust_domain} must have SPIRE hold our present bundle: `spire-server federation \
                 refresh -id spiffe://{us}` there"
            ),
        ),
        Refusal::NotAccepted => Finding::failed(
            Side::Theirs,
            message,
            format!(
                "the operator of {trust_domain} needs a TrustDomainPeer for {us} with {our_id} in \
                 spec.agent.spiffeIDs, and its SPIRE a bundle of {us}: `entente diagnose {us}` there"
            ),
        ),
        Refusal::Expired => Finding::failed(
            Side::Between,
            message,
            "compare the clocks of both sides, and look at own-svid above".to_owned(),
        ),
    }
}

pub(super) fn session(view: View<'_>) -> Finding {
    if view.is_connected() {
        return Finding::passed(format!("the exchange with the agent of {} stands", view.peer.trust_domain));
    }
    if !view.evidence.leads {
        return Finding::skipped("another replica talks to peers");
    }
    let trust_domain = &view.peer.trust_domain;
    let ask_there = format!("ask the operator of {trust_domain}");
    match view.session().map(|session| &session.link) {
        Some(LinkState::Parted { reason: GoodbyeReason::Suspended, message }) => Finding::failed(
            Side::Theirs,
            format!("{trust_domain} suspended the exchange: {message}"),
            format!("{ask_there} to unset spec.suspend of its TrustDomainPeer for us"),
        ),
        Some(LinkState::Parted { reason: GoodbyeReason::RelationshipEnded, message }) => Finding::failed(
            Side::Theirs,
            format!("{trust_domain} ended the relationship: {message}"),
            format!("`entente peer end {trust_domain}`, or {ask_there} to begin it again"),
        ),
        Some(LinkState::Idle) | None if view.peer.agent_addresses.is_empty() => Finding::failed(
            Side::Theirs,
            format!("nothing was heard from the agent of {trust_domain}, and we have no address of it"),
            format!(
                "{ask_there} to run `entente diagnose` for us; it needs a TrustDomainPeer for us, and one side an \
                 address of the other: {}",
                view.addresses_field()
            ),
        ),
        Some(LinkState::Idle | LinkState::Connected) | None => Finding::failed(
            Side::Between,
            format!("there is no exchange with the agent of {trust_domain} yet"),
            "wait for the next attempt, which is made within half a minute; then see the agent's log",
        ),
        Some(
            LinkState::Unreachable { message }
            | LinkState::Parted { message, .. }
            | LinkState::Refused { message, .. }
            | LinkState::Unverified { message }
            | LinkState::WrongPeerId { message },
        ) => Finding::failed(
            Side::Theirs,
            message.clone(),
            format!("{ask_there} whether its agent runs, leads and listens, and for its log"),
        ),
    }
}

/// On which side it is, where the peer does not tell: what it sees of our bundle endpoint is ours.
fn side_of(told: &ToldCheck) -> Side {
    const OURS: [Step; 7] = [
        Step::EndpointDns,
        Step::EndpointTcp,
        Step::EndpointTls,
        Step::EndpointHttp,
        Step::BundleDocument,
        Step::BundleAuthorities,
        Step::BundleAlarms,
    ];
    let is_ours = OURS.iter().any(|step| step.as_str() == told.step);
    told.side.unwrap_or(if is_ours { Side::Ours } else { Side::Theirs })
}

/// What the peer has reported of itself, unasked.
fn troubled(view: View<'_>, trouble: &Trouble) -> Finding {
    use BundleEndpointReason as Reason;
    let trust_domain = &view.peer.trust_domain;
    let message = format!("{trust_domain} says: {}: {}", trouble.reason, trouble.message);
    let is_one = |reasons: &[Reason]| reasons.iter().any(|reason| reason.as_str() == trouble.reason);
    let theirs = [Reason::NoBundleToVerifyEndpoint, Reason::SpireDiffersFromEndpoint];
    if trouble.condition != Reason::CONDITION.as_str() || is_one(&theirs) {
        let remedy = format!("its operator must look at {} of its TrustDomainPeer for us", trouble.condition);
        return Finding::failed(Side::Theirs, message, remedy);
    }
    // What it says of our endpoint is about us, or about the way to it.
    let side = if is_one(&[Reason::EndpointUnreachable]) { Side::Between } else { Side::Ours };
    let remedy = format!(
        "look at our own bundle endpoint, and at the SPIRE server that serves it, as {trust_domain} reaches it; \
         {} of the TrustDomainPeer for us there says more",
        trouble.condition
    );
    Finding::failed(side, message, remedy)
}

/// The first thing that the peer says is broken.
pub(super) fn first_failed(told: &[ToldCheck]) -> Option<&ToldCheck> {
    told.iter().find(|check| check.outcome == Outcome::Failed)
}

pub(super) fn peer_view(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    match &view.evidence.word {
        PeerWord::Told(told) => match first_failed(told) {
            None => Finding::passed(format!("{trust_domain} says that all is well as it sees it")),
            Some(check) => Finding::failed(
                side_of(check),
                format!("{trust_domain} says: {}: {}", check.step, check.message),
                format!("{trust_domain} says: {}", check.remedy),
            ),
        },
        word => {
            let trouble = view.session().filter(|_| view.is_connected());
            let trouble = trouble.and_then(|session| session.remote.as_ref()?.troubles.first());
            match (trouble, word) {
                (Some(trouble), _) => troubled(view, trouble),
                (None, PeerWord::Silent(why)) => {
                    Finding::skipped(format!("{trust_domain} told nothing: {why}"))
                }
                (None, _) => Finding::skipped(format!("{trust_domain} was not asked")),
            }
        }
    }
}

pub(super) fn our_bundle(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    if !view.is_connected() {
        return Finding::skipped("only the peer's own report tells");
    }
    let Some(verdict) = verdict::reciprocal(view.world, view.peer) else {
        return Finding::skipped(format!("{trust_domain} has not reported yet"));
    };
    if verdict.truth == Truth::True {
        return Finding::passed(verdict.message);
    }
    let us = view.world.own_trust_domain().map(ToString::to_string).unwrap_or_default();
    let there = format!("`entente diagnose {us}` at {trust_domain} shows why");
    match verdict.reason {
        ReciprocalReason::PeerHasNoRelationship | ReciprocalReason::PeerRefusesUs => {
            Finding::failed(Side::Theirs, verdict.message, there)
        }
        ReciprocalReason::PeerHoldsStaleBundle => Finding::failed(
            Side::Theirs,
            verdict.message,
            format!("`spire-server federation refresh -id spiffe://{us}` at {trust_domain}; {there}"),
        ),
        _ => Finding::skipped(verdict.message),
    }
}

pub(super) fn clock_skew(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    match view.session().map(|session| session.skew) {
        Some(Some(skew)) => {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            Finding::failed(
                Side::Between,
                format!("the clock of {trust_domain} is {} s {way} ours", skew.unsigned_abs()),
                "set both machines' clocks by NTP, and see which is wrong",
            )
        }
        Some(None) if view.is_connected() => Finding::passed("the clocks agree"),
        _ => Finding::skipped("the peer's clock is not known"),
    }
}
