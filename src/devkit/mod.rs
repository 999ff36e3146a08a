//! An embedded SPIFFE authority, for the demo and for quick tests: **not for production**, and it says so wherever it
//! starts. Keys are in memory, callers of the Workload API are told apart by the socket they use, and anyone who can
//! open the server's socket is its administrator.
//!
//! It behaves as SPIRE 1.15 does where the agent can tell; `integration/behaviour` holds the two together.
//!
//! ```text
//!   server API (server_api/, Unix socket) ----+
//!   polling of federated bundles (poll.rs) ---+--> state.rs --> Workload API (workload_api.rs, Unix sockets)
//!   rotation by time (authority.rs) ----------+            \--> bundle endpoint (bundle_endpoint.rs, both profiles)
//! ```

mod authority;
mod bundle_endpoint;
pub mod demo;
pub mod document;
mod fault;
mod fetch;
mod listener;
mod poll;
mod server_api;
mod state;
mod svid;
mod web_pki;
mod workload_api;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use authority::{Authority, AuthorityError, Settings, Slots};
pub use fault::{Fault, Meddling};
pub use fetch::{Fetch, FetchRequest, WebRoots, as_spire};
pub use server_api::NewEntry;
pub use state::Selector;
pub use svid::Svid;

use crate::clock;
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl, EndpointUrlError};
use crate::model::{AuthorityId, Bundle, SpiffeId, TrustDomain};
use poll::Poller;
use server_api::ServerApi;
use state::Shared;
use web_pki::WebPki;
use workload_api::WorkloadApi;

/// How often the embedded authority looks at the clock: SPIRE's ten seconds are long for a demo.
const TICK: Duration = Duration::from_secs(1);

/// Why the embedded authority did not start, or refused.
#[derive(Debug, thiserror::Error)]
pub enum DevkitError {
    #[error("embedded authority: {0}")]
    Authority(#[from] AuthorityError),
    #[error("embedded authority: TLS: {0}")]
    Tls(rustls::Error),
    #[error("embedded authority: cannot listen on {address}: {source}")]
    Listen { address: String, source: std::io::Error },
    #[error("embedded authority: {0}")]
    Id(#[from] spiffe::SpiffeIdError),
    #[error("embedded authority: {0}")]
    Url(#[from] EndpointUrlError),
    /// In the words of SPIRE's API.
    #[error("embedded authority: {0}")]
    Refused(String),
}

/// What an embedded authority is started with.
#[derive(Clone)]
pub struct EmbeddedConfig {
    pub trust_domain: TrustDomain,
    /// Where its sockets go; made if it is not there. A path of a Unix socket is at most 107 bytes.
    pub dir: PathBuf,
    pub settings: Settings,
    /// Where the bundle endpoints listen; port 0 takes one that is free.
    pub spiffe_listen: SocketAddr,
    pub web_listen: SocketAddr,
    /// The shortest refresh hint that is heeded; polls come four times as often. SPIRE's is a minute.
    pub minimum_refresh_hint: Duration,
    /// How federated bundles are fetched; absent: as SPIRE does.
    pub fetch: Option<Fetch>,
}

impl EmbeddedConfig {
    /// SPIRE's defaults, on loopback ports that are free.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, dir: impl Into<PathBuf>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            trust_domain,
            dir: dir.into(),
            settings: Settings::new(clock::now()),
            spiffe_listen: loopback,
            web_listen: loopback,
            minimum_refresh_hint: Duration::from_secs(60),
            fetch: None,
        }
    }
}

impl fmt::Debug for EmbeddedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedConfig")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("dir", &self.dir)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A running embedded authority. It stops when it is dropped; [`shutdown`](Self::shutdown) also waits for it.
#[derive(Debug)]
pub struct EmbeddedSpire {
    /// The SPIRE Server API.
    pub server_socket: PathBuf,
    /// The bundle endpoint of profile `https_spiffe`.
    pub bundle_url: EndpointUrl,
    /// The bundle endpoint of profile `https_web`.
    pub web_bundle_url: EndpointUrl,
    dir: PathBuf,
    shared: Arc<Shared>,
    web: WebPki,
    web_roots: WebRoots,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

impl EmbeddedSpire {
    /// Starts all of it: when this returns, every part answers.
    ///
    /// # Errors
    /// [`DevkitError::Listen`] if a socket or port cannot be had.
    pub async fn start(config: EmbeddedConfig) -> Result<Self, DevkitError> {
        tracing::warn!(
            trust_domain = %config.trust_domain,
            "EMBEDDED SPIFFE AUTHORITY: for demo and tests, NOT FOR PRODUCTION; keys are in memory, callers are not attested"
        );
        let shared = Shared::new(Authority::new(config.trust_domain.clone(), config.settings)?);
        let web = WebPki::new()?;
        let web_roots = WebRoots::default();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();

        let fetch = config.fetch.unwrap_or_else(|| as_spire(web_roots.clone()));
        let poller = Poller::new(Arc::clone(&shared), fetch, config.minimum_refresh_hint);
        let api = ServerApi::new(Arc::clone(&shared), Arc::clone(&poller));
        tokio::fs::create_dir_all(&config.dir)
            .await
            .map_err(|source| DevkitError::Listen { address: config.dir.display().to_string(), source })?;
        let server_socket = config.dir.join("server.sock");
        tasks.spawn(listener::server_api(&server_socket, api, stop.clone())?);

        let (spiffe, bundle_url) = listener::https(config.spiffe_listen).await?;
        let tls = bundle_endpoint::spiffe_tls(&shared)?;
        tasks.spawn(bundle_endpoint::serve(spiffe, tls, Arc::clone(&shared), stop.clone()));
        let (plain, web_bundle_url) = listener::https(config.web_listen).await?;
        let tls = bundle_endpoint::web_tls(&web)?;
        tasks.spawn(bundle_endpoint::serve(plain, tls, Arc::clone(&shared), stop.clone()));

        tasks.spawn(poller.run(stop.clone()));
        tasks.spawn(tick(Arc::clone(&shared), stop.clone()));
        let tasks = Mutex::new(tasks);
        let dir = config.dir;
        Ok(Self { server_socket, bundle_url, web_bundle_url, dir, shared, web, web_roots, stop, tasks })
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        self.shared.trust_domain()
    }

    /// How others fetch our bundle with `https_spiffe`.
    ///
    /// # Errors
    /// [`DevkitError::Id`] if the trust domain's name is too long for a SPIFFE ID.
    pub fn bundle_endpoint(&self) -> Result<BundleEndpoint, DevkitError> {
        let profile = EndpointProfile::HttpsSpiffe { endpoint_id: server_id(self.trust_domain())? };
        Ok(BundleEndpoint { url: self.bundle_url.clone(), profile })
    }

    /// How others fetch our bundle with `https_web`; they have to trust [`web_root`](Self::web_root).
    #[must_use]
    pub fn web_bundle_endpoint(&self) -> BundleEndpoint {
        BundleEndpoint { url: self.web_bundle_url.clone(), profile: EndpointProfile::HttpsWeb }
    }

    /// The root that signed the certificate of the `https_web` endpoint.
    #[must_use]
    pub fn web_root(&self) -> &CertificateDer<'static> {
        &self.web.root
    }

    /// Trusts the root of another's `https_web` endpoint, beside those of the web.
    pub fn trust_web_root(&self, root: CertificateDer<'static>) {
        self.web_roots.add(root);
    }

    /// Creates a registration entry, and gives its ID.
    ///
    /// # Errors
    /// [`DevkitError::Refused`] for what SPIRE refuses, such as federating with a domain whose bundle is not there.
    pub fn create_entry(&self, entry: NewEntry) -> Result<String, DevkitError> {
        server_api::create_for(&self.shared, entry).map_err(|e| DevkitError::Refused(e.message))
    }

    /// Deletes a registration entry; says whether there was one.
    pub fn delete_entry(&self, id: &str) -> bool {
        self.shared.change(|state, _| {
            let was = state.entries.remove(id).is_some();
            state.forget_svids_of_gone_entries();
            was
        })
    }

    /// Serves the Workload API for the workload of this name: the caller has the selector `devkit:NAME`. Gives the
    /// path of the socket.
    ///
    /// # Errors
    /// [`DevkitError::Listen`] if the name is no file name, or the socket cannot be had.
    pub fn workload_socket(&self, name: &str) -> Result<PathBuf, DevkitError> {
        let legal =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !legal {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a plain name");
            return Err(DevkitError::Listen { address: name.to_owned(), source });
        }
        let path = self.dir.join(format!("workload-{name}.sock"));
        self.serve_workload(&path, [("devkit".to_owned(), name.to_owned())])?;
        Ok(path)
    }

    /// Serves the Workload API at `path`, for a caller with these selectors.
    ///
    /// # Errors
    /// [`DevkitError::Listen`] if the socket cannot be had.
    pub fn serve_workload(
        &self,
        path: &Path,
        selectors: impl IntoIterator<Item = Selector>,
    ) -> Result<(), DevkitError> {
        let api =
            WorkloadApi::new(Arc::clone(&self.shared), selectors.into_iter().collect(), self.stop.clone());
        let served = listener::workload_api(path, api, self.stop.clone())?;
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(served);
        Ok(())
    }

    /// The bundle as it is published.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(self.shared.lock().authority.bundle())
    }

    /// The bundle that is stored of another trust domain.
    #[must_use]
    pub fn federated_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.shared.lock().bundles.get(trust_domain).cloned()
    }

    #[must_use]
    pub fn slots(&self) -> Slots {
        self.shared.lock().authority.slots()
    }

    /// Looks at the authority, or changes it: [`Authority::prepare`] and so on. Everyone concerned is told.
    pub fn with_authority<R>(&self, change: impl FnOnce(&mut Authority) -> R) -> R {
        self.shared.change(|state, _| change(&mut state.authority))
    }

    /// Makes and publishes the next authority.
    ///
    /// # Errors
    /// [`AuthorityError`] if no key could be made.
    pub fn prepare(&self) -> Result<AuthorityId, AuthorityError> {
        let now = clock::now();
        self.with_authority(|authority| authority.prepare(now))
    }

    /// Signs with the prepared authority from now on. SVIDs that there are stay, as in SPIRE, until half their life is
    /// over.
    ///
    /// # Errors
    /// [`AuthorityError`] unless this one is prepared.
    pub fn activate(&self, id: &AuthorityId) -> Result<(), AuthorityError> {
        self.with_authority(|authority| authority.activate(id))
    }

    /// Taints the old authority, so that every SVID it signed is replaced at once.
    ///
    /// # Errors
    /// [`AuthorityError`] unless this one is the old one.
    pub fn taint(&self, id: &AuthorityId) -> Result<(), AuthorityError> {
        self.with_authority(|authority| authority.taint(id))
    }

    /// Takes the tainted authority out of the bundle.
    ///
    /// # Errors
    /// [`AuthorityError`] unless this one is the old one, and tainted.
    pub fn revoke(&self, id: &AuthorityId) -> Result<(), AuthorityError> {
        self.with_authority(|authority| authority.revoke(id))
    }

    /// Has both bundle endpoints do something wrong, or no longer.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.change(|state, _| state.fault = fault);
    }

    /// Has someone meddle with what is held, or no longer.
    pub fn set_meddling(&self, meddling: Option<Meddling>) {
        self.shared.change(|state, _| state.meddling = meddling);
    }

    /// Has preparing an authority through the API take this long, as with an upstream authority, and then fail or not.
    pub fn set_preparing(&self, takes: Duration, fails: bool) {
        self.shared.change(|state, _| state.preparing = (takes, fails));
    }

    /// How often preparing an authority through the API was begun.
    #[must_use]
    pub fn preparations(&self) -> u32 {
        self.shared.lock().preparations
    }

    /// Stops, and waits until every part has.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

impl Drop for EmbeddedSpire {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The SPIFFE ID of a SPIRE server, by SPIRE's convention.
fn server_id(trust_domain: &TrustDomain) -> Result<SpiffeId, DevkitError> {
    Ok(SpiffeId::from_segments(trust_domain.clone(), &["spire", "server"])?)
}

async fn tick(shared: Arc<Shared>, stop: CancellationToken) {
    while tokio::time::timeout(TICK, stop.cancelled()).await.is_err() {
        shared.tick(clock::now());
    }
}
