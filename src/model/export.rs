//! What is declared to be exported: FederatedServices and ServiceExportRules, before the cluster was asked which pods, ports and
//! identities they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::cluster::TargetPort;
use super::peer::LabelSelector;
use super::service::{Address, AppProtocol, ClientPattern, Gateway, TlsMode};
use super::{NamespacedName, Service, ServiceName, SpiffeId, TrustDomain};
use crate::api::v1alpha1::conditions::ExportedReason;

/// A FederatedService that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredService {
    pub object: NamespacedName,
    pub uid: String,
    pub generation: i64,
    pub created: Option<Timestamp>,
    /// Set while it is being deleted: then it exports nothing.
    pub deletion: Option<Timestamp>,
    pub name: ServiceName,
    pub backing: Backing,
    /// Empty, with a Service alone: every TCP port of it.
    pub ports: Vec<DeclaredPort>,
    pub tls_mode: TlsMode,
    pub exported_to: BTreeSet<TrustDomain>,
    pub clients: BTreeSet<ClientPattern>,
    /// Empty: to be found.
    pub server_ids: BTreeSet<SpiffeId>,
    pub gateways: Vec<Gateway>,
}

/// What backs a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The pods with these labels, of which there is at least one.
    Labels(BTreeMap<String, String>),
    /// The pods that the Service of this name, in the same namespace, selects.
    Service(String),
    /// What listens at these addresses, outside of every mesh; never empty.
    Endpoints(BTreeSet<Address>),
}

/// A port of a FederatedService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredPort {
    pub name: String,
    /// What importers see.
    pub port: u16,
    /// `None`: as the Service has it for this port; without one, the same number.
    pub target: Option<TargetPort>,
    /// What `appProtocol` says.
    pub protocol: Option<AppProtocol>,
    /// Never empty.
    pub clients: Option<BTreeSet<ClientPattern>>,
}

/// A ServiceExportRule that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRule {
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub created: Option<Timestamp>,
    /// Set while it is being deleted: then it exports nothing.
    pub deletion: Option<Timestamp>,
    /// Over the labels of Services.
    pub services: LabelSelector,
    /// Over the labels of their namespaces.
    pub namespaces: LabelSelector,
    pub tls_mode: TlsMode,
    pub exported_to: BTreeSet<TrustDomain>,
    pub clients: BTreeSet<ClientPattern>,
}

/// What the declarations of one namespace come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// FederatedServices that come to nothing now.
    pub unresolved: BTreeMap<NamespacedName, Arc<Unresolved>>,
    /// What was passed over in a service that is exported nevertheless.
    pub notes: BTreeMap<NamespacedName, Vec<Note>>,
    /// Services that rules select and do not export, each with the rule's name and why.
    pub skipped: BTreeMap<NamespacedName, BTreeMap<String, Note>>,
}

/// A FederatedService that comes to nothing now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub declared: Arc<DeclaredService>,
    pub problem: Note,
}

/// Why something is not exported, or not as asked, for the condition Exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub reason: ExportedReason,
    /// Names the object, the cause and what to do.
    pub message: String,
}

/// Takes in what one namespace comes to now, in place of what it came to before; what is equal stays as it is, the same `Arc`.
/// Answers with whether anything changed.
pub(super) fn replace<T: PartialEq>(
    all: &mut BTreeMap<NamespacedName, T>,
    namespace: &str,
    with: BTreeMap<NamespacedName, T>,
) -> bool {
    let gone: Vec<NamespacedName> = in_namespace(all, namespace)
        .map(|(name, _)| name)
        .filter(|name| !with.contains_key(*name))
        .cloned()
        .collect();
    let mut changed = !gone.is_empty();
    for name in &gone {
        all.remove(name);
    }
    for (name, value) in with {
        if all.get(&name) != Some(&value) {
            all.insert(name, value);
            changed = true;
        }
    }
    changed
}

/// As [`replace`], for these names alone.
pub(super) fn replace_these<T: PartialEq>(
    all: &mut BTreeMap<NamespacedName, T>,
    names: &BTreeSet<NamespacedName>,
    mut with: BTreeMap<NamespacedName, T>,
) -> bool {
    let mut changed = false;
    for name in names {
        match with.remove(name) {
            None => changed |= all.remove(name).is_some(),
            Some(value) if all.get(name) == Some(&value) => {}
            Some(value) => {
                all.insert(name.clone(), value);
                changed = true;
            }
        }
    }
    changed
}

/// What of a map lies in one namespace, without a look at the rest.
pub fn in_namespace<'a, T>(
    all: &'a BTreeMap<NamespacedName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a NamespacedName, &'a T)> {
    all.range(NamespacedName::new(namespace, "")..).take_while(move |(name, _)| name.namespace == namespace)
}
