//! What clients in the mesh need of an imported service: one ServiceEntry, beside its ImportedService.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::v1alpha1::conditions::GeneratedReason;
use crate::istio::service_entry::{Endpoint, LABEL_TLS_MODE, Location, Resolution};
use crate::istio::{Port, ServiceEntrySpec};
use crate::model::import::Imported;
use crate::model::object::{Kind, Object, ObjectKey, OwnerRef};
use crate::model::service::{Address, GatewayAddress};
use crate::model::world::Settings;
use crate::model::{Peer, World};
use crate::plan::admission::Refusal;
use crate::plan::memo::Memo;
use crate::plan::{diff, generated};

/// The hosts that ServiceEntries of others serve, anywhere in the cluster, each with the oldest of them.
#[derive(Debug)]
pub struct HostsServed<'a>(BTreeMap<String, (Option<Timestamp>, &'a ObjectKey)>);

impl<'a> HostsServed<'a> {
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut served: BTreeMap<String, (Option<Timestamp>, &ObjectKey)> = BTreeMap::new();
        let entries = world.of_kind(Kind::ServiceEntry).map(|(_, object)| object);
        for object in entries.filter(|object| !object.is_generated_by(&world.settings.instance)) {
            let hosts = object.spec().and_then(|spec| spec.get("hosts")).and_then(|hosts| hosts.as_array());
            for host in hosts.into_iter().flatten().filter_map(|host| host.as_str()) {
                let this = (object.meta.created, &object.key);
                let first = served.entry(host.to_ascii_lowercase()).or_insert(this);
                *first = (*first).min(this);
            }
        }
        Self(served)
    }

    /// The object that keeps the host: one that was there before `ours`, which is `None` where ours is not there yet.
    fn keeper(&self, host: &str, mine: &ObjectKey, ours: Option<&Object>) -> Option<&'a ObjectKey> {
        let (created, key) = self.0.get(host)?;
        let is_older = ours.is_none_or(|ours| *created <= ours.meta.created);
        (*key != mine && is_older).then_some(*key)
    }
}

/// The ServiceEntry has the name and the namespace of its ImportedService.
#[must_use]
pub fn key(imported: &Imported) -> ObjectKey {
    ObjectKey::namespaced(Kind::ServiceEntry, &imported.object.namespace, &imported.object.name)
}

/// The ServiceEntry of an admitted ImportedService: its endpoints are the peer's gateways, its SANs are the server IDs.
///
/// # Errors
/// Why there can be none. Where it is for want of Istio, the import stands nevertheless.
pub fn service_entry(
    world: &World,
    peer: &Arc<Peer>,
    imported: &Arc<Imported>,
    hosts: &HostsServed<'_>,
    memo: &mut Memo,
) -> Result<Arc<Object>, Refusal<GeneratedReason>> {
    let key = key(imported);
    let host = &imported.object.name;
    if world.absent.contains(&Kind::ServiceEntry) {
        let message = format!(
            "{host}: this cluster does not serve ServiceEntry (networking.istio.io/v1); install Istio"
        );
        return Err(Refusal::new(GeneratedReason::IstioAbsent, message));
    }
    generated::claim(world, &key).map_err(|message| Refusal::new(GeneratedReason::ObjectNotOurs, message))?;
    let observed = world.objects.get(&key).filter(|o| o.is_generated_by(&world.settings.instance));
    if let Some(keeper) = hosts.keeper(host, &key, observed.map(|o| &**o)) {
        let message =
            format!("{host} is already the host of {keeper}, which was there first; delete one of them");
        return Err(Refusal::new(GeneratedReason::HostExists, message));
    }
    let input = (memo.peer(peer), Arc::clone(imported));
    Ok(memo.entries.get(&key, &input, |(peer, imported)| {
        diff::seal(object(&world.settings, key.clone(), peer, imported))
    }))
}

/// The ServiceEntry; of these alone, so that it can be remembered.
fn object(settings: &Settings, key: ObjectKey, peer: &Peer, imported: &Imported) -> Object {
    let owner = OwnerRef {
        kind: Kind::ImportedService,
        name: imported.object.name.clone(),
        uid: imported.uid.clone(),
    };
    let source = generated::source(Kind::ImportedService, &imported.object);
    let spec = generated::spec(&spec(peer, imported, &imported.object.name));
    generated::object(settings, key, spec, vec![owner], &[source], Some(&imported.trust_domain))
}

fn spec(peer: &Peer, imported: &Imported, host: &str) -> ServiceEntrySpec {
    let service = &imported.service;
    let gateways: BTreeSet<&GatewayAddress> = service.gateways.iter().collect();
    // The endpoints say for themselves which port they listen on; this one is for whoever looks at the port alone.
    let target_port = gateways.first().map(|gateway| gateway.port);
    let mut ports: Vec<Port> = service
        .ports
        .iter()
        .map(|port| Port {
            number: port.port,
            name: port.name.clone(),
            protocol: port.protocol.istio().to_owned(),
            target_port,
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    let endpoints = gateways
        .iter()
        .map(|gateway| Endpoint {
            address: address(&gateway.address),
            ports: service.ports.iter().map(|port| (port.name.clone(), gateway.port)).collect(),
            labels: BTreeMap::from([(LABEL_TLS_MODE.to_owned(), "istio".to_owned())]),
        })
        .collect();
    let has_names = gateways.iter().any(|gateway| matches!(gateway.address, Address::Dns(_)));
    let mut subject_alt_names: Vec<String> = service.server_ids.iter().map(ToString::to_string).collect();
    subject_alt_names.sort();
    ServiceEntrySpec {
        hosts: vec![host.to_owned()],
        location: Some(Location::MeshInternal),
        resolution: Some(if has_names { Resolution::Dns } else { Resolution::Static }),
        export_to: peer.imports.export_to.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        ports,
        subject_alt_names,
        endpoints,
        workload_selector: None,
    }
}

/// An IPv4 address that came as IPv6 is written as what it is.
fn address(address: &Address) -> String {
    match address {
        Address::Ip(ip) => ip.to_canonical().to_string(),
        Address::Dns(name) => name.clone(),
    }
}
