//! How the embedded server fetches a federated bundle: as SPIRE's client does, though bounded in size and time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};

use super::document;
use crate::causes::chain;
use crate::identity::tls::provider;
use crate::identity::verify::{Role, verify_signatures, verify_svid};
use crate::model::endpoint::{BundleEndpoint, EndpointProfile};
use crate::model::{Bundle, SpiffeId, TrustDomain};

const TIMEOUT: Duration = Duration::from_secs(15);
const BODY_LIMIT: usize = 1024 * 1024;

/// One fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    pub trust_domain: TrustDomain,
    pub endpoint: BundleEndpoint,
    /// For `https_spiffe`: the bundle that SPIRE holds of the endpoint's trust domain.
    pub verify_with: Option<Arc<Bundle>>,
}

/// Fetches a bundle; the error is in words.
pub type Fetch = Arc<dyn Fn(FetchRequest) -> BoxFuture<'static, Result<Bundle, String>> + Send + Sync>;

/// Roots that are trusted for `https_web` beside those of the web. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct WebRoots(Arc<Mutex<Vec<CertificateDer<'static>>>>);

impl WebRoots {
    pub fn add(&self, root: CertificateDer<'static>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(root);
    }

    fn store(&self) -> RootCertStore {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        roots.add_parsable_certificates(own);
        roots
    }
}

/// SPIRE's way: every redirect that the HTTP client follows, and a reader stricter than the specification.
#[must_use]
pub fn as_spire(web_roots: WebRoots) -> Fetch {
    Arc::new(move |request| Box::pin(fetch(request, web_roots.clone())))
}

async fn fetch(request: FetchRequest, web_roots: WebRoots) -> Result<Bundle, String> {
    let tls = client_config(&request, &web_roots)?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .timeout(TIMEOUT)
        .build()
        .map_err(|e| chain(&e))?;
    let answer = client.get(request.endpoint.url.as_str()).send().await;
    let mut answer = answer.map_err(|e| format!("failed to fetch bundle: {}", chain(&e)))?;
    if answer.status() != http::StatusCode::OK {
        return Err(format!("unexpected status {} fetching bundle", answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|e| format!("failed to read bundle: {}", chain(&e)))?
    {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(format!("bundle is over {BODY_LIMIT} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    document::read_as_spire(&request.trust_domain, &body)
}

fn client_config(request: &FetchRequest, web_roots: &WebRoots) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| e.to_string())?;
    Ok(match &request.endpoint.profile {
        EndpointProfile::HttpsWeb => builder.with_root_certificates(web_roots.store()).with_no_client_auth(),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            let bundle = request
                .verify_with
                .clone()
                .ok_or("can't perform SPIFFE Authentication: local copy of bundle not found")?;
            let verifier = ExactId { id: endpoint_id.clone(), bundle };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
    })
}

/// Wants an SVID of exactly this ID, by this bundle; the host name does not matter.
struct ExactId {
    id: SpiffeId,
    bundle: Arc<Bundle>,
}

impl fmt::Debug for ExactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExactId").field(&self.id.to_string()).finish()
    }
}

impl ServerCertVerifier for ExactId {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let held = |td: &TrustDomain| (td == self.bundle.trust_domain()).then(|| Arc::clone(&self.bundle));
        let id = verify_svid(&chain, &held, Role::Server, now)?;
        if id == self.id {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(format!("unexpected ID {id}, {} is wanted", self.id)))
        }
    }

    verify_signatures!();
}
