//! Flags and environment, read once, here.

mod dns;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::model::replica::relay_address;
use crate::model::service::{GatewayChoice, GatewayType};
use crate::model::world::Settings;
use crate::xds::{self, Socket};
pub use dns::{DnsArgs, DnsUpstream};

/// Where the control socket is by default.
pub const CONTROL_SOCKET: &str = "/run/entente/control.sock";

/// The flags of `entente agent`, each with its environment variable.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Where objects are: `kubernetes` (by KUBECONFIG, or in-cluster), or `dir:PATH`.
    #[arg(long, env = "ENTENTE_STORE", default_value = "kubernetes")]
    pub store: StoreArg,

    /// The SPIFFE Workload API: `unix:///path` or `tcp://IP:port`.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET")]
    pub workload_api: String,

    /// SPIRE's server API: `unix:///path`, or `host:port` with an admin SVID. Where there are several SPIRE servers, all of
    /// them, separated by commas, or a name that resolves to all: relationships, bundles and entries, which they share, are
    /// kept at the first; each is asked for the authorities that it signs with.
    #[arg(long, env = "ENTENTE_SPIRE_SERVER", value_delimiter = ',', required = true)]
    pub spire_server: Vec<String>,

    /// Where peers' agents reach us.
    #[arg(long, env = "ENTENTE_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,

    /// Health and metrics.
    #[arg(long, env = "ENTENTE_ADMIN_LISTEN", default_value = "127.0.0.1:7480")]
    pub admin_listen: SocketAddr,

    /// Serve a page at `/` of the admin listener that shows the federation to people: its peers, authorities, services and events.
    /// It can only be looked at, and by whoever reaches that listener.
    #[arg(long, env = "ENTENTE_VIEW")]
    pub view: bool,

    /// A collector that takes traces, by OTLP over gRPC without TLS: `http://HOST:PORT`. Each turn of reconciliation and each exchange
    /// with a peer is traced to it. Default: no traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// A Unix socket for the commands that ask or change the running agent; only its own user may open it. Empty: none.
    #[arg(long = "control", env = "ENTENTE_CONTROL", default_value = CONTROL_SOCKET)]
    pub control: PathBuf,

    /// Where ImportedServices live, and bootstrap ConfigMaps and Secrets.
    #[arg(long, env = "ENTENTE_NAMESPACE", default_value = "entente-system")]
    pub namespace: String,

    /// Marks what this installation generates as its own. A cluster has one installation; one that is installed again needs the
    /// same name here, or leaves what the one before generated alone, as another's.
    #[arg(long, env = "ENTENTE_INSTANCE", default_value = "entente")]
    pub instance: String,

    /// The name of this replica in Leases; the host's name where empty.
    #[arg(long, env = "ENTENTE_REPLICA", default_value = "")]
    pub replica: String,

    /// The class that our spire-controller-manager follows: `className` of the ClusterFederatedTrustDomains that are written.
    /// Registrations of another class are another SPIRE's, and left alone.
    #[arg(long, env = "ENTENTE_SPIRE_CLASS_NAME", default_value = "")]
    pub spire_class_name: String,

    /// The `hint` of the admin registration, where SPIRE's server API is reached over TCP.
    #[arg(long, env = "ENTENTE_ADMIN_HINT", default_value = "entente-admin")]
    pub admin_hint: String,

    /// More authorities for `https_web` endpoints, as a PEM file, beside the web's own. It is read again as it changes.
    #[arg(long, env = "ENTENTE_WEB_ROOTS")]
    pub web_roots: Option<PathBuf>,

    #[command(flatten)]
    pub dns: DnsArgs,

    #[command(flatten)]
    pub relay: RelayArgs,

    #[command(flatten)]
    pub cluster: ClusterArgs,

    #[command(flatten)]
    pub xds: XdsArgs,

    #[command(flatten)]
    pub reach: ReachArgs,

    #[command(flatten)]
    pub timing: TimingArgs,
}

/// How replicas pass peers' connections on to the one that leads. Where there is one replica, none of it is needed.
#[derive(Args, Clone, Debug, Default)]
pub struct RelayArgs {
    /// Where other replicas' connections are taken, while this one leads; without it, a replica that does not lead sends peers
    /// away. Only who shows this agent's own SVID is let in. With --store kubernetes.
    #[arg(long, env = "ENTENTE_RELAY_LISTEN")]
    pub relay_listen: Option<SocketAddr>,

    /// Where other replicas reach that, as `IP:port`, or `IP` where the port is the same; put on the Lease of the leader. May
    /// be left out where --relay-listen names an address of this host.
    #[arg(long, env = "ENTENTE_RELAY_ADDRESS")]
    pub relay_address: Option<RelayAddress>,
}

impl RelayArgs {
    /// Where this replica takes others' connections, and where they reach that; nothing where it does not.
    ///
    /// # Errors
    /// Names the flag that is missing or cannot be dialled.
    pub fn addresses(&self) -> Result<Option<(SocketAddr, SocketAddr)>, String> {
        let Some(listen) = self.relay_listen else {
            return match self.relay_address {
                None => Ok(None),
                Some(_) => Err("--relay-address needs --relay-listen".to_owned()),
            };
        };
        let told = match self.relay_address {
            None => listen,
            Some(RelayAddress::Whole(address)) => address,
            Some(RelayAddress::Ip(ip)) => SocketAddr::new(ip, listen.port()),
        };
        match relay_address(&told.to_string()) {
            Some(told) => Ok(Some((listen, told))),
            None => Err(format!(
                "other replicas cannot reach {told}: say by --relay-address where they reach --relay-listen {listen}"
            )),
        }
    }
}

/// Where other replicas reach this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayAddress {
    Whole(SocketAddr),
    /// At the port where it listens.
    Ip(IpAddr),
}

impl std::str::FromStr for RelayAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ip = text.parse().map(Self::Ip);
        ip.or_else(|_| text.parse().map(Self::Whole))
            .map_err(|_| format!("{text:?} is neither `IP:port` nor `IP`"))
    }
}

/// What our own cluster is like.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The cluster's DNS domain.
    #[arg(
        id = "cluster-domain",
        long = "cluster-domain",
        env = "ENTENTE_CLUSTER_DOMAIN",
        default_value = "cluster.local"
    )]
    pub domain: String,

    /// Whether Istio is there. `false`: its objects and configuration are neither read nor written, and no rights to them are
    /// needed; what was written before stays as it is.
    #[arg(long, env = "ENTENTE_ISTIO", default_value_t = true, action = clap::ArgAction::Set)]
    pub istio: bool,

    /// Where Istio lives: the mesh's root namespace, that of its configuration and, unless said otherwise, of its gateways.
    #[arg(long, env = "ENTENTE_ISTIO_NAMESPACE", default_value = "istio-system")]
    pub istio_namespace: String,

    /// The Service of the gateway that carries tlsMode IstioMtls: `[NAMESPACE/]NAME[:PORT]`, or `[NAMESPACE/]LABEL=VALUE[:PORT]`
    /// for the oldest one with that label. PORT is the name or the number of its port for importers; by default the one named
    /// `tls`, else 15443, else 443.
    #[arg(long, env = "ENTENTE_EASTWEST_GATEWAY", default_value = "istio-eastwestgateway")]
    pub eastwest_gateway: GatewayChoice,

    /// The Service of the gateway that carries tlsMode Mtls, given in the same way.
    #[arg(long, env = "ENTENTE_INGRESS_GATEWAY", default_value = "istio-ingressgateway")]
    pub ingress_gateway: GatewayChoice,

    /// Importers reach the gateways at the nodes that they run on, by the node port of the Service, beside its external IPs;
    /// its load balancer is passed over.
    #[arg(long, env = "ENTENTE_GATEWAY_NODE_PORTS")]
    pub gateway_node_ports: bool,

    /// Close every workload of the mesh to foreign SPIFFE IDs that are neither a client of an export nor a peer's agent, by one
    /// AuthorizationPolicy in Istio's namespace. A change of clients then closes connections all over the mesh, once Envoy's
    /// drain time has passed.
    #[arg(long, env = "ENTENTE_FENCE")]
    pub fence: bool,

    /// Ranges out of which every imported service is given an address of its own, so that sidecars tell TCP services of one port
    /// apart: the first of each IP family that the cluster's Services have. They must be nobody else's here, also not istiod's own
    /// (240.240.0.0/16, 2001:2::/48), and are seen by workloads with sidecars alone. Default: 240.241.0.0/16,fd24:241::/64. Without
    /// Istio they are the loopback interface's, where each workload's proxy listens; the first of each IP family is used, and the
    /// default is 127.64.0.0/10. `none`: no addresses are given.
    #[arg(long, env = "ENTENTE_IMPORT_ADDRESS_RANGE", value_delimiter = ',')]
    pub import_address_range: Vec<ImportRange>,

    /// The revision of Istio that the workloads here are of: its configuration is the ConfigMap `istio-REVISION`. Empty: `istio`.
    #[arg(long, env = "ENTENTE_ISTIO_REVISION", default_value = "")]
    pub istio_revision: String,
}

impl ClusterArgs {
    /// What of the settings these are; the rest is `others`.
    #[must_use]
    pub fn settings(&self, others: Settings) -> Settings {
        Settings {
            cluster_domain: self.domain.clone(),
            istio: self.istio,
            istio_namespace: self.istio_namespace.clone(),
            eastwest_gateway: self.eastwest_gateway.clone(),
            ingress_gateway: self.ingress_gateway.clone(),
            gateway_node_ports: self.gateway_node_ports,
            fence: self.fence,
            istio_revision: self.istio_revision.clone(),
            import_ranges: self.import_ranges(),
            ..others
        }
    }

    fn import_ranges(&self) -> Vec<IpNet> {
        match self.import_address_range.as_slice() {
            [] if self.istio => Settings::standard().import_ranges,
            [] => Settings::loopback_ranges(),
            given => given.iter().filter_map(|range| range.0).collect(),
        }
    }
}

impl Default for ClusterArgs {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            istio: true,
            istio_namespace: "istio-system".to_owned(),
            eastwest_gateway: GatewayChoice::named(GatewayType::EastWestGateway),
            ingress_gateway: GatewayChoice::named(GatewayType::IngressGateway),
            gateway_node_ports: false,
            fence: false,
            istio_revision: String::new(),
            import_address_range: Vec::new(),
        }
    }
}

/// A range for the addresses of imports, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportRange(Option<IpNet>);

impl std::str::FromStr for ImportRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(None));
        }
        let range: IpNet = text.parse().map_err(|_| format!("{text:?} is neither a CIDR nor `none`"))?;
        if range.max_prefix_len() - range.prefix_len() < 8 {
            return Err(format!("{range} has fewer than 256 addresses"));
        }
        Ok(Self(Some(range.trunc())))
    }
}

/// Who is served without Istio: Envoy and gRPC, by xDS. Off by default.
#[derive(Args, Clone, Debug)]
pub struct XdsArgs {
    /// Where clients with an SVID of this trust domain are served what their SPIFFE ID may call, by xDS (ADS, state of the world
    /// and delta) over mutual TLS.
    #[arg(long, env = "ENTENTE_XDS_LISTEN")]
    pub xds_listen: Option<SocketAddr>,

    /// A Unix socket where whoever may open it (our user and group) is served by xDS what one SPIFFE ID may call:
    /// `PATH=SPIFFE-ID`, several separated by commas.
    #[arg(long, env = "ENTENTE_XDS_SOCKET", value_delimiter = ',')]
    pub xds_socket: Vec<Socket>,

    /// The name under which SPIRE's agents serve Envoy every bundle that a workload has: `default_all_bundles_name` in `sds` of
    /// their configuration. Only an Envoy in front of a server that is exported to several trust domains asks for it.
    #[arg(long, env = "ENTENTE_XDS_ALL_BUNDLES", default_value = "ALL")]
    pub xds_all_bundles: String,
}

impl XdsArgs {
    /// Where clients come in.
    #[must_use]
    pub fn places(&self) -> xds::Settings {
        xds::Settings {
            listen: self.xds_listen,
            sockets: self.xds_socket.clone(),
            ..xds::Settings::default()
        }
    }

    /// Whether anybody is served.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.xds_listen.is_some() || !self.xds_socket.is_empty()
    }
}

impl Default for XdsArgs {
    fn default() -> Self {
        Self {
            xds_listen: None,
            xds_socket: Vec::new(),
            xds_all_bundles: Settings::standard().xds_all_bundles,
        }
    }
}

/// How other trust domains reach us: what invites and joins tell them.
#[derive(Args, Clone, Debug, Default)]
pub struct ReachArgs {
    /// Where the agents of other trust domains reach ours, as they see it: `host:port`, several separated by commas.
    #[arg(long, env = "ENTENTE_ADVERTISE", value_delimiter = ',')]
    pub advertise: Vec<String>,

    /// Where our trust domain's bundle is served, as others see it.
    #[arg(long, env = "ENTENTE_BUNDLE_ENDPOINT_URL")]
    pub bundle_endpoint_url: Option<String>,

    /// How that endpoint proves that it may. Default `https_spiffe`.
    #[arg(long, env = "ENTENTE_BUNDLE_ENDPOINT_PROFILE")]
    pub bundle_endpoint_profile: Option<ProfileArg>,

    /// Its SPIFFE ID, with `https_spiffe`. Default SPIRE's: `spiffe://<trust domain>/spire/server`.
    #[arg(long, env = "ENTENTE_BUNDLE_ENDPOINT_SPIFFE_ID")]
    pub bundle_endpoint_spiffe_id: Option<String>,
}

/// The profile of a bundle endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileArg {
    HttpsWeb,
    HttpsSpiffe,
}

impl std::str::FromStr for ProfileArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "https_web" => Ok(Self::HttpsWeb),
            "https_spiffe" | "" => Ok(Self::HttpsSpiffe),
            _ => Err(format!("{text:?} is neither `https_web` nor `https_spiffe`")),
        }
    }
}

/// Times, in seconds. The defaults fit SPIRE's; tests shorten them.
#[derive(Args, Clone, Debug)]
pub struct TimingArgs {
    /// How long SPIRE's agents are given to follow before a bundle is deleted.
    #[arg(long, env = "ENTENTE_DRAIN_SECONDS", default_value_t = 30)]
    pub drain_seconds: u64,

    /// How long SPIRE's agents take until they have what their server holds: they ask every 5 seconds (`sync_interval`), and
    /// a second is theirs to deliver it. A peer is told that we follow its bundle once that has passed.
    #[arg(long, env = "ENTENTE_AGENT_FOLLOW_SECONDS", default_value_t = 6)]
    pub agent_follow_seconds: u64,

    /// The longest time between two polls of a bundle endpoint, whatever its refresh hint. SPIRE itself polls at a quarter of
    /// the hint, every 15 seconds at the most; an endpoint that is down is known within this time.
    #[arg(long, env = "ENTENTE_BUNDLE_POLL_MAX_SECONDS", default_value_t = 20)]
    pub bundle_poll_max_seconds: u64,

    /// The shortest time between two polls of a bundle endpoint, whatever its refresh hint.
    #[arg(long, env = "ENTENTE_BUNDLE_POLL_MIN_SECONDS", default_value_t = 5)]
    pub bundle_poll_min_seconds: u64,

    /// The interval at which SPIRE polls a bundle endpoint, at most: a quarter of a refresh hint of 300 s. A peer that still names a
    /// bundle of ours which another one replaced longer than two of these ago is said to hold a stale one.
    #[arg(long, env = "ENTENTE_SPIRE_POLL_SECONDS", default_value_t = 75)]
    pub spire_poll_seconds: u64,

    /// The shortest pause between two attempts to reach a peer's agent.
    #[arg(long, env = "ENTENTE_DIAL_MIN_SECONDS", default_value_t = 1)]
    pub dial_min_seconds: u64,

    /// The longest pause between two attempts to reach a peer's agent.
    #[arg(long, env = "ENTENTE_DIAL_MAX_SECONDS", default_value_t = 30)]
    pub dial_max_seconds: u64,

    /// How often the gateways of peers through which imported services are called are tried, by a TCP connection without a byte;
    /// 0: never.
    #[arg(long, env = "ENTENTE_GATEWAY_CHECK_SECONDS", default_value_t = 30)]
    pub gateway_check_seconds: u64,

    /// How long the leader's Lease holds without renewal.
    #[arg(long, env = "ENTENTE_LEASE_SECONDS", default_value_t = 15)]
    pub lease_seconds: u64,
}

impl TimingArgs {
    /// The defaults, for callers that have no command line.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            drain_seconds: 30,
            agent_follow_seconds: 6,
            bundle_poll_max_seconds: 20,
            bundle_poll_min_seconds: 5,
            spire_poll_seconds: 75,
            dial_min_seconds: 1,
            dial_max_seconds: 30,
            gateway_check_seconds: 30,
            lease_seconds: 15,
        }
    }

    #[must_use]
    pub const fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreArg {
    Kubernetes,
    Directory(PathBuf),
}

impl std::str::FromStr for StoreArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "kubernetes" {
            return Ok(Self::Kubernetes);
        }
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Self::Directory(path.into())),
            _ => Err(format!("{text:?} is neither `kubernetes` nor `dir:PATH`")),
        }
    }
}

impl std::fmt::Display for StoreArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_other_replicas_reach_us_can_be_dialled() {
        let addresses = |listen: &str, address: &str| {
            RelayArgs {
                relay_listen: (!listen.is_empty()).then(|| listen.parse().unwrap()),
                relay_address: (!address.is_empty()).then(|| address.parse().unwrap()),
            }
            .addresses()
            .map(|found| found.map(|(_, told)| told.to_string()))
        };
        assert_eq!(addresses("", ""), Ok(None));
        assert_eq!(addresses("10.0.0.1:7444", ""), Ok(Some("10.0.0.1:7444".to_owned())));
        assert_eq!(addresses("0.0.0.0:7444", "10.0.0.1"), Ok(Some("10.0.0.1:7444".to_owned())));
        assert_eq!(addresses("[::]:7444", "fd00::1"), Ok(Some("[fd00::1]:7444".to_owned())));
        assert_eq!(addresses("0.0.0.0:7444", "10.0.0.1:9000"), Ok(Some("10.0.0.1:9000".to_owned())));
        assert!(addresses("0.0.0.0:7444", "").unwrap_err().contains("--relay-address"));
        assert!(addresses("", "10.0.0.1").unwrap_err().contains("--relay-listen"));
        assert!("leader:7444".parse::<RelayAddress>().is_err());
    }
}
