//! Bootstrap bundles that lie in ConfigMaps and Secrets of the agent's namespace: read when a peer names one, and
//! again from time to time, since secrets are not watched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::bundle::document;
use crate::model::object::Kind;
use crate::model::{Bundle, Object, ObjectKey, TrustDomain, World};
use crate::plan::status::trust_domain_peer::bootstrap_object;
use crate::store::{Store, StoreError};

const AGAIN: Duration = Duration::from_secs(15);

/// What was read for each peer that names an object.
pub type Bootstraps = BTreeMap<TrustDomain, Result<Arc<Bundle>, String>>;
/// The object and the key in it, for each peer that names one.
pub type Wanted = BTreeMap<TrustDomain, (ObjectKey, String)>;

/// What the peers of a world name.
#[must_use]
pub fn wanted(world: &World) -> Wanted {
    let named = |peer: &crate::model::Peer| bootstrap_object(peer, &world.settings.namespace);
    world.peers.values().filter_map(|peer| Some((peer.trust_domain.clone(), named(peer)?))).collect()
}

/// Reads all of it once. What cannot be read is as bad as what is not there.
pub async fn read(store: &Store, wanted: &Wanted) -> Bootstraps {
    let mut read = Bootstraps::new();
    for (trust_domain, (key, field)) in wanted {
        let found = bundle(store, trust_domain, key, field).await;
        let found =
            found.unwrap_or_else(|error| Err(format!("spec.bootstrapBundle: {key} cannot be read: {error}")));
        read.insert(trust_domain.clone(), found);
    }
    read
}

/// Follows what is wanted; sends everything that was read whenever it has changed.
pub async fn follow(
    store: Store,
    mut wanted: watch::Receiver<Wanted>,
    found: mpsc::Sender<Bootstraps>,
    cancel: CancellationToken,
) {
    let mut last = Bootstraps::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut read = Bootstraps::new();
        for (trust_domain, (key, field)) in &now {
            match bundle(&store, trust_domain, key, field).await {
                Ok(result) => {
                    read.insert(trust_domain.clone(), result);
                }
                // A passing failure of the store is no word on the bundle.
                Err(error) => {
                    tracing::warn!(object = %key, %error, "a bootstrap bundle cannot be read");
                    read.extend(
                        last.get_key_value(trust_domain).map(|(td, known)| (td.clone(), known.clone())),
                    );
                }
            }
        }
        if read != last {
            if found.send(read.clone()).await.is_err() {
                return;
            }
            last = read;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !now.is_empty() => {}
        }
    }
}

async fn bundle(
    store: &Store,
    trust_domain: &TrustDomain,
    key: &ObjectKey,
    field: &str,
) -> Result<Result<Arc<Bundle>, String>, StoreError> {
    let Some(object) = store.get(key).await? else {
        return Ok(Err(format!(
            "spec.bootstrapBundle: {key} is not there; create it, or give the bundle inline"
        )));
    };
    let parsed = text(&object, field)
        .and_then(|text| {
            document::parse_bootstrap(trust_domain, &text)
                .map_err(|e| format!("spec.bootstrapBundle: {key}: {e}"))
        })
        .map(|parsed| Arc::new(parsed.bundle));
    Ok(parsed)
}

fn text(object: &Object, field: &str) -> Result<String, String> {
    let key = &object.key;
    let value = object.body.get("data").and_then(|data| data.get(field)).and_then(|value| value.as_str());
    let value = value.ok_or_else(|| format!("spec.bootstrapBundle: {key} has no key {field:?}"))?;
    if key.kind != Kind::Secret {
        return Ok(value.to_owned());
    }
    let bytes =
        STANDARD.decode(value).map_err(|_| format!("spec.bootstrapBundle: {key}: {field:?} is no base64"))?;
    String::from_utf8(bytes).map_err(|_| format!("spec.bootstrapBundle: {key}: {field:?} is no UTF-8"))
}
