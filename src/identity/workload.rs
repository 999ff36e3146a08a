//! What the SPIFFE Workload API delivers, read from its own messages.
//!
//! The stream is read with our own proto and not with `spiffe::X509Source`: there, one federated bundle that does not
//! parse fails the whole X.509 context, so that a peer could stall the rotation of our own SVID by what it serves.
//! Here a bundle that does not parse is put aside by name, and one that is empty stays what it is: empty.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use spiffe::X509Svid;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::provider;
use crate::model::own::Identity;
use crate::model::{Authority, Bundle, SpiffeId, TrustDomain};
use crate::proto::workload::{X509svid, X509svidResponse};

/// The hint of the registration whose SVID may call the SPIRE Server API. It is never shown to a peer.
pub const ADMIN_HINT: &str = "entente-admin";
/// The hint of the SVID that peers see, where the agent has several.
pub const PEER_HINT: &str = "entente";

/// Most federated bundles that are taken from one message.
pub const MAX_BUNDLES: usize = 1_000;
/// Most bytes of one message.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Most certificates of one bundle.
const MAX_AUTHORITIES: usize = 1_000;
/// Most SVIDs that are looked at in one message.
const MAX_SVIDS: usize = 100;

/// Where the Workload API listens (SPIFFE Workload Endpoint, section 4): `unix:///path` or `tcp://IP:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadEndpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why a text names no Workload API endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no Workload API endpoint: write unix:///absolute/path or tcp://IP:port (SPIFFE Workload Endpoint, \
     section 4)"
)]
pub struct WorkloadEndpointError(String);

impl std::str::FromStr for WorkloadEndpoint {
    type Err = WorkloadEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || WorkloadEndpointError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix://") {
            let legal = path.starts_with('/') && path.len() > 1 && !path.contains(['?', '#']);
            return if legal { Ok(Self::Unix(path.into())) } else { Err(fail()) };
        }
        let address = text.strip_prefix("tcp://").ok_or_else(fail)?;
        match address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
            _ => Err(fail()),
        }
    }
}

impl std::fmt::Display for WorkloadEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// What one message of the Workload API holds for us: keys, and as plain data who we are and whom we can verify.
#[derive(Clone)]
pub struct Svids {
    /// The certificate and key that peers see.
    pub peer_facing: Arc<CertifiedKey>,
    /// The certificate and key for the SPIRE Server API, where there is such a registration.
    pub admin: Option<AdminSvid>,
    pub identity: Arc<Identity>,
}

/// An SVID for the SPIRE Server API over TCP.
#[derive(Clone)]
pub struct AdminSvid {
    pub id: SpiffeId,
    pub key: Arc<CertifiedKey>,
}

impl Svids {
    /// The bundle with which a peer of `trust_domain` is verified. Never our own: a peer is of another trust domain.
    #[must_use]
    pub fn peer_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        if *trust_domain == self.identity.trust_domain {
            return None;
        }
        self.identity.federated.get(trust_domain).cloned()
    }
}

// by hand: a private key must not reach a log
impl std::fmt::Debug for Svids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svids")
            .field("id", &self.identity.id.to_string())
            .field("not_after", &self.identity.not_after)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for AdminSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminSvid").field("id", &self.id.to_string()).finish_non_exhaustive()
    }
}

/// Why a message gives us no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error(
        "the Workload API delivers no SVID that peers may see: register the agent in SPIRE, with another hint than \
         {ADMIN_HINT:?}{0}"
    )]
    NoSvid(String),
    #[error("the SVID {id} cannot be used: {cause}")]
    Svid { id: String, cause: String },
}

struct Parsed {
    id: SpiffeId,
    hint: String,
    not_before: Timestamp,
    not_after: Timestamp,
    key: Arc<CertifiedKey>,
    bundle: Vec<u8>,
}

/// Reads one message, which is the full state. `admin_hint` picks the SVID for the SPIRE Server API.
///
/// The SVID that peers see is never the administrator's: the one whose hint is [`PEER_HINT`], else the first.
///
/// # Errors
/// [`ResponseError::NoSvid`] where nothing is left to show to peers.
pub fn read(response: X509svidResponse, admin_hint: Option<&str>) -> Result<Svids, ResponseError> {
    let is_admin = |hint: &str| hint == ADMIN_HINT || admin_hint.is_some_and(|admin| hint == admin);
    let mut admin = None;
    let mut shown: Option<Parsed> = None;
    let mut problems = String::new();
    for svid in response.svids.into_iter().take(MAX_SVIDS) {
        let parsed = match parse_svid(svid) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(%error, "an SVID of the Workload API is left out");
                problems = format!(" ({error})");
                continue;
            }
        };
        if is_admin(&parsed.hint) {
            if admin_hint == Some(parsed.hint.as_str()) && admin.is_none() {
                admin = Some(AdminSvid { id: parsed.id, key: parsed.key });
            }
        } else if shown.as_ref().is_none_or(|s| s.hint != PEER_HINT && parsed.hint == PEER_HINT) {
            shown = Some(parsed);
        }
    }
    let shown = shown.ok_or(ResponseError::NoSvid(problems))?;
    let trust_domain = shown.id.trust_domain().clone();
    let (federated, malformed) = read_federated(response.federated_bundles.into_iter().collect());
    let identity = Identity {
        not_before: shown.not_before,
        not_after: shown.not_after,
        bundle: Arc::new(own_bundle(&trust_domain, &shown.bundle)),
        id: shown.id,
        trust_domain,
        federated,
        malformed,
    };
    Ok(Svids { peer_facing: shown.key, admin, identity: Arc::new(identity) })
}

/// What one message shows of every workload identity in it, without the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Each SVID with its hint: the chain, leaf first. They are as they came; nothing was verified.
    pub chains: Vec<(String, Vec<CertificateDer<'static>>)>,
    /// The bundles that came with them, ours and foreign ones.
    pub bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// What cannot be read, with the reason.
    pub malformed: BTreeMap<String, String>,
}

/// Reads one message for an operator.
#[must_use]
pub fn show(response: X509svidResponse) -> Shown {
    let (mut bundles, mut malformed) = read_federated(response.federated_bundles.into_iter().collect());
    let mut chains = Vec::new();
    for svid in response.svids.into_iter().take(MAX_SVIDS) {
        match split_der(&svid.x509_svid) {
            Ok(parts) => {
                let chain = parts.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
                chains.push((svid.hint, chain));
            }
            Err(cause) => {
                malformed.insert(svid.spiffe_id.clone(), cause);
            }
        }
        if let Ok(id) = SpiffeId::new(&svid.spiffe_id) {
            let bundle = own_bundle(id.trust_domain(), &svid.bundle);
            bundles.insert(id.trust_domain().clone(), Arc::new(bundle));
        }
    }
    Shown { chains, bundles, malformed }
}

fn parse_svid(svid: X509svid) -> Result<Parsed, ResponseError> {
    let name: String = svid.spiffe_id.chars().take(200).collect();
    let fail = |cause: String| ResponseError::Svid { id: name.clone(), cause };
    let parsed = X509Svid::parse_from_der_with_hint(
        &svid.x509_svid,
        &svid.x509_svid_key,
        Some(svid.hint.as_str().into()),
    )
    .map_err(|e| fail(e.to_string()))?;
    let id = parsed.spiffe_id().clone();
    if id.to_string() != svid.spiffe_id {
        return Err(fail(format!("its certificate is of {id}")));
    }
    let (not_before, not_after) =
        validity(parsed.leaf().as_bytes()).ok_or_else(|| fail("its validity is out of range".to_owned()))?;
    let chain = parsed.cert_chain().iter().map(|c| CertificateDer::from(c.as_bytes().to_vec())).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key));
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| fail(e.to_string()))?;
    Ok(Parsed { id, hint: svid.hint, not_before, not_after, key: Arc::new(key), bundle: svid.bundle })
}

/// From when until when a certificate is valid.
fn validity(der: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((at(validity.not_before)?, at(validity.not_after)?))
}

/// Our own bundle: what of it cannot be read is left out, since it must not cost us our SVID.
fn own_bundle(trust_domain: &TrustDomain, der: &[u8]) -> Bundle {
    let warn = |cause: &dyn std::fmt::Display| {
        tracing::warn!(%trust_domain, %cause, "our own bundle from the Workload API is not wholly readable");
    };
    let certificates = split_der(der).unwrap_or_else(|cause| {
        warn(&cause);
        Vec::new()
    });
    let parse = |der: &[u8]| Authority::parse(der).inspect_err(|e| warn(e)).ok();
    Bundle::new(trust_domain.clone(), certificates.into_iter().filter_map(parse))
}

type Federated = (BTreeMap<TrustDomain, Arc<Bundle>>, BTreeMap<String, String>);

fn read_federated(bundles: BTreeMap<String, Vec<u8>>) -> Federated {
    let (mut federated, mut malformed) = (BTreeMap::new(), BTreeMap::new());
    if bundles.len() > MAX_BUNDLES {
        tracing::error!(count = bundles.len(), limit = MAX_BUNDLES, "more federated bundles than are read");
    }
    for (name, der) in bundles.into_iter().take(MAX_BUNDLES) {
        match foreign_bundle(&name, &der) {
            Ok(bundle) => {
                federated.insert(bundle.trust_domain().clone(), Arc::new(bundle));
            }
            Err(cause) => {
                malformed.insert(name.chars().take(300).collect(), cause);
            }
        }
    }
    (federated, malformed)
}

fn foreign_bundle(name: &str, der: &[u8]) -> Result<Bundle, String> {
    let trust_domain = TrustDomain::new(name).map_err(|e| e.to_string())?;
    let authorities = split_der(der)?
        .into_iter()
        .map(|der| Authority::parse(der).map_err(|e| e.to_string()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Bundle::new(trust_domain, authorities))
}

/// Splits concatenated DER sequences (RFC 5280 certificates) without reading them.
fn split_der(mut der: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut parts = Vec::new();
    while !der.is_empty() {
        if parts.len() == MAX_AUTHORITIES {
            return Err(format!("it has more than {MAX_AUTHORITIES} certificates"));
        }
        let length =
            der_length(der).ok_or_else(|| format!("certificate {} is cut or no DER", parts.len() + 1))?;
        let (part, rest) =
            der.split_at_checked(length).ok_or_else(|| format!("certificate {} is cut", parts.len() + 1))?;
        parts.push(part);
        der = rest;
    }
    Ok(parts)
}

/// The length of the DER sequence that `der` begins with, header included.
fn der_length(der: &[u8]) -> Option<usize> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag != 0x30 {
        return None;
    }
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    let count = usize::from(first & 0x7f);
    if !(1..=4).contains(&count) {
        return None;
    }
    let length = rest.get(..count)?.iter().fold(0_usize, |n, b| (n << 8) | usize::from(*b));
    length.checked_add(2 + count)
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
