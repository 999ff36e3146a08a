//! Without Istio a local name is what the agent's DNS server answers.
//!
//! Where clients are served by xDS, the name has an address of its own, on which their Envoys listen: what comes there goes to the
//! cluster's own endpoints and to the peers'. Ours are the ready pods that the Service selects, on the ports that it targets,
//! which is what Kubernetes takes for its endpoints; of a Service that selects none, its own address, behind which Kubernetes has
//! them. Where no Service has the name, they are the endpoints of a FederatedService of that name that gives some, as one on machines
//! does. Without xDS nothing leads anywhere, and the name has the address of one import; where the cluster has a Service of that name,
//! that is who answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::LocalReason;
use crate::model::cluster::{ClusterPort, ClusterService, ClusterServiceKind, TargetPort, Transport};
use crate::model::import::Imported;
use crate::model::object::{Kind, ObjectKey};
use crate::model::service::{Address, AppProtocol, ExportedPort, GatewayAddress, RemotePort, Service};
use crate::model::{NamespacedName, Peer, ServiceName, TrustDomain, World};
use crate::plan::admission::Refusal;
use crate::plan::pods::Pods;

use super::addresses::Addresses;
use super::endpoints::ready_pods;
use super::local::{LocalPlan, LocalReport, Served, asked, host};

/// A local name as clients of xDS have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalName {
    pub host: String,
    /// Where clients call it; never empty.
    pub addresses: Vec<IpAddr>,
    /// Whether our own endpoints have all while there are any.
    pub local_first: bool,
    /// Whose imports answer there, the older peer's first; never empty.
    pub members: Vec<NamespacedName>,
    pub ports: Vec<LocalNamePort>,
}

/// A port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNamePort {
    pub number: u16,
    pub name: String,
    pub protocol: AppProtocol,
    /// Our own endpoints.
    pub near: BTreeSet<GatewayAddress>,
    /// The imports that answer at it, each with its own port.
    pub to: Vec<(NamespacedName, u16)>,
}

impl LocalName {
    /// So many peers share a name at most: for each set of them that a client may call there are resources.
    pub const MOST: usize = 4;
}

/// One import that is to answer at its local name.
#[derive(Clone, Copy)]
struct Member<'a> {
    peer: &'a Peer,
    imported: &'a Arc<Imported>,
    local_first: bool,
}

/// Decides on the local name of every import that stands and whose peer asks for one.
pub(super) fn plan(
    world: &World,
    standing: &BTreeMap<ObjectKey, (TrustDomain, ServiceName)>,
    addresses: &Addresses,
) -> LocalPlan {
    let mut plan = LocalPlan::default();
    let mut groups: BTreeMap<&ServiceName, Vec<Member<'_>>> = BTreeMap::new();
    for (key, (td, name)) in standing {
        let (Some(namespace), Some(peer)) = (&key.namespace, world.peers.get(td)) else { continue };
        let import = NamespacedName::new(namespace, &key.name);
        let Some(imported) = world.imported.get(&import) else { continue };
        match asked(peer, &world.settings, name) {
            None => {}
            Some(Ok(local_first)) => {
                groups.entry(name).or_default().push(Member { peer, imported, local_first });
            }
            Some(Err(refusal)) => {
                plan.reports.insert(import, Err(refusal));
            }
        }
    }
    let (mut pods, mut given) = (Pods::default(), BTreeMap::new());
    if world.settings.serves_xds && !groups.is_empty() {
        pods = ready_pods(world, groups.keys().map(|name| name.namespace()));
        let services = world.services.values().filter(|service| service.is_outside());
        given = services.map(|service| (&service.name, service)).collect();
    }
    for (name, mut members) in groups {
        members.sort_by_key(|m| (m.peer.created.is_none(), m.peer.created, &m.peer.trust_domain));
        let service = NamespacedName::new(name.namespace(), name.name());
        let service = world.cluster_services.get(&service).map(|service| &**service);
        let ours = match service {
            Some(service) => Some(Ours::of_cluster(service, &pods)),
            None => given.get(name).map(|service| Ours::given(service)),
        };
        let local = ByName { host: host(&world.settings, name), service, ours, addresses };
        if world.settings.serves_xds {
            local.share(&members, &mut plan);
        } else {
            local.alone(&members, &mut plan);
        }
    }
    plan
}

/// One local name.
struct ByName<'a> {
    host: String,
    service: Option<&'a ClusterService>,
    ours: Option<Ours>,
    addresses: &'a Addresses,
}

/// What is called by the name here without any peer.
struct Ours {
    /// For messages.
    object: String,
    /// Why it cannot be shared.
    obstacle: Option<&'static str>,
    /// With our own endpoints alone.
    ports: Vec<LocalNamePort>,
}

impl Ours {
    fn of_cluster(service: &ClusterService, pods: &Pods<'_>) -> Self {
        let obstacle = if service.is_headless || service.kind == ClusterServiceKind::ExternalName {
            Some("has no cluster IP, so its callers have the addresses of its endpoints")
        } else if service.ports.iter().any(|port| port.transport != Transport::Tcp) {
            Some("has a port that is not TCP, to which nothing would lead any more")
        } else {
            None
        };
        let port = |port: &ClusterPort| {
            // What is spoken is bytes, where that is not known here.
            let protocol = port.protocol().unwrap_or(AppProtocol::Tcp);
            LocalNamePort::ours(port.number, &port.name, protocol, near(service, port, pods))
        };
        let ports = service.ports.iter().map(port).collect();
        Self { object: format!("{} {}", Kind::Service, service.object), obstacle, ports }
    }

    /// An endpoint on the machine of the server's own Envoy is none for clients elsewhere.
    fn given(service: &Service) -> Self {
        let is_elsewhere = |address: &&Address| !matches!(address, Address::Ip(ip) if ip.is_loopback());
        let port = |port: &ExportedPort| {
            let at = service.endpoints.iter().filter(is_elsewhere);
            let at = at.map(|at| GatewayAddress { address: at.clone(), port: port.target_port });
            LocalNamePort::ours(port.port, &port.name, port.protocol, at.collect())
        };
        let ports = service.ports.iter().map(port).collect();
        Self { object: service.to_string(), obstacle: None, ports }
    }
}

impl LocalNamePort {
    fn ours(number: u16, name: &str, protocol: AppProtocol, near: BTreeSet<GatewayAddress>) -> Self {
        // The only port of a Service may have no name, and what DNS answers for has one.
        let made_up = || format!("{}-{number}", protocol.as_str());
        let name = if name.is_empty() { made_up() } else { name.to_owned() };
        Self { number, name, protocol, near, to: Vec::new() }
    }
}

impl ByName<'_> {
    fn refuse(&self, reason: LocalReason, cause: &str) -> Refusal<LocalReason> {
        Refusal::new(reason, format!("{}: {cause}", self.host))
    }

    /// Without xDS: the older peer's import has the name, if no Service has it.
    fn alone(&self, members: &[Member<'_>], plan: &mut LocalPlan) {
        let mut first: Option<&Peer> = None;
        for member in members {
            let report = self.of_one(member, first);
            if report.is_ok() {
                first = Some(member.peer);
            }
            plan.reports.insert(member.imported.object.clone(), report);
        }
    }

    fn of_one(&self, member: &Member<'_>, first: Option<&Peer>) -> LocalReport {
        self.fits()?;
        if let Some(service) = self.service {
            let cause = format!(
                "{} {} has the name, and without Istio and without xDS (--xds-listen) nothing is led past it",
                Kind::Service,
                service.object
            );
            return Err(self.refuse(LocalReason::ServiceExists, &cause));
        }
        if let Some(first) = first {
            let cause = format!(
                "the import of TrustDomainPeer {}, which is older, answers there; without Istio and without xDS one import \
                 has the name",
                first.object
            );
            return Err(self.refuse(LocalReason::OlderPeerServes, &cause));
        }
        let addresses = self.addresses(&member.imported.object.name)?;
        Ok(self.served(addresses, Vec::new(), Vec::new()))
    }

    /// With xDS: imports of several peers share it, with the Service's own endpoints.
    fn share(&self, members: &[Member<'_>], plan: &mut LocalPlan) {
        let refuse_all = |plan: &mut LocalPlan, refusal: &Refusal<LocalReason>| {
            let all = members.iter().map(|member| (member.imported.object.clone(), Err(refusal.clone())));
            plan.reports.extend(all);
        };
        let addresses = match self.possible() {
            Ok(addresses) => addresses,
            Err(refusal) => return refuse_all(plan, &refusal),
        };
        let mut serving: Vec<Member<'_>> = Vec::new();
        for member in members {
            match self.joins(member, &serving) {
                Ok(()) => serving.push(*member),
                Err(refusal) => {
                    plan.reports.insert(member.imported.object.clone(), Err(refusal));
                }
            }
        }
        if serving.is_empty() {
            return;
        }
        let ports = self.ports(&serving);
        let names: Vec<(u16, String)> = ports.iter().map(|port| (port.number, port.name.clone())).collect();
        for member in &serving {
            let notes = self.left_out(member, &serving).into_iter().collect();
            let served = self.served(addresses.clone(), names.clone(), notes);
            plan.reports.insert(member.imported.object.clone(), Ok(served));
        }
        let name = LocalName {
            host: self.host.clone(),
            addresses,
            local_first: serving.iter().any(|member| member.local_first),
            members: serving.iter().map(|member| member.imported.object.clone()).collect(),
            ports,
        };
        plan.names.insert(self.host.clone(), Arc::new(name));
    }

    fn fits(&self) -> Result<(), Refusal<LocalReason>> {
        if self.host.len() > 253 {
            return Err(self.refuse(LocalReason::HostTooLong, "it is longer than 253 characters"));
        }
        Ok(())
    }

    fn addresses(&self, of: &str) -> Result<Vec<IpAddr>, Refusal<LocalReason>> {
        match self.addresses.of(of) {
            Ok([]) => Err(self.refuse(LocalReason::NotGenerated, "imports are given no addresses here")),
            Ok(addresses) => Ok(addresses.to_vec()),
            Err(cause) => Err(self.refuse(LocalReason::NotGenerated, &cause)),
        }
    }

    /// Whether anything can answer at the name, whoever is to; at which addresses.
    fn possible(&self) -> Result<Vec<IpAddr>, Refusal<LocalReason>> {
        self.fits()?;
        if let Some((ours, obstacle)) = self.ours.as_ref().and_then(|ours| Some((ours, ours.obstacle?))) {
            let cause = format!("{} {obstacle}; call the federated name", ours.object);
            return Err(self.refuse(LocalReason::ServiceNotSupported, &cause));
        }
        self.addresses(&self.host)
    }

    /// Whether an import can answer beside those that do.
    fn joins(&self, member: &Member<'_>, serving: &[Member<'_>]) -> Result<(), Refusal<LocalReason>> {
        let (object, export_to) = (&member.peer.object, &member.peer.imports.export_to);
        if export_to.iter().any(|to| to == "~") {
            let cause =
                format!("spec.imports.exportTo of TrustDomainPeer {object} is ~, so nobody would see it");
            return Err(self.refuse(LocalReason::NotVisible, &cause));
        }
        if serving.len() >= LocalName::MOST {
            let cause = format!("{} older TrustDomainPeers serve it, and no more can", LocalName::MOST);
            return Err(self.refuse(LocalReason::OlderPeerServes, &cause));
        }
        let set = |peer: &Peer| peer.imports.export_to.iter().cloned().collect::<BTreeSet<String>>();
        if let Some(first) = serving.first().filter(|first| set(first.peer) != set(member.peer)) {
            let cause = format!(
                "spec.imports.exportTo of TrustDomainPeer {object} is not that of {}, which serves the name too and is older",
                first.peer.object
            );
            return Err(self.refuse(LocalReason::ExportToDiffers, &cause));
        }
        if self.led(member, serving).is_empty() {
            let is_tls = |port: &RemotePort| !is_legible(port.protocol);
            let cause = match &self.ours {
                Some(ours) => format!(
                    "none of its ports has the number or the name of one of {} that speaks the same, without TLS",
                    ours.object
                ),
                None if member.imported.service.ports.iter().all(is_tls) => {
                    "TLS is spoken on all of its ports".to_owned()
                }
                None => "none of its ports without TLS speaks what the older TrustDomainPeers' speak at its number".to_owned(),
            };
            return Err(self.refuse(LocalReason::PortsDiffer, &cause));
        }
        Ok(())
    }

    /// The ports of an import that can be called at the local name, beside those of these: there, and at its own.
    fn led(&self, member: &Member<'_>, serving: &[Member<'_>]) -> Vec<(u16, u16)> {
        let theirs = member.imported.service.ports.iter().filter(|port| is_legible(port.protocol));
        let theirs: Vec<&RemotePort> = theirs.collect();
        let Some(ours) = &self.ours else {
            let there: BTreeMap<u16, &RemotePort> = of_peers(serving).map(|port| (port.port, port)).collect();
            let is_alike = |port: &&RemotePort| {
                there.get(&port.port).is_none_or(|here| speaks_alike(here.protocol, port.protocol))
            };
            return theirs.into_iter().filter(is_alike).map(|port| (port.port, port.port)).collect();
        };
        let of = |ours: &LocalNamePort| {
            let same = theirs.iter().find(|port| port.port == ours.number);
            let alike = || theirs.iter().find(|port| port.name == ours.name);
            let there = same.or_else(alike)?;
            speaks_alike(ours.protocol, there.protocol).then_some((ours.number, there.port))
        };
        ours.ports.iter().filter_map(of).collect()
    }

    /// What of an import does not answer there.
    fn left_out(&self, member: &Member<'_>, serving: &[Member<'_>]) -> Option<String> {
        let led = self.led(member, serving);
        let left = member.imported.service.ports.iter();
        let left = left.filter(|port| !led.iter().any(|(_, there)| *there == port.port));
        let left: Vec<String> = left.map(|port| format!("{} ({})", port.port, port.name)).collect();
        (!left.is_empty()).then(|| format!("not served there: port {}", left.join(", ")))
    }

    fn ports(&self, serving: &[Member<'_>]) -> Vec<LocalNamePort> {
        let mut ports: BTreeMap<u16, LocalNamePort> = match &self.ours {
            Some(ours) => ours.ports.iter().map(|port| (port.number, port.clone())).collect(),
            None => {
                let port = |port: &RemotePort| {
                    let none = BTreeSet::new();
                    (port.port, LocalNamePort::ours(port.port, &port.name, port.protocol, none))
                };
                of_peers(serving).map(port).collect()
            }
        };
        for member in serving {
            for (here, there) in self.led(member, serving) {
                if let Some(port) = ports.get_mut(&here) {
                    port.to.push((member.imported.object.clone(), there));
                }
            }
        }
        ports.into_values().collect()
    }

    fn served(&self, addresses: Vec<IpAddr>, ports: Vec<(u16, String)>, notes: Vec<String>) -> Served {
        Served {
            host: self.host.clone(),
            is_merged: self.ours.is_some(),
            by_name: true,
            addresses,
            ports,
            generated: Vec::new(),
            notes,
        }
    }
}

/// The ports of a name that nothing of ours has, of which of two of one number the older peer's comes last.
fn of_peers<'a>(serving: &'a [Member<'a>]) -> impl Iterator<Item = &'a RemotePort> {
    let all = serving.iter().rev().flat_map(|member| &member.imported.service.ports);
    all.filter(|theirs| is_legible(theirs.protocol))
}

/// Whether it does not begin with TLS of the application's own, which is for the name that is called.
const fn is_legible(protocol: AppProtocol) -> bool {
    !matches!(protocol, AppProtocol::Tls | AppProtocol::Https)
}

/// Whether what is said at a port of ours is understood at a peer's.
const fn speaks_alike(here: AppProtocol, there: AppProtocol) -> bool {
    use AppProtocol::{Grpc, Http, Http2, Https, Tcp, Tls};
    match here {
        Tcp => is_legible(there),
        Http => matches!(there, Http | Tcp),
        Http2 | Grpc => matches!(there, Http2 | Grpc | Tcp),
        Tls | Https => false,
    }
}

/// Our own endpoints behind a port of a Service.
fn near(service: &ClusterService, port: &ClusterPort, pods: &Pods<'_>) -> BTreeSet<GatewayAddress> {
    let at = |ip: IpAddr, port: u16| GatewayAddress { address: Address::Ip(ip), port };
    if service.selector.is_empty() {
        return service.cluster_ips.iter().map(|ip| at(*ip, port.number)).collect();
    }
    let of = |pod: &Arc<crate::model::cluster::Pod>| {
        let number = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => *pod.named_ports.get(name)?,
        };
        Some(at(pod.ip?, number))
    };
    pods.selected(&service.object.namespace, &service.selector).filter_map(of).collect()
}
