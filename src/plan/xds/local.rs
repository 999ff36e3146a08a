//! A local name as an Envoy calls it: our cluster's own endpoints and those of peers in one cluster, each place a locality, named
//! by its trust domain. Endpoints of ours are called as they are without a mesh, in plaintext; those of a peer by its TLS, with
//! its servers pinned. Which of both an endpoint is, its metadata tell; what told nothing would be called by a peer's TLS.
//!
//! The name leads every client that finds it to its Envoy. So whom no exporter names gets our own endpoints alone, as before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};

use crate::model::import::Imported;
use crate::model::service::{GatewayAddress, RemotePort};
use crate::model::{NamespacedName, TrustDomain, World};
use crate::plan::imports::{LocalName, LocalNamePort};
use crate::proto::xds::resources as pb;

use super::types::{Resource, packed};
use super::whom::{Audience, Clients, Whom, clients_of};
use super::{Offer, PortOffer, endpoints, envoy, tls};

/// What Envoy chooses the TLS of an endpoint by.
const METADATA: &str = "envoy.transport_socket_match";
const PLACE: &str = "place";
/// The place of our own endpoints; no trust domain, which would have no slash.
const HERE: &str = "/here";
/// A place has all of its share while one in a hundred of its endpoints is healthy.
const OVERPROVISIONING: u32 = 10_000;

/// What a local name is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct LocalOf {
    name: Arc<LocalName>,
    own: TrustDomain,
    audience: Audience,
    /// With the gateways that took no connection when they were last tried.
    members: BTreeMap<NamespacedName, (Arc<Imported>, BTreeSet<GatewayAddress>)>,
}

/// Nothing, where nobody's import is there any more.
#[must_use]
pub(super) fn input(
    world: &World,
    name: &Arc<LocalName>,
    down: impl Fn(&Imported) -> BTreeSet<GatewayAddress>,
) -> Option<LocalOf> {
    let member = |object: &NamespacedName| {
        let imported = world.imported.get(object)?;
        Some((object.clone(), (Arc::clone(imported), down(imported))))
    };
    let first = world.imported.get(name.members.first()?)?;
    let peer = world.peers.get(&first.trust_domain)?;
    Some(LocalOf {
        name: Arc::clone(name),
        own: world.own_trust_domain()?.clone(),
        audience: Audience::of(peer, &world.settings.namespace),
        members: name.members.iter().filter_map(member).collect(),
    })
}

/// A port of a peer's service, where a port of the local name leads to it.
struct Place<'a> {
    imported: &'a Imported,
    port: &'a RemotePort,
    at: BTreeSet<GatewayAddress>,
    down: &'a BTreeSet<GatewayAddress>,
}

#[must_use]
pub(super) fn offer(input: &LocalOf) -> Offer {
    Offer { ports: input.name.ports.iter().flat_map(|port| offers(input, port)).collect() }
}

/// For each set of peers that one client may call there, what that client gets.
fn offers(input: &LocalOf, port: &LocalNamePort) -> Vec<PortOffer> {
    let place = |(object, number): &(NamespacedName, u16)| {
        let (imported, down) = input.members.get(object)?;
        let port = imported.service.ports.iter().find(|port| port.port == *number)?;
        let at = endpoints(imported, port);
        (!at.is_empty()).then_some(Place { imported, port, at, down })
    };
    let places: Vec<Place<'_>> = port.to.iter().filter_map(place).collect();
    let clients = |place: &Place<'_>| clients_of(&place.imported.service, place.port).clone();
    let distinct: BTreeSet<Clients> = places.iter().map(clients).collect();
    // Few peers share a name (`LocalName::MOST`), so there are few sets.
    let choices = 0_u32..1 << distinct.len().min(LocalName::MOST);
    let one = |choice: u32| {
        let is_chosen = |(at, clients): (usize, &Clients)| (choice & (1 << at) != 0, clients.clone());
        let (each, none): (Vec<_>, Vec<_>) =
            distinct.iter().enumerate().map(is_chosen).partition(|(chosen, _)| *chosen);
        let [each, none] =
            [each, none].map(|all| all.into_iter().map(|(_, clients)| clients).collect::<Vec<_>>());
        let theirs: Vec<&Place<'_>> = places.iter().filter(|place| each.contains(&clients(place))).collect();
        let audience = input.audience.clone();
        let whom = if each.is_empty() {
            Whom::Others { audience, any: none }
        } else {
            Whom::Clients { audience, each, none }
        };
        PortOffer { whom, envoy: resources(input, port, &theirs), grpc: Vec::new() }
    };
    choices.map(one).filter(|offer| !offer.envoy.is_empty()).collect()
}

/// Nothing, where it leads nowhere.
fn resources(input: &LocalOf, port: &LocalNamePort, theirs: &[&Place<'_>]) -> Vec<Resource> {
    let name = format!("{}:{}", input.name.host, port.number);
    let listener = envoy::listener(&name, &input.name.addresses, port.number, port.protocol);
    let is_nowhere = port.near.is_empty() && theirs.is_empty();
    let Some(listener) = listener.filter(|_| !is_nowhere) else { return Vec::new() };
    let mut resources = vec![Resource::listener(&listener)];
    let assignment = assignment(input, port, theirs, &name);
    if envoy::has_names(&port.near) || theirs.iter().any(|place| envoy::has_names(&place.at)) {
        resources.push(Resource::cluster(&cluster(name, port, theirs, Some(assignment))));
    } else {
        resources.push(Resource::cluster(&cluster(name, port, theirs, None)));
        resources.push(Resource::endpoints(&assignment));
    }
    resources
}

fn cluster(
    name: String,
    port: &LocalNamePort,
    theirs: &[&Place<'_>],
    named: Option<pb::ClusterLoadAssignment>,
) -> pb::Cluster {
    let bare = envoy::bare(name, port.protocol, named);
    let plain = packed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", &pb::RawBuffer {});
    let plain = pb::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        typed_config: Some(plain),
    };
    let ours = (!port.near.is_empty()).then(|| choice(HERE, plain));
    let theirs_by = |place: &&Place<'_>| {
        choice(place.imported.trust_domain.as_str(), tls::upstream(place.imported, place.port))
    };
    let choices = ours.into_iter().chain(theirs.iter().map(theirs_by)).collect();
    let lb = bare.common_lb_config.unwrap_or_default();
    pb::Cluster {
        // Where nobody else is called, ours are called as they are.
        transport_socket: theirs.first().map(|place| tls::upstream(place.imported, place.port)),
        transport_socket_matches: if theirs.is_empty() { Vec::new() } else { choices },
        common_lb_config: Some(pb::CommonLbConfig {
            locality_weighted_lb_config: Some(pb::LocalityWeighted {}),
            ..lb
        }),
        ..bare
    }
}

/// Every place has one share, whatever it has of endpoints; or ours has all, until none of them is healthy. Gateways that are down
/// are said to be ill while anything else is left.
fn assignment(
    input: &LocalOf,
    port: &LocalNamePort,
    theirs: &[&Place<'_>],
    name: &str,
) -> pb::ClusterLoadAssignment {
    let near = port.near.iter().map(|at| marked(HERE, envoy::endpoint(at, false)));
    let near: Vec<pb::LbEndpoint> = near.collect();
    let after = u32::from(input.name.local_first && !near.is_empty());
    let has_any_up = |place: &&Place<'_>| place.at.iter().any(|at| !place.down.contains(at));
    let is_any_up = !near.is_empty() || theirs.iter().any(has_any_up);
    let ours = (!near.is_empty()).then(|| locality(&input.own, near, 0));
    let theirs = theirs.iter().map(|place| {
        let td = &place.imported.trust_domain;
        let one = |at| marked(td.as_str(), envoy::endpoint(at, is_any_up && place.down.contains(at)));
        locality(td, place.at.iter().map(one).collect(), after)
    });
    pb::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: ours.into_iter().chain(theirs).collect(),
        policy: Some(pb::AssignmentPolicy { overprovisioning_factor: Some(OVERPROVISIONING) }),
    }
}

fn locality(
    trust_domain: &TrustDomain,
    lb_endpoints: Vec<pb::LbEndpoint>,
    priority: u32,
) -> pb::LocalityLbEndpoints {
    pb::LocalityLbEndpoints {
        locality: Some(pb::Locality { region: trust_domain.to_string(), ..Default::default() }),
        load_balancing_weight: Some(1),
        lb_endpoints,
        priority,
    }
}

fn at_place(place: &str) -> Struct {
    let value = Value { kind: Some(ValueKind::StringValue(place.to_owned())) };
    Struct { fields: BTreeMap::from([(PLACE.to_owned(), value)]) }
}

fn marked(place: &str, endpoint: pb::LbEndpoint) -> pb::LbEndpoint {
    let filter_metadata = BTreeMap::from([(METADATA.to_owned(), at_place(place))]);
    pb::LbEndpoint { metadata: Some(pb::Metadata { filter_metadata }), ..endpoint }
}

fn choice(place: &str, socket: pb::TransportSocket) -> pb::TransportSocketMatch {
    pb::TransportSocketMatch {
        name: place.to_owned(),
        r#match: Some(at_place(place)),
        transport_socket: Some(socket),
    }
}
