//! The trust bundle of one trust domain (SPIFFE Trust Domain and Bundle, section 4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Authority, AuthorityId, TrustDomain};

/// SHA-256 over the sorted, deduplicated SHA-256 of the DER of each X.509 authority: two holders of one bundle agree
/// on it whatever format, order or sequence number they got it with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleDigest([u8; 32]);

impl BundleDigest {
    /// The digest of authorities given by the SHA-256 of their DER.
    #[must_use]
    pub fn of<'a>(fingerprints: impl IntoIterator<Item = &'a [u8; 32]>) -> Self {
        let sorted: BTreeSet<&[u8; 32]> = fingerprints.into_iter().collect();
        let mut hash = Sha256::new();
        for fingerprint in sorted {
            hash.update(fingerprint);
        }
        Self(hash.finalize().into())
    }

    /// A digest as a peer sent it; `None` unless it is 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A JWT authority, carried along so that what we write for SPIRE loses nothing: the members of its JWK.
pub type JwtAuthorities = BTreeMap<String, serde_json::Map<String, serde_json::Value>>;

/// The bundle of one trust domain. It may be empty, which by the specification (section 4.1.3) means that every SVID
/// of the trust domain is invalid.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    x509: BTreeMap<[u8; 32], Authority>,
    /// By key ID.
    pub jwt: JwtAuthorities,
    /// `spiffe_sequence`; absent where the source carries none, as SPIRE for federated bundles.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`, in seconds.
    pub refresh_hint: Option<u64>,
}

impl Bundle {
    #[must_use]
    pub fn new(trust_domain: TrustDomain, authorities: impl IntoIterator<Item = Authority>) -> Self {
        let x509 = authorities.into_iter().map(|a| (a.fingerprint(), a)).collect();
        Self { trust_domain, x509, jwt: BTreeMap::new(), sequence: None, refresh_hint: None }
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The X.509 authorities, ordered by fingerprint.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.x509.values()
    }

    #[must_use]
    pub fn authority_ids(&self) -> BTreeSet<AuthorityId> {
        self.x509.values().map(|a| a.id().clone()).collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.x509.len()
    }

    /// Whether it has no X.509 authority: no X509-SVID of the trust domain can be valid.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.x509.is_empty()
    }

    /// Whether some authority can validate an SVID at `now`. A bundle without one must never reach a workload: Envoy
    /// refuses its whole validation context, its own new SVID with it.
    #[must_use]
    pub fn is_usable_at(&self, now: Timestamp) -> bool {
        self.x509.values().any(|a| a.is_valid_at(now))
    }

    /// Whether it may be what has become of an earlier bundle: they have an authority in common, or none of the earlier one is
    /// valid at `now` any more.
    #[must_use]
    pub fn continues(&self, earlier: &Self, now: Timestamp) -> bool {
        !earlier.is_usable_at(now)
            || self.fingerprints().any(|one| earlier.fingerprints().any(|other| one == other))
    }

    #[must_use]
    pub fn digest(&self) -> BundleDigest {
        BundleDigest::of(self.x509.keys())
    }

    /// The fingerprints of its authorities, for comparison between bundles.
    pub fn fingerprints(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.x509.keys()
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("authorities", &self.x509.values().collect::<Vec<_>>())
            .field("jwt", &self.jwt.len())
            .field("sequence", &self.sequence)
            .field("refresh_hint", &self.refresh_hint)
            .finish()
    }
}
