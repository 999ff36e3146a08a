//! Services: as exported here, and as a peer's catalogue names them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::name::{is_dns_host, is_dns_label};
use super::object::{Kind, OwnerRef};
use super::{NamespacedName, ObjectKey, ServiceName, SpiffeId, TrustDomain};

/// Who ends mutual TLS at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsMode {
    /// The server's Istio sidecar; the gateway passes through by Istio's SNI.
    IstioMtls,
    /// The application, with its own SVID.
    Mtls,
}

impl TlsMode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IstioMtls => "IstioMtls",
            Self::Mtls => "Mtls",
        }
    }

    /// The gateway that carries it.
    #[must_use]
    pub const fn gateway(self) -> GatewayType {
        match self {
            Self::IstioMtls => GatewayType::EastWestGateway,
            Self::Mtls => GatewayType::IngressGateway,
        }
    }
}

/// The application protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppProtocol {
    Tcp,
    Http,
    Http2,
    Grpc,
    Https,
    Tls,
}

impl AppProtocol {
    /// As in `appProtocol` of a Kubernetes Service, with Istio's and Kubernetes' names for HTTP/2.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tcp" => Self::Tcp,
            "http" | "http1" => Self::Http,
            "http2" | "kubernetes.io/h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "https" => Self::Https,
            "tls" => Self::Tls,
            _ => return None,
        })
    }

    /// What a port that does not say is taken to speak, by what its name begins with, as Istio has it; else TCP. `None`: UDP.
    #[must_use]
    pub fn of_port_name(name: &str) -> Option<Self> {
        match name.split('-').next() {
            Some("udp") => None,
            _ => Some(Self::said_by_port_name(name).unwrap_or(Self::Tcp)),
        }
    }

    /// What the name of a port says that it speaks, as Istio has it; `None` where it says nothing.
    #[must_use]
    pub fn said_by_port_name(name: &str) -> Option<Self> {
        match name.split('-').next().unwrap_or_default() {
            // Not gRPC: it is framed so that HTTP/1.1 carries it too.
            "grpc" if name == "grpc-web" || name.starts_with("grpc-web-") => Some(Self::Http),
            prefix => Self::parse(prefix),
        }
    }

    /// The name in a catalogue and in `appProtocol`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Https => "https",
            Self::Tls => "tls",
        }
    }

    /// The name in `ports[].protocol` of Istio's objects.
    #[must_use]
    pub const fn istio(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
        }
    }
}

/// A pattern for the SPIFFE IDs of clients: one ID, or with a trailing `/*` every ID below a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientPattern {
    trust_domain: TrustDomain,
    text: String,
}

/// Why a text is no client pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither a SPIFFE ID with a path nor one followed by /*: {cause}")]
pub struct ClientPatternError {
    text: String,
    cause: String,
}

impl ClientPattern {
    /// # Errors
    /// [`ClientPatternError`] where what is before a trailing `/*` is no SPIFFE ID. `spiffe://td/*` is legal.
    pub fn parse(text: &str) -> Result<Self, ClientPatternError> {
        let fail = |cause: &str| ClientPatternError {
            text: text.chars().take(100).collect(),
            cause: cause.to_owned(),
        };
        let (stem, wildcard) = match text.strip_suffix("/*") {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        let id = SpiffeId::new(stem).map_err(|e| fail(&e.to_string()))?;
        if id.path().is_empty() && !wildcard {
            return Err(fail("it has no path"));
        }
        let suffix = if wildcard { "/*" } else { "" };
        Ok(Self {
            trust_domain: TrustDomain::new(id.trust_domain_name()).map_err(|e| fail(&e.to_string()))?,
            text: format!("{id}{suffix}"),
        })
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// With the scheme: `spiffe://td/path` or `spiffe://td/path/*`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As Istio wants a principal: without the scheme.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.text.strip_prefix("spiffe://").unwrap_or(&self.text)
    }

    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.matches_text(&id.to_string())
    }

    /// The same for an ID as text, for who asks many patterns of one ID.
    #[must_use]
    pub fn matches_text(&self, id: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(prefix) => id.len() > prefix.len() && id.starts_with(prefix),
            None => id == self.text,
        }
    }
}

impl fmt::Display for ClientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The address of a gateway or endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    Ip(IpAddr),
    /// A DNS host name, lower case.
    Dns(String),
}

impl Address {
    /// An IP address, or a DNS host name of at least two labels.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse() {
            return Some(Self::Ip(ip));
        }
        (text.contains('.') && is_dns_host(text)).then(|| Self::Dns(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Dns(name) => name.fmt(f),
        }
    }
}

/// Where a peer's services are reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayAddress {
    pub address: Address,
    pub port: u16,
}

/// A pod that backs a service, which workloads of another trust domain reach directly: their networks are flat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirectEndpoint {
    pub address: IpAddr,
    /// What it listens on, by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
}

/// A port as importers see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemotePort {
    pub name: String,
    pub port: u16,
    pub protocol: AppProtocol,
    /// Which of the importer's workloads may call this port; empty: those of the service.
    pub clients: BTreeSet<ClientPattern>,
}

/// A service as it stands in a catalogue: well formed, but not yet admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteService {
    pub name: ServiceName,
    pub ports: Vec<RemotePort>,
    pub tls_mode: TlsMode,
    pub server_ids: BTreeSet<SpiffeId>,
    /// Which of the importer's workloads may call.
    pub clients: BTreeSet<ClientPattern>,
    pub gateways: Vec<GatewayAddress>,
    /// Its pods, where no gateway carries it and the networks are flat.
    pub endpoints: Vec<DirectEndpoint>,
}

/// Which Istio gateway carries an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayType {
    IngressGateway,
    EastWestGateway,
}

impl GatewayType {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IngressGateway => "istio-ingressgateway",
            Self::EastWestGateway => "istio-eastwestgateway",
        }
    }

    /// The value of the label `istio` on the gateway's pods, as Istio's own manifests set it.
    #[must_use]
    pub const fn istio_label(self) -> &'static str {
        match self {
            Self::IngressGateway => "ingressgateway",
            Self::EastWestGateway => "eastwestgateway",
        }
    }
}

/// Which Service stands before a gateway, and by which of its ports importers come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayChoice {
    /// `None`: Istio's own.
    pub namespace: Option<String>,
    pub by: GatewaySelection,
    /// The name or number of the port; `None`: the one named `tls`, else 15443, else 443.
    pub port: Option<String>,
}

/// How the Service is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewaySelection {
    Name(String),
    /// The oldest one with this label.
    Label(String, String),
}

/// Why a text names no gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither [NAMESPACE/]NAME[:PORT] nor [NAMESPACE/]LABEL=VALUE[:PORT] of a Service")]
pub struct GatewayChoiceError(String);

impl GatewayChoice {
    /// The Service of the name that Istio gives it.
    #[must_use]
    pub fn named(kind: GatewayType) -> Self {
        Self { namespace: None, by: GatewaySelection::Name(kind.as_str().to_owned()), port: None }
    }
}

impl std::str::FromStr for GatewayChoice {
    type Err = GatewayChoiceError;

    /// `[NAMESPACE/]NAME[:PORT]`, or `[NAMESPACE/]LABEL=VALUE[:PORT]`; the name of a label may hold a slash itself.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || GatewayChoiceError(text.chars().take(200).collect());
        let (rest, port) = match text.rsplit_once(':') {
            Some((rest, port)) => (rest, Some(port)),
            None => (text, None),
        };
        let is_number = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        let is_port = |port: &str| {
            if is_number(port) {
                port.parse::<u16>().is_ok_and(|number| number != 0)
            } else {
                is_dns_label(port)
            }
        };
        if port.is_some_and(|port| !is_port(port)) {
            return Err(error());
        }
        // A namespace has no dot, and the part of a label before its slash nearly always has one.
        let (namespace, selection) = match rest.split_once('/') {
            Some((namespace, selection)) if is_dns_label(namespace) => {
                (Some(namespace.to_owned()), selection)
            }
            Some(_) if rest.contains('=') => (None, rest),
            Some(_) => return Err(error()),
            None => (None, rest),
        };
        let by = match selection.split_once('=') {
            Some((label, value)) if !label.is_empty() && !value.is_empty() => {
                GatewaySelection::Label(label.to_owned(), value.to_owned())
            }
            None if is_dns_label(selection) => GatewaySelection::Name(selection.to_owned()),
            _ => return Err(error()),
        };
        Ok(Self { namespace, by, port: port.map(str::to_owned) })
    }
}

/// A gateway given in a FederatedService.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    pub gateway_type: GatewayType,
    pub at: GatewayAddress,
}

/// A port as exported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportedPort {
    pub name: String,
    /// What importers see; part of the SNI.
    pub port: u16,
    /// What the workload listens on.
    pub target_port: u16,
    pub protocol: AppProtocol,
    /// Who may call this port, in place of the service's `clients`; never empty.
    pub clients: Option<BTreeSet<ClientPattern>>,
}

/// What a service is exported by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportedBy {
    /// The FederatedService of the service's `object`.
    FederatedService,
    /// A ServiceExportRule, of which it owns what is generated. The service's `object` is a Kubernetes Service.
    Rule { name: String, uid: String },
}

/// A service that is to be exported, with all that its cluster has to say to it: its pods' labels, the numbers of its ports, the
/// IDs of its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub by: ExportedBy,
    /// The FederatedService; with a rule, the Kubernetes Service.
    pub object: NamespacedName,
    pub uid: String,
    /// Of the FederatedService; 0 with a rule.
    pub generation: i64,
    /// Since when it is to be exported: of two that contend, the older wins.
    pub created: Option<jiff::Timestamp>,
    pub name: ServiceName,
    /// Which pods back it; empty where it [`is_outside`](Self::is_outside), and only there.
    pub workload_labels: BTreeMap<String, String>,
    /// Where the Envoy in front of it reaches what backs it; empty: it is backed by pods.
    pub endpoints: BTreeSet<Address>,
    pub ports: Vec<ExportedPort>,
    pub tls_mode: TlsMode,
    pub exported_to: BTreeSet<TrustDomain>,
    pub clients: BTreeSet<ClientPattern>,
    pub server_ids: BTreeSet<SpiffeId>,
    pub gateways: Vec<Gateway>,
}

impl Service {
    /// What owns all that is generated for it.
    #[must_use]
    pub fn owner(&self) -> OwnerRef {
        match &self.by {
            ExportedBy::FederatedService => OwnerRef {
                kind: Kind::FederatedService,
                name: self.object.name.clone(),
                uid: self.uid.clone(),
            },
            ExportedBy::Rule { name, uid } => {
                OwnerRef { kind: Kind::ServiceExportRule, name: name.clone(), uid: uid.clone() }
            }
        }
    }

    /// The object that it is exported as, alone of all services.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let kind = match self.by {
            ExportedBy::FederatedService => Kind::FederatedService,
            ExportedBy::Rule { .. } => Kind::Service,
        };
        ObjectKey::namespaced(kind, &self.object.namespace, &self.object.name)
    }

    /// Every object that it is exported by or as, for the annotation of what is generated for it.
    #[must_use]
    pub fn sources(&self) -> Vec<ObjectKey> {
        let rule = match &self.by {
            ExportedBy::FederatedService => None,
            ExportedBy::Rule { name, .. } => Some(ObjectKey::cluster(Kind::ServiceExportRule, name)),
        };
        rule.into_iter().chain([self.key()]).collect()
    }

    /// Whether no pod backs it, but what listens at given addresses: nothing of a mesh stands before it.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Who may call a port of it.
    #[must_use]
    pub fn clients_of<'a>(&'a self, port: &'a ExportedPort) -> &'a BTreeSet<ClientPattern> {
        port.clients.as_ref().unwrap_or(&self.clients)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            ExportedBy::FederatedService => write!(f, "FederatedService {}", self.object),
            ExportedBy::Rule { name, .. } => write!(f, "Service {} (ServiceExportRule {name})", self.object),
        }
    }
}

/// What became of a service at its importer; each but the first is a refusal with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Imported,
    Refused { reason: String, message: String },
}
