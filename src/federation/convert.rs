//! Frames to model and back. What comes from a peer is bounded here in number and length, and refused where it is not
//! well formed; whether it is admitted is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::name::is_dns_label;
use crate::model::service::{
    Address, AppProtocol, ClientPattern, DirectEndpoint, GatewayAddress, Outcome, RemotePort, RemoteService,
    TlsMode,
};
use crate::model::session::{GoodbyeReason, HeldBundle, Trouble, TrustReport};
use crate::model::{AuthorityId, BundleDigest, ServiceName, SpiffeId};
use crate::proto::federation::v1 as proto;

/// Most server IDs of one service.
pub const MAX_SERVER_IDS: usize = 64;
/// Most client patterns of one service.
pub const MAX_CLIENTS: usize = 1_000;
/// Most ports of one service.
pub const MAX_PORTS: usize = 64;
/// Most gateway addresses of one service.
pub const MAX_GATEWAYS: usize = 64;
/// Most direct endpoints of one service.
pub const MAX_ENDPOINTS: usize = 64;
/// Longest SPIFFE ID (SPIFFE-ID, section 2.3), in bytes.
pub const MAX_SPIFFE_ID: usize = 2_048;
/// Most authorities of a bundle that a peer may name.
pub(super) const MAX_AUTHORITIES: usize = 1_000;
/// Longest message of a peer that is kept, in characters.
const MAX_MESSAGE: usize = 1_024;
/// Longest reason of a refused service, in bytes.
const MAX_REASON: usize = 64;

/// Most troubles that a peer may tell of.
pub const MAX_TROUBLES: usize = 16;

/// What of a frame is not well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("the name is not made of two DNS labels: {0}")]
    Name(String),
    #[error("{what}: {count}, where {min} to {max} are allowed")]
    Count { what: &'static str, count: usize, min: usize, max: usize },
    #[error("{what} {text:?} is not valid")]
    Invalid { what: &'static str, text: String },
    #[error("{what} {text:?} is there twice")]
    Twice { what: &'static str, text: String },
    #[error("it has no TLS mode that is known here")]
    TlsMode,
    #[error("a digest of a bundle is 32 bytes")]
    Digest,
}

type Result<T> = std::result::Result<T, ConvertError>;

/// At most `limit` characters, control characters replaced: for logs, statuses and messages.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A message as a peer sent it, cut and without control characters.
#[must_use]
pub fn message(text: &str) -> String {
    printable(text, MAX_MESSAGE)
}

fn count(what: &'static str, count: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&count) { Ok(()) } else { Err(ConvertError::Count { what, count, min, max }) }
}

fn invalid(what: &'static str, text: &str) -> ConvertError {
    ConvertError::Invalid { what, text: printable(text, 100) }
}

fn port_number(number: u32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(invalid("port number", &number.to_string())),
    }
}

/// # Errors
/// [`ConvertError`] where a digest or an authority ID is none, or there are too many.
pub fn report_from_proto(report: proto::TrustReport) -> Result<TrustReport> {
    let held = |bundle: Option<proto::HeldBundle>| bundle.map(held_from_proto).transpose();
    Ok(TrustReport {
        held: held(report.held)?,
        delivered: held(report.delivered)?,
        relationship: report.relationship,
        own: held(report.own)?,
        receipt: held(report.receipt)?,
        troubles: report.troubles.iter().take(MAX_TROUBLES).map(trouble_from_proto).collect(),
    })
}

fn trouble_from_proto(trouble: &proto::Trouble) -> Trouble {
    Trouble {
        condition: printable(&trouble.condition, MAX_REASON),
        reason: printable(&trouble.reason, MAX_REASON),
        message: message(&trouble.message),
    }
}

fn held_from_proto(held: proto::HeldBundle) -> Result<HeldBundle> {
    count("authorities", held.authority_ids.len(), 0, MAX_AUTHORITIES)?;
    let id = |text: &String| AuthorityId::parse(text).map_err(|_| invalid("authority ID", text));
    Ok(HeldBundle {
        digest: BundleDigest::from_bytes(&held.digest).ok_or(ConvertError::Digest)?,
        authority_ids: held.authority_ids.iter().map(id).collect::<Result<_>>()?,
    })
}

#[must_use]
pub fn report_to_proto(report: &TrustReport) -> proto::TrustReport {
    let held = |bundle: &HeldBundle| proto::HeldBundle {
        digest: bundle.digest.as_bytes().to_vec(),
        authority_ids: bundle.authority_ids.iter().map(ToString::to_string).collect(),
    };
    proto::TrustReport {
        held: report.held.as_ref().map(held),
        delivered: report.delivered.as_ref().map(held),
        relationship: report.relationship,
        own: report.own.as_ref().map(held),
        receipt: report.receipt.as_ref().map(held),
        troubles: report.troubles.iter().take(MAX_TROUBLES).map(trouble_to_proto).collect(),
    }
}

fn trouble_to_proto(trouble: &Trouble) -> proto::Trouble {
    proto::Trouble {
        condition: trouble.condition.clone(),
        reason: trouble.reason.clone(),
        message: message(&trouble.message),
    }
}

/// # Errors
/// [`ConvertError`] names the first rule that the service breaks.
pub fn service_from_proto(service: &proto::Service) -> Result<RemoteService> {
    count("server SPIFFE IDs", service.server_spiffe_ids.len(), 1, MAX_SERVER_IDS)?;
    count("client SPIFFE IDs", service.client_spiffe_ids.len(), 0, MAX_CLIENTS)?;
    count("ports", service.ports.len(), 1, MAX_PORTS)?;
    count("gateways", service.gateways.len(), 0, MAX_GATEWAYS)?;
    count("endpoints", service.endpoints.len(), 0, MAX_ENDPOINTS)?;
    let name = ServiceName::new(&service.namespace, &service.name)
        .map_err(|e| ConvertError::Name(printable(&e.to_string(), 200)))?;
    let ports = ports_from_proto(&service.ports)?;
    let endpoint = |endpoint| endpoint_from_proto(endpoint, &ports);
    Ok(RemoteService {
        name,
        endpoints: service.endpoints.iter().map(endpoint).collect::<Result<_>>()?,
        ports,
        tls_mode: match proto::TlsMode::try_from(service.tls_mode) {
            Ok(proto::TlsMode::IstioMtls) => TlsMode::IstioMtls,
            Ok(proto::TlsMode::Mtls) => TlsMode::Mtls,
            Ok(proto::TlsMode::Unspecified) | Err(_) => return Err(ConvertError::TlsMode),
        },
        server_ids: service.server_spiffe_ids.iter().map(|id| server_id(id)).collect::<Result<_>>()?,
        clients: service.client_spiffe_ids.iter().map(|id| client_pattern(id)).collect::<Result<_>>()?,
        gateways: service.gateways.iter().map(gateway_from_proto).collect::<Result<_>>()?,
    })
}

fn server_id(text: &str) -> Result<SpiffeId> {
    let id = SpiffeId::new(text).ok().filter(|id| text.len() <= MAX_SPIFFE_ID && !id.path().is_empty());
    id.ok_or_else(|| invalid("server SPIFFE ID", text))
}

fn client_pattern(text: &str) -> Result<ClientPattern> {
    let pattern = ClientPattern::parse(text).ok().filter(|_| text.len() <= MAX_SPIFFE_ID);
    pattern.ok_or_else(|| invalid("client SPIFFE ID", text))
}

fn ports_from_proto(ports: &[proto::Port]) -> Result<Vec<RemotePort>> {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let parse = |port: &proto::Port| {
        let twice = |text: String| ConvertError::Twice { what: "port", text };
        if !is_dns_label(&port.name) {
            return Err(invalid("port name", &port.name));
        }
        let number = port_number(port.port)?;
        if !names.insert(port.name.clone()) {
            return Err(twice(port.name.clone()));
        }
        if !numbers.insert(number) {
            return Err(twice(number.to_string()));
        }
        let protocol = AppProtocol::parse(&port.app_protocol)
            .ok_or_else(|| invalid("application protocol", &port.app_protocol))?;
        count("client SPIFFE IDs of a port", port.client_spiffe_ids.len(), 0, MAX_CLIENTS)?;
        let clients = port.client_spiffe_ids.iter().map(|id| client_pattern(id)).collect::<Result<_>>()?;
        Ok(RemotePort { name: port.name.clone(), port: number, protocol, clients })
    };
    ports.iter().map(parse).collect()
}

fn gateway_from_proto(gateway: &proto::Gateway) -> Result<GatewayAddress> {
    let address =
        Address::parse(&gateway.address).ok_or_else(|| invalid("gateway address", &gateway.address))?;
    Ok(GatewayAddress { address, port: port_number(gateway.port)? })
}

/// An endpoint says what it listens on for every port of its service, and for nothing else.
fn endpoint_from_proto(endpoint: &proto::Endpoint, of: &[RemotePort]) -> Result<DirectEndpoint> {
    let address = endpoint.address.parse().map_err(|_| invalid("endpoint address", &endpoint.address))?;
    count("ports of an endpoint", endpoint.ports.len(), of.len(), of.len())?;
    let mut ports = BTreeMap::new();
    for port in &endpoint.ports {
        if !of.iter().any(|known| known.name == port.name) {
            return Err(invalid("port name of an endpoint", &port.name));
        }
        if ports.insert(port.name.clone(), port_number(port.port)?).is_some() {
            return Err(ConvertError::Twice { what: "port of an endpoint", text: port.name.clone() });
        }
    }
    Ok(DirectEndpoint { address, ports })
}

fn endpoint_to_proto(endpoint: &DirectEndpoint) -> proto::Endpoint {
    let port =
        |(name, port): (&String, &u16)| proto::EndpointPort { name: name.clone(), port: (*port).into() };
    proto::Endpoint {
        address: endpoint.address.to_string(),
        ports: endpoint.ports.iter().map(port).collect(),
    }
}

/// The name of a service of which nothing else is told.
///
/// # Errors
/// [`ConvertError`] where the name is none.
pub fn held_name_from_proto(service: &proto::Service) -> Result<ServiceName> {
    ServiceName::new(&service.namespace, &service.name)
        .map_err(|e| ConvertError::Name(printable(&e.to_string(), 200)))
}

#[must_use]
pub fn service_to_proto(service: &RemoteService) -> proto::Service {
    let port = |port: &RemotePort| proto::Port {
        name: port.name.clone(),
        port: port.port.into(),
        app_protocol: port.protocol.as_str().to_owned(),
        client_spiffe_ids: port.clients.iter().map(ToString::to_string).collect(),
    };
    let gateway = |gateway: &GatewayAddress| proto::Gateway {
        address: gateway.address.to_string(),
        port: gateway.port.into(),
    };
    let tls_mode = match service.tls_mode {
        TlsMode::IstioMtls => proto::TlsMode::IstioMtls,
        TlsMode::Mtls => proto::TlsMode::Mtls,
    };
    proto::Service {
        name: service.name.name().to_owned(),
        namespace: service.name.namespace().to_owned(),
        ports: service.ports.iter().map(port).collect(),
        tls_mode: tls_mode.into(),
        server_spiffe_ids: service.server_ids.iter().map(ToString::to_string).collect(),
        client_spiffe_ids: service.clients.iter().map(ToString::to_string).collect(),
        gateways: service.gateways.iter().map(gateway).collect(),
        endpoints: service.endpoints.iter().map(endpoint_to_proto).collect(),
        held: false,
    }
}

/// # Errors
/// [`ConvertError`] where the name is none; a reason that is no CamelCase word is replaced, a message cut.
pub fn outcome_from_proto(outcome: &proto::ServiceOutcome) -> Result<(ServiceName, Outcome)> {
    let name = ServiceName::new(&outcome.namespace, &outcome.name)
        .map_err(|e| ConvertError::Name(printable(&e.to_string(), 200)))?;
    if outcome.imported {
        return Ok((name, Outcome::Imported));
    }
    let reason = &outcome.reason;
    let legal = (1..=MAX_REASON).contains(&reason.len())
        && reason.starts_with(|c: char| c.is_ascii_uppercase())
        && reason.bytes().all(|b| b.is_ascii_alphanumeric());
    let reason = if legal { reason.clone() } else { "Refused".to_owned() };
    Ok((name, Outcome::Refused { reason, message: message(&outcome.message) }))
}

#[must_use]
pub fn outcome_to_proto(name: &ServiceName, outcome: &Outcome) -> proto::ServiceOutcome {
    let (imported, reason, text) = match outcome {
        Outcome::Imported => (true, "", ""),
        Outcome::Refused { reason, message } => (false, reason.as_str(), message.as_str()),
    };
    proto::ServiceOutcome {
        name: name.name().to_owned(),
        namespace: name.namespace().to_owned(),
        imported,
        reason: reason.to_owned(),
        message: message(text),
    }
}

/// A reason that is not known here is [`GoodbyeReason::Unspecified`].
#[must_use]
pub fn goodbye_from_proto(reason: i32) -> GoodbyeReason {
    use proto::goodbye::Reason;
    match Reason::try_from(reason).unwrap_or(Reason::Unspecified) {
        Reason::Unspecified => GoodbyeReason::Unspecified,
        Reason::ShuttingDown => GoodbyeReason::ShuttingDown,
        Reason::RelationshipEnded => GoodbyeReason::RelationshipEnded,
        Reason::Suspended => GoodbyeReason::Suspended,
        Reason::AlreadyConnected => GoodbyeReason::AlreadyConnected,
        Reason::ProtocolError => GoodbyeReason::ProtocolError,
        Reason::NotTrusted => GoodbyeReason::NotTrusted,
    }
}

#[must_use]
pub fn goodbye_to_proto(reason: GoodbyeReason, text: &str) -> proto::Goodbye {
    use proto::goodbye::Reason;
    let reason = match reason {
        GoodbyeReason::Unspecified => Reason::Unspecified,
        GoodbyeReason::ShuttingDown => Reason::ShuttingDown,
        GoodbyeReason::RelationshipEnded => Reason::RelationshipEnded,
        GoodbyeReason::Suspended => Reason::Suspended,
        GoodbyeReason::AlreadyConnected => Reason::AlreadyConnected,
        GoodbyeReason::ProtocolError => Reason::ProtocolError,
        GoodbyeReason::NotTrusted => Reason::NotTrusted,
    };
    proto::Goodbye { reason: reason.into(), message: message(text) }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
