//! TrustDomainPeer to [`Peer`].

use std::sync::Arc;

use super::field::{self, Problem};
use super::{names, reject, selector, spec, time_span};
use crate::api::v1alpha1::conditions::PeerAcceptedReason;
use crate::api::v1alpha1::limits;
use crate::api::v1alpha1::trust_domain_peer::{
    BootstrapBundle, BundleEndpoint as GivenEndpoint, DisconnectPolicy, FederatesWith,
    Imports as GivenImports, KeyRef, LocalPattern as GivenLocalPattern, OnDisconnect as GivenOnDisconnect,
    ProfileType, ServicePattern as GivenPattern, TrustDomainPeerSpec,
};
use crate::bundle::document;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl};
use crate::model::name::dns_trust_domain;
use crate::model::peer::{
    Bootstrap, Ending, Imports, LocalPattern, OnDisconnect, RegistrationSelection, ServicePattern,
};
use crate::model::world::Rejected;
use crate::model::{Object, Peer, TrustDomain};

/// Reads a TrustDomainPeer. `own` is our own trust domain, once the Workload API told it: before that, what is said about it
/// is not checked, so the object must be read again then.
///
/// # Errors
/// [`Rejected`] with the field and the rule; with the trust domain too, where that much could be read.
pub fn parse(object: &Object, own: Option<&TrustDomain>) -> Result<Peer, Rejected> {
    read(object, own).map_err(|problem| reject(object, named(object), problem))
}

/// The trust domain that an object speaks of, whatever else is wrong with it.
fn named(object: &Object) -> Option<TrustDomain> {
    let name = object.spec()?.get("trustDomain")?.as_str()?;
    field::trust_domain("spec.trustDomain", name).ok()
}

fn read(object: &Object, own: Option<&TrustDomain>) -> Result<Peer, Problem> {
    names(object)?;
    let spec: TrustDomainPeerSpec = spec(object)?;
    let trust_domain = field::trust_domain("spec.trustDomain", &spec.trust_domain)?;
    if own == Some(&trust_domain) {
        let rule = "it is our own trust domain, and agents of one trust domain do not federate with each other: \
                    delete this object";
        return Err(Problem::of("spec.trustDomain", &spec.trust_domain, rule)
            .because(PeerAcceptedReason::OwnTrustDomain.as_str()));
    }
    let imports = imports(&spec.imports)?;
    if !imports.services.is_empty() {
        dns_trust_domain(&trust_domain).map_err(|cause| {
            Problem::new(
                "spec.trustDomain",
                format!("{cause}: empty spec.imports.services to federate without"),
            )
            .because(PeerAcceptedReason::TrustDomainNotDns.as_str())
        })?;
    }
    field::at_most("spec.agent.addresses", spec.agent.addresses.len(), limits::AGENTS)?;
    field::some_of("spec.agent.spiffeIDs", spec.agent.spiffe_ids.len(), limits::AGENTS)?;
    Ok(Peer {
        object: object.key.name.clone(),
        uid: object.meta.uid.clone(),
        generation: object.meta.generation,
        resource_version: object.meta.resource_version.clone(),
        created: object.meta.created,
        deletion: object.meta.deletion,
        finalizers: object.meta.finalizers.clone(),
        ending: Ending::of_annotations(&object.meta.annotations),
        endpoint: endpoint(&spec.bundle_endpoint)?,
        bootstrap: spec.bootstrap_bundle.as_ref().map(|given| bootstrap(given, &trust_domain)).transpose()?,
        agent_addresses: field::each("spec.agent.addresses", &spec.agent.addresses, field::host_port)?,
        agent_ids: field::set("spec.agent.spiffeIDs", &spec.agent.spiffe_ids, |path, text| {
            field::spiffe_id_in(path, text, &trust_domain, "the peer's trust domain")
        })?,
        federates_with: spec.federates_with.as_ref().map(|given| federates_with(given, own)).transpose()?,
        imports,
        on_disconnect: on_disconnect(&spec.on_disconnect)?,
        suspend: spec.suspend,
        withdraw: spec.withdraw,
        direct_endpoints: spec.direct_endpoints,
        trust_domain,
    })
}

fn endpoint(given: &GivenEndpoint) -> Result<BundleEndpoint, Problem> {
    let url = EndpointUrl::parse(&given.url)
        .map_err(|cause| Problem::of("spec.bundleEndpoint.url", &given.url, cause.to_string()))?;
    let path = "spec.bundleEndpoint.profile.endpointSPIFFEID";
    let profile = match (given.profile.kind, &given.profile.endpoint_spiffe_id) {
        (ProfileType::HttpsWeb, None) => EndpointProfile::HttpsWeb,
        (ProfileType::HttpsSpiffe, Some(id)) => {
            EndpointProfile::HttpsSpiffe { endpoint_id: field::spiffe_id(path, id)? }
        }
        (ProfileType::HttpsWeb, Some(id)) => {
            let rule = "https_web takes no SPIFFE ID (SPIFFE Federation 5.2.1): leave it out, or set the type https_spiffe";
            return Err(Problem::of(path, id, rule));
        }
        (ProfileType::HttpsSpiffe, None) => {
            let rule = "https_spiffe needs the SPIFFE ID of the endpoint (SPIFFE Federation 5.2.2): give it";
            return Err(Problem::new(path, rule));
        }
    };
    Ok(BundleEndpoint { url, profile })
}

fn bootstrap(given: &BootstrapBundle, trust_domain: &TrustDomain) -> Result<Bootstrap, Problem> {
    let path = "spec.bootstrapBundle";
    match (&given.inline, &given.config_map_key_ref, &given.secret_key_ref) {
        (Some(text), None, None) => {
            let parsed = document::parse_bootstrap(trust_domain, text).map_err(|cause| {
                let rule =
                    format!("{cause}: give the bundle of {trust_domain}, as SPIFFE bundle JSON or PEM");
                Problem::new(format!("{path}.inline"), rule)
            })?;
            Ok(Bootstrap::Inline(Arc::new(parsed.bundle)))
        }
        (None, Some(given), None) => {
            key_ref(&format!("{path}.configMapKeyRef"), given)?;
            Ok(Bootstrap::ConfigMapKey { name: given.name.clone(), key: given.key.clone() })
        }
        (None, None, Some(given)) => {
            key_ref(&format!("{path}.secretKeyRef"), given)?;
            Ok(Bootstrap::SecretKey { name: given.name.clone(), key: given.key.clone() })
        }
        _ => Err(Problem::new(path, "give exactly one of inline, configMapKeyRef and secretKeyRef")),
    }
}

fn key_ref(path: &str, given: &KeyRef) -> Result<(), Problem> {
    field::dns_subdomain(&format!("{path}.name"), &given.name)?;
    let key = given.key.as_str();
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=253).contains(&key.len()) && key.bytes().all(legal) && key != "." && !key.starts_with("..") {
        return Ok(());
    }
    let rule = "a key is 1 to 253 of letters, digits, '-', '_' and '.', and does not begin with '..'";
    Err(Problem::of(&format!("{path}.key"), key, rule))
}

fn federates_with(
    given: &FederatesWith,
    own: Option<&TrustDomain>,
) -> Result<RegistrationSelection, Problem> {
    let path = "spec.federatesWith.spiffeIDs";
    field::at_most(path, given.spiffe_ids.len(), limits::REGISTRATIONS)?;
    Ok(RegistrationSelection {
        selector: match &given.selector {
            Some(selector) => selector::parse("spec.federatesWith.selector", selector)?,
            None => Default::default(),
        },
        spiffe_ids: field::set(path, &given.spiffe_ids, |path, text| match own {
            Some(own) => field::spiffe_id_in(path, text, own, "our own trust domain"),
            None => field::spiffe_id(path, text),
        })?,
    })
}

fn imports(given: &GivenImports) -> Result<Imports, Problem> {
    let cidrs = "spec.imports.endpointCIDRs";
    field::at_most(cidrs, given.endpoint_cidrs.len(), limits::IMPORT_SCOPES)?;
    Ok(Imports {
        services: patterns("spec.imports.services", &given.services)?,
        as_local: local_patterns("spec.imports.asLocal", &given.as_local)?,
        export_to: export_to(&given.export_to)?,
        endpoint_cidrs: field::each(cidrs, &given.endpoint_cidrs, field::cidr)?,
        max_services: field::count("spec.imports.maxServices", given.max_services, limits::MAX_SERVICES)?,
        max_endpoints_per_service: field::count(
            "spec.imports.maxEndpointsPerService",
            given.max_endpoints_per_service,
            limits::MAX_ENDPOINTS_PER_SERVICE,
        )?,
    })
}

fn patterns(path: &str, given: &[GivenPattern]) -> Result<Vec<ServicePattern>, Problem> {
    field::at_most(path, given.len(), limits::IMPORT_PATTERNS)?;
    let one = |(i, given): (usize, &GivenPattern)| pattern(path, i, &given.namespace, &given.name);
    given.iter().enumerate().map(one).collect()
}

fn local_patterns(path: &str, given: &[GivenLocalPattern]) -> Result<Vec<LocalPattern>, Problem> {
    field::at_most(path, given.len(), limits::IMPORT_PATTERNS)?;
    let one = |(i, given): (usize, &GivenLocalPattern)| {
        let pattern = pattern(path, i, &given.namespace, &given.name)?;
        Ok(LocalPattern { pattern, local_first: given.local_first })
    };
    given.iter().enumerate().map(one).collect()
}

fn pattern(path: &str, i: usize, namespace: &str, name: &str) -> Result<ServicePattern, Problem> {
    let one = |path: String, text: &str| -> Result<Option<String>, Problem> {
        if text == "*" {
            return Ok(None);
        }
        field::dns_label(&path, text).map_err(|problem| Problem {
            message: format!("{}, or '*' for any", problem.message),
            ..problem
        })?;
        Ok(Some(text.to_owned()))
    };
    Ok(ServicePattern {
        namespace: one(format!("{path}[{i}].namespace"), namespace)?,
        name: one(format!("{path}[{i}].name"), name)?,
    })
}

/// By the rules of Istio: `*` or `~` alone, else `.` and namespaces.
fn export_to(given: &[String]) -> Result<Vec<String>, Problem> {
    let path = "spec.imports.exportTo";
    field::some_of(path, given.len(), limits::IMPORT_SCOPES)?;
    let one = |path: &str, text: &str| match text {
        "*" | "~" if given.len() > 1 => {
            Err(Problem::of(path, text, "it stands for all or for none, so it must stand alone"))
        }
        "*" | "~" | "." => Ok(text.to_owned()),
        namespace => field::dns_label(path, namespace).map(|()| namespace.to_owned()),
    };
    field::each(path, given, one)
}

fn on_disconnect(given: &GivenOnDisconnect) -> Result<OnDisconnect, Problem> {
    let path = "spec.onDisconnect.after";
    match (given.policy, &given.after) {
        (DisconnectPolicy::Keep, None) => Ok(OnDisconnect::Keep),
        (DisconnectPolicy::Withdraw, Some(after)) => {
            Ok(OnDisconnect::Withdraw { after: time_span::parse(path, after)? })
        }
        (DisconnectPolicy::Keep, Some(after)) => {
            Err(Problem::of(path, after, "it is for the policy Withdraw: leave it out, or set that policy"))
        }
        (DisconnectPolicy::Withdraw, None) => {
            Err(Problem::new(path, "the policy Withdraw needs it: give a span of time, as 30m"))
        }
    }
}

#[cfg(test)]
#[path = "trust_domain_peer_tests.rs"]
pub(super) mod tests;
