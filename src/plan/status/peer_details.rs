//! What the status of a TrustDomainPeer holds beside its conditions, in the schema's own types.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::audit;
use super::trust_domain_peer::{Subject, counts, is_settling, session};
use crate::api::v1alpha1::trust_domain_peer::{AuthorityStatus, BundleStatus, RemoteView, ServiceCounts};
use crate::model::session::{LinkState, SessionState, TrustReport};
use crate::model::{AuthorityId, Bundle, World};

/// The fields beside the conditions. What is not known in this life of the agent stays as it stands in the store.
pub(super) fn details(subject: Subject<'_>, stored: Option<&Value>) -> Map<String, Value> {
    let Subject { world, peer, .. } = subject;
    let trust_domain = &peer.trust_domain;
    let audit = audit::trail(world, peer, stored);
    let stored = |name: &str| stored.and_then(|status| status.get(name)).cloned();
    let mut details = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            details.insert(name.to_owned(), value);
        }
    };
    let held = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
    let served = world.endpoints.get(trust_domain).and_then(|state| state.latest.as_deref());
    set("bundle", held.map(|bundle| json!(bundle_status(bundle, served))));
    set("audit", audit);
    let remote = session(subject).and_then(|session| session.remote.as_ref());
    let view = match remote {
        Some(remote) => remote_view(world, remote).map(|view| json!(view)),
        None => stored("remoteView"),
    };
    set("remoteView", view);
    let heard = session(subject).is_some_and(|session| session.catalogue.is_some());
    set("services", if heard { Some(json!(service_counts(subject))) } else { stored("services") });
    let why = session(subject).and_then(|session| disconnect_reason(&session.link));
    set("lastDisconnectReason", why.map(Value::String).or_else(|| stored("lastDisconnectReason")));
    let away = world.memory.get(trust_domain).and_then(|memory| memory.away_since);
    let away = if is_settling(subject) { stored("awaySince") } else { away.map(|since| json!(since)) };
    let is_back = session(subject).is_some_and(SessionState::is_connected);
    set("awaySince", away.filter(|_| !is_back && !subject.peer.suspend));
    details
}

fn disconnect_reason(link: &LinkState) -> Option<String> {
    let reason = match link {
        LinkState::Connected | LinkState::Idle => return None,
        LinkState::Parted { reason, .. } => return Some(format!("{reason:?}")),
        LinkState::Refused { .. } => "Refused",
        LinkState::Unverified { .. } => "PeerNotVerified",
        LinkState::WrongPeerId { .. } => "WrongPeerId",
        LinkState::Unreachable { .. } => "Unreachable",
    };
    Some(reason.to_owned())
}

/// Our bundle as the peer says that it holds it; of what it says, only our own authorities count. `None` where it holds
/// none: server-side apply makes an empty object, once its fields are gone, a null that the schema refuses.
fn remote_view(world: &World, remote: &TrustReport) -> Option<RemoteView> {
    let ours = world.identity.as_ref().map(|identity| identity.bundle.authority_ids()).unwrap_or_default();
    let held = remote.held.as_ref()?;
    let ids = |ids: &mut dyn Iterator<Item = &AuthorityId>| -> Vec<String> {
        ids.map(ToString::to_string).collect::<BTreeSet<_>>().into_iter().collect()
    };
    Some(RemoteView {
        digest_of_ours: Some(held.digest.to_string()),
        held: ids(&mut ours.intersection(&held.authority_ids)),
        missing: ids(&mut ours.difference(&held.authority_ids)),
        receipt: remote.receipt.as_ref().map(|receipt| receipt.digest.to_string()),
    })
}

fn service_counts(subject: Subject<'_>) -> ServiceCounts {
    let (exported, imported, refused) = counts(subject);
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    ServiceCounts { exported: count(exported), imported: count(imported), refused: count(refused) }
}

/// SPIRE's bundle, with the sequence and the hint of the endpoint, which SPIRE does not keep.
fn bundle_status(bundle: &Bundle, served: Option<&Bundle>) -> BundleStatus {
    let same = served.filter(|served| served.digest() == bundle.digest());
    BundleStatus {
        sequence: same.and_then(|bundle| bundle.sequence).and_then(|n| i64::try_from(n).ok()),
        digest: bundle.digest().to_string(),
        authorities: bundle
            .authorities()
            .map(|authority| AuthorityStatus {
                id: authority.id().to_string(),
                not_after: authority.not_after(),
                tainted: authority.tainted,
            })
            .collect(),
        refresh_hint: same.and_then(|bundle| bundle.refresh_hint).and_then(|n| i64::try_from(n).ok()),
    }
}
