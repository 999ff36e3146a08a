//! TLS by SPIFFE ID, with certificates and bundles that Envoy gets from SPIRE's agent itself (SDS), or that a gRPC library
//! reads from files. A server is verified with the bundle of its own trust domain and no other, and its ID is pinned.

use std::collections::BTreeSet;

use crate::model::import::Imported;
use crate::model::service::{AppProtocol, ClientPattern, RemotePort, TlsMode};
use crate::model::{SpiffeId, TrustDomain};
use crate::proto::xds::resources as pb;

use super::types::packed;

/// The cluster of the bootstrap configuration by which Envoy reaches SPIRE's agent: SDS takes none that is discovered.
pub const SPIRE_CLUSTER: &str = "spire_agent";
/// The name under which SPIRE's agent serves the workload's own SVID.
pub const SVID_NAME: &str = "default";
/// The certificate provider of a gRPC bootstrap, of its own certificate and of all roots.
pub const PROVIDER: &str = "spiffe";

const SOCKET: &str = "envoy.transport_sockets.tls";
const V3: i32 = 2;
const GRPC: i32 = 2;
const URI: i32 = 3;

/// The SNI by which the gateway of the exporter finds the service: Istio's own where the sidecar ends TLS, else the host.
#[must_use]
pub(super) fn sni(mode: TlsMode, host: &str, port: u16) -> String {
    match mode {
        TlsMode::IstioMtls => format!("outbound_.{port}_._.{host}"),
        TlsMode::Mtls => host.to_owned(),
    }
}

/// The application protocols of a TLS connection. Istio's gateways pass on Istio's alone (AUTO_PASSTHROUGH), and by them a
/// PERMISSIVE sidecar tells mutual TLS from the application's own.
#[must_use]
pub(super) fn alpn(mode: TlsMode, protocol: AppProtocol) -> Vec<String> {
    let name = match (mode, protocol) {
        (TlsMode::IstioMtls, AppProtocol::Http) => "istio-http/1.1",
        (TlsMode::IstioMtls, AppProtocol::Http2 | AppProtocol::Grpc) => "istio-h2",
        (TlsMode::IstioMtls, AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Https) => "istio",
        (TlsMode::Mtls, AppProtocol::Http) => "http/1.1",
        (TlsMode::Mtls, AppProtocol::Http2 | AppProtocol::Grpc) => "h2",
        (TlsMode::Mtls, AppProtocol::Tcp | AppProtocol::Tls | AppProtocol::Https) => return Vec::new(),
    };
    vec![name.to_owned()]
}

/// The application protocols that a server takes: those that our clients come with, and for HTTP/2 its own name, without which
/// gRPC libraries end a connection, and beside which they offer no other.
#[must_use]
pub(super) fn accepted(mode: TlsMode, protocol: AppProtocol) -> Vec<String> {
    let mut all = alpn(mode, protocol);
    if mode == TlsMode::IstioMtls && matches!(protocol, AppProtocol::Http2 | AppProtocol::Grpc) {
        all.push("h2".to_owned());
    }
    all
}

/// How Envoy begins TLS to a port.
#[must_use]
pub(super) fn upstream(imported: &Imported, port: &RemotePort) -> pb::TransportSocket {
    let service = &imported.service;
    let context = pb::UpstreamTlsContext {
        common_tls_context: Some(pb::CommonTlsContext {
            alpn_protocols: alpn(service.tls_mode, port.protocol),
            tls_certificate_sds_secret_configs: vec![secret(SVID_NAME)],
            combined_validation_context: Some(pb::CombinedValidationContext {
                default_validation_context: Some(pb::CertificateValidationContext {
                    match_typed_subject_alt_names: uris(&service.server_ids),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(secret(&bundle(&imported.trust_domain))),
            }),
            ..Default::default()
        }),
        sni: sni(service.tls_mode, &imported.object.name, port.port),
        // A session that is resumed would be judged by the bundle of an earlier handshake.
        max_session_keys: Some(0),
    };
    let typed_config = packed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &context);
    pb::TransportSocket { name: SOCKET.to_owned(), typed_config: Some(typed_config) }
}

/// How a gRPC library begins TLS to a port: it reads untyped names alone.
#[must_use]
pub(super) fn of_grpc(imported: &Imported, port: &RemotePort) -> pb::TransportSocket {
    let service = &imported.service;
    let provider = || Some(pb::ProviderInstance { instance_name: PROVIDER.to_owned() });
    let context = pb::UpstreamTlsContext {
        common_tls_context: Some(pb::CommonTlsContext {
            tls_certificate_provider_instance: provider(),
            validation_context: Some(pb::CertificateValidationContext {
                match_subject_alt_names: service.server_ids.iter().map(exact).collect(),
                ca_certificate_provider_instance: provider(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        sni: sni(service.tls_mode, &imported.object.name, port.port),
        ..Default::default()
    };
    let typed_config = packed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &context);
    pb::TransportSocket { name: SOCKET.to_owned(), typed_config: Some(typed_config) }
}

/// How the Envoy in front of a server ends TLS: with these callers alone, by the bundle of this name.
#[must_use]
pub(super) fn downstream(
    bundle: &str,
    alpn: Vec<String>,
    clients: &BTreeSet<ClientPattern>,
) -> pb::TransportSocket {
    let client = |client| pb::SubjectAltNameMatcher { san_type: URI, matcher: Some(matcher(client)) };
    let context = pb::DownstreamTlsContext {
        common_tls_context: Some(pb::CommonTlsContext {
            alpn_protocols: alpn,
            tls_certificate_sds_secret_configs: vec![secret(SVID_NAME)],
            combined_validation_context: Some(pb::CombinedValidationContext {
                default_validation_context: Some(pb::CertificateValidationContext {
                    match_typed_subject_alt_names: clients.iter().map(client).collect(),
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(secret(bundle)),
            }),
            ..Default::default()
        }),
        require_client_certificate: Some(true),
        disable_stateless_session_resumption: true,
        disable_stateful_session_resumption: true,
    };
    let typed_config = packed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", &context);
    pb::TransportSocket { name: SOCKET.to_owned(), typed_config: Some(typed_config) }
}

/// The name under which SPIRE's agent serves the bundle of one trust domain.
#[must_use]
pub(super) fn bundle(trust_domain: &TrustDomain) -> String {
    trust_domain.id_string()
}

/// What matches those whom a pattern means: one ID, or every one below a path.
#[must_use]
pub(super) fn matcher(client: &ClientPattern) -> pb::StringMatcher {
    use pb::string_matcher::MatchPattern;
    let pattern = match client.as_str().strip_suffix('*') {
        Some(prefix) => MatchPattern::Prefix(prefix.to_owned()),
        None => MatchPattern::Exact(client.as_str().to_owned()),
    };
    pb::StringMatcher { match_pattern: Some(pattern) }
}

fn exact(id: &SpiffeId) -> pb::StringMatcher {
    let pattern = pb::string_matcher::MatchPattern::Exact(id.to_string());
    pb::StringMatcher { match_pattern: Some(pattern) }
}

fn uris(ids: &BTreeSet<SpiffeId>) -> Vec<pb::SubjectAltNameMatcher> {
    ids.iter().map(|id| pb::SubjectAltNameMatcher { san_type: URI, matcher: Some(exact(id)) }).collect()
}

/// A secret of SPIRE's agent.
fn secret(name: &str) -> pb::SdsSecretConfig {
    let service =
        pb::GrpcService { envoy_grpc: Some(pb::EnvoyGrpc { cluster_name: SPIRE_CLUSTER.to_owned() }) };
    let source =
        pb::ApiConfigSource { api_type: GRPC, transport_api_version: V3, grpc_services: vec![service] };
    pb::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(pb::ConfigSource {
            api_config_source: Some(source),
            resource_api_version: V3,
            ads: None,
        }),
    }
}

/// What is asked of the stream that it came by.
#[must_use]
pub(super) fn by_ads() -> pb::ConfigSource {
    pb::ConfigSource { ads: Some(pb::Aggregated {}), resource_api_version: V3, api_config_source: None }
}
