//! `Entry`: registration entries.

use std::collections::BTreeSet;

use tonic::{Code, Request, Response, Status};

use super::{NewEntry, Refusal, ServerApi, holds_bundle, item_status, page, trust_domain};
use crate::devkit::state::{Registration, Selector, Shared, State};
use crate::model::{SpiffeId, TrustDomain};
use crate::proto::spire::server::entry::v1 as api;
use crate::proto::spire::server::entry::v1::entry_server::Entry;
use crate::proto::spire::types;
use crate::proto::spire::types::federates_with_match::MatchBehavior;

/// What a call gives of an entry, checked.
#[derive(Default)]
struct Given {
    spiffe_id: Option<SpiffeId>,
    parent_id: Option<SpiffeId>,
    selectors: Option<BTreeSet<Selector>>,
    federates_with: Option<BTreeSet<TrustDomain>>,
}

const ALL: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    hint: true,
};

/// Reads the fields that the mask names.
fn parse(own: &TrustDomain, proto: &types::Entry, mask: types::EntryMask) -> Result<Given, String> {
    let mut given = Given::default();
    if mask.spiffe_id {
        given.spiffe_id =
            Some(member(own, proto.spiffe_id.as_ref()).map_err(|e| format!("invalid spiffe ID: {e}"))?);
    }
    if mask.parent_id {
        given.parent_id =
            Some(member(own, proto.parent_id.as_ref()).map_err(|e| format!("invalid parent ID: {e}"))?);
    }
    if mask.selectors {
        if proto.selectors.is_empty() {
            return Err("selector list is empty".to_owned());
        }
        given.selectors = Some(proto.selectors.iter().map(selector).collect::<Result<_, _>>()?);
    }
    if mask.federates_with {
        let names = proto.federates_with.iter().map(|name| trust_domain(name));
        let names: Result<_, _> = names.collect();
        given.federates_with = Some(names.map_err(|e| format!("invalid federated trust domain: {e}"))?);
    }
    if mask.x509_svid_ttl && proto.x509_svid_ttl < 0 {
        return Err(format!("X509-SVID TTL must not be negative, but is {}", proto.x509_svid_ttl));
    }
    Ok(given)
}

fn member(own: &TrustDomain, id: Option<&types::Spiffeid>) -> Result<SpiffeId, String> {
    let id = id.ok_or("request must specify SPIFFE ID")?;
    let id = SpiffeId::new(format!("spiffe://{}{}", id.trust_domain, id.path)).map_err(|e| e.to_string())?;
    if id.is_member_of(own) {
        Ok(id)
    } else {
        let name = own.as_str();
        Err(format!("\"{id}\" is not a member of trust domain {name:?}"))
    }
}

fn selector(proto: &types::Selector) -> Result<Selector, String> {
    match (proto.r#type.as_str(), proto.value.as_str()) {
        ("", _) => Err("missing selector type".to_owned()),
        (_, "") => Err("missing selector value".to_owned()),
        (kind, _) if kind.contains(':') => Err("selector type contains ':'".to_owned()),
        (kind, value) => Ok((kind.to_owned(), value.to_owned())),
    }
}

/// SPIRE refuses an entry that federates with a trust domain whose bundle it does not have.
fn check_bundles(state: &State, federates_with: &BTreeSet<TrustDomain>, tried: &str) -> Result<(), Refusal> {
    match federates_with.iter().find(|td| !holds_bundle(state, td)) {
        None => Ok(()),
        Some(td) => {
            let cause = format!("unable to find federated bundle \"{}\"", td.id_string());
            Err(Refusal::because(Code::Internal, tried, cause))
        }
    }
}

/// Creates an entry; one with the same SPIFFE ID, parent and selectors is returned beside the refusal.
fn create(shared: &Shared, proto: &types::Entry) -> (Option<types::Entry>, Result<(), Refusal>) {
    let own = shared.trust_domain();
    let given = parse(own, proto, ALL)
        .map_err(|cause| Refusal::because(Code::InvalidArgument, "failed to convert entry", cause));
    let (spiffe_id, parent_id, selectors, federates_with) = match given {
        Ok(Given {
            spiffe_id: Some(id),
            parent_id: Some(parent),
            selectors: Some(selectors),
            federates_with: Some(federates_with),
        }) => (id, parent, selectors, federates_with),
        Ok(_) => return (None, Err(Refusal::new(Code::Internal, "failed to convert entry"))),
        Err(refusal) => return (None, Err(refusal)),
    };
    shared.change(|state, _| {
        let similar = state
            .entries
            .values()
            .find(|e| e.spiffe_id == spiffe_id && e.parent_id == parent_id && e.selectors == selectors);
        if let Some(similar) = similar {
            let refusal = Refusal::new(Code::AlreadyExists, "similar entry already exists");
            return (Some(to_proto(similar, ALL)), Err(refusal));
        }
        if let Err(refusal) = check_bundles(state, &federates_with, "failed to create entry") {
            return (None, Err(refusal));
        }
        let number = state.number();
        let id = if proto.id.is_empty() { format!("devkit-{number:08}") } else { proto.id.clone() };
        if state.entries.contains_key(&id) {
            let refusal = Refusal::new(Code::AlreadyExists, format!("entry {id:?} already exists"));
            return (None, Err(refusal));
        }
        let entry = Registration {
            id: id.clone(),
            spiffe_id,
            parent_id,
            selectors,
            federates_with,
            x509_svid_ttl: proto.x509_svid_ttl,
            admin: proto.admin,
            hint: proto.hint.clone(),
            revision: number,
            created: number,
        };
        let answer = to_proto(&entry, ALL);
        state.entries.insert(id, entry);
        (Some(answer), Ok(()))
    })
}

fn update(shared: &Shared, proto: &types::Entry, mask: types::EntryMask) -> Result<(), Refusal> {
    let given = parse(shared.trust_domain(), proto, mask)
        .map_err(|cause| Refusal::because(Code::InvalidArgument, "failed to convert entry", cause))?;
    shared.change(|state, _| {
        let Some(held) = state.entries.get(&proto.id) else {
            return Err(Refusal::new(Code::NotFound, "failed to update entry"));
        };
        let mut entry = held.clone();
        if let Some(federates_with) = given.federates_with {
            check_bundles(state, &federates_with, "failed to update entry")?;
            entry.federates_with = federates_with;
        }
        entry.spiffe_id = given.spiffe_id.unwrap_or(entry.spiffe_id);
        entry.parent_id = given.parent_id.unwrap_or(entry.parent_id);
        entry.selectors = given.selectors.unwrap_or(entry.selectors);
        if mask.x509_svid_ttl {
            entry.x509_svid_ttl = proto.x509_svid_ttl;
        }
        if mask.admin {
            entry.admin = proto.admin;
        }
        if mask.hint {
            entry.hint.clone_from(&proto.hint);
        }
        // As in SPIRE, an update that changes nothing still counts as one.
        entry.revision = state.number();
        state.entries.insert(entry.id.clone(), entry);
        Ok(())
    })
}

/// Creates an entry for a workload of the devkit, and gives its ID.
pub(in crate::devkit) fn create_for(shared: &Shared, new: NewEntry) -> Result<String, Refusal> {
    let own = shared.trust_domain().as_str();
    let id = |path: &str| Some(types::Spiffeid { trust_domain: own.to_owned(), path: path.to_owned() });
    let proto = types::Entry {
        spiffe_id: Some(types::Spiffeid {
            trust_domain: new.spiffe_id.trust_domain_name().to_owned(),
            path: new.spiffe_id.path().to_owned(),
        }),
        parent_id: id("/devkit"),
        selectors: new
            .selectors
            .into_iter()
            .map(|(r#type, value)| types::Selector { r#type, value })
            .collect(),
        federates_with: new.federates_with.iter().map(ToString::to_string).collect(),
        hint: new.hint,
        admin: new.admin,
        ..Default::default()
    };
    let (entry, outcome) = create(shared, &proto);
    outcome.map(|()| entry.unwrap_or_default().id)
}

fn to_proto(entry: &Registration, mask: types::EntryMask) -> types::Entry {
    let id = |id: &SpiffeId| types::Spiffeid {
        trust_domain: id.trust_domain_name().to_owned(),
        path: id.path().to_owned(),
    };
    let selector =
        |(r#type, value): &Selector| types::Selector { r#type: r#type.clone(), value: value.clone() };
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: mask.spiffe_id.then(|| id(&entry.spiffe_id)),
        parent_id: mask.parent_id.then(|| id(&entry.parent_id)),
        selectors: entry.selectors.iter().filter(|_| mask.selectors).map(selector).collect(),
        x509_svid_ttl: if mask.x509_svid_ttl { entry.x509_svid_ttl } else { 0 },
        federates_with: entry
            .federates_with
            .iter()
            .filter(|_| mask.federates_with)
            .map(ToString::to_string)
            .collect(),
        admin: mask.admin && entry.admin,
        hint: if mask.hint { entry.hint.clone() } else { String::new() },
    }
}

/// SPIRE's filter by the trust domains that an entry federates with.
fn matches(entry: &Registration, filter: Option<&types::FederatesWithMatch>) -> bool {
    let Some(filter) = filter else { return true };
    let wanted: BTreeSet<&str> = filter.trust_domains.iter().map(String::as_str).collect();
    let has: BTreeSet<&str> = entry.federates_with.iter().map(TrustDomain::as_str).collect();
    match filter.r#match() {
        MatchBehavior::MatchExact => has == wanted,
        MatchBehavior::MatchSubset => !has.is_empty() && has.is_subset(&wanted),
        MatchBehavior::MatchSuperset => has.is_superset(&wanted),
        MatchBehavior::MatchAny => !has.is_disjoint(&wanted),
    }
}

#[tonic::async_trait]
impl Entry for ServerApi {
    async fn list_entries(
        &self,
        request: Request<api::ListEntriesRequest>,
    ) -> Result<Response<api::ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let mask = request.output_mask.unwrap_or(ALL);
        let filter = request.filter.and_then(|f| f.by_federates_with);
        let state = self.shared.lock();
        let wanted = |entry: &Registration| matches(entry, filter.as_ref());
        let (found, next_page_token) = page(&state.entries, wanted, request.page_size, &request.page_token);
        let entries = found.into_iter().map(|e| to_proto(e, mask)).collect();
        Ok(Response::new(api::ListEntriesResponse { entries, next_page_token }))
    }

    async fn get_entry(
        &self,
        request: Request<api::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(Status::invalid_argument("missing ID"));
        }
        let state = self.shared.lock();
        let entry = state.entries.get(&request.id).ok_or_else(|| Status::not_found("entry not found"))?;
        Ok(Response::new(to_proto(entry, request.output_mask.unwrap_or(ALL))))
    }

    async fn batch_create_entry(
        &self,
        request: Request<api::BatchCreateEntryRequest>,
    ) -> Result<Response<api::BatchCreateEntryResponse>, Status> {
        type Item = api::batch_create_entry_response::Result;
        let item = |proto: &types::Entry| {
            let (entry, outcome) = create(&self.shared, proto);
            Item { status: item_status(outcome), entry }
        };
        let results = request.into_inner().entries.iter().map(item).collect();
        Ok(Response::new(api::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<api::BatchUpdateEntryRequest>,
    ) -> Result<Response<api::BatchUpdateEntryResponse>, Status> {
        type Item = api::batch_update_entry_response::Result;
        let request = request.into_inner();
        let mask = request.input_mask.unwrap_or(ALL);
        let item = |proto: &types::Entry| Item { status: item_status(update(&self.shared, proto, mask)) };
        let results = request.entries.iter().map(item).collect();
        Ok(Response::new(api::BatchUpdateEntryResponse { results }))
    }
}
