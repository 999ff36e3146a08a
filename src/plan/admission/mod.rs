//! What of a peer's catalogue is let in. Each rule has a reason of its own, which the peer is told.
//!
//! A service creates a host below the peer's own trust domain and endpoints that `spec.imports` admits, or nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::api::v1alpha1::conditions::{AdmittedReason, Reason};
use crate::model::condition::Truth;
use crate::model::name::is_dns_label;
use crate::model::service::{Address, DirectEndpoint, GatewayAddress, Outcome, RemoteService};
use crate::model::{Peer, World};
use crate::plan::gateways::Gateways;

/// The bounds of an ImportedService (`api/v1alpha1`), beyond which it could not be stored.
const MAX_PORTS: usize = 64;
const MAX_SERVER_IDS: usize = 64;
const MAX_CLIENTS: usize = 1_000;
const MAX_GATEWAYS: usize = 64;

/// Zones of the machine's own names, and of those that the search list of a pod completes (`{name}.{namespace}.svc`): beside
/// the cluster's own DNS domain, hosts in them are never a peer's.
const LOCAL_ZONES: [&str; 2] = ["svc", "localhost"];

/// Last labels of DNS names that never are the address of a gateway elsewhere.
const LOCAL_NAMES: [&str; 5] = ["local", "localhost", "svc", "pod", "localdomain"];

/// Why a service is not imported, or nothing was generated for it; `R` are the reasons of the condition that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal<R = AdmittedReason> {
    pub reason: R,
    /// `False`; or `Unknown` while it is only not done yet.
    pub status: Truth,
    /// Names the service, the cause and what to do.
    pub message: String,
}

impl<R> Refusal<R> {
    pub(super) fn new(reason: R, message: impl Into<String>) -> Self {
        Self { reason, status: Truth::False, message: message.into() }
    }
}

impl<R: Reason> From<Refusal<R>> for Outcome {
    fn from(refusal: Refusal<R>) -> Self {
        Self::Refused { reason: refusal.reason.as_str().to_owned(), message: refusal.message }
    }
}

/// The rules for one peer. Equal rules judge alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    peer: Arc<Peer>,
    around: Arc<Surroundings>,
}

/// What all peers are judged by. Made once a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Our own trust domain and those of the peers.
    trust_domains: BTreeSet<String>,
    /// The DNS domain of our cluster.
    cluster_domain: String,
    own: OwnAddresses,
    gateways: BTreeSet<GatewayAddress>,
    /// The namespaces of our cluster.
    namespaces: BTreeSet<String>,
}

impl Surroundings {
    /// `pods` gives what [`addresses_of_pods`] does; it is not always asked.
    #[must_use]
    pub fn new(world: &World, pods: impl FnOnce() -> Arc<BTreeSet<IpAddr>>) -> Self {
        let trust_domains = world.peers.keys().chain(world.own_trust_domain());
        Self {
            trust_domains: trust_domains.map(ToString::to_string).collect(),
            cluster_domain: world.settings.cluster_domain.clone(),
            own: OwnAddresses::new(world, pods),
            gateways: own_gateways(world),
            namespaces: world.namespaces.keys().cloned().collect(),
        }
    }
}

/// The gateways of our own exports: a peer that names one would have us call ourselves.
fn own_gateways(world: &World) -> BTreeSet<GatewayAddress> {
    let given = world.services.values().flat_map(|service| &service.gateways).map(|gateway| &gateway.at);
    given.chain(Gateways::discover(world).addresses()).cloned().collect()
}

/// The addresses of our own pods, and of the nodes on which they are.
pub(super) fn addresses_of_pods(world: &World) -> BTreeSet<IpAddr> {
    let all = world
        .pods
        .values()
        .flat_map(|pod| pod.ip.into_iter().chain(pod.host_ip).chain(pod.other_ips.iter().copied()));
    all.map(|ip| ip.to_canonical()).collect()
}

/// The addresses of our own pods, nodes and Services, where a peer names addresses at all. An index, made once a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OwnAddresses {
    /// Pods, and the nodes on which they are.
    pods: Arc<BTreeSet<IpAddr>>,
    /// The cluster IPs of Services.
    services: BTreeSet<IpAddr>,
}

impl OwnAddresses {
    fn new(world: &World, pods: impl FnOnce() -> Arc<BTreeSet<IpAddr>>) -> Self {
        let heard = world.sessions.values().filter_map(|session| session.catalogue.as_deref());
        let heard = heard.flat_map(|catalogue| catalogue.services.values());
        let mut known = heard.chain(world.imported.values().map(|imported| &imported.service));
        let is_ip = |gateway: &GatewayAddress| matches!(gateway.address, Address::Ip(_));
        if !known.any(|service| !service.endpoints.is_empty() || service.gateways.iter().any(is_ip)) {
            return Self::default();
        }
        let services = world.cluster_services.values().flat_map(|service| &service.cluster_ips).copied();
        Self { pods: pods(), services: services.map(|ip| ip.to_canonical()).collect() }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        is_of(&self.pods, ip) || is_of(&self.services, ip)
    }
}

/// Whether an address, or the IPv4 one that it carries, is one of these.
fn is_of(all: &BTreeSet<IpAddr>, ip: IpAddr) -> bool {
    let carried = match ip {
        IpAddr::V6(ip) => carried_v4(ip).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    all.contains(&ip) || carried.is_some_and(|ip| all.contains(&ip))
}

impl Admission {
    /// Of the peer, nothing counts that changes with each write of its object.
    #[must_use]
    pub const fn new(peer: Arc<Peer>, around: Arc<Surroundings>) -> Self {
        Self { peer, around }
    }

    /// Whom it judges.
    #[must_use]
    pub const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The host at which the service is to be called here. The number of services is not looked at.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn admit(&self, service: &RemoteService) -> Result<String, Refusal> {
        let refuse = |reason, cause: String| {
            Err(Refusal::new(reason, format!("{} of {}: {cause}", service.name, self.peer.trust_domain)))
        };
        if !self.peer.imports.services.iter().any(|pattern| pattern.matches(&service.name)) {
            return refuse(
                AdmittedReason::NotAdmitted,
                "spec.imports.services of the importer does not admit it".to_owned(),
            );
        }
        let host = match service.name.host(&self.peer.trust_domain) {
            Ok(host) => host,
            Err(e) => return refuse(AdmittedReason::from(&e), e.to_string()),
        };
        let checked = self
            .shadows(service, &host)
            .and_then(|()| ports(service))
            .and_then(|()| self.identities(service))
            .and_then(|()| self.endpoints(service));
        match checked {
            Ok(()) => Ok(host),
            Err((reason, cause)) => refuse(reason, cause),
        }
    }

    /// A host has exactly two labels before its trust domain, so two trust domains never make the same one; but the labels that
    /// a peer chooses must not put a host into a zone that is the cluster's, ours or another peer's. A trust domain that
    /// lies below another one by itself was named by whoever wrote its TrustDomainPeer. Nor may a host be what our pods call one of
    /// our own pods by, `{pod}.{service}.{namespace}`.
    fn shadows(&self, service: &RemoteService, host: &str) -> Result<(), (AdmittedReason, String)> {
        let cluster_domain = self.around.cluster_domain.as_str();
        let local = LOCAL_ZONES.into_iter().chain([cluster_domain]).find(|zone| is_in_zone(host, zone));
        if let Some(zone) = local {
            return Err((
                AdmittedReason::HostShadows,
                format!("{host} lies in {zone}, which is the importer's own"),
            ));
        }
        let td = self.peer.trust_domain.as_str();
        if !td.contains('.') && self.around.namespaces.contains(td) {
            return Err((
                AdmittedReason::HostShadows,
                format!(
                    "{host} is a name of three labels that ends in {td}, a namespace of the importer, by which its pods call one \
                     another; nothing is imported from a trust domain of that name while the namespace is there"
                ),
            ));
        }
        let zone = format!("{}.{td}", service.name.namespace());
        let is_others = |zone: &&str| *zone != td && self.around.trust_domains.contains(*zone);
        match [zone.as_str(), host].into_iter().find(is_others) {
            Some(other) => Err((
                AdmittedReason::HostShadows,
                format!(
                    "{host} lies in the trust domain {other}; export it from another namespace or by another name"
                ),
            )),
            None => Ok(()),
        }
    }

    fn identities(&self, service: &RemoteService) -> Result<(), (AdmittedReason, String)> {
        let td = &self.peer.trust_domain;
        if service.server_ids.is_empty() {
            return Err((
                AdmittedReason::NoServerId,
                "it names no SPIFFE ID of its servers, so none could be pinned".to_owned(),
            ));
        }
        if let Some(id) = service.server_ids.iter().find(|id| !id.is_member_of(td)) {
            return Err((
                AdmittedReason::ForeignServerId,
                format!("its server ID {id} is not in its own trust domain"),
            ));
        }
        if service.server_ids.len() > MAX_SERVER_IDS {
            let count = service.server_ids.len();
            return Err((
                AdmittedReason::TooManyIds,
                format!("it names {count} server IDs, over {MAX_SERVER_IDS}"),
            ));
        }
        if service.clients.len() > MAX_CLIENTS {
            let count = service.clients.len();
            return Err((
                AdmittedReason::TooManyIds,
                format!("it names {count} clients, over {MAX_CLIENTS}"),
            ));
        }
        Ok(())
    }

    fn endpoints(&self, service: &RemoteService) -> Result<(), (AdmittedReason, String)> {
        if service.gateways.is_empty() && service.endpoints.is_empty() {
            return Err((AdmittedReason::NoGateway, "it names no gateway".to_owned()));
        }
        let most = self.peer.imports.max_endpoints_per_service.min(MAX_GATEWAYS);
        let count = service.gateways.len().max(service.endpoints.len());
        if count > most {
            return Err((
                AdmittedReason::TooManyEndpoints,
                format!("it has {count} endpoints, over the importer's {most}"),
            ));
        }
        for gateway in &service.gateways {
            self.endpoint(gateway).map_err(|cause| {
                (
                    AdmittedReason::AddressNotAdmitted,
                    format!("its endpoint {}:{} {cause}", gateway.address, gateway.port),
                )
            })?;
        }
        for pod in &service.endpoints {
            self.pod(service, pod).map_err(|cause| {
                (AdmittedReason::AddressNotAdmitted, format!("its endpoint {} {cause}", pod.address))
            })?;
        }
        Ok(())
    }

    /// A pod of the peer's: nothing of our own cluster, with a port for each port of the service.
    fn pod(&self, service: &RemoteService, pod: &DirectEndpoint) -> Result<(), String> {
        let names: BTreeSet<&String> = service.ports.iter().map(|port| &port.name).collect();
        if pod.ports.keys().collect::<BTreeSet<_>>() != names {
            return Err("does not have a port for each of the service's".to_owned());
        }
        if self.around.own.contains(pod.address) {
            return Err("is an address of the importer's own cluster".to_owned());
        }
        pod.ports.values().try_for_each(|port| {
            self.endpoint(&GatewayAddress { address: Address::Ip(pod.address), port: *port })
        })
    }

    fn endpoint(&self, gateway: &GatewayAddress) -> Result<(), String> {
        let cidrs = &self.peer.imports.endpoint_cidrs;
        if gateway.port == 0 {
            return Err("has no port".to_owned());
        }
        let ours = &self.around.gateways;
        if ours.contains(gateway) || ours.contains(&in_ipv4(gateway)) {
            return Err("is a gateway of the importer itself".to_owned());
        }
        match &gateway.address {
            Address::Ip(ip) => {
                if let Some(what) = forbidden(*ip) {
                    return Err(format!("is {what}"));
                }
                // An importer that gives CIDRs says of its nodes' networks itself whether gateways of the peer are there.
                let own = &self.around.own;
                if is_of(&own.services, *ip) || (cidrs.is_empty() && is_of(&own.pods, *ip)) {
                    return Err("is an address of the importer's own cluster".to_owned());
                }
                if !cidrs.is_empty() && !cidrs.iter().any(|cidr| is_in_cidr(*ip, cidr)) {
                    return Err("lies outside spec.imports.endpointCIDRs of the importer".to_owned());
                }
                Ok(())
            }
            Address::Dns(_) if !cidrs.is_empty() => {
                Err("is a name, and spec.imports.endpointCIDRs of the importer admits addresses only"
                    .to_owned())
            }
            Address::Dns(name) if is_in_zone(name, &self.around.cluster_domain) => {
                Err(format!("is a name in {}, which is the importer's own", self.around.cluster_domain))
            }
            Address::Dns(name) => dns(name, |label| self.around.namespaces.contains(label)),
        }
    }
}

fn ports(service: &RemoteService) -> Result<(), (AdmittedReason, String)> {
    let fail = |cause: String| Err((AdmittedReason::PortsInvalid, cause));
    if service.ports.is_empty() || service.ports.len() > MAX_PORTS {
        return fail(format!("it has {} ports; 1 to {MAX_PORTS} are legal", service.ports.len()));
    }
    let numbers: BTreeSet<u16> = service.ports.iter().map(|p| p.port).collect();
    let names: BTreeSet<&str> = service.ports.iter().map(|p| p.name.as_str()).collect();
    if numbers.contains(&0) || names.iter().any(|name| !is_dns_label(name)) {
        return fail("a port has no number, or a name that is no DNS label".to_owned());
    }
    if numbers.len() != service.ports.len() || names.len() != service.ports.len() {
        return fail("two of its ports have one number or one name".to_owned());
    }
    Ok(())
}

fn is_in_zone(host: &str, zone: &str) -> bool {
    host.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A name of fewer than three labels is refused as well: a pod's search list completes `{name}.{namespace}` to a service of
/// the cluster before the name itself is tried; and of three, `{pod}.{service}.{namespace}` to one of its pods.
fn dns(name: &str, is_namespace: impl Fn(&str) -> bool) -> Result<(), String> {
    let labels: Vec<&str> = name.split('.').collect();
    if !crate::model::name::is_dns_host(name) {
        return Err("is not a DNS host name".to_owned());
    }
    match labels.last() {
        Some(last) if LOCAL_NAMES.contains(last) => Err(format!("is a name in .{last}, which is local")),
        _ if labels.len() < 3 => {
            Err("is a name of fewer than three labels, which a cluster's search list would complete"
                .to_owned())
        }
        Some(last) if labels.len() == 3 && is_namespace(last) => Err(format!(
            "is a name of three labels that ends in {last}, a namespace here, which a cluster's search list would complete"
        )),
        _ => Ok(()),
    }
}

/// What an address is that never is a gateway elsewhere. IPv6 addresses that carry an IPv4 one (mapped, compatible, NAT64,
/// 6to4) are what that one is.
pub(crate) fn forbidden(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => forbidden_v4(ip),
        IpAddr::V6(ip) if ip.is_loopback() => Some("a loopback address"),
        IpAddr::V6(ip) if ip.is_unspecified() => Some("the unspecified address"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(ip) => carried_v4(ip).and_then(forbidden_v4),
    }
}

fn forbidden_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [first, ..] = ip.octets();
    if ip.is_loopback() {
        Some("a loopback address")
    } else if first == 0 {
        Some("an address of this network, as the unspecified one")
    } else if ip.is_link_local() {
        Some("a link-local address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if ip.is_broadcast() {
        Some("the broadcast address")
    } else if first >= 240 {
        // Istio gives addresses of 240.240.0.0/16 to hosts that have none.
        Some("a reserved address")
    } else {
        None
    }
}

fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// The gateway by its IPv4 address, where its IPv6 one carries one.
fn in_ipv4(gateway: &GatewayAddress) -> GatewayAddress {
    let carried = match &gateway.address {
        Address::Ip(IpAddr::V6(ip)) => carried_v4(*ip),
        Address::Ip(IpAddr::V4(_)) | Address::Dns(_) => None,
    };
    let address = carried.map_or_else(|| gateway.address.clone(), |ip| Address::Ip(IpAddr::V4(ip)));
    GatewayAddress { address, port: gateway.port }
}

/// An IPv4 address that is written as IPv6 lies in the CIDRs of either form.
fn is_in_cidr(ip: IpAddr, cidr: &IpNet) -> bool {
    cidr.contains(&ip) || cidr.contains(&ip.to_canonical())
}

#[cfg(test)]
mod tests;
