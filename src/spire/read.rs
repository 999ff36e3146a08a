//! Reading what SPIRE holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use tonic::Code;

use super::client::CALL_TIMEOUT;
use super::convert::{bundle_from_proto, relationship_from_proto};
use super::{SpireError, SpireServer};
use crate::bundle::document::MAX_BYTES;
use crate::model::trust::{Entry, SpireState};
use crate::model::{Bundle, SpiffeId, TrustDomain};
use crate::proto::spire::server::{bundle, entry, trustdomain};
use crate::proto::spire::types;

/// Items asked for in a page: few enough that a page of bundles stays far below the message limit.
const PAGE: i32 = 200;
/// Pages read at most in one listing.
const MAX_PAGES: usize = 1_000;
/// Relationships, and bundles, read at most.
const MAX_ITEMS: usize = 10_000;
/// The largest federated bundle that is taken. SPIRE's agents receive at most 4 MiB in one message (gRPC's own limit), and while
/// the bundle of one entry does not come through they renew no SVID on their node, of no workload and not their own; clients
/// of the Workload API have as much for all bundles together. No bundle that was verified here comes near it: the document
/// of one, which is longer, is read up to [`MAX_BYTES`].
const MOST_BUNDLE_BYTES: usize = MAX_BYTES;
/// Registration entries read at most; only four fields of each are asked for.
const MAX_ENTRIES: usize = 100_000;

impl SpireServer {
    /// Reads what is the same at every server: [`read_bundles`](Self::read_bundles) and
    /// [`read_entries`](Self::read_entries).
    ///
    /// # Errors
    /// [`SpireError`] if any listing failed or was over its limit: a partial state is never returned.
    pub async fn read(&self, own: &TrustDomain) -> Result<SpireState, SpireError> {
        let (state, entries) = tokio::join!(self.read_bundles(own), self.read_entries());
        let state = state?;
        Ok(SpireState { entries: entries?, ..state })
    }

    /// Reads relationships, federated bundles and our own bundle; `entries` and `servers` are left empty. Cheap enough
    /// to be called every second. What does not parse is in `unreadable`, or left out and logged once.
    ///
    /// # Errors
    /// [`SpireError`] if a listing failed or was over its limit, or the server is of another trust domain than `own`.
    pub async fn read_bundles(&self, own: &TrustDomain) -> Result<SpireState, SpireError> {
        // Each is waited for: where several fail, the first in this order is told, not the first in time, or a lasting
        // failure would read as a new one at every turn.
        let (relationships, bundles, own_bundle) =
            tokio::join!(self.list_relationships(), self.list_bundles(), self.own_bundle(own));
        let (relationships, (bundles, unread)) = (relationships?, bundles?);
        let mut state = SpireState { own: Some(Arc::new(own_bundle?)), ..SpireState::default() };
        for proto in relationships {
            match relationship_from_proto(&proto) {
                Ok(relationship) => {
                    state.relationships.insert(relationship.trust_domain.clone(), relationship);
                }
                Err(reason) => {
                    state.unreadable.insert(proto.trust_domain, reason);
                }
            }
        }
        let is_small = |proto: &types::Bundle| proto.encoded_len() <= MOST_BUNDLE_BYTES;
        let (bundles, too_large): (Vec<_>, Vec<_>) = bundles.into_iter().partition(is_small);
        for name in too_large.into_iter().map(|proto| proto.trust_domain).chain(unread) {
            self.complain(format!(
                "SPIRE holds a federated bundle of {name:?} of more than {MOST_BUNDLE_BYTES} bytes, which its agents may not \
                 receive: they then renew no SVID at all"
            ));
            if let Ok(trust_domain) = TrustDomain::new(&name) {
                let put_aside = Bundle::new(trust_domain.clone(), []);
                state.bundles.insert(trust_domain.clone(), Arc::new(put_aside));
                state.too_large.insert(trust_domain);
            }
        }
        for proto in bundles {
            match bundle_from_proto(&proto, |what| self.complain(what)) {
                Ok(bundle) => {
                    state.bundles.insert(bundle.trust_domain().clone(), Arc::new(bundle));
                }
                Err(reason) => self.complain(format!("a federated bundle is left out: {reason}")),
            }
        }
        Ok(state)
    }

    /// Whether the server answers us at all, of whatever trust domain it is.
    ///
    /// # Errors
    /// [`SpireError`] where it does not, or refuses us.
    pub async fn answers(&self) -> Result<(), SpireError> {
        self.list_relationships().await.map(drop)
    }

    /// Reads the registration entries, by ID: the identity, selectors and `federatesWith` of each.
    ///
    /// # Errors
    /// [`SpireError`] if the listing failed or was over its limit.
    pub async fn read_entries(&self) -> Result<BTreeMap<String, Entry>, SpireError> {
        const CALL: &str = "ListEntries";
        let mask =
            types::EntryMask { spiffe_id: true, selectors: true, federates_with: true, ..Default::default() };
        let mut pages = Pages::new(self, CALL, MAX_ENTRIES);
        while let Some(page_token) = pages.next_token() {
            let request = entry::v1::ListEntriesRequest {
                filter: None,
                output_mask: Some(mask),
                page_size: PAGE,
                page_token,
            };
            let answer = self.call(CALL, CALL_TIMEOUT, self.entries().list_entries(request)).await?;
            pages.add(answer.entries, answer.next_page_token)?;
        }
        let entries = pages.items.into_iter().filter_map(|proto| self.entry(proto));
        Ok(entries.map(|e| (e.id.clone(), e)).collect())
    }

    fn entry(&self, proto: types::Entry) -> Option<Entry> {
        let id = proto.spiffe_id.unwrap_or_default();
        let uri = format!("spiffe://{}{}", id.trust_domain, id.path);
        let spiffe_id = match SpiffeId::new(&uri) {
            Ok(spiffe_id) => spiffe_id,
            Err(e) => {
                self.complain(format!("entry {:?} is left out: SPIFFE ID {uri:?}: {e}", proto.id));
                return None;
            }
        };
        let federates_with = proto.federates_with.iter().filter_map(|name| {
            TrustDomain::new(name)
                .inspect_err(|e| self.complain(format!("entry {:?} federates with {name:?}: {e}", proto.id)))
                .ok()
        });
        Some(Entry {
            federates_with: federates_with.collect(),
            selectors: proto.selectors.iter().map(|one| format!("{}:{}", one.r#type, one.value)).collect(),
            id: proto.id.clone(),
            spiffe_id,
        })
    }

    async fn list_relationships(&self) -> Result<Vec<types::FederationRelationship>, SpireError> {
        const CALL: &str = "ListFederationRelationships";
        // The bundles are read by their own call, whether or not there is a relationship.
        let mask = types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            bundle_endpoint_profile: true,
            trust_domain_bundle: false,
        };
        let mut pages = Pages::new(self, CALL, MAX_ITEMS);
        while let Some(page_token) = pages.next_token() {
            let request = trustdomain::v1::ListFederationRelationshipsRequest {
                output_mask: Some(mask),
                page_size: PAGE,
                page_token,
            };
            let answer = self
                .call(CALL, CALL_TIMEOUT, self.trust_domains().list_federation_relationships(request))
                .await?;
            pages.add(answer.federation_relationships, answer.next_page_token)?;
        }
        Ok(pages.items)
    }

    /// The federated bundles, and the names of those that are larger than any message may be: such a one keeps nothing of the
    /// others from being read.
    async fn list_bundles(&self) -> Result<(Vec<types::Bundle>, Vec<String>), SpireError> {
        const CALL: &str = "ListFederatedBundles";
        let mut pages = Pages::new(self, CALL, MAX_ITEMS);
        let (mut page_size, mut unread) = (PAGE, Vec::new());
        while let Some(page_token) = pages.next_token() {
            let list = async |output_mask| {
                let page_token = page_token.clone();
                let request = bundle::v1::ListFederatedBundlesRequest { output_mask, page_size, page_token };
                self.call(CALL, CALL_TIMEOUT, self.bundles().list_federated_bundles(request)).await
            };
            match list(None).await {
                // What our own client says of an answer that is over its limit.
                Err(error) if error.code() == Some(Code::OutOfRange) && page_size > 1 => page_size /= 2,
                Err(error) if error.code() == Some(Code::OutOfRange) => {
                    let nothing = types::BundleMask::default();
                    let answer = list(Some(nothing)).await?;
                    unread.extend(answer.bundles.into_iter().map(|bundle| bundle.trust_domain));
                    pages.add(Vec::new(), answer.next_page_token)?;
                }
                answer => {
                    let answer = answer?;
                    pages.add(answer.bundles, answer.next_page_token)?;
                    page_size = PAGE.min(page_size * 2);
                }
            }
        }
        Ok((pages.items, unread))
    }

    async fn own_bundle(&self, own: &TrustDomain) -> Result<Bundle, SpireError> {
        const CALL: &str = "GetBundle";
        let request = bundle::v1::GetBundleRequest {};
        let answer = self.call(CALL, CALL_TIMEOUT, self.bundles().get_bundle(request)).await?;
        let bundle = bundle_from_proto(&answer, |what| self.complain(what))
            .map_err(|reason| self.nonsense(CALL, reason))?;
        if bundle.trust_domain() == own {
            Ok(bundle)
        } else {
            Err(self.nonsense(CALL, format!("it serves {}, we are of {own}", bundle.trust_domain())))
        }
    }
}

/// A listing, page by page, within its limits.
struct Pages<'a, T> {
    server: &'a SpireServer,
    call: &'static str,
    limit: usize,
    items: Vec<T>,
    read: usize,
    token: Option<String>,
}

impl<'a, T> Pages<'a, T> {
    fn new(server: &'a SpireServer, call: &'static str, limit: usize) -> Self {
        Self { server, call, limit, items: Vec::new(), read: 0, token: Some(String::new()) }
    }

    /// The token of the next page; `None` after the last.
    fn next_token(&self) -> Option<String> {
        self.token.clone()
    }

    fn add(&mut self, items: Vec<T>, next: String) -> Result<(), SpireError> {
        self.items.extend(items);
        self.read += 1;
        if self.items.len() > self.limit || (self.read >= MAX_PAGES && !next.is_empty()) {
            return Err(SpireError::TooMany {
                server: self.server.name().to_owned(),
                call: self.call,
                limit: self.limit,
            });
        }
        if !next.is_empty() && self.token.as_ref() == Some(&next) {
            return Err(self.server.nonsense(self.call, "a page that names itself as the next"));
        }
        self.token = Some(next).filter(|t| !t.is_empty());
        Ok(())
    }
}
