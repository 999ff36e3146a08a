//! Which imported services also answer at their local name, only where `imports.asLocal` asks for it.
//!
//! Services of several peers that have one name are served together, the older TrustDomainPeer first; each harms only itself.
//! What a peer says decides on nothing here but whether there is such a service and which ports it has: the name has to be
//! asked for by the TrustDomainPeer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::api::v1alpha1::conditions::{GeneratedReason, LocalReason};
use crate::model::cluster::{ClusterService, ClusterServiceKind};
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::service::AppProtocol;
use crate::model::world::Settings;
use crate::model::{NamespacedName, Peer, ServiceName, World};
use crate::plan::admission::Refusal;
use crate::plan::istio::import::passes_through;
use crate::plan::istio::local::{self as shape, LocalPort, Spoken};
use crate::plan::{generated, imports};

use super::Claims;
use super::addresses::{Addresses, in_text};
use super::by_name::LocalName;
use super::endpoints::{has_any, ready_pods};

/// Whether one import answers at its local name, for its status.
pub type LocalReport = Result<Served, Refusal<LocalReason>>;

/// An import that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub host: String,
    /// Whether the cluster has a Service of that name.
    pub is_merged: bool,
    /// Whether it is answered by DNS alone, without Istio.
    pub by_name: bool,
    /// At which clients call it; with Istio, where it is not merged.
    pub addresses: Vec<IpAddr>,
    /// Its ports, where they are not those of the import.
    pub ports: Vec<(u16, String)>,
    /// What stands in the store for it.
    pub generated: Vec<ObjectKey>,
    /// What of it is not served there, and why.
    pub notes: Vec<String>,
}

/// One import that is to answer at its local name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub peer: &'a Peer,
    pub imported: &'a Imported,
    pub local_first: bool,
}

/// What comes of all of them.
#[derive(Debug, Default)]
pub(super) struct LocalPlan {
    pub objects: Vec<Object>,
    /// By ImportedService.
    pub reports: BTreeMap<NamespacedName, LocalReport>,
    pub blocked: BTreeMap<ObjectKey, String>,
    /// By host, what clients of xDS call.
    pub names: BTreeMap<String, Arc<LocalName>>,
}

/// Whether a service of the peer is to answer at its local name: `None` where nothing asks for that, else whether the cluster's
/// own endpoints come first.
///
/// # Errors
/// Where only a `*` asks for it, and the name is one of the cluster's own workings.
pub(super) fn asked(
    peer: &Peer,
    settings: &Settings,
    name: &ServiceName,
) -> Option<Result<bool, Refusal<LocalReason>>> {
    let mut matching = peer.imports.as_local.iter().filter(|local| local.pattern.matches(name)).peekable();
    matching.peek()?;
    let is_kubernetes = (name.namespace(), name.name()) == ("default", "kubernetes");
    let is_reserved = name.namespace().starts_with("kube-")
        || [settings.istio_namespace.as_str(), settings.namespace.as_str()].contains(&name.namespace());
    let is_named = |pattern: &crate::model::peer::ServicePattern| {
        (pattern.namespace.is_some() || !(is_reserved || is_kubernetes))
            && (pattern.name.is_some() || !is_kubernetes)
    };
    Some(match matching.find(|local| is_named(&local.pattern)) {
        Some(local) => Ok(local.local_first),
        None => Err(Refusal::new(
            LocalReason::NamespaceReserved,
            format!(
                "{name}: a * in spec.imports.asLocal of TrustDomainPeer {} does not stand for a name of the cluster's own \
                 workings; name it there if it is meant",
                peer.object
            ),
        )),
    })
}

/// Decides on the services of one name each. `unread` are the ImportedServices that cannot be read now.
#[must_use]
pub(super) fn plan(
    world: &World,
    groups: &BTreeMap<&ServiceName, Vec<Member<'_>>>,
    claims: &Claims<'_>,
    addresses: &Addresses,
    unread: &BTreeSet<String>,
) -> LocalPlan {
    let pods = ready_pods(world, groups.keys().map(|name| name.namespace()));
    let mut plan = LocalPlan::default();
    for (name, members) in groups {
        let mut members = members.clone();
        members.sort_by_key(|m| (m.peer.created.is_none(), m.peer.created, &m.peer.trust_domain));
        let service =
            world.cluster_services.get(&NamespacedName::new(name.namespace(), name.name())).map(|s| &**s);
        let local = Local {
            world,
            host: host(&world.settings, name),
            addresses,
            name,
            service,
            has_endpoints: service.is_some_and(|service| has_any(&pods, service)),
        };
        local.decide(&members, claims, unread, &mut plan);
    }
    plan
}

/// The local name of a service.
#[must_use]
pub(super) fn host(settings: &Settings, name: &ServiceName) -> String {
    format!("{name}.svc.{}", settings.cluster_domain)
}

/// What makes a local name one where the cluster has no Service of it.
#[must_use]
pub(super) fn entry_key(world: &World, name: &ServiceName) -> ObjectKey {
    // Beside where the Service would be, so that a Sidecar that takes in the namespace takes this in as well.
    let has_namespace = world.namespaces.contains_key(name.namespace());
    let namespace = if has_namespace { name.namespace() } else { world.settings.namespace.as_str() };
    ObjectKey::namespaced(Kind::ServiceEntry, namespace, host(&world.settings, name))
}

/// One local name.
struct Local<'a> {
    world: &'a World,
    name: &'a ServiceName,
    host: String,
    service: Option<&'a ClusterService>,
    addresses: &'a Addresses,
    /// Whether a local endpoint is ready.
    has_endpoints: bool,
}

impl Local<'_> {
    fn decide(
        &self,
        members: &[Member<'_>],
        claims: &Claims<'_>,
        unread: &BTreeSet<String>,
        plan: &mut LocalPlan,
    ) {
        let refuse = |plan: &mut LocalPlan, member: &Member<'_>, refusal: Refusal<LocalReason>| {
            plan.reports.insert(member.imported.object.clone(), Err(refusal));
        };
        if let Err(refusal) = self.possible(claims, unread) {
            for key in self.keys() {
                if let Err(message) = generated::claim(self.world, &key) {
                    plan.blocked.insert(key, message);
                }
            }
            members.iter().for_each(|member| refuse(plan, member, refusal.clone()));
            return;
        }
        let mut serving: Vec<Member<'_>> = Vec::new();
        for member in members {
            let first = serving.first().map_or(member, |first| first);
            match self.joins(member, first) {
                Ok(()) => serving.push(*member),
                Err(refusal) => refuse(plan, member, refusal),
            }
        }
        let Some(first) = serving.first() else { return };
        let export_to = self.export_to(first.peer);
        let (ports, mut notes) = self.ports(&serving);
        let objects = self.objects(&serving, &export_to, &ports);
        let keys: Vec<ObjectKey> = objects.iter().map(|object| object.key.clone()).collect();
        plan.objects.extend(objects);
        for member in &serving {
            let written: Result<Vec<ObjectKey>, _> =
                keys.iter().map(|key| imports::in_place(self.world, key.clone())).collect();
            let report = written.map_err(pending).map(|generated| Served {
                host: self.host.clone(),
                is_merged: self.service.is_some(),
                by_name: false,
                addresses: self.own_addresses(),
                ports: Vec::new(),
                generated,
                notes: notes.remove(&member.imported.object).unwrap_or_default(),
            });
            plan.reports.insert(member.imported.object.clone(), report);
        }
    }

    /// Those of its ServiceEntry, where it has one.
    fn own_addresses(&self) -> Vec<IpAddr> {
        if self.service.is_some() {
            Vec::new()
        } else {
            self.addresses.of(&self.host).unwrap_or_default().to_vec()
        }
    }

    /// The objects that it may need: the VirtualService first.
    fn keys(&self) -> Vec<ObjectKey> {
        let entry = entry_key(self.world, self.name);
        let kinds: &[Kind] = match self.service {
            Some(_) => &[Kind::VirtualService],
            None => &[Kind::VirtualService, Kind::ServiceEntry],
        };
        kinds.iter().map(|kind| ObjectKey { kind: *kind, ..entry.clone() }).collect()
    }

    /// Whether anything can answer at the name, whoever is to.
    fn possible(&self, claims: &Claims<'_>, unread: &BTreeSet<String>) -> Result<(), Refusal<LocalReason>> {
        let (world, host) = (self.world, &self.host);
        let refuse = |reason, cause: String| Err(Refusal::new(reason, format!("{host}: {cause}")));
        if host.len() > 253 {
            return refuse(LocalReason::HostTooLong, "it is longer than 253 characters".to_owned());
        }
        let needed = [Kind::VirtualService, Kind::ServiceEntry];
        if let Some(kind) = needed.into_iter().find(|kind| world.absent.contains(kind)) {
            let cause = format!("this cluster does not serve {kind} ({}); install Istio", kind.api_version());
            return refuse(LocalReason::IstioAbsent, cause);
        }
        if let Some(service) = self.service
            && (service.is_headless || service.kind == ClusterServiceKind::ExternalName)
        {
            let cause = format!(
                "Service {} has no cluster IP, so its callers have the addresses of its endpoints; call the federated name",
                service.object
            );
            return refuse(LocalReason::ServiceNotSupported, cause);
        }
        if let (None, Err(cause)) = (self.service, self.addresses.of(host)) {
            return refuse(LocalReason::NotGenerated, cause);
        }
        for key in self.keys() {
            if let Some(other) = unread_source(world, &key, unread) {
                let message = format!("{host}: {key} stays as it is until {other} can be read");
                return Err(Refusal {
                    reason: LocalReason::OtherUnreadable,
                    status: crate::model::condition::Truth::Unknown,
                    message,
                });
            }
            generated::claim(world, &key)
                .map_err(|message| Refusal::new(LocalReason::ObjectNotOurs, message))?;
            if let Some(keeper) = claims.keeper(world, host, &key, |_| true) {
                let cause = format!("{keeper} has this host, and was there first; delete one of them");
                return refuse(LocalReason::HostExists, cause);
            }
        }
        Ok(())
    }

    /// Whether an import can answer beside `first`.
    fn joins(&self, member: &Member<'_>, first: &Member<'_>) -> Result<(), Refusal<LocalReason>> {
        let refuse = |reason, cause: String| Err(Refusal::new(reason, format!("{}: {cause}", self.host)));
        let export_to = self.export_to(member.peer);
        if export_to.contains("~") {
            let cause = format!(
                "spec.imports.exportTo of TrustDomainPeer {} is ~, so nobody would see it",
                member.peer.object
            );
            return refuse(LocalReason::NotVisible, cause);
        }
        if export_to != self.export_to(first.peer) {
            let cause = format!(
                "spec.imports.exportTo of TrustDomainPeer {} is not that of {}, which serves the name too and is older",
                member.peer.object, first.peer.object
            );
            return refuse(LocalReason::ExportToDiffers, cause);
        }
        if self.served(member).is_empty() {
            let cause = match self.service {
                Some(service) => format!(
                    "none of its ports has the number or the name of one of Service {} on which TLS is not spoken",
                    service.object
                ),
                None => "TLS is spoken on all of its ports, which is routed only by the name that is called"
                    .to_owned(),
            };
            return refuse(LocalReason::PortsDiffer, cause);
        }
        Ok(())
    }

    /// The ports of an import that can be called at the local name: there, and at its own.
    fn served(&self, member: &Member<'_>) -> Vec<(u16, u16)> {
        let service = &member.imported.service;
        let theirs: Vec<_> =
            service.ports.iter().filter(|port| !passes_through(service.tls_mode, port)).collect();
        match self.service {
            Some(ours) => ours
                .ports
                .iter()
                .filter(|port| Spoken::on(port).is_some())
                .filter_map(|port| {
                    let same = theirs.iter().find(|their| their.port == port.number);
                    let alike = || theirs.iter().find(|their| their.name == port.name);
                    Some((port.number, same.or_else(alike)?.port))
                })
                .collect(),
            None => {
                let legible = theirs.iter().filter(|port| Spoken::of(port.protocol).is_some());
                legible.map(|port| (port.port, port.port)).collect()
            }
        }
    }

    /// The ports of the local name that lead to a peer; and what of each import does not answer there.
    fn ports(&self, serving: &[Member<'_>]) -> (Vec<LocalPort>, BTreeMap<NamespacedName, Vec<String>>) {
        let mut ports: BTreeMap<u16, LocalPort> = match self.service {
            Some(service) => service.ports.iter().filter_map(of_service).map(|p| (p.number, p)).collect(),
            None => of_peers(serving).map(|port| (port.number, port)).collect(),
        };
        let mut notes: BTreeMap<NamespacedName, Vec<String>> = BTreeMap::new();
        let remote_is_idle = self.has_endpoints && serving.iter().any(|member| member.local_first);
        let mut led = BTreeSet::new();
        for member in serving {
            let served = self.served(member);
            for (here, there) in &served {
                if let Some(port) = ports.get_mut(here).filter(|_| !remote_is_idle) {
                    port.to.push((member.imported.object.name.clone(), *there));
                }
                led.insert(*here);
            }
            let left = member.imported.service.ports.iter();
            let left = left.filter(|port| !served.iter().any(|(_, there)| *there == port.port));
            let left: Vec<String> = left.map(|port| format!("{} ({})", port.port, port.name)).collect();
            if !left.is_empty() {
                let note = format!("not served there: port {}", left.join(", "));
                notes.entry(member.imported.object.clone()).or_default().push(note);
            }
        }
        if self.has_endpoints {
            for port in ports.values_mut() {
                port.to.insert(0, (self.host.clone(), port.number));
            }
        }
        let mut ports: Vec<LocalPort> =
            ports.into_values().filter(|port| led.contains(&port.number)).collect();
        ports.retain(|port| !port.to.is_empty());
        (ports, notes)
    }

    fn objects(
        &self,
        serving: &[Member<'_>],
        export_to: &BTreeSet<String>,
        ports: &[LocalPort],
    ) -> Vec<Object> {
        let source = |member: &Member<'_>| generated::source(Kind::ImportedService, &member.imported.object);
        let mut sources: Vec<String> = serving.iter().map(source).collect();
        sources.sort();
        let mut owners: Vec<_> = serving.iter().map(|member| member.peer.owner()).collect();
        owners.sort();
        let peer = match serving {
            [only] => Some(&only.peer.trust_domain),
            _ => None,
        };
        let keys = self.keys().into_iter();
        keys.map(|key| {
            let spec = match key.kind {
                Kind::VirtualService => {
                    generated::spec(&shape::virtual_service(&self.host, export_to, ports))
                }
                _ => {
                    let addresses = in_text(self.addresses.of(&self.host).unwrap_or_default());
                    generated::spec(&shape::service_entry(&self.host, addresses, export_to, ports))
                }
            };
            generated::object(&self.world.settings, key, spec, owners.clone(), &sources, peer)
        })
        .collect()
    }

    /// `exportTo` as admitted; `.` is the agent's own namespace, wherever the object lies.
    fn export_to(&self, peer: &Peer) -> BTreeSet<String> {
        let own = &self.world.settings.namespace;
        peer.imports.export_to.iter().map(|to| if to == "." { own.clone() } else { to.clone() }).collect()
    }
}

/// A port of a Service that can be led elsewhere too.
fn of_service(port: &crate::model::cluster::ClusterPort) -> Option<LocalPort> {
    Some(LocalPort {
        number: port.number,
        name: port.name.clone(),
        // Where nothing that is known here is said, it is bytes, or HTTP for Istio to find out.
        protocol: port.said().unwrap_or(AppProtocol::Tcp),
        spoken: Spoken::on(port)?,
        to: Vec::new(),
    })
}

/// The ports of a name that no Service has: of two of one number, the older peer's.
fn of_peers<'a>(serving: &'a [Member<'_>]) -> impl Iterator<Item = LocalPort> + 'a {
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    let all = serving.iter().flat_map(|member| {
        let service = &member.imported.service;
        service.ports.iter().filter(|port| !passes_through(service.tls_mode, port))
    });
    all.filter_map(move |port| {
        let spoken = Spoken::of(port.protocol).filter(|_| numbers.insert(port.port))?;
        let made_up = format!("{}-{}", port.protocol.as_str(), port.port);
        let more = (2_u32..).map(|n| format!("{made_up}-{n}"));
        let mut candidates = [port.name.clone(), made_up.clone()].into_iter().chain(more);
        let name = candidates.find(|name| names.insert(name.clone()))?;
        Some(LocalPort { number: port.port, name, protocol: port.protocol, spoken, to: Vec::new() })
    })
}

/// An ImportedService that an object of ours was made of as well, and that cannot be read now.
fn unread_source<'a>(world: &World, key: &ObjectKey, unread: &'a BTreeSet<String>) -> Option<&'a str> {
    let there = world.objects.get(key).filter(|o| o.is_generated_by(&world.settings.instance))?;
    let sources = there.meta.annotations.get(crate::model::object::ANNOTATION_SOURCE)?;
    sources.split(',').find_map(|source| unread.get(source)).map(String::as_str)
}

fn pending(refusal: Refusal<GeneratedReason>) -> Refusal<LocalReason> {
    Refusal { reason: LocalReason::Pending, status: refusal.status, message: refusal.message }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
