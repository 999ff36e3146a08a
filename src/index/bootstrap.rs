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
use crate::store::{Store, StoreError};

const AGAIN: Duration = Duration::from_secs(15);

/// An object, and the key in it.
pub type Named = (ObjectKey, String);
/// For each peer that names one, where its bundle lies.
pub type Wanted = BTreeMap<TrustDomain, Named>;
/// What was read for each peer that names an object.
pub type Bootstraps = BTreeMap<TrustDomain, Read>;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub of: Named,
    pub found: Result<Arc<Bundle>, String>,
}

/// What the peers of a world name.
#[must_use]
pub fn wanted(world: &World) -> Wanted {
    let namespace = &world.settings.namespace;
    let named =
        world.peers.iter().filter_map(|(td, peer)| Some((td.clone(), peer.bootstrap_object(namespace)?)));
    named.collect()
}

/// Reads all of it once. What cannot be read is as bad as what is not there.
pub async fn read(store: &Store, wanted: &Wanted) -> Bootstraps {
    let mut read = Bootstraps::new();
    for (trust_domain, of) in wanted {
        let found = bundle(store, trust_domain, of).await;
        let found = found.unwrap_or_else(|error| Err(unreadable(&of.0, &error)));
        read.insert(trust_domain.clone(), Read { of: of.clone(), found });
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
        for (trust_domain, of) in &now {
            let found = bundle(&store, trust_domain, of).await;
            let known = last.get(trust_domain).filter(|known| known.of == *of);
            let found = found.or_else(|error| {
                tracing::warn!(object = %of.0, %error, "a bootstrap bundle cannot be read");
                despite(known, &of.0, &error).ok_or(error)
            });
            read.extend(found.ok().map(|found| (trust_domain.clone(), Read { of: of.clone(), found })));
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

/// What holds while the store fails to give the object. A passing failure is no word on the bundle; that it may not be read is one.
fn despite(known: Option<&Read>, key: &ObjectKey, error: &StoreError) -> Option<Result<Arc<Bundle>, String>> {
    match (known.map(|known| &known.found), error) {
        (None | Some(Err(_)), StoreError::Forbidden { .. }) => Some(Err(unreadable(key, error))),
        (known, _) => known.cloned(),
    }
}

fn unreadable(key: &ObjectKey, error: &StoreError) -> String {
    let remedy = match (key.kind, error) {
        (Kind::Secret, StoreError::Forbidden { .. }) => {
            " (value rbac.bootstrapSecrets of the chart names the Secrets that it may read)"
        }
        _ => "",
    };
    format!("spec.bootstrapBundle: {key} cannot be read: {error}{remedy}")
}

async fn bundle(
    store: &Store,
    trust_domain: &TrustDomain,
    (key, field): &Named,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_read_is_told_and_takes_nothing_away() {
        let key = ObjectKey::namespaced(Kind::Secret, "entente-system", "east");
        let read = |found| Read { of: (key.clone(), "bundle".to_owned()), found };
        let good = Ok(Arc::new(Bundle::new(TrustDomain::new("east.example").unwrap(), [])));
        let bad: Result<Arc<Bundle>, String> = Err("it is not there".to_owned());
        let (object, message) = (key.to_string(), "no".to_owned());
        let forbidden =
            StoreError::Forbidden { verb: "get", object: object.clone(), message: message.clone() };
        let passing = StoreError::Other { verb: "get", object, message };
        let told = despite(None, &key, &forbidden).unwrap().unwrap_err();
        assert!(
            told.contains("not allowed to get Secret") && told.contains("rbac.bootstrapSecrets"),
            "{told}"
        );
        assert_eq!(despite(Some(&read(bad.clone())), &key, &forbidden), Some(Err(told)));
        assert_eq!(despite(Some(&read(good.clone())), &key, &forbidden), Some(good));
        assert_eq!(despite(None, &key, &passing), None);
        assert_eq!(despite(Some(&read(bad.clone())), &key, &passing), Some(bad));
    }
}
