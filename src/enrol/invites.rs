//! Open invites: kept in one Secret of the agent's namespace, changed only as it was read.
//!
//! All of them lie in one object, so that its resource version orders everything that is done to any of them: of two
//! that use one invite at the same time, in one replica or in two, one finds it gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::token::{InviteId, Secret, SecretHash};
use crate::clock;
use crate::index::parse::field;
use crate::model::object::{Kind, LABEL_INSTANCE, Object, ObjectKey};
use crate::model::{BundleDigest, TrustDomain};
use crate::store::{PatchOp, Precondition, Store, StoreError};

/// Most invites that are open at one time.
pub const MAX_OPEN: usize = 32;
/// How often a wrong secret is taken for an invite before it is gone.
pub const TRIES: u32 = 5;
/// How long an invite is open where nothing else is asked for, and at most.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3_600);
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How often the leading replica looks for what others did to invites.
const LOOK: Duration = Duration::from_secs(5);
/// How often a write is tried again that someone else came before.
const ROUNDS: usize = 10;

/// An open invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The trust domain that is invited.
    pub joiner: TrustDomain,
    pub expires: Timestamp,
    pub tries_left: u32,
    /// Of our bundle, as the token has it.
    pub fingerprint: BundleDigest,
    hash: SecretHash,
}

/// What is kept of an invite.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    trust_domain: String,
    expires: Timestamp,
    tries_left: u32,
    fingerprint: String,
    secret_hash: String,
}

impl Invite {
    fn to_kept(&self) -> Kept {
        Kept {
            trust_domain: self.joiner.to_string(),
            expires: self.expires,
            tries_left: self.tries_left,
            fingerprint: self.fingerprint.to_string(),
            secret_hash: self.hash.to_text(),
        }
    }

    fn from_kept(kept: &Kept) -> Option<Self> {
        Some(Self {
            joiner: field::trust_domain("trustDomain", &kept.trust_domain).ok()?,
            expires: kept.expires,
            tries_left: kept.tries_left.min(TRIES),
            fingerprint: BundleDigest::from_bytes(&hex::decode(&kept.fingerprint).ok()?)?,
            hash: SecretHash::parse(&kept.secret_hash)?,
        })
    }
}

/// Why invites cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    #[error("{MAX_OPEN} invites are open already: withdraw one (`entente invite list`), or let one expire")]
    TooMany,
    #[error("{0} is not there: it was used, withdrawn, or has expired; see `entente invite list`")]
    Unknown(InviteId),
    #[error(
        "{0} is there and not the agent's own, so it is left alone: rename it, or run the agent in another namespace"
    )]
    NotOurs(ObjectKey),
    #[error("invites are changed by others all the time: try again")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An invite whose secret was shown, as it was then; see [`Invites::burn`].
#[derive(Clone, Debug)]
pub struct Shown {
    pub id: InviteId,
    pub invite: Invite,
}

type All = BTreeMap<InviteId, Invite>;

/// The invites of this installation. Clones see the same ones.
#[derive(Clone, Debug)]
pub struct Invites(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    key: ObjectKey,
    instance: String,
    /// When the last one expires, as far as is known here.
    open_until: Mutex<Option<Timestamp>>,
    /// One secret is looked at after the other: no more are tried than are counted.
    trying: tokio::sync::Mutex<()>,
}

/// The invites as they were read, and the object that they were read from.
struct Read {
    all: All,
    object: Option<Object>,
    has_unreadable: bool,
}

impl Invites {
    /// Those kept in this store, in the Secret `<instance>-invites` of `namespace`.
    #[must_use]
    pub fn new(store: Store, namespace: &str, instance: &str) -> Self {
        let key = ObjectKey::namespaced(Kind::Secret, namespace, format!("{instance}-invites"));
        Self(Arc::new(Inner {
            store,
            key,
            instance: instance.to_owned(),
            open_until: Mutex::new(None),
            trying: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether an invite is open, as far as this replica knows: at once what it did itself, within seconds what another did.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        let open_until = *self.0.open_until.lock().unwrap_or_else(PoisonError::into_inner);
        open_until.is_some_and(|until| now < until)
    }

    /// Those that are open.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn list(&self, now: Timestamp) -> Result<BTreeMap<InviteId, Invite>, InviteError> {
        let mut all = self.read().await?.all;
        all.retain(|_, invite| now < invite.expires);
        Ok(all)
    }

    /// Opens an invite for a trust domain; what the token is to carry of it.
    ///
    /// # Errors
    /// [`InviteError::TooMany`], or where it cannot be written.
    pub async fn create(
        &self,
        joiner: &TrustDomain,
        fingerprint: BundleDigest,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<(InviteId, Secret, Timestamp), InviteError> {
        let (id, secret) = (InviteId::random(), Secret::random());
        // whole seconds, as the token has it
        let until = now.saturating_add(ttl.min(MAX_TTL)).unwrap_or(now).as_second();
        let expires = Timestamp::from_second(until).unwrap_or(now);
        let hash = secret.hash(&id);
        let invite = Invite { joiner: joiner.clone(), expires, tries_left: TRIES, fingerprint, hash };
        self.change(now, |all| {
            if all.len() >= MAX_OPEN {
                return Err(InviteError::TooMany);
            }
            all.insert(id, invite.clone());
            Ok(())
        })
        .await?;
        Ok((id, secret, expires))
    }

    /// Closes an invite that was not used.
    ///
    /// # Errors
    /// [`InviteError::Unknown`], or where it cannot be written.
    pub async fn withdraw(&self, id: InviteId, now: Timestamp) -> Result<Invite, InviteError> {
        self.change(now, |all| all.remove(&id).ok_or(InviteError::Unknown(id))).await
    }

    /// Looks at a secret that is shown for an invite. `None` where there is no such invite, or it has another secret,
    /// which costs it a try.
    ///
    /// # Errors
    /// Where the invites cannot be read, or the try cannot be counted.
    pub async fn show(
        &self,
        id: InviteId,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<Option<Shown>, InviteError> {
        let _one_by_one = self.0.trying.lock().await;
        let hash = secret.hash(&id);
        let known = self.read().await?.all.remove(&id).filter(|invite| now < invite.expires);
        match known {
            None => Ok(None),
            Some(invite) if invite.hash == hash => Ok(Some(Shown { id, invite })),
            Some(_) => {
                let left = self.change(now, |all| Ok(cost(all, id))).await?;
                tracing::warn!(invite = %id, tries_left = left, "a wrong secret was shown for an invite");
                Ok(None)
            }
        }
    }

    /// Uses an invite up; whether it was still there as it was shown. True for one caller only.
    ///
    /// # Errors
    /// Where it cannot be written: it is then unknown whether it is used up.
    pub async fn burn(&self, shown: &Shown, now: Timestamp) -> Result<bool, InviteError> {
        let is_same = |invite: &Invite| invite.hash == shown.invite.hash;
        self.change(now, |all| {
            let there = all.get(&shown.id).is_some_and(is_same);
            if there {
                all.remove(&shown.id);
            }
            Ok(there)
        })
        .await
    }

    /// Knows what is open, while this replica leads: looks now and then, and removes what has expired.
    pub async fn follow(self, mut leading: watch::Receiver<bool>, cancel: CancellationToken) {
        loop {
            if *leading.borrow_and_update()
                && let Err(error) = self.look(clock::now()).await
            {
                tracing::warn!(secret = %self.0.key, %error, "open invites cannot be read; trying again");
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = leading.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn look(&self, now: Timestamp) -> Result<(), InviteError> {
        let read = self.read().await?;
        if read.has_unreadable || read.all.values().any(|invite| invite.expires <= now) {
            self.change(now, |_| Ok(())).await?;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Read, InviteError> {
        let object = self.0.store.get(&self.0.key).await?;
        if object.as_ref().is_some_and(|object| !object.is_generated_by(&self.0.instance)) {
            return Err(InviteError::NotOurs(self.0.key.clone()));
        }
        let data = object.as_ref().and_then(|object| object.body.get("data")).and_then(Value::as_object);
        let given = data.map_or(0, Map::len);
        let all: All = data.into_iter().flatten().filter_map(|(id, value)| entry(id, value)).collect();
        self.know(&all);
        Ok(Read { has_unreadable: all.len() != given, all, object })
    }

    fn know(&self, all: &All) {
        let until = all.values().map(|invite| invite.expires).max();
        *self.0.open_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Reads, changes and writes, again while someone else comes between. What has expired goes with it.
    async fn change<T>(
        &self,
        now: Timestamp,
        change: impl Fn(&mut All) -> Result<T, InviteError>,
    ) -> Result<T, InviteError> {
        for _ in 0..ROUNDS {
            let Read { mut all, object, has_unreadable } = self.read().await?;
            let before = all.clone();
            all.retain(|_, invite| now < invite.expires);
            let changed = change(&mut all)?;
            if all == before && !has_unreadable {
                return Ok(changed);
            }
            match self.write(object.as_ref(), &all).await {
                Ok(()) => {
                    self.know(&all);
                    return Ok(changed);
                }
                Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(InviteError::Busy)
    }

    async fn write(&self, there: Option<&Object>, all: &All) -> Result<(), StoreError> {
        let data: Map<String, Value> = all
            .iter()
            .map(|(id, invite)| {
                let kept = serde_json::to_string(&invite.to_kept()).unwrap_or_default();
                (id.to_string(), json!(STANDARD.encode(kept)))
            })
            .collect();
        let store = &self.0.store;
        match there {
            Some(object) => {
                let ops = vec![PatchOp::Add { path: "/data".to_owned(), value: Value::Object(data) }];
                store.patch_json(&self.0.key, &object.meta.resource_version, ops).await.map(drop)
            }
            None => {
                let body = Map::from_iter([
                    ("type".to_owned(), json!("Opaque")),
                    ("data".to_owned(), Value::Object(data)),
                ]);
                let mut object =
                    Object { key: self.0.key.clone(), meta: Default::default(), body: body.into() };
                object.meta.labels.insert(LABEL_INSTANCE.to_owned(), self.0.instance.clone());
                store.apply(&object, &Precondition::Absent).await.map(drop)
            }
        }
    }
}

/// Takes a try of an invite, and the invite with the last one; how many are left.
fn cost(all: &mut All, id: InviteId) -> u32 {
    let Some(invite) = all.get_mut(&id) else { return 0 };
    invite.tries_left = invite.tries_left.saturating_sub(1);
    let left = invite.tries_left;
    if left == 0 {
        all.remove(&id);
    }
    left
}

/// An invite as it is kept; one that cannot be read is none.
fn entry(id: &str, value: &Value) -> Option<(InviteId, Invite)> {
    let text = STANDARD.decode(value.as_str()?).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    Some((InviteId::parse(id)?, Invite::from_kept(&kept)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DirectoryStore, DirectoryTimings};

    fn invites(folder: &std::path::Path) -> Invites {
        let store = DirectoryStore::open(folder, DirectoryTimings::default()).unwrap();
        Invites::new(Store::Directory(store), "entente-system", "entente")
    }

    fn west() -> TrustDomain {
        TrustDomain::new("west.example").unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    const DIGEST: [u8; 32] = [3; 32];

    async fn open(invites: &Invites) -> (InviteId, Secret) {
        let digest = BundleDigest::from_bytes(&DIGEST).unwrap();
        let (id, secret, expires) =
            invites.create(&west(), digest, Duration::from_secs(60), at(0)).await.unwrap();
        assert_eq!(expires, at(60));
        (id, secret)
    }

    #[tokio::test]
    async fn an_invite_is_used_once_and_its_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let invites = invites(folder.path());
        assert!(!invites.is_open(at(0)));
        let (id, secret) = open(&invites).await;
        assert!(invites.is_open(at(59)) && !invites.is_open(at(60)));
        let kept: String = walk(folder.path());
        assert!(
            !kept.contains(&hex::encode(secret.expose()))
                && !kept.contains(&STANDARD.encode(secret.expose()))
        );

        let shown = invites.show(id, &secret, at(1)).await.unwrap().unwrap();
        assert_eq!(shown.invite.joiner, west());
        assert!(invites.burn(&shown, at(1)).await.unwrap());
        assert!(!invites.burn(&shown, at(1)).await.unwrap());
        assert!(invites.show(id, &secret, at(1)).await.unwrap().is_none());
        assert!(!invites.is_open(at(1)));
    }

    fn walk(folder: &std::path::Path) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            text +=
                &if path.is_dir() { walk(&path) } else { std::fs::read_to_string(&path).unwrap_or_default() };
        }
        text
    }

    #[tokio::test]
    async fn a_wrong_secret_costs_a_try_and_an_unknown_invite_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let invites = invites(folder.path());
        let (id, secret) = open(&invites).await;
        let wrong = Secret::random();
        assert!(invites.show(InviteId::random(), &secret, at(1)).await.unwrap().is_none());
        // many at the same time are tried one after the other
        let guesses = (1..TRIES).map(|_| invites.show(id, &wrong, at(1)));
        for guess in futures::future::join_all(guesses).await {
            assert!(guess.unwrap().is_none());
        }
        assert_eq!(invites.list(at(1)).await.unwrap()[&id].tries_left, 1);
        assert!(invites.show(id, &secret, at(1)).await.unwrap().is_some(), "the right one costs none");
        assert!(invites.show(id, &wrong, at(1)).await.unwrap().is_none());
        assert!(invites.show(id, &secret, at(1)).await.unwrap().is_none(), "the tries were used up");
    }

    #[tokio::test]
    async fn of_many_that_use_one_invite_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let invites = invites(folder.path());
        let (id, secret) = open(&invites).await;
        let shown = invites.show(id, &secret, at(1)).await.unwrap().unwrap();
        let burn = async || invites.burn(&shown, at(1)).await.unwrap();
        let burnt = futures::future::join_all((0..8).map(|_| burn())).await;
        assert_eq!(burnt.iter().filter(|burnt| **burnt).count(), 1, "{burnt:?}");
    }

    #[tokio::test]
    async fn they_are_bounded_expire_and_can_be_withdrawn() {
        let folder = tempfile::tempdir().unwrap();
        let invites = invites(folder.path());
        let (first, secret) = open(&invites).await;
        for _ in 1..MAX_OPEN {
            open(&invites).await;
        }
        let digest = BundleDigest::from_bytes(&DIGEST).unwrap();
        let more = invites.create(&west(), digest, MAX_TTL, at(0)).await;
        assert!(matches!(more, Err(InviteError::TooMany)));
        assert_eq!(invites.withdraw(first, at(1)).await.unwrap().joiner, west());
        assert!(matches!(invites.withdraw(first, at(1)).await, Err(InviteError::Unknown(_))));
        assert!(invites.show(first, &secret, at(1)).await.unwrap().is_none());
        assert_eq!(invites.list(at(59)).await.unwrap().len(), MAX_OPEN - 1);
        assert!(invites.list(at(60)).await.unwrap().is_empty());
        invites.look(at(60)).await.unwrap();
        assert!(invites.read().await.unwrap().all.is_empty(), "what has expired is removed");
        // far beyond the longest time
        let (_, _, expires) =
            invites.create(&west(), digest, Duration::from_secs(u64::MAX / 4), at(0)).await.unwrap();
        assert_eq!(expires, at(7 * 24 * 3_600));
    }

    #[tokio::test]
    async fn a_secret_of_that_name_that_is_someone_elses_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        let theirs = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "entente-invites", "namespace": "entente-system" },
        });
        std::fs::write(manifests.join("theirs.json"), theirs.to_string()).unwrap();
        let digest = BundleDigest::from_bytes(&DIGEST).unwrap();
        let created = invites(folder.path()).create(&west(), digest, MAX_TTL, at(0)).await;
        assert!(matches!(created, Err(InviteError::NotOurs(_))), "{created:?}");
    }
}
