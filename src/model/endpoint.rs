//! A bundle endpoint, and what its monitor knows of it (SPIFFE Federation, section 5).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Bundle, BundleDigest, SpiffeId, TrustDomain};

/// The URL of a bundle endpoint: `https`, with a host, without user information (section 5.2.1.2). Bounded to 2,048 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointUrl(String);

/// Why a URL is no bundle endpoint URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    #[error("{0:?} is not a URL: {1}")]
    Syntax(String, String),
    #[error("the scheme of a bundle endpoint URL must be https (SPIFFE Federation 5.2), not {0:?}")]
    Scheme(String),
    #[error("a bundle endpoint URL must not hold user information (SPIFFE Federation 5.2)")]
    UserInfo,
    #[error("a bundle endpoint URL needs a host")]
    Host,
    #[error("a bundle endpoint URL is at most 2,048 bytes")]
    TooLong,
}

impl EndpointUrl {
    /// # Errors
    /// [`EndpointUrlError`] names the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        if text.len() > 2048 {
            return Err(EndpointUrlError::TooLong);
        }
        let uri: http::Uri = text
            .parse()
            .map_err(|e: http::uri::InvalidUri| EndpointUrlError::Syntax(text.to_owned(), e.to_string()))?;
        match uri.scheme_str() {
            Some("https") => {}
            other => return Err(EndpointUrlError::Scheme(other.unwrap_or_default().to_owned())),
        }
        let authority = uri.authority().ok_or(EndpointUrlError::Host)?;
        if authority.as_str().contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        if authority.host().is_empty() { Err(EndpointUrlError::Host) } else { Ok(Self(text.to_owned())) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host: a DNS name, or an IP address (of IPv6, in brackets).
    #[must_use]
    pub fn host(&self) -> Option<String> {
        let uri: http::Uri = self.0.parse().ok()?;
        uri.host().map(str::to_owned)
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an endpoint proves that it may serve the bundle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointProfile {
    /// Web PKI, by host name.
    HttpsWeb,
    /// An X509-SVID with exactly this SPIFFE ID; the host name is not looked at.
    HttpsSpiffe { endpoint_id: SpiffeId },
}

/// Where and how the bundle of a trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BundleEndpoint {
    pub url: EndpointUrl,
    pub profile: EndpointProfile,
}

/// What the monitor is asked to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorTarget {
    pub trust_domain: TrustDomain,
    /// Another endpoint starts the monitoring over.
    pub endpoint: BundleEndpoint,
    /// What the operator gave; another one starts the monitoring over.
    pub bootstrap: Option<Arc<Bundle>>,
    /// What an earlier life fetched and verified, descending from `bootstrap`: verifies the first fetch in its place.
    /// A change of it alone changes nothing that runs.
    pub persisted: Option<Arc<Bundle>>,
    /// For `https_spiffe` with an endpoint in another trust domain: the bundle of that one. Otherwise absent.
    pub verify_with: Option<Arc<Bundle>>,
    /// What SPIRE fetched meanwhile from this very endpoint, by the same rules: it goes on where no fetch of ours comes
    /// through, or no agent runs. Verifies where what we hold does not any more, as far as it continues that.
    pub held: Option<HeldBySpire>,
    /// The longest time between two fetches, whatever the endpoint hints at; `None`: as it hints.
    pub at_most: Option<Duration>,
}

/// A bundle that SPIRE holds of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBySpire {
    pub bundle: Arc<Bundle>,
    /// Since when it is known to be that one.
    pub since: Timestamp,
}

/// Why a fetch gave no bundle; each is a reason of the condition `BundleEndpointHealthy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchProblem {
    /// DNS, TCP, or no answer in time.
    EndpointUnreachable,
    /// Its certificate does not chain to what it has to.
    EndpointCertificateUntrusted,
    EndpointCertificateExpired,
    /// A good SVID of another SPIFFE ID.
    WrongEndpointSpiffeId,
    /// We hold no bundle with which to verify it.
    NoBundleToVerifyEndpoint,
    /// An HTTP status other than 200, or a redirect that must not be followed.
    BadResponse,
    /// The body is over the limit.
    BundleTooLarge,
    /// Not a SPIFFE bundle document.
    BundleUnparseable,
}

impl FetchProblem {
    /// Every one: what a peer tells is compared with them.
    pub const ALL: [Self; 8] = [
        Self::EndpointUnreachable,
        Self::EndpointCertificateUntrusted,
        Self::EndpointCertificateExpired,
        Self::WrongEndpointSpiffeId,
        Self::NoBundleToVerifyEndpoint,
        Self::BadResponse,
        Self::BundleTooLarge,
        Self::BundleUnparseable,
    ];

    /// The reason, in the CamelCase of a condition.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::EndpointUnreachable => "EndpointUnreachable",
            Self::EndpointCertificateUntrusted => "EndpointCertificateUntrusted",
            Self::EndpointCertificateExpired => "EndpointCertificateExpired",
            Self::WrongEndpointSpiffeId => "WrongEndpointSpiffeId",
            Self::NoBundleToVerifyEndpoint => "NoBundleToVerifyEndpoint",
            Self::BadResponse => "BadResponse",
            Self::BundleTooLarge => "BundleTooLarge",
            Self::BundleUnparseable => "BundleUnparseable",
        }
    }
}

/// A failed fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchFailure {
    pub problem: FetchProblem,
    /// Names the endpoint, the cause and what to do.
    pub message: String,
}

/// Something that a successful fetch showed and an operator must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleAlarm {
    /// `keys` has no usable X.509 authority: the trust domain revokes everything (Trust Domain and Bundle 4.1.3).
    NoUsableAuthority,
    SequenceWentBack {
        from: u64,
        to: u64,
    },
    /// Other authorities under the same sequence number.
    ContentChangedUnderSequence {
        sequence: u64,
    },
    /// No authority of the last bundle is in this one.
    AuthoritiesSubstituted,
}

impl BundleAlarm {
    /// The reason, in the CamelCase of a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoUsableAuthority => "NoUsableAuthority",
            Self::SequenceWentBack { .. } => "SequenceWentBack",
            Self::ContentChangedUnderSequence { .. } => "ContentChangedUnderSequence",
            Self::AuthoritiesSubstituted => "AuthoritiesSubstituted",
        }
    }
}

/// What the monitor knows of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointState {
    /// The last bundle that was fetched and verified, usable or not.
    pub latest: Option<Arc<Bundle>>,
    /// The last one of these that had a usable authority when it was fetched.
    pub latest_usable: Option<Arc<Bundle>>,
    /// Set while the last fetch failed.
    pub failure: Option<FetchFailure>,
    /// What the last successful fetches showed; kept until a fetch shows otherwise, or the same bundle was served often
    /// enough to be what the peer means.
    pub alarms: Vec<BundleAlarm>,
    /// Why SPIRE's own reader refuses the last document that was fetched, where it does: ours leaves out what the
    /// specification says to ignore, SPIRE's refuses the whole.
    pub refused_by_spire: Option<String>,
    /// Successful fetches of a usable bundle since the last one that was not.
    pub good_in_a_row: u32,
    /// The bootstrap bundle under which all of this was fetched.
    pub descends_from: Option<BundleDigest>,
    /// How often in a row the endpoint served the same bundle again.
    pub unchanged: u32,
    /// How the endpoint proved last that it is of the trust domain, where its profile has it do so.
    pub proof: Option<Proof>,
    /// The moment when the last fetch that ended had begun.
    pub asked_at: Option<Timestamp>,
    /// The moment when the last one had begun that gave a bundle, from whichever endpoint it was.
    pub fetched_at: Option<Timestamp>,
    /// Since when `failure` is set, or since when it is not.
    pub since: Option<Timestamp>,
}

/// A chain that was verified: who presented it has the key that it begins with, and so the word of who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// When it was first seen, and valid.
    pub at: Timestamp,
}
