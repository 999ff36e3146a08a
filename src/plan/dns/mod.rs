//! Which names the DNS server answers: those of the imports that stand, at the addresses that they were given.
//!
//! An address is answered once it stands in the status of the ImportedService, so that every replica, and this one after a
//! restart, says the same. What is no longer admitted, or was withdrawn, is no longer there.

mod zone;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::imports::{ImportReport, kept, kept_local};
use super::memo::Memo;
use super::services::ServicesPlan;
use crate::model::import::Imported;
use crate::model::name::dns_trust_domain;
use crate::model::object::{Kind, ObjectKey};
use crate::model::service::Address;
use crate::model::{Peer, TrustDomain, World};
use zone::Domain;
pub use zone::{Found, Host, NamedPort, What, Zone};

/// What the answer for a name is made of: the import, and the addresses at which clients call it.
pub(super) type NameOf = (Arc<Imported>, Vec<IpAddr>);

/// What there is to answer; `None` while not enough is known to say so, or where nobody is answered.
#[must_use]
pub(super) fn zone(
    world: &World,
    ending: &BTreeSet<TrustDomain>,
    services: &ServicesPlan,
    memo: &mut Memo,
) -> Option<Arc<Zone>> {
    if !world.settings.dns || !services.complete {
        return None;
    }
    let mut zone = Zone { domains: domains(world, ending), ..Zone::default() };
    for peer in world.peers.values() {
        let bundle = peer.endpoint.url.host();
        let agents = peer.agent_addresses.iter().filter_map(|address| address.rsplit_once(':'));
        let used = bundle.into_iter().chain(agents.map(|(host, _)| host.to_owned()));
        zone.elsewhere.extend(used.filter_map(|name| within(peer, &name)));
    }
    for (name, report) in &services.import_reports {
        let (Ok(()), Some(imported)) = (&report.admitted, world.imported.get(name)) else { continue };
        let Some(peer) = world.peers.get(&imported.trust_domain) else { continue };
        add(&mut zone, world, peer, imported, report, memo);
    }
    Some(memo.zone.share(zone))
}

/// Adds the names of an import.
fn add(
    zone: &mut Zone,
    world: &World,
    peer: &Peer,
    imported: &Arc<Imported>,
    report: &ImportReport,
    memo: &mut Memo,
) {
    let key = ObjectKey::namespaced(Kind::ImportedService, &imported.object.namespace, &imported.object.name);
    let kept = kept(world, &key);
    let addresses: Vec<IpAddr> =
        report.addresses.iter().filter(|address| kept.contains(*address)).copied().collect();
    if !addresses.is_empty() {
        let (name, host) =
            memo.names.get(&key, &(Arc::clone(imported), addresses), |(imported, addresses)| {
                (imported.object.name.as_str().into(), Arc::new(host(imported, addresses, false)))
            });
        if let Some(Domain::Imported(namespaces)) = zone.domains.get_mut(imported.trust_domain.as_str()) {
            namespaces.insert(imported.service.name.namespace().to_owned());
        }
        zone.hosts.insert(name, host);
    }
    let served = report.local.iter().flatten().next();
    // What a Service of the cluster has a part in, the cluster's own DNS answers; but where Envoys listen for it.
    if let Some(served) = served.filter(|served| served.by_name || !served.is_merged) {
        let kept = if served.by_name { [kept, kept_local(world, &key)].concat() } else { Vec::new() };
        let is_kept = |address: &&IpAddr| !served.by_name || kept.contains(*address);
        let addresses: Vec<IpAddr> = served.addresses.iter().filter(is_kept).copied().collect();
        if !addresses.is_empty() {
            let mut host = host(imported, &addresses, true);
            if !served.ports.is_empty() {
                let port = |(number, name): &(u16, String)| NamedPort { number: *number, name: name.clone() };
                host.ports = served.ports.iter().map(port).collect();
            }
            zone.hosts.entry(served.host.as_str().into()).or_insert_with(|| Arc::new(host));
        }
    }
    let gateways = imported.service.gateways.iter();
    let names = gateways.filter_map(|gateway| match &gateway.address {
        Address::Dns(name) => within(peer, name),
        Address::Ip(_) => None,
    });
    zone.elsewhere.extend(names);
}

fn host(imported: &Imported, addresses: &[IpAddr], is_local: bool) -> Host {
    let ports = imported.service.ports.iter();
    let mut ports: Vec<NamedPort> =
        ports.map(|port| NamedPort { number: port.port, name: port.name.clone() }).collect();
    ports.sort();
    Host { trust_domain: imported.trust_domain.clone(), addresses: addresses.to_vec(), ports, is_local }
}

/// A name that the peer uses for itself, where it lies in its own trust domain: only there it may say what is not a service.
fn within(peer: &Peer, name: &str) -> Option<String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let rest = name.strip_suffix(peer.trust_domain.as_str())?;
    rest.ends_with('.').then_some(name)
}

/// Every trust domain that is known here: the longest that a name ends in decides on it.
fn domains(world: &World, ending: &BTreeSet<TrustDomain>) -> BTreeMap<String, Domain> {
    let own = world.own_trust_domain().map(|own| (own.to_string(), Domain::Theirs));
    let peers = world.peers.values().map(|peer| {
        let td = &peer.trust_domain;
        let imports =
            !peer.imports.services.is_empty() && !ending.contains(td) && dns_trust_domain(td).is_ok();
        let domain = if imports { Domain::Imported(BTreeSet::new()) } else { Domain::Theirs };
        (td.to_string(), domain)
    });
    peers.chain(own).collect()
}
