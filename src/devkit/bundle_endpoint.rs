//! The bundle endpoint, in both profiles (SPIFFE Federation, section 5.2): one listener for each.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::authority::{Authority, Settings};
use super::fault::Fault;
use super::state::{Shared, State};
use super::svid::{Svid, Validity};
use super::web_pki::{WebPki, certified};
use super::{DevkitError, document, server_id};
use crate::clock;
use crate::identity::tls::provider;
use crate::model::SpiffeId;

/// Connections served at a time; more wait.
const CONNECTIONS: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// The TLS of `https_spiffe`: the SVID of the SPIRE server.
pub(super) fn spiffe_tls(shared: &Arc<Shared>) -> Result<ServerConfig, DevkitError> {
    let id = server_id(shared.trust_domain())?;
    let served = ServedSvid { shared: Arc::clone(shared), id, cache: Mutex::new(None) };
    Ok(tls_builder()?.with_no_client_auth().with_cert_resolver(Arc::new(served)))
}

/// The TLS of `https_web`.
pub(super) fn web_tls(web: &WebPki) -> Result<ServerConfig, DevkitError> {
    let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(&web.server));
    Ok(tls_builder()?.with_no_client_auth().with_cert_resolver(Arc::new(resolver)))
}

fn tls_builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, DevkitError> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(DevkitError::Tls)
}

/// Serves the bundle until stopped.
pub(super) async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&shared)));
                }
                // Out of file descriptors: try again when some may be free.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    if shared.lock().fault == Some(Fault::Hangup) {
        return;
    }
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &shared.lock());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // So that a fault of the connection concerns the next request, not the next client.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the bundle endpoint ended");
    }
}

/// As SPIRE: `GET /` and nothing else; `HEAD` is refused, too.
fn answer<B>(request: &Request<B>, state: &State) -> Response<Body> {
    if request.method() != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, text("405 method not allowed"));
    }
    if request.uri().path() != "/" {
        return response(StatusCode::NOT_FOUND, text("404 page not found"));
    }
    let bundle = state.authority.bundle();
    let body = match &state.fault {
        Some(Fault::EmptyKeys) => text(document::with_keys(bundle, Vec::new())),
        Some(Fault::JwtOnly) => text(document::with_keys(bundle, vec![strange_key("jwt-svid")])),
        Some(Fault::UnknownUseOnly) => text(document::with_keys(bundle, vec![strange_key("of-the-future")])),
        Some(Fault::UnknownUseBeside) => {
            let keys = bundle.authorities().map(document::x509_key);
            text(document::with_keys(bundle, keys.chain([strange_key("of-the-future")]).collect()))
        }
        Some(Fault::OlderBundle) => text(document::write(state.authority.previous_bundle())),
        Some(Fault::Bundle(bundle)) => text(document::write(bundle)),
        Some(Fault::Garbage(bytes)) => text(bytes.clone()),
        Some(Fault::EndlessBody) => endless(None),
        Some(Fault::SlowBody(pause)) => endless(Some(*pause)),
        Some(Fault::Redirect(location)) => return redirect(location),
        Some(Fault::Status(code)) => {
            let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return response(status, text(""));
        }
        Some(
            Fault::WrongSpiffeId(_) | Fault::ExpiredCertificate | Fault::UntrustedCertificate | Fault::Hangup,
        )
        | None => text(document::write(bundle)),
    };
    response(StatusCode::OK, body)
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn redirect(location: &str) -> Response<Body> {
    let mut answer = response(StatusCode::FOUND, text(""));
    if let Ok(location) = location.parse() {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

/// A key that is well formed, of a use of one's choice.
fn strange_key(usage: &str) -> serde_json::Value {
    let coordinate = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    let other = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
    json!({"use": usage, "kty": "EC", "crv": "P-256", "kid": "key-1", "x": coordinate, "y": other})
}

fn text(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

/// Begins as a document does, and never ends.
fn endless(pause: Option<Duration>) -> Body {
    let start = futures::stream::once(async { Bytes::from_static(b"{\"keys\":[], \"padding\":\"") });
    let rest: Pin<Box<dyn Stream<Item = Bytes> + Send>> = match pause {
        None => Box::pin(futures::stream::repeat_with(|| Bytes::from_static(&[b'a'; 16 * 1024]))),
        Some(pause) => Box::pin(futures::stream::repeat(()).then(move |()| async move {
            tokio::time::sleep(pause).await;
            Bytes::from_static(b"a")
        })),
    };
    StreamBody::new(start.chain(rest).map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()
}

/// The SVID of the server, made anew when it is due; or a false one, where a fault says so.
struct ServedSvid {
    shared: Arc<Shared>,
    id: SpiffeId,
    cache: Mutex<Option<(Svid, Arc<CertifiedKey>)>>,
}

impl fmt::Debug for ServedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedSvid").field("id", &self.id.to_string()).finish_non_exhaustive()
    }
}

impl ServedSvid {
    fn current(&self) -> Result<Arc<CertifiedKey>, DevkitError> {
        let now = clock::now();
        let state = self.shared.lock();
        let authority = &state.authority;
        match &state.fault {
            Some(Fault::WrongSpiffeId(id)) => return as_served(&authority.issue(id, now)?),
            Some(Fault::ExpiredCertificate) => {
                return as_served(&authority.issue_as(&self.id, now, Validity::Expired)?);
            }
            Some(Fault::UntrustedCertificate) => {
                let stranger = Authority::new(authority.trust_domain().clone(), Settings::new(now))?;
                return as_served(&stranger.issue(&self.id, now)?);
            }
            _ => {}
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((svid, served)) = cache.as_ref()
            && !svid.is_due_at(now)
            && !authority.is_tainted(&svid.signer)
        {
            return Ok(Arc::clone(served));
        }
        let svid = authority.issue(&self.id, now)?;
        let served = as_served(&svid)?;
        *cache = Some((svid, Arc::clone(&served)));
        Ok(served)
    }
}

fn as_served(svid: &Svid) -> Result<Arc<CertifiedKey>, DevkitError> {
    certified(vec![CertificateDer::from(svid.certificate.clone())], svid.key.clone())
}

impl ResolvesServerCert for ServedSvid {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
            .inspect_err(|error| tracing::error!(%error, "the bundle endpoint has no certificate"))
            .ok()
    }
}
