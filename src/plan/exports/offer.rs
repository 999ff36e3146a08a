//! What comes of an export: its objects, and what each peer is told of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Export;
use crate::model::TrustDomain;
use crate::model::service::{ClientPattern, RemotePort, RemoteService};
use crate::model::world::Settings;
use crate::plan::memo::{Exported, Memo};
use crate::plan::{diff, istio};

/// What comes of an export; of the export and what is constant alone, so that it can be remembered.
pub(in crate::plan) fn exported(settings: &Settings, export: &Arc<Export>, memo: &mut Memo) -> Arc<Exported> {
    memo.exports.get(&export.service.object, export, |export| {
        Arc::new(Exported {
            objects: istio::export::objects(settings, export).into_iter().map(diff::seal).collect(),
            offered: export.to.iter().map(|peer| to_offer(export, peer)).collect(),
        })
    })
}

fn to_offer(export: &Export, peer: &TrustDomain) -> (TrustDomain, Arc<RemoteService>, usize) {
    let service = offered(export, peer);
    let size = crate::federation::catalogue::size(&service);
    (peer.clone(), Arc::new(service), size)
}

fn offered(export: &Export, peer: &TrustDomain) -> RemoteService {
    let service = &export.service;
    let of_peer = |all: &BTreeSet<ClientPattern>| -> BTreeSet<ClientPattern> {
        all.iter().filter(|client| client.trust_domain() == peer).cloned().collect()
    };
    // A port that nobody there may call is not offered: to the importer, no clients of its own are those of the service.
    let offered = service.ports.iter().filter(|port| has_clients_in(service.clients_of(port), peer));
    let mut ports: Vec<RemotePort> = offered
        .map(|p| RemotePort {
            name: p.name.clone(),
            port: p.port,
            protocol: p.protocol,
            clients: p.clients.as_ref().map(of_peer).unwrap_or_default(),
        })
        .collect();
    ports.sort_by_key(|p| p.port);
    let (gateways, endpoints) = if export.direct.contains(peer) {
        let offered = |name: &String| ports.iter().any(|port| port.name == *name);
        let mut endpoints = export.endpoints.clone();
        endpoints.iter_mut().for_each(|endpoint| endpoint.ports.retain(|name, _| offered(name)));
        (Vec::new(), endpoints)
    } else {
        (export.gateways.clone(), Vec::new())
    };
    RemoteService {
        name: service.name.clone(),
        ports,
        tls_mode: service.tls_mode,
        server_ids: service.server_ids.clone(),
        clients: of_peer(&service.clients),
        gateways,
        endpoints,
    }
}

pub(super) fn has_clients_in(clients: &BTreeSet<ClientPattern>, td: &TrustDomain) -> bool {
    clients.iter().any(|client| client.trust_domain() == td)
}
