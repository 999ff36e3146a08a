//! Fetching a bundle from its endpoint, by either profile, with every rule of SPIFFE Federation, section 5.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{ACCEPT, LOCATION};
use reqwest::{Response, StatusCode, Url};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, RootCertStore};
use tracing::info;

use super::document;
use super::tls::{EndpointVerifier, Refusal, Trust, client_config};
use super::web_roots::WebRoots;
use crate::causes::chain;
use crate::identity::verify::{SvidError, moment};
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl, FetchFailure, FetchProblem};
use crate::model::{Bundle, BundleDigest, SpiffeId, TrustDomain};

/// Most redirects that are followed, of which none is remembered.
const MAX_REDIRECTS: usize = 3;

/// A bundle that was fetched and verified, and what its document held that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub bundle: Bundle,
    pub ignored: Vec<String>,
    /// Why SPIRE's own reader refuses the document, where it does.
    pub refused_by_spire: Option<String>,
    /// The chain (DER, leaf first) by which an endpoint of `https_spiffe` proved its SPIFFE ID; else empty.
    pub proof: Vec<Vec<u8>>,
}

/// A fetch that failed, and how far it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedProbe {
    pub failure: FetchFailure,
    /// The failure's parts: what happened, and what to do.
    pub cause: String,
    pub advice: String,
    /// Whether the endpoint had proved who it is.
    pub is_authenticated: bool,
    /// The SPIFFE ID that its certificate names, whoever signed it.
    pub presented: Option<SpiffeId>,
}

/// Why a first bundle was not had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirstFetchError {
    #[error("{}", .0.message)]
    Endpoint(FetchFailure),
    /// Whoever answers is not believed in anything else that it says.
    #[error("what {url} serves has another fingerprint than was told")]
    Fingerprint { url: EndpointUrl, served: BundleDigest },
}

/// Fetches bundles. Keeps nothing from one fetch to the next: no connection, session, cookie or redirect.
#[derive(Clone, Debug)]
pub struct EndpointClient {
    web: WebRoots,
    connect_timeout: Duration,
    total_timeout: Duration,
}

impl EndpointClient {
    /// `web_roots` verify endpoints of `https_web` and no others. Connecting may take 5 s, a fetch 9 s: asked every 20 s, an
    /// endpoint that is silent is known within 30.
    #[must_use]
    pub fn new(web_roots: RootCertStore) -> Self {
        Self::held_against(WebRoots::fixed(web_roots))
    }

    /// The same with roots that may change.
    #[must_use]
    pub fn held_against(web: WebRoots) -> Self {
        Self { web, connect_timeout: Duration::from_secs(5), total_timeout: Duration::from_secs(9) }
    }

    /// The same client with other timeouts: of connecting, and of a whole fetch with its redirects and body.
    #[must_use]
    pub fn with_timeouts(self, connect: Duration, total: Duration) -> Self {
        Self { connect_timeout: connect, total_timeout: total, ..self }
    }

    /// Fetches the bundle of `trust_domain`. For `https_spiffe`, `verify_with` is the bundle of the endpoint's trust
    /// domain and the only thing that its certificate is held against. Certificates must be valid at `now`.
    ///
    /// # Errors
    /// [`FetchFailure`] with the class of the problem, and the endpoint, the cause and what to do in words.
    pub async fn fetch(
        &self,
        trust_domain: &TrustDomain,
        endpoint: &BundleEndpoint,
        verify_with: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Fetched, FetchFailure> {
        self.probe(trust_domain, endpoint, verify_with, now).await.map_err(|failed| failed.failure)
    }

    /// As [`Self::fetch`], telling more of what was seen on the way.
    ///
    /// # Errors
    /// [`FailedProbe`].
    pub async fn probe(
        &self,
        trust_domain: &TrustDomain,
        endpoint: &BundleEndpoint,
        verify_with: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Fetched, FailedProbe> {
        let verifier =
            self.trust(endpoint, verify_with).map(|trust| EndpointVerifier::new(trust, moment(now)));
        let attempt = async {
            let verifier = verifier.as_ref().map_err(Clone::clone)?;
            let fetch = self.get(verifier, endpoint);
            let body = tokio::time::timeout(self.total_timeout, fetch).await.map_err(|_| {
                Problem::unreachable(format!("it gave no whole answer within {:?}", self.total_timeout))
            })??;
            document::parse(trust_domain, &body)
                .map_err(|e| Problem::new(FetchProblem::BundleUnparseable, e.to_string()))
        };
        match attempt.await {
            Ok(parsed) => {
                info!(%trust_domain, url = %endpoint.url, sequence = parsed.bundle.sequence,
                    authorities = parsed.bundle.len(), digest = %parsed.bundle.digest(), ignored = ?parsed.ignored,
                    "bundle fetched");
                Ok(Fetched {
                    bundle: parsed.bundle,
                    ignored: parsed.ignored,
                    refused_by_spire: parsed.refused_by_spire,
                    proof: verifier.as_ref().map(|verifier| verifier.proof()).unwrap_or_default(),
                })
            }
            Err(problem) => {
                let (cause, advice) = (problem.cause.clone(), advice(problem.problem, &endpoint.profile));
                let failure = problem.failure(trust_domain, endpoint);
                info!(%trust_domain, url = %endpoint.url, reason = failure.problem.reason(),
                    message = failure.message, "bundle not fetched");
                let verifier = verifier.as_ref().ok();
                Err(FailedProbe {
                    failure,
                    cause,
                    advice,
                    is_authenticated: verifier.is_some_and(|verifier| verifier.is_accepted()),
                    presented: verifier.and_then(|verifier| verifier.presented()),
                })
            }
        }
    }

    /// Fetches the first bundle of `trust_domain`, of which the digest is known and nothing else is held. The digest
    /// says which authorities are right; the endpoint's certificate is then held against them, so that the rest of the
    /// document, which no digest covers, is the endpoint's own word too. For `https_spiffe` the endpoint's ID must be
    /// in `trust_domain`.
    ///
    /// # Errors
    /// [`FirstFetchError`]
    pub async fn fetch_first(
        &self,
        trust_domain: &TrustDomain,
        endpoint: &BundleEndpoint,
        expected: BundleDigest,
        now: Timestamp,
    ) -> Result<Arc<Bundle>, FirstFetchError> {
        let failed = |problem: Problem| FirstFetchError::Endpoint(problem.failure(trust_domain, endpoint));
        let trust = match &endpoint.profile {
            EndpointProfile::HttpsWeb => self.trust(endpoint, None).map_err(failed)?,
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                Trust::Later { endpoint_id: endpoint_id.clone(), seen: Mutex::default() }
            }
        };
        let verifier = EndpointVerifier::new(trust, moment(now));
        let body = tokio::time::timeout(self.total_timeout, self.get(&verifier, endpoint)).await;
        let late =
            || Problem::unreachable(format!("it gave no whole answer within {:?}", self.total_timeout));
        let body = body.unwrap_or_else(|_| Err(late())).map_err(failed)?;
        let parsed = document::parse(trust_domain, &body)
            .map_err(|e| failed(Problem::new(FetchProblem::BundleUnparseable, e.to_string())))?;
        let bundle = Arc::new(parsed.bundle);
        let served = bundle.digest();
        info!(%trust_domain, url = %endpoint.url, digest = %served, %expected, "first bundle fetched");
        if served != expected {
            return Err(FirstFetchError::Fingerprint { url: endpoint.url.clone(), served });
        }
        verifier.judge_seen(&bundle).map_err(|refusal| failed(Problem::of_refusal(refusal)))?;
        Ok(bundle)
    }

    fn trust(&self, endpoint: &BundleEndpoint, verify_with: Option<&Bundle>) -> Result<Trust, Problem> {
        match &endpoint.profile {
            EndpointProfile::HttpsWeb => self.web.current().map(Trust::Web).ok_or_else(|| {
                let cause = "no Web PKI root is configured".to_owned();
                Problem::new(FetchProblem::EndpointCertificateUntrusted, cause)
            }),
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                let usable = verify_with.filter(|bundle| {
                    bundle.trust_domain() == endpoint_id.trust_domain() && !bundle.is_empty()
                });
                let bundle = usable.cloned().map(Arc::new).ok_or_else(|| {
                    let cause = format!("no bundle of trust domain {} is held", endpoint_id.trust_domain());
                    Problem::new(FetchProblem::NoBundleToVerifyEndpoint, cause)
                })?;
                Ok(Trust::Spiffe { endpoint_id: endpoint_id.clone(), bundle })
            }
        }
    }

    async fn get(
        &self,
        verifier: &Arc<EndpointVerifier>,
        endpoint: &BundleEndpoint,
    ) -> Result<Vec<u8>, Problem> {
        let client = self.http(verifier).map_err(|e| Problem::unreachable(chain(&*e)))?;
        let mut url = Url::parse(endpoint.url.as_str()).map_err(|e| Problem::bad_response(e.to_string()))?;
        for _ in 0..=MAX_REDIRECTS {
            let answer = client.get(url.clone()).header(ACCEPT, "application/json").send().await;
            let answer = answer.map_err(|e| Problem::of_request(&e, verifier))?;
            if !answer.status().is_redirection() {
                return body(answer, verifier).await;
            }
            url = redirect(&url, &answer)?;
        }
        Err(Problem::bad_response(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// A client for one fetch, so that every connection is verified by this fetch's own verifier.
    fn http(
        &self,
        verifier: &Arc<EndpointVerifier>,
    ) -> Result<reqwest::Client, Box<dyn Error + Send + Sync>> {
        Ok(reqwest::Client::builder()
            .tls_backend_preconfigured(client_config(Arc::clone(verifier))?)
            .https_only(true)
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("entente/", env!("CARGO_PKG_VERSION")))
            .build()?)
    }
}

/// Where a redirect leads, if it may be followed: to another legal endpoint URL (section 5.2). Who answers there is
/// verified as who answered here.
fn redirect(from: &Url, answer: &Response) -> Result<Url, Problem> {
    let location = answer.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| {
        Problem::bad_response(format!("it answered {} without a location", answer.status()))
    })?;
    let to =
        from.join(location).map_err(|e| Problem::bad_response(format!("it redirects to no URL: {e}")))?;
    EndpointUrl::parse(to.as_str()).map_err(|e| Problem::bad_response(format!("it redirects: {e}")))?;
    Ok(to)
}

async fn body(mut answer: Response, verifier: &EndpointVerifier) -> Result<Vec<u8>, Problem> {
    if answer.status() != StatusCode::OK {
        return Err(Problem::bad_response(format!("it answered {}", answer.status())));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|e| Problem::of_request(&e, verifier))? {
        if body.len().saturating_add(part.len()) > document::MAX_BYTES {
            let cause = format!("its answer is larger than {} bytes", document::MAX_BYTES);
            return Err(Problem::new(FetchProblem::BundleTooLarge, cause));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// A problem with its cause in words, before it is told as one of an endpoint.
#[derive(Clone, Debug)]
struct Problem {
    problem: FetchProblem,
    cause: String,
}

impl Problem {
    fn new(problem: FetchProblem, cause: String) -> Self {
        Self { problem, cause }
    }

    fn unreachable(cause: String) -> Self {
        Self::new(FetchProblem::EndpointUnreachable, cause)
    }

    fn bad_response(cause: String) -> Self {
        Self::new(FetchProblem::BadResponse, cause)
    }

    fn of_request(error: &reqwest::Error, verifier: &EndpointVerifier) -> Self {
        if let Some(refusal) = verifier.refusal() {
            return Self::of_refusal(refusal);
        }
        match find::<rustls::Error>(error) {
            // the certificate was good, but the server does not hold its key
            Some(rustls::Error::InvalidCertificate(cause)) => {
                return Self::of_refusal(Refusal::Web(cause.clone()));
            }
            Some(other) => return Self::unreachable(format!("the TLS handshake failed: {other}")),
            None => {}
        }
        if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
            Self::bad_response(format!("its answer is no HTTP: {}", chain(error)))
        } else {
            Self::unreachable(chain(error))
        }
    }

    fn of_refusal(refusal: Refusal) -> Self {
        use CertificateError as E;
        use FetchProblem::{EndpointCertificateExpired, EndpointCertificateUntrusted, WrongEndpointSpiffeId};
        match refusal {
            Refusal::WrongId(id) => Self::new(WrongEndpointSpiffeId, format!("it presents {id}")),
            Refusal::Svid(error @ (SvidError::Expired(_) | SvidError::NotYetValid(_))) => {
                Self::new(EndpointCertificateExpired, error.to_string())
            }
            Refusal::Svid(SvidError::NoBundle(other)) => Self::new(
                EndpointCertificateUntrusted,
                format!("it presents an SVID of trust domain {other}, which must not speak for it"),
            ),
            Refusal::Svid(error) => Self::new(EndpointCertificateUntrusted, error.to_string()),
            Refusal::Web(
                error @ (E::Expired
                | E::ExpiredContext { .. }
                | E::NotValidYet
                | E::NotValidYetContext { .. }),
            ) => Self::new(EndpointCertificateExpired, of_time(&error)),
            Refusal::Web(error) => Self::new(EndpointCertificateUntrusted, error.to_string()),
        }
    }

    fn failure(self, trust_domain: &TrustDomain, endpoint: &BundleEndpoint) -> FetchFailure {
        let advice = advice(self.problem, &endpoint.profile);
        let message = format!("bundle endpoint {} of {trust_domain}: {}; {advice}", endpoint.url, self.cause);
        FetchFailure { problem: self.problem, message }
    }
}

/// That a certificate is not valid now. rustls' own words tell how long ago it was, which is another message at each
/// fetch, and each of them a status to write.
fn of_time(error: &CertificateError) -> String {
    let at = |time: &UnixTime| {
        let at = i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        at.unwrap_or(Timestamp::MAX)
    };
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate, or one that it chains to, was valid until {}", at(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate, or one that it chains to, is not valid before {}", at(not_before))
        }
        other => other.to_string(),
    }
}

/// What an operator is to do.
fn advice(problem: FetchProblem, profile: &EndpointProfile) -> String {
    match (problem, profile) {
        (FetchProblem::EndpointUnreachable, _) => {
            "check that the address resolves and that the network lets us reach it".to_owned()
        }
        (FetchProblem::EndpointCertificateUntrusted, EndpointProfile::HttpsWeb) => {
            "check the profile and the host name, and add its CA to the extra Web PKI roots if it is a private one"
                .to_owned()
        }
        (FetchProblem::EndpointCertificateUntrusted, EndpointProfile::HttpsSpiffe { endpoint_id }) => format!(
            "check the URL; if {} has rotated its authorities meanwhile, give its present bundle as bootstrap bundle",
            endpoint_id.trust_domain()
        ),
        (FetchProblem::EndpointCertificateExpired, _) => {
            "ask its operator to renew the certificate, and check both clocks".to_owned()
        }
        (FetchProblem::WrongEndpointSpiffeId, EndpointProfile::HttpsSpiffe { endpoint_id }) => {
            format!("it must present {endpoint_id}: check the URL and endpointSPIFFEID")
        }
        (FetchProblem::NoBundleToVerifyEndpoint, EndpointProfile::HttpsSpiffe { endpoint_id }) => format!(
            "give a bootstrap bundle, or a peer for {} if it is another trust domain",
            endpoint_id.trust_domain()
        ),
        (FetchProblem::WrongEndpointSpiffeId | FetchProblem::NoBundleToVerifyEndpoint, _) => {
            "check the profile".to_owned()
        }
        (FetchProblem::BadResponse, _) => "check the URL with its path; it must answer 200 itself".to_owned(),
        (FetchProblem::BundleTooLarge | FetchProblem::BundleUnparseable, _) => {
            "check that the URL is that of a SPIFFE bundle endpoint, and tell its operator".to_owned()
        }
    }
}

/// The first error of a kind among an error and its causes. An I/O error hides the error in it from its causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
