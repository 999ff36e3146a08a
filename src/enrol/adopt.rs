//! Adoption: a relationship that was made by hand becomes a TrustDomainPeer, and nothing flaps meanwhile. Pure: what
//! stands in the store, what has to be written, in which order.
//!
//! The order is such that each step by itself changes nothing that SPIRE sees: first the registrations are recorded and
//! labelled (no peer selects that label yet), then the ClusterFederatedTrustDomain is handed over (nobody wants it yet),
//! then the TrustDomainPeer is made, which names what is there already.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::bundle::document;
use crate::index::parse::{field, registration, trust_domain_peer};
use crate::model::change::{PatchOp, pointer};
use crate::model::endpoint::{BundleEndpoint, EndpointProfile};
use crate::model::object::{ANNOTATION_ADOPT, Kind};
use crate::model::registration::{ANNOTATION_RECORD, Registration};
use crate::model::{Bundle, Object, ObjectKey, Peer, TrustDomain};
use crate::plan::generated::{label_value, object_name};
use crate::plan::{registrations, relationship};

/// The kinds that are looked at.
pub const KINDS: [Kind; 4] = [
    Kind::TrustDomainPeer,
    Kind::ClusterFederatedTrustDomain,
    Kind::ClusterSpiffeId,
    Kind::ClusterStaticEntry,
];

/// What is to be adopted, and what nobody can read from what stands there.
#[derive(Clone, Debug)]
pub struct Wish {
    pub trust_domain: TrustDomain,
    /// As the agent's own options say.
    pub instance: String,
    pub class_name: String,
    /// The agent of the trust domain.
    pub agent_addresses: Vec<String>,
    pub agent_ids: Vec<String>,
    /// Its present bundle, where the one that stands there is not to be begun with.
    pub bundle: Option<String>,
    /// Leave the registrations that name it to their owners.
    pub keep_registrations: bool,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A registration is recorded as if the agent had added the name, and labelled so that the peer selects it.
    Record { key: ObjectKey, resource_version: String, ops: Vec<PatchOp> },
    /// The relationship's object is annotated: the agent may take it over.
    HandOver { key: ObjectKey, resource_version: String, ops: Vec<PatchOp>, replaced_by: Option<ObjectKey> },
    /// The TrustDomainPeer is made.
    Create(Box<Object>),
}

/// What adopting takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Adoption {
    /// In order. None: it is adopted already.
    pub steps: Vec<Step>,
    /// What the operator should know beside it.
    pub notes: Vec<String>,
    /// To be tried before anything is written.
    pub endpoint: BundleEndpoint,
    pub bundle: Option<Bundle>,
}

/// The label by which the adopted registrations are selected.
#[must_use]
pub fn label(trust_domain: &TrustDomain) -> String {
    format!("adopted.entente.dev/{}", label_value(trust_domain.as_str()))
}

/// What has to be done.
///
/// # Errors
/// Why it cannot be adopted as it stands, and what to do.
pub fn adopt(objects: &BTreeMap<ObjectKey, Object>, wish: &Wish) -> Result<Adoption, String> {
    let found = made_by_hand(objects, wish)?;
    let existing = existing_peer(objects, wish)?;
    let registrations: Vec<Registration> =
        objects.values().filter_map(|object| registration::parse(object).ok()).collect();
    let is_kind = |r: &&Registration| matches!(r.key.kind, Kind::ClusterSpiffeId | Kind::ClusterStaticEntry);
    let names = |r: &&Registration| r.names(&wish.trust_domain) && is_of_class(&r.class_name, wish);
    let naming: Vec<&Registration> = registrations.iter().filter(is_kind).filter(names).collect();
    let labelled = naming.iter().any(|r| !r.is_agent) && !wish.keep_registrations;
    let (peer, create) = match existing {
        Some(peer) => (peer, None),
        None => {
            let object = peer_object(found, wish, labelled)?;
            let peer = trust_domain_peer::parse(&object, None).map_err(|rejected| rejected.message)?;
            (peer, Some(object))
        }
    };
    let bundle = match &peer.bootstrap {
        Some(crate::model::peer::Bootstrap::Inline(bundle)) => Some((**bundle).clone()),
        _ => None,
    };
    let mut adoption =
        Adoption { steps: Vec::new(), notes: Vec::new(), endpoint: peer.endpoint.clone(), bundle };
    check_same_endpoint(found, &peer, wish)?;
    record(&mut adoption, &naming, &peer, create.is_some(), wish);
    hand_over(&mut adoption, found, wish);
    adoption.steps.extend(create.map(|object| Step::Create(Box::new(object))));
    Ok(adoption)
}

/// The one relationship's object of our class that describes the trust domain: someone's own, or ours already.
fn made_by_hand<'a>(objects: &'a BTreeMap<ObjectKey, Object>, wish: &Wish) -> Result<&'a Object, String> {
    let describes = |object: &&Object| {
        object.key.kind == Kind::ClusterFederatedTrustDomain
            && text(object, "/trustDomain") == Some(wish.trust_domain.as_str())
    };
    let (all, elsewhere): (Vec<&Object>, Vec<&Object>) = objects
        .values()
        .filter(describes)
        .partition(|object| is_of_class(text(object, "/className").unwrap_or_default(), wish));
    let theirs: Vec<&Object> =
        all.iter().copied().filter(|object| !object.is_generated_by(&wish.instance)).collect();
    let td = &wish.trust_domain;
    match (theirs.as_slice(), all.as_slice()) {
        ([one], _) => Ok(one),
        ([], [ours, ..]) => Ok(ours),
        ([], []) => Err(match elsewhere.first() {
            Some(found) => format!(
                "{} is of the class {:?}, and the agent writes for {:?}: give both the same (--spire-class-name)",
                found.key,
                text(found, "/className").unwrap_or_default(),
                wish.class_name
            ),
            None => format!(
                "no ClusterFederatedTrustDomain describes {td}: there is nothing to adopt. Make a TrustDomainPeer, or see \
                 `entente invite`"
            ),
        }),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|object| object.key.name.clone()).collect();
            Err(format!(
                "several ClusterFederatedTrustDomains describe {td} ({}): spire-controller-manager obeys the oldest; \
                 delete the others first",
                names.join(", ")
            ))
        }
    }
}

/// Whether our spire-controller-manager obeys an object of this class; one of another is another controller's.
fn is_of_class(class: &str, wish: &Wish) -> bool {
    class.is_empty() || class == wish.class_name
}

fn existing_peer(objects: &BTreeMap<ObjectKey, Object>, wish: &Wish) -> Result<Option<Peer>, String> {
    let mut peers = objects.values().filter(|object| {
        object.key.kind == Kind::TrustDomainPeer
            && text(object, "/trustDomain") == Some(wish.trust_domain.as_str())
    });
    let Some(object) = peers.next() else { return Ok(None) };
    let peer = trust_domain_peer::parse(object, None)
        .map_err(|rejected| format!("{} is there and cannot be used: {}", object.key, rejected.message))?;
    if peer.deletion.is_some() {
        return Err(format!("{} is being deleted: wait until it is gone", object.key));
    }
    Ok(Some(peer))
}

fn peer_object(found: &Object, wish: &Wish, labelled: bool) -> Result<Object, String> {
    let spec = found.spec().cloned().unwrap_or_default();
    let td = &wish.trust_domain;
    let mut peer = json!({
        "trustDomain": td.as_str(),
        "bundleEndpoint": {
            "url": spec.get("bundleEndpointURL"),
            "profile": spec.get("bundleEndpointProfile"),
        },
        "agent": { "addresses": wish.agent_addresses, "spiffeIDs": wish.agent_ids },
    });
    let fields = peer.as_object_mut().ok_or("a peer is an object")?;
    let given = wish.bundle.as_deref().or_else(|| text(found, "/trustDomainBundle"));
    match given.filter(|text| !text.trim().is_empty()) {
        Some(text) => {
            let parsed = document::parse_bootstrap(td, text)
                .map_err(|error| format!("the bundle of {td} cannot be used: {error}; {}", advice(td)))?;
            let text = document::write(&parsed.bundle);
            fields.insert("bootstrapBundle".to_owned(), json!({ "inline": text }));
        }
        None if text(found, "/bundleEndpointProfile/type") == Some("https_web") => {}
        None => return Err(format!("{} holds no bundle to begin with; {}", found.key, advice(td))),
    }
    if labelled {
        let labels = BTreeMap::from([(label(td), "true")]);
        fields.insert("federatesWith".to_owned(), json!({ "selector": { "matchLabels": labels } }));
    }
    let key = ObjectKey::cluster(Kind::TrustDomainPeer, object_name(td.as_str()));
    Ok(Object::desired(key, peer))
}

/// How to give a bundle that can be begun with.
#[must_use]
pub fn advice(trust_domain: &TrustDomain) -> String {
    format!(
        "give the present one with --bundle FILE, as SPIRE holds it: spire-server bundle list -id spiffe://{trust_domain} \
         -format spiffe"
    )
}

/// A peer with another endpoint would change SPIRE's relationship: that is no adoption.
fn check_same_endpoint(found: &Object, peer: &Peer, wish: &Wish) -> Result<(), String> {
    let id = match &peer.endpoint.profile {
        EndpointProfile::HttpsWeb => None,
        EndpointProfile::HttpsSpiffe { endpoint_id } => Some(endpoint_id.to_string()),
    };
    let same = text(found, "/bundleEndpointURL") == Some(peer.endpoint.url.as_str())
        && text(found, "/bundleEndpointProfile/endpointSPIFFEID") == id.as_deref();
    if same {
        return Ok(());
    }
    Err(format!(
        "{} and the TrustDomainPeer of {} name different bundle endpoints: make them equal first, so that nothing changes \
         while it is handed over",
        found.key, wish.trust_domain
    ))
}

fn record(adoption: &mut Adoption, naming: &[&Registration], peer: &Peer, is_new: bool, wish: &Wish) {
    let td = &wish.trust_domain;
    for registration in naming {
        let labelled = registration.labels.get(&label(td)).is_some_and(|value| value == "true");
        let would_select = is_new && !wish.keep_registrations;
        let selected = registration.is_agent || registrations::selects(peer, registration) || would_select;
        if !selected {
            adoption.notes.push(format!(
                "{} names {td} by its owner's word, and is left so: it holds back the deletion of the bundle when the \
                 relationship ends",
                registration.key
            ));
            continue;
        }
        let needs_label = is_new && !registration.is_agent && !labelled;
        let mut record = registration.record.clone();
        let recorded = !record.added.insert(td.clone());
        if recorded && !needs_label {
            continue;
        }
        let mut ops = Vec::new();
        if needs_label {
            if registration.labels.is_empty() {
                ops.push(PatchOp::Add { path: "/metadata/labels".to_owned(), value: json!({}) });
            }
            ops.push(PatchOp::Add {
                path: pointer(&["metadata", "labels", &label(td)]),
                value: json!("true"),
            });
        }
        if let (false, Some(text)) = (recorded, record.to_annotation()) {
            if !registration.has_annotations {
                ops.push(PatchOp::Add { path: "/metadata/annotations".to_owned(), value: json!({}) });
            }
            let path = pointer(&["metadata", "annotations", ANNOTATION_RECORD]);
            ops.push(PatchOp::Add { path, value: json!(text) });
        }
        adoption.steps.push(Step::Record {
            key: registration.key.clone(),
            resource_version: registration.resource_version.clone(),
            ops,
        });
    }
}

fn hand_over(adoption: &mut Adoption, found: &Object, wish: &Wish) {
    if found.is_generated_by(&wish.instance) {
        return;
    }
    let ours = relationship::key(&wish.trust_domain);
    let replaced_by = (found.key != ours).then_some(ours);
    if let Some(ours) = &replaced_by {
        adoption.notes.push(format!(
            "{} has another name than the agent gives: the agent puts {} beside it, which spire-controller-manager does not \
             obey while the older one is there, and then deletes the older one. What keeps it (Git, Helm) should drop it",
            found.key, ours.name
        ));
    }
    if found.is_handed_over() {
        return;
    }
    let mut ops = Vec::new();
    if found.meta.annotations.is_empty() {
        ops.push(PatchOp::Add { path: "/metadata/annotations".to_owned(), value: json!({}) });
    }
    let path = pointer(&["metadata", "annotations", ANNOTATION_ADOPT]);
    ops.push(PatchOp::Add { path, value: json!("true") });
    adoption.steps.push(Step::HandOver {
        key: found.key.clone(),
        resource_version: found.meta.resource_version.clone(),
        ops,
        replaced_by,
    });
}

fn text<'a>(object: &'a Object, path: &str) -> Option<&'a str> {
    object.spec()?.pointer(path).and_then(Value::as_str)
}

/// The objects of these steps, for a summary.
impl Step {
    /// What it does, in one line.
    #[must_use]
    pub fn describe(&self, trust_domain: &TrustDomain) -> String {
        match self {
            Self::Record { key, .. } => format!(
                "record {key} as federating with {trust_domain} by the agent's doing, so that the end of the relationship \
                 takes the name out; label it {}",
                label(trust_domain)
            ),
            Self::HandOver { key, replaced_by: None, .. } => {
                format!(
                    "hand {key} over to the agent ({ANNOTATION_ADOPT}: \"true\"), which keeps it from then on"
                )
            }
            Self::HandOver { key, replaced_by: Some(ours), .. } => format!(
                "hand {key} over to the agent ({ANNOTATION_ADOPT}: \"true\"), which replaces it by {ours}"
            ),
            Self::Create(object) => format!("make {}", object.key),
        }
    }
}

/// The agents of a trust domain by convention, where nobody says otherwise.
#[must_use]
pub fn conventional_agent(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}/ns/entente-system/sa/entente")
}

/// Reads the trust domain that is to be adopted.
///
/// # Errors
/// Where it is none.
pub fn parse_trust_domain(text: &str) -> Result<TrustDomain, String> {
    field::trust_domain("trust domain", text).map_err(|problem| problem.message)
}

/// The registrations that are recorded.
#[must_use]
pub fn recorded(adoption: &Adoption) -> BTreeSet<&ObjectKey> {
    let steps = adoption.steps.iter();
    steps.filter_map(|step| if let Step::Record { key, .. } = step { Some(key) } else { None }).collect()
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
