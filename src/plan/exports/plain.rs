//! Exports before which nothing of Istio's stands: of what is outside of the mesh, and of everything where there is none. An Envoy
//! that takes its configuration from the agent ends TLS for them, or with `Mtls` the application itself.

use crate::api::v1alpha1::conditions::{ClientsEnforcedReason, ExportedReason};
use crate::model::service::TlsMode;
use crate::model::{Service, TrustDomain, World};

use super::checks::with_server_ids;
use super::way::{self, Through, Way};
use super::{Enforcer, ExportProblem, ExportReport};

/// Whether nothing of Istio's is to serve it. Where only some of Istio's kinds are served, there is a mesh, and what it lacks is
/// said.
#[must_use]
pub(super) fn is_plain(world: &World, service: &Service) -> bool {
    service.is_outside() || !world.has_istio()
}

/// The gateways that are given, and no others: those of the mesh are found by Services that lead to Istio's.
#[must_use]
pub(super) fn way(service: &Service, warnings: &mut Vec<ExportProblem>) -> Way {
    let gateways: Vec<_> = way::given(service, warnings).into_iter().collect();
    let missing = gateways.is_empty().then(|| {
        let (reason, given) = if service.gateways.is_empty() {
            (ExportedReason::NoGateway, "spec.gateways names none")
        } else {
            (ExportedReason::GatewayTypeIgnored, "spec.gateways names only such of another type")
        };
        let message = format!(
            "{service}: importers cannot reach it: {given}, and {} there is no other way to find one; give spec.gateways the \
             port and the ip or hostname of {}, with type {}",
            if service.is_outside() { "outside of a mesh" } else { "without Istio" },
            match service.tls_mode {
                TlsMode::IstioMtls => "the Envoy in front of it",
                TlsMode::Mtls => "the Envoy in front of it, or of the application that ends TLS itself",
            },
            service.tls_mode.gateway().as_str()
        );
        ExportProblem::new(reason, message)
    });
    Way { gateways, through: Through::default(), missing, is_unknown: false }
}

/// Whether it can be exported, and who holds its callers to `clients`.
pub(super) fn judge(world: &World, own: &TrustDomain, service: &Service, report: &mut ExportReport) {
    let is_for_proxy = service.is_outside() || service.tls_mode == TlsMode::IstioMtls;
    report.enforcer = if is_for_proxy { Enforcer::Proxy } else { Enforcer::Gateway };
    report.exported = served(world, service, is_for_proxy).and_then(|()| with_server_ids(service, own));
    report.enforced =
        report.exported.clone().map_err(|problem| problem.under(ClientsEnforcedReason::NotExported));
}

/// Whether it can be exported, but for its importers, and nothing of Istio's is needed for it.
#[must_use]
pub(in crate::plan) fn stands(world: &World, own: &TrustDomain, service: &Service) -> bool {
    let is_for_proxy = service.is_outside() || service.tls_mode == TlsMode::IstioMtls;
    is_plain(world, service)
        && served(world, service, is_for_proxy).is_ok()
        && with_server_ids(service, own).is_ok()
}

/// What only an Envoy with the agent's configuration can end TLS for needs an agent that serves it.
fn served(world: &World, service: &Service, is_for_proxy: bool) -> Result<(), ExportProblem> {
    if world.settings.serves_xds || !is_for_proxy {
        return Ok(());
    }
    const SERVE: &str = "have the agent serve the Envoy in front of it (--xds-listen, --xds-socket)";
    if service.is_outside() {
        let message = format!(
            "{service}: what spec.endpoints names is called through an Envoy that takes its configuration from the agent, and this \
             one serves none; {SERVE}"
        );
        return Err(ExportProblem::new(ExportedReason::XdsNotServed, message));
    }
    let message = format!(
        "{service}: there is no Istio here to end TLS for tlsMode {}; install Istio, or {SERVE}, or set tlsMode Mtls where the \
         application ends TLS with its own SVID",
        service.tls_mode.as_str()
    );
    Err(ExportProblem::new(ExportedReason::IstioAbsent, message))
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
