//! The fence, where the operator asks for it: every workload of the mesh, exported or not, is closed to each foreign SPIFFE ID
//! that is neither a client of an export nor the agent of a peer. Local callers, and those without an identity, are left as
//! they were.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::istio::AuthorizationPolicySpec;
use crate::istio::authorization_policy::{Action, From, Rule, Source};
use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::{TrustDomain, World};
use crate::plan::exports::Exports;
use crate::plan::exports::unread::Unread;
use crate::plan::generated;

/// The one policy, in Istio's own namespace, where it holds for the whole mesh.
#[must_use]
pub fn key(world: &World) -> ObjectKey {
    let name = generated::label_name(&format!("{}-fence", world.settings.instance));
    ObjectKey::namespaced(Kind::AuthorizationPolicy, &world.settings.istio_namespace, name)
}

/// The policy, where it is asked for and nothing of someone else's has its name.
pub(super) fn fence(
    world: &World,
    own: &TrustDomain,
    exports: &Exports,
    peers: &BTreeSet<TrustDomain>,
) -> Option<Object> {
    let key = key(world);
    if !world.settings.fence || generated::claim(world, &key).is_err() {
        return None;
    }
    let services = exports.accepted.values();
    let clients = services.flat_map(|service| service.ports.iter().flat_map(|port| service.clients_of(port)));
    let mut open: BTreeSet<String> = clients
        .filter(|client| peers.contains(client.trust_domain()))
        .map(|client| client.principal().to_owned())
        .collect();
    let agents = world.peers.values().flat_map(|peer| &peer.agent_ids).map(ToString::to_string);
    open.extend(agents.map(|id| id.trim_start_matches("spiffe://").to_owned()));
    open.extend(standing(world, &key, peers));
    let mut not_principals = vec![format!("{own}/*")];
    not_principals.extend(open.into_iter().filter(|principal| *principal != format!("{own}/*")));
    let source = Source { principals: vec!["*".to_owned()], not_principals };
    let spec = AuthorizationPolicySpec {
        selector: None,
        action: Action::Deny,
        rules: vec![Rule { from: vec![From { source }], to: Vec::new() }],
    };
    Some(generated::object(
        &world.settings,
        key,
        generated::spec(&spec),
        Vec::new(),
        &["fence".to_owned()],
        None,
    ))
}

/// Whom the fence lets in as it stands, and nobody could tell now: while an export cannot be read, what may be its clients; of
/// a TrustDomainPeer that cannot be read, what may be its agent. Never whom no policy lets in any more (`peers`).
fn standing<'a>(
    world: &'a World,
    key: &ObjectKey,
    peers: &'a BTreeSet<TrustDomain>,
) -> impl Iterator<Item = String> + 'a {
    let has_unread_export = has_unread_export(world);
    let there = world.objects.get(key).filter(|there| there.is_generated_by(&world.settings.instance));
    let open = there.and_then(|there| there.spec()?.pointer("/rules/0/from/0/source/notPrincipals"));
    let open = open.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let stays = move |principal: &&str| {
        let td = principal.split_once('/').and_then(|(td, _)| TrustDomain::new(td).ok());
        td.is_some_and(|td| peers.contains(&td) && (has_unread_export || !world.peers.contains_key(&td)))
    };
    open.filter(stays).map(str::to_owned)
}

/// Whether an object that exports cannot be read, and no good version of it is known: its clients are let in still.
fn has_unread_export(world: &World) -> bool {
    world.own_trust_domain().is_some_and(|own| !Unread::new(world, own).sources.is_empty())
}
