//! Which registrations federate with the peer: the agent's own, and the workloads'.

use super::View;
use crate::diagnose::check::{Finding, Side};
use crate::model::ObjectKey;
use crate::model::object::LABEL_AGENT;
use crate::model::world::Relationships;
use crate::plan::{poison, registrations as planned};

/// Most names in one message.
const NAMED: usize = 5;

pub(super) fn agent(view: View<'_>) -> Finding {
    let spire = match view.spire() {
        Ok(spire) => spire,
        Err(finding) => return finding,
    };
    let Some(identity) = &view.world.identity else {
        return Finding::skipped("the agent's SPIFFE ID is not known");
    };
    let trust_domain = &view.peer.trust_domain;
    let mut own = spire.entries.values().filter(|entry| entry.spiffe_id == identity.id).peekable();
    if own.peek().is_none() {
        return Finding::failed(
            Side::Ours,
            format!("SPIRE has no registration entry of the agent, {}", identity.id),
            "register the agent again: its ClusterStaticEntry or ClusterSPIFFEID must be there, and \
             spire-controller-manager run",
        );
    }
    if own.any(|entry| entry.federates_with.contains(trust_domain)) {
        return Finding::passed(format!("{} federates with {trust_domain}", identity.id));
    }
    let message =
        format!("the agent's own registration {} does not federate with {trust_domain}", identity.id);
    if let Some(suspended) = suspended(view) {
        return suspended;
    }
    let objects: Vec<&ObjectKey> =
        view.world.registrations.values().filter(|one| one.is_agent).map(|one| &one.key).collect();
    match (view.world.settings.relationships, objects.first()) {
        (Relationships::ServerApi, _) => Finding::failed(
            Side::Ours,
            message,
            "the agent adds it within seconds: see its log, and find who takes it away",
        ),
        (Relationships::ControllerManager, None) => Finding::failed(
            Side::Ours,
            message,
            format!("label the object that registers the agent {LABEL_AGENT}: \"true\""),
        ),
        (Relationships::ControllerManager, Some(object)) => of_object(view, object, &message),
    }
}

/// Why the agent's own object does not have it.
fn of_object(view: View<'_>, object: &ObjectKey, message: &str) -> Finding {
    let trust_domain = &view.peer.trust_domain;
    if planned::reverted(view.world, view.peer).contains(&object.to_string()) {
        return Finding::failed(
            Side::Ours,
            format!("{message}: someone took it out of {object}, where the agent had put it"),
            format!("put {trust_domain} into spec.federatesWith of {object} at its source (Git, Helm)"),
        );
    }
    if let Some(failure) = view.world.failures.get(object) {
        let remedy = format!("let the agent patch {object}: its RBAC, and the webhooks of the kind");
        return Finding::failed(
            Side::Ours,
            format!("{message}: {object} cannot be written: {failure}"),
            remedy,
        );
    }
    let named = view.world.registrations.get(object).is_some_and(|one| one.names(trust_domain));
    if named {
        return Finding::failed(
            Side::Ours,
            format!("{message}, though {object} does"),
            "see that spire-controller-manager runs, and its log: it makes SPIRE's entries of these objects",
        );
    }
    let remedy = format!("the agent adds it to spec.federatesWith of {object} within seconds: see its log");
    Finding::failed(Side::Ours, message, remedy)
}

/// Set while the user, or a bundle that would harm, keeps the peer out of `federatesWith`.
fn suspended(view: View<'_>) -> Option<Finding> {
    if view.peer.withdraw {
        let message = format!("spec.withdraw of {} is set: nothing federates with it", view.object());
        return Some(Finding::failed(Side::Ours, message, "unset spec.withdraw to go on".to_owned()));
    }
    let remembered = view.world.memory.get(&view.peer.trust_domain)?;
    let poisoned = remembered.poisoned.as_ref()?;
    Some(Finding::failed(
        Side::Theirs,
        format!(
            "federatesWith {} is suspended since {}: {}",
            view.peer.trust_domain, poisoned.since, poisoned.cause
        ),
        format!(
            "it comes back by itself after {} good fetches in a row",
            poison::good_fetches_needed(view.world, remembered)
        ),
    ))
}

pub(super) fn workloads(view: View<'_>) -> Finding {
    if let Err(finding) = view.spire() {
        return finding;
    }
    let trust_domain = &view.peer.trust_domain;
    let Some(selection) = &view.peer.federates_with else {
        return Finding::skipped("spec.federatesWith is absent: no workload is to federate");
    };
    let found = planned::selected(view.world, view.peer);
    let field = format!("spec.federatesWith of {}", view.object());
    if !found.lacking.is_empty() {
        if let Some(suspended) = suspended(view) {
            return suspended;
        }
        let reverted = planned::reverted(view.world, view.peer);
        let names = some(&found.lacking);
        return if reverted.is_empty() {
            Finding::failed(
                Side::Ours,
                format!("selected registrations do not federate with {trust_domain}: {names}"),
                "the agent adds it within seconds: see its log for what keeps it from it",
            )
        } else {
            Finding::failed(
                Side::Ours,
                format!("someone took {trust_domain} out of federatesWith of {}", some(&reverted)),
                format!("put {trust_domain} there at its source (Git, Helm), or do not select it: {field}"),
            )
        };
    }
    let is_narrow = !selection.selector.is_empty() || !selection.spiffe_ids.is_empty();
    if found.federating.is_empty() && is_narrow && found.others > 0 {
        return Finding::failed(
            Side::Ours,
            format!("{field} selects none of the {} registrations of workloads", found.others),
            format!("correct the selector in {field}, or label the registrations that are meant"),
        );
    }
    let unselected = planned::unselected(view.world, view.peer);
    let also = if unselected.is_empty() {
        String::new()
    } else {
        format!("; {} name it without being selected, and would hold back its end", some(&unselected))
    };
    Finding::passed(format!(
        "{} selected registrations federate with {trust_domain}{also}",
        found.federating.len()
    ))
}

fn some(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
