//! The policy comes first: what lets callers in is not written, and nobody is told of it, before the store holds what
//! keeps the others out. What is out already stays as it stands where the policy is missed later.

use std::collections::BTreeSet;

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason};
use crate::model::object::{ANNOTATION_SOURCE, Kind};
use crate::model::service::TlsMode;
use crate::model::{ObjectKey, Service, World};
use crate::plan::{authorization, generated, istio};

use super::ExportProblem;

/// What may be done about an export, by its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Everything is written as it should be.
    Open,
    /// It is out, and its policy is not in place: it stays as it stands.
    Held,
    /// It is not out yet, and waits for its policy.
    Shut(ExportProblem),
    /// Nothing closes it and nothing can: what lets callers in goes.
    Ended(ExportProblem),
}

/// The gate of a service for which nothing else is in the way. `enforced` is the answer of [`in_place`].
pub(super) fn gate<'c>(
    world: &World,
    closed: impl FnOnce() -> &'c Closed,
    service: &Service,
    enforced: &Result<(), ExportProblem<ClientsEnforcedReason>>,
) -> Gate {
    let Err(problem) = enforced else { return Gate::Open };
    let key = key(service);
    let ends_in_sidecar = service.tls_mode == TlsMode::IstioMtls;
    if ends_in_sidecar && world.failures.contains_key(&key) && !closed().is(service) {
        return Gate::Ended(problem.clone().under(ExportedReason::PolicyNotInPlace));
    }
    match (is_out(world, service), is_ours(world, &key)) {
        // Its update failed: what stands keeps out whom it kept out, and whatever port is new to it.
        (true, true) => Gate::Open,
        (true, false) => Gate::Held,
        (false, _) => Gate::Shut(problem.clone().under(ExportedReason::PolicyNotInPlace)),
    }
}

/// What the policies that deny and stand were made of. Few ask, but where nothing can be written, all do.
#[derive(Debug, Default)]
pub(super) struct Closed(BTreeSet<String>);

impl Closed {
    pub(super) fn new(world: &World) -> Self {
        let policies = world.of_kind(Kind::AuthorizationPolicy);
        let denying = policies.filter(|(key, policy)| {
            is_ours(world, key) && policy.spec().is_some_and(|spec| spec["action"] == "DENY")
        });
        let sources = denying.filter_map(|(_, policy)| policy.meta.annotations.get(ANNOTATION_SOURCE));
        Self(sources.flat_map(|sources| sources.split(',')).map(str::to_owned).collect())
    }

    /// Whether such a policy stands, of this selector or of one that the service had.
    fn is(&self, service: &Service) -> bool {
        service.sources().iter().any(|source| self.0.contains(&generated::source_of(source)))
    }
}

/// Whether the policy of the service's selector stands in the store, and its last write went well.
pub(super) fn in_place(world: &World, service: &Service) -> Result<(), ExportProblem<ClientsEnforcedReason>> {
    let (key, reason) = (key(service), ClientsEnforcedReason::PolicyNotInPlace);
    if let Some(failure) = world.failures.get(&key) {
        let message = format!("{service}: {key} cannot be written: {failure}");
        return Err(ExportProblem::new(reason, message));
    }
    if is_ours(world, &key) {
        return Ok(());
    }
    let message = format!("{service}: {key}, which holds callers to spec.clients, is not there yet");
    if is_out(world, service) {
        let message = format!("{message} though the service is exported; it is being written");
        return Err(ExportProblem::new(reason, message));
    }
    Err(ExportProblem::unknown(reason, format!("{message}; the service is exported once it is")))
}

pub(super) fn key(service: &Service) -> ObjectKey {
    authorization::key(&service.object.namespace, &service.workload_labels)
}

/// Whether callers may come in already: the Gateway is what lets them.
pub(super) fn is_out(world: &World, service: &Service) -> bool {
    is_ours(world, &istio::export::gateway_key(service))
}

fn is_ours(world: &World, key: &ObjectKey) -> bool {
    let there = world.objects.get(key);
    there.is_some_and(|o| o.is_generated_by(&world.settings.instance) && o.meta.deletion.is_none())
}
