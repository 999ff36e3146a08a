//! The SPIRE Server API on a Unix socket: the calls that the agent makes, refused and answered as SPIRE 1.15 does, in
//! its words. Callers on the socket are local, and may do everything.

mod authority;
mod bundle;
mod entry;
mod relationship;

pub(super) use entry::create_for;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use tonic::{Code, Status};

use super::poll::Poller;
use super::state::{Selector, Shared, State};
use crate::model::{Bundle, SpiffeId, TrustDomain};
use crate::proto::spire::types;
use crate::spire::bundle_from_proto;

/// All four services.
#[derive(Clone, Debug)]
pub(super) struct ServerApi {
    shared: Arc<Shared>,
    poller: Arc<Poller>,
}

impl ServerApi {
    pub(super) fn new(shared: Arc<Shared>, poller: Arc<Poller>) -> Self {
        Self { shared, poller }
    }
}

/// A new registration entry.
#[derive(Clone, Debug)]
pub struct NewEntry {
    pub spiffe_id: SpiffeId,
    pub selectors: Vec<Selector>,
    pub federates_with: Vec<TrustDomain>,
    /// Tells two SVIDs of one caller apart.
    pub hint: String,
    /// Whether its SVID may administer the server.
    pub admin: bool,
}

impl NewEntry {
    /// For the workload of this name, as [`EmbeddedSpire::workload_socket`](super::EmbeddedSpire::workload_socket)
    /// serves it.
    #[must_use]
    pub fn workload(spiffe_id: SpiffeId, name: &str) -> Self {
        Self {
            spiffe_id,
            selectors: vec![("devkit".to_owned(), name.to_owned())],
            federates_with: Vec::new(),
            hint: String::new(),
            admin: false,
        }
    }
}

/// Why a call or an item of a batch is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refusal {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As SPIRE joins what it tried with what went wrong.
    fn because(code: Code, tried: &str, cause: impl Display) -> Self {
        Self::new(code, format!("{tried}: {cause}"))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

/// The status of an item of a batch.
fn item_status(outcome: Result<(), Refusal>) -> Option<types::Status> {
    Some(match outcome {
        Ok(()) => types::Status { code: Code::Ok.into(), message: "OK".to_owned() },
        Err(refusal) => types::Status { code: refusal.code.into(), message: refusal.message },
    })
}

/// One page of a listing in the order of its keys, with the token of the next; all of it for a size of zero.
fn page<'a, K: Ord + Display, V>(
    items: &'a BTreeMap<K, V>,
    wanted: impl Fn(&V) -> bool,
    size: i32,
    token: &str,
) -> (Vec<&'a V>, String) {
    let size = usize::try_from(size).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    let mut rest =
        items.iter().filter(|(k, v)| wanted(v) && (token.is_empty() || k.to_string().as_str() > token));
    let mut page = Vec::new();
    let mut next = String::new();
    for (key, value) in rest.by_ref().take(size) {
        next = key.to_string();
        page.push(value);
    }
    if rest.next().is_none() {
        next.clear();
    }
    (page, next)
}

fn trust_domain(name: &str) -> Result<TrustDomain, String> {
    if name.is_empty() {
        return Err("trust domain is missing".to_owned());
    }
    TrustDomain::new(name).map_err(|e| e.to_string())
}

/// A bundle as it came; unlike the agent, SPIRE takes all of it or nothing.
fn whole_bundle(proto: &types::Bundle) -> Result<Bundle, String> {
    let mut complaints = Vec::new();
    let bundle = bundle_from_proto(proto, |what| complaints.push(what))
        .map_err(|e| format!("invalid trust domain: {e}"))?;
    match complaints.into_iter().next() {
        None => Ok(bundle),
        Some(complaint) => Err(format!("unable to parse authority: {complaint}")),
    }
}

/// SPIRE's database keeps our own bundle beside the federated ones, so that an entry may name our own trust domain.
fn holds_bundle(state: &State, trust_domain: &TrustDomain) -> bool {
    state.bundles.contains_key(trust_domain) || state.authority.trust_domain() == trust_domain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_every_item_once() {
        let items: BTreeMap<String, u32> = (0..25).map(|n| (format!("{n:02}"), n)).collect();
        for size in [0, 1, 7, 25, 26] {
            let (mut token, mut seen) = (String::new(), Vec::new());
            loop {
                let (got, next) = page(&items, |n| n % 2 == 0, size, &token);
                assert!(size == 0 || got.len() <= size as usize);
                seen.extend(got.into_iter().copied());
                if next.is_empty() {
                    break;
                }
                token = next;
            }
            assert_eq!(seen, (0..25).filter(|n| n % 2 == 0).collect::<Vec<_>>(), "{size}");
        }
    }
}
