//! What our SPIRE has made of the peer: relationship, bundle, delivery.

use super::View;
use crate::diagnose::check::{Finding, Side};
use crate::diagnose::evidence::WorkloadSeen;
use crate::model::Bundle;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile};
use crate::model::world::Relationships;
use crate::plan::{generated, relationship as planned};

pub(super) fn relationship(view: View<'_>) -> Finding {
    let spire = match view.spire() {
        Ok(spire) => spire,
        Err(finding) => return finding,
    };
    let trust_domain = &view.peer.trust_domain;
    if let Some(cause) = spire.unreadable.get(trust_domain.as_str()) {
        return Finding::failed(
            Side::Ours,
            format!("SPIRE's relationship with {trust_domain} cannot be read: {cause}"),
            format!(
                "`spire-server federation delete -id {trust_domain}`: it is made again as {} says",
                view.object()
            ),
        );
    }
    if let Some(finding) = not_ours(view) {
        return finding;
    }
    match spire.relationships.get(trust_domain) {
        None => missing(view),
        Some(found) if found.endpoint != view.peer.endpoint => Finding::failed(
            Side::Ours,
            format!(
                "SPIRE's relationship with {trust_domain} is with {}, where {} says {}",
                described(&found.endpoint),
                view.object(),
                described(&view.peer.endpoint)
            ),
            format!(
                "{}; what stands there shows `spire-server federation show -trustDomain {trust_domain}`",
                maker(view)
            ),
        ),
        Some(_) => Finding::passed(format!("SPIRE has the relationship with {trust_domain}")),
    }
}

fn described(endpoint: &BundleEndpoint) -> String {
    match &endpoint.profile {
        EndpointProfile::HttpsWeb => format!("{} (https_web)", endpoint.url),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            format!("{} (https_spiffe, {endpoint_id})", endpoint.url)
        }
    }
}

/// An object that is in the way, or cannot be written.
fn not_ours(view: View<'_>) -> Option<Finding> {
    if view.world.settings.relationships != Relationships::ControllerManager {
        return None;
    }
    let key = planned::key(&view.peer.trust_domain);
    if let Some(other) = planned::foreign(view.world, view.peer) {
        return Some(Finding::failed(
            Side::Ours,
            format!("{other} describes {} too and is not ours", view.peer.trust_domain),
            format!("delete {other}, so that {key} takes its place"),
        ));
    }
    if let Err(why) = generated::claim(view.world, &key) {
        return Some(Finding::failed(Side::Ours, why, format!("rename, delete or hand over {key}")));
    }
    let failure = view.world.failures.get(&key)?;
    let remedy = format!("let the agent write {key}: its RBAC, and the webhooks of the kind");
    Some(Finding::failed(Side::Ours, format!("{key} cannot be written: {failure}"), remedy))
}

fn missing(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    let class = &view.world.settings.spire_class_name;
    let class = if class.is_empty() { "none".to_owned() } else { format!("{class:?}") };
    let key = planned::key(trust_domain);
    let message = format!("SPIRE has no federation relationship with {trust_domain}");
    match view.world.settings.relationships {
        Relationships::ServerApi => Finding::failed(Side::Ours, message, maker(view)),
        Relationships::ControllerManager if view.world.objects.contains_key(&key) => Finding::failed(
            Side::Ours,
            format!("{message}, though {key} is there"),
            format!(
                "see that spire-controller-manager runs and obeys objects of className {class} (--spire-class-name), \
                 and look at its log"
            ),
        ),
        Relationships::ControllerManager => Finding::failed(
            Side::Ours,
            format!("{message}, and there is no {key} to make it of"),
            format!(
                "give a bundle to begin with in spec.bootstrapBundle of {}, or see the agent's log",
                view.object()
            ),
        ),
    }
}

/// Who makes the relationship what it should be.
fn maker(view: View<'_>) -> String {
    match view.world.settings.relationships {
        Relationships::ControllerManager => format!(
            "spire-controller-manager makes it so from {}: see that it runs, and its log",
            planned::key(&view.peer.trust_domain)
        ),
        Relationships::ServerApi => {
            "the agent makes it so within seconds: see its log, and find who changes it back".to_owned()
        }
    }
}

/// The usable bundle that the endpoint served just now.
fn served(view: View<'_>) -> Option<&Bundle> {
    let fetched = view.evidence.endpoint.fetch.as_ref()?.as_ref().ok()?;
    Some(&fetched.bundle).filter(|bundle| bundle.is_usable_at(view.world.now))
}

pub(super) fn bundle(view: View<'_>) -> Finding {
    let spire = match view.spire() {
        Ok(spire) => spire,
        Err(finding) => return finding,
    };
    let trust_domain = &view.peer.trust_domain;
    let refresh = format!(
        "`spire-server federation refresh -id spiffe://{trust_domain}`; if that fails, its log says why SPIRE cannot fetch"
    );
    let Some(held) = spire.bundles.get(trust_domain) else {
        return Finding::failed(Side::Ours, format!("SPIRE holds no bundle of {trust_domain}"), refresh);
    };
    if spire.too_large.contains(trust_domain) {
        return Finding::failed(
            Side::Theirs,
            format!(
                "SPIRE holds a bundle of {trust_domain} of more than 1 MiB, which SPIRE's agents may not receive: they then \
                 renew no SVID at all"
            ),
            format!("ask the operator of {trust_domain} what its bundle endpoint serves; then {refresh}"),
        );
    }
    if !held.is_usable_at(view.world.now) {
        let message =
            format!("the bundle of {trust_domain} that SPIRE holds has no authority that is valid now");
        return Finding::failed(Side::Ours, message, refresh);
    }
    match served(view) {
        Some(served) if served.digest() == held.digest() => {
            Finding::passed(format!("SPIRE holds the bundle that the endpoint serves, {}", held.digest()))
        }
        // what came a moment ago is followed within one poll
        Some(served) if !view.evidence.is_patient && share(served, held) => Finding::passed(format!(
            "SPIRE holds the bundle {}, and is about to hold a newer one",
            held.digest()
        )),
        Some(served) => Finding::failed(
            Side::Ours,
            format!(
                "SPIRE holds the bundle {} of {trust_domain}, where the endpoint serves {}",
                held.digest(),
                served.digest()
            ),
            refresh,
        ),
        None => Finding::passed(format!(
            "SPIRE holds the usable bundle {}; what the endpoint serves is not known",
            held.digest()
        )),
    }
}

fn share(one: &Bundle, other: &Bundle) -> bool {
    one.fingerprints().any(|f| other.fingerprints().any(|g| f == g))
}

pub(super) fn delivered(view: View<'_>) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    let WorkloadSeen::Delivered(identity) = &view.evidence.workload else {
        return Finding::skipped("the Workload API gives us nothing");
    };
    let restart = "see the SPIRE agent's log for why it does not follow its server; it takes some seconds";
    if let Some(cause) = identity.malformed.get(trust_domain.as_str()) {
        let message = format!("the bundle of {trust_domain} from the Workload API cannot be read: {cause}");
        return Finding::failed(Side::Ours, message, restart);
    }
    let Some(received) = identity.federated.get(trust_domain) else {
        let message = format!("the Workload API does not deliver the bundle of {trust_domain} to the agent");
        return Finding::failed(Side::Ours, message, restart);
    };
    let held = view.spire().ok().and_then(|spire| spire.bundles.get(trust_domain));
    match held {
        Some(held) if held.digest() == received.digest() => {
            Finding::passed(format!("the Workload API delivers the bundle {}", received.digest()))
        }
        Some(held) if !view.evidence.is_patient && share(held, received) => Finding::passed(format!(
            "the Workload API delivers the bundle {}, and is about to deliver a newer one",
            received.digest()
        )),
        Some(held) => Finding::failed(
            Side::Ours,
            format!(
                "the Workload API delivers the bundle {} of {trust_domain}, where SPIRE's server holds {}",
                received.digest(),
                held.digest()
            ),
            restart,
        ),
        None => Finding::skipped("there is nothing to compare it with"),
    }
}
