//! Which SPIFFE IDs SPIRE gives to a pod, by the selectors of its registration entries.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::cluster::Pod;
use crate::model::trust::Entry;
use crate::model::{SpiffeId, TrustDomain};

/// The entries that pods may be given, by what finds those of one pod without a look at the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    by_pod: BTreeMap<String, Vec<PodEntry>>,
    /// By namespace and service account, where the entry names both.
    by_account: BTreeMap<(String, String), Vec<PodEntry>>,
    by_namespace: BTreeMap<String, Vec<PodEntry>>,
    anywhere: Vec<PodEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PodEntry {
    id: SpiffeId,
    selectors: Vec<Selector>,
}

/// What SPIRE's Kubernetes workload attestor says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector {
    Namespace(String),
    Account(String),
    Uid(String),
    Name(String),
    Label(String, String),
}

impl Selector {
    /// `None` for what is not known of a pod here: of its containers, its node, its image.
    fn parse(text: &str) -> Option<Self> {
        let (kind, value) = text.strip_prefix("k8s:")?.split_once(':')?;
        let value = value.to_owned();
        Some(match kind {
            "ns" => Self::Namespace(value),
            "sa" => Self::Account(value),
            "pod-uid" => Self::Uid(value),
            "pod-name" => Self::Name(value),
            "pod-label" => {
                let (key, value) = value.split_once(':')?;
                Self::Label(key.to_owned(), value.to_owned())
            }
            _ => return None,
        })
    }

    fn holds(&self, pod: &Pod) -> bool {
        match self {
            Self::Namespace(namespace) => *namespace == pod.object.namespace,
            Self::Account(account) => *account == pod.service_account,
            Self::Uid(uid) => *uid == pod.uid,
            Self::Name(name) => *name == pod.object.name,
            Self::Label(key, value) => pod.labels.get(key) == Some(value),
        }
    }
}

impl Entries {
    /// Those of our own trust domain whose selectors are all about pods. An entry that asks for more, as for the image of a
    /// container, may or may not be the pod's, and is left out: its ID has to be given.
    #[must_use]
    pub fn new<'a>(own: &TrustDomain, entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut index = Self::default();
        for entry in entries.into_iter().filter(|entry| entry.spiffe_id.is_member_of(own)) {
            let selectors: Option<Vec<Selector>> =
                entry.selectors.iter().map(|text| Selector::parse(text)).collect();
            if let Some(selectors) = selectors.filter(|selectors| !selectors.is_empty()) {
                index.add(PodEntry { id: entry.spiffe_id.clone(), selectors });
            }
        }
        index
    }

    fn add(&mut self, entry: PodEntry) {
        let (mut uid, mut namespace, mut account) = (None, None, None);
        for selector in &entry.selectors {
            match selector {
                Selector::Uid(value) => uid = Some(value.clone()),
                Selector::Namespace(value) => namespace = Some(value.clone()),
                Selector::Account(value) => account = Some(value.clone()),
                Selector::Name(_) | Selector::Label(..) => {}
            }
        }
        let place = match (uid, namespace, account) {
            (Some(uid), ..) => self.by_pod.entry(uid).or_default(),
            (None, Some(namespace), Some(account)) => {
                self.by_account.entry((namespace, account)).or_default()
            }
            (None, Some(namespace), None) => self.by_namespace.entry(namespace).or_default(),
            (None, None, _) => &mut self.anywhere,
        };
        place.push(entry);
    }

    /// The IDs that a pod is given; empty where SPIRE has no entry for it, or none yet.
    #[must_use]
    pub fn of(&self, pod: &Pod) -> BTreeSet<SpiffeId> {
        let account = (pod.object.namespace.clone(), pod.service_account.clone());
        let found = [
            self.by_pod.get(&pod.uid),
            self.by_account.get(&account),
            self.by_namespace.get(&pod.object.namespace),
            Some(&self.anywhere),
        ];
        let found = found.into_iter().flatten().flatten();
        let found = found.filter(|entry| entry.selectors.iter().all(|selector| selector.holds(pod)));
        found.map(|entry| entry.id.clone()).collect()
    }
}
