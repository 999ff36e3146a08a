//! What the agent relies on SPIRE to do, as tests that run against any SPIRE: the embedded authority (ring `authority`)
//! and the real one (ring `cluster`). Where the two differ, the embedded one is wrong.
//!
//! The peer of each behaviour is an embedded authority of its own, so that behaviours do not disturb one another; run
//! them one after the other, since they share the entry of one workload.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends where it meets what it did not expect, and says what passed"
)]

mod api;
mod bundles;
mod relationships;
mod rotation;
mod workload;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use entente::devkit::{EmbeddedConfig, EmbeddedSpire};
use entente::model::endpoint::BundleEndpoint;
use entente::model::trust::{BundleRemoval, Refresh, Relationship, SpireAction, SpireState};
use entente::model::{AuthorityId, Bundle, TrustDomain};
use entente::spire::SpireServer;

pub(crate) use api::Api;
#[allow(unused_imports, reason = "one of the rings that run the suite opens sockets of its own")]
pub(crate) use api::channel;
pub(crate) use workload::Workload;

/// A running SPIRE.
pub(crate) trait Spire: Sync {
    fn trust_domain(&self) -> &TrustDomain;
    /// The server's Unix socket, where callers are local.
    fn server_socket(&self) -> &Path;
    /// The socket of the Workload API, where the caller has exactly one entry.
    fn workload_socket(&self) -> &Path;
    /// The ID of that entry; it federates with nobody when the suite begins.
    fn workload_entry(&self) -> &str;
    /// The server's own bundle endpoint, of profile `https_spiffe`.
    fn bundle_endpoint(&self) -> BundleEndpoint;
    /// How long a change at the server may take to reach a workload.
    fn patience(&self) -> Duration;
    /// Whether SPIRE's agent, where there is one, knows that this authority is tainted and has no SVID of its own of it.
    fn agent_has_let_go(&self, tainted: &AuthorityId) -> bool;
}

/// Runs every behaviour, and names each as it passes.
pub(crate) async fn all(spire: &impl Spire) {
    let dir = tempfile::tempdir().unwrap();
    macro_rules! run {
        ($($name:path),+ $(,)?) => { $(
            let case = Case::start(spire, dir.path(), stringify!($name)).await;
            $name(&case).await;
            case.end().await;
            println!("behaviour {} ... ok", stringify!($name));
        )+ };
    }
    run!(
        relationships::own_trust_domain_is_refused,
        relationships::ending_a_relationship_leaves_the_bundle,
        relationships::creating_twice_is_refused_and_taken_as_an_update,
        relationships::an_update_overwrites_the_bundle_only_if_it_brings_one,
        relationships::an_unknown_relationship_is_neither_updated_nor_refreshed,
        bundles::federating_needs_the_bundle_first,
        bundles::a_change_leaves_what_someone_else_wrote,
        bundles::a_bundle_in_use_is_not_deleted,
        bundles::an_empty_bundle_is_stored_and_delivered_empty,
        bundles::an_older_bundle_is_taken,
        bundles::what_is_not_to_be_trusted_is_not_fetched,
        bundles::the_endpoint_serves_what_the_api_says,
        workload::only_federated_trust_domains_are_delivered,
        workload::a_change_of_federates_with_makes_a_new_svid,
        workload::the_security_header_is_wanted,
        rotation::an_authority_is_published_before_it_signs,
        rotation::only_an_old_authority_is_tainted_and_only_a_tainted_one_revoked,
        rotation::preparing_again_replaces_what_is_prepared,
    );
}

/// One behaviour under test: the SPIRE, and a peer for it.
struct Case<'a, S> {
    spire: &'a S,
    server: SpireServer,
    api: Api,
    peer: EmbeddedSpire,
}

impl<'a, S: Spire> Case<'a, S> {
    async fn start(spire: &'a S, dir: &Path, name: &str) -> Self {
        let name = name.rsplit(' ').next().unwrap_or(name).rsplit("::").next().unwrap();
        let label: String = name.chars().take(40).map(|c| if c == '_' { '-' } else { c }).collect();
        let trust_domain = TrustDomain::new(format!("{}.peer.example", label.trim_matches('-'))).unwrap();
        // Short, since the path of a Unix socket is.
        let socket_dir =
            dir.join(format!("{:x}", name.bytes().fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b))));
        let peer = EmbeddedSpire::start(EmbeddedConfig::new(trust_domain, socket_dir)).await.unwrap();
        let server = SpireServer::connect_unix(spire.server_socket());
        Self { spire, server, api: Api::connect(spire.server_socket()), peer }
    }

    /// Leaves the SPIRE as it was found.
    async fn end(self) {
        self.federate(&[]).await;
        let peer = self.peer_domain();
        self.act(SpireAction::DeleteRelationship(peer.clone())).await;
        self.act(SpireAction::DeleteBundle(peer, BundleRemoval::Restrict)).await;
        self.peer.shutdown().await;
    }

    fn own(&self) -> &TrustDomain {
        self.spire.trust_domain()
    }

    fn peer_domain(&self) -> TrustDomain {
        self.peer.trust_domain().clone()
    }

    fn relationship(&self) -> Relationship {
        Relationship { trust_domain: self.peer_domain(), endpoint: self.peer.bundle_endpoint().unwrap() }
    }

    async fn act(&self, action: SpireAction) {
        self.server.act(self.own(), &action).await.unwrap_or_else(|e| panic!("{action:?}: {e}"));
    }

    /// The relationship with the peer, with its bundle.
    async fn relate(&self) {
        self.act(SpireAction::CreateRelationship(self.relationship(), Some(self.peer.bundle()))).await;
    }

    async fn refresh(&self) -> Result<(), entente::spire::SpireError> {
        let refresh = Refresh {
            trust_domain: self.peer_domain(),
            stored: None,
            served: self.peer.bundle().digest(),
            every: Duration::ZERO,
        };
        self.server.act(self.own(), &SpireAction::RefreshBundle(refresh)).await
    }

    /// Refreshes until the bundle held is as wanted: a poll of SPIRE's own may have been under way and end later.
    async fn refreshed(&self, what: &str, wanted: impl Fn(&Bundle) -> bool) {
        let deadline = tokio::time::Instant::now() + self.spire.patience();
        loop {
            let outcome = self.refresh().await;
            let held = self.held().await;
            if outcome.is_ok() && held.as_ref().is_some_and(|bundle| wanted(bundle)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {what}: {outcome:?}, {held:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sets what the workload's entry federates with.
    async fn federate(&self, with: &[&TrustDomain]) {
        let add: BTreeSet<TrustDomain> = with.iter().map(|td| (*td).clone()).collect();
        let entry = self.spire.workload_entry().to_owned();
        let stands = self.state().await.entries.get(&entry).map(|entry| entry.federates_with.clone());
        let remove = stands.unwrap_or_default().difference(&add).cloned().collect();
        self.act(SpireAction::ChangeFederatesWith { entry, add, remove }).await;
    }

    async fn state(&self) -> SpireState {
        self.server.read(self.own()).await.unwrap()
    }

    /// What the SPIRE holds of the peer.
    async fn held(&self) -> Option<std::sync::Arc<Bundle>> {
        self.state().await.bundles.get(self.peer.trust_domain()).cloned()
    }
}
