//! How importers come to a service: through which gateways, and where there are none, to its pods.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::api::v1alpha1::conditions::ExportedReason;
use crate::model::object::Kind;
use crate::model::service::{Address, ExportedBy, Gateway, GatewayAddress, TlsMode};
use crate::model::{ObjectKey, Service, World};
use crate::plan::gateways::{Gateways, Looked};

use super::{ExportProblem, policy};

/// The gateway that carries an export, as Gateway objects mean it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Through {
    /// Where its pods are: what only they need is shown to that namespace alone.
    pub namespace: String,
    /// The labels of its pods; never empty, but where there is no Gateway object.
    pub selector: BTreeMap<String, String>,
    /// The ports, as its Service numbers them, that importers come by.
    pub listening: BTreeSet<u16>,
}

/// The way to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// What importers are told, sorted; empty: there is no gateway.
    pub gateways: Vec<GatewayAddress>,
    pub through: Through,
    /// Why there is no gateway now. Where `gateways` has some nevertheless, they are what importers were told before, and stay.
    pub missing: Option<ExportProblem>,
    /// Nothing is known of the gateway: what was generated for it stays as it stands.
    pub is_unknown: bool,
}

/// The way to a service: `spec.gateways`, where some of them carry its mode, and they alone; else the gateway that was found;
/// else, so that a gateway that is being replaced takes no service away, what importers were told last.
#[must_use]
pub(super) fn way(
    world: &World,
    gateways: &Gateways,
    service: &Service,
    warnings: &mut Vec<ExportProblem>,
) -> Way {
    let looked = gateways.of(service.tls_mode);
    let given = given(service, warnings);
    if !given.is_empty() {
        let inside = |at: &GatewayAddress| looked.found.as_ref().map_or(at.port, |c| c.listening(at.port));
        let through = through(looked, service, given.iter().map(inside).collect());
        return Way { gateways: given.into_iter().collect(), through, missing: None, is_unknown: false };
    }
    let listening = looked.found.iter().map(|carrier| carrier.port).collect();
    let through = through(looked, service, listening);
    match &looked.found {
        Ok(carrier) if !carrier.addresses.is_empty() => {
            let gateways = carrier.addresses.iter().cloned().collect();
            Way { gateways, through, missing: None, is_unknown: false }
        }
        found => {
            let gateways = told(world, service);
            let missing = Some(missing(service, found.as_ref().err(), looked, !gateways.is_empty()));
            Way { gateways, through, missing, is_unknown: found.is_err() }
        }
    }
}

/// Whether importers are told of a gateway as it is now, and not of what they were told last.
pub(super) fn finds_gateway(gateways: &Gateways, service: &Service) -> bool {
    let found = gateways.of(service.tls_mode).found.as_ref();
    service.gateways.iter().any(|gateway| carries(service, gateway))
        || found.is_ok_and(|carrier| !carrier.addresses.is_empty())
}

fn carries(service: &Service, gateway: &Gateway) -> bool {
    gateway.gateway_type == service.tls_mode.gateway()
}

/// Those of `spec.gateways` that carry the mode; the others are passed over.
pub(super) fn given(service: &Service, warnings: &mut Vec<ExportProblem>) -> BTreeSet<GatewayAddress> {
    let carrying = service.tls_mode.gateway();
    let (right, wrong): (Vec<_>, Vec<_>) =
        service.gateways.iter().partition(|gateway| carries(service, gateway));
    warnings.extend(wrong.into_iter().map(|gateway| {
        ExportProblem::new(
            ExportedReason::GatewayTypeIgnored,
            format!(
                "{service}: the {} at {}:{} is ignored, since tlsMode {} goes through an {}",
                gateway.gateway_type.as_str(),
                gateway.at.address,
                gateway.at.port,
                service.tls_mode.as_str(),
                carrying.as_str()
            ),
        )
    }));
    right.into_iter().map(|gateway| gateway.at.clone()).collect()
}

fn through(looked: &Looked, service: &Service, listening: BTreeSet<u16>) -> Through {
    let label = service.tls_mode.gateway().istio_label().to_owned();
    let usual = || BTreeMap::from([("istio".to_owned(), label)]);
    Through {
        namespace: looked.namespace.clone(),
        selector: looked.found.as_ref().map_or_else(|_| usual(), |carrier| carrier.selector.clone()),
        listening,
    }
}

fn missing(service: &Service, why: Option<&String>, looked: &Looked, stays: bool) -> ExportProblem {
    let kind = service.tls_mode.gateway().as_str();
    let mode = service.tls_mode.as_str();
    let stays = if stays { "; what importers were told stays until there is a gateway" } else { "" };
    if let (None, Ok(carrier)) = (why, &looked.found) {
        let message = format!(
            "{service}: Service {}, by which importers come for tlsMode {mode}, has no address that a peer can use yet (an IP address, or a host name of two labels at least): see to its \
             load balancer, set externalIPs, have the agent take node ports, or give spec.gateways an {kind}{stays}",
            carrier.service
        );
        return ExportProblem::unknown(ExportedReason::GatewayPending, message);
    }
    let (reason, given) = if service.gateways.is_empty() {
        (ExportedReason::NoGateway, "spec.gateways names no gateway")
    } else {
        (ExportedReason::GatewayTypeIgnored, "spec.gateways names only gateways of another type")
    };
    let why = why.map_or("", String::as_str);
    let flag = match service.tls_mode {
        TlsMode::IstioMtls => "--eastwest-gateway",
        TlsMode::Mtls => "--ingress-gateway",
    };
    let message = format!(
        "{service}: importers cannot reach it: {given}, and {why}. tlsMode {mode} goes through an {kind}: \
         install it, name its Service to the agent ({flag}), or add one with its port and its ip or hostname to \
         spec.gateways{stays}"
    );
    ExportProblem::new(reason, message)
}

/// What importers were told last, as the status of the FederatedService has it, or that of the rule, once the service is out;
/// else where the gateway was last found.
fn told(world: &World, service: &Service) -> Vec<GatewayAddress> {
    let kind = service.tls_mode.gateway().as_str();
    let is_out = || policy::is_out(world, service);
    let status = match &service.by {
        ExportedBy::FederatedService => world.statuses.get(&service.key()),
        ExportedBy::Rule { name, .. } => {
            let rule = ObjectKey::cluster(Kind::ServiceExportRule, name);
            world.statuses.get(&rule).filter(|_| is_out())
        }
    };
    let entries = status.and_then(|status| status.get("gatewayEntries")).and_then(Value::as_array);
    let entry = |entry: &Value| {
        (entry["type"].as_str() == Some(kind)).then_some(())?;
        let port =
            entry["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)?;
        Some(GatewayAddress { address: Address::parse(entry["address"].as_str()?)?, port })
    };
    let all: BTreeSet<GatewayAddress> = entries.into_iter().flatten().filter_map(entry).collect();
    if all.is_empty() && is_out() {
        let seen = world.gateways_seen.get(&service.tls_mode.gateway());
        return seen.into_iter().flatten().cloned().collect();
    }
    all.into_iter().collect()
}

#[cfg(test)]
#[path = "way_tests.rs"]
mod tests;
