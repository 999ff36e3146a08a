//! What a bundle endpoint can be made to do wrong, and what someone else may undo in SPIRE.

use std::sync::Arc;
use std::time::Duration;

use super::state::State;
use crate::model::{Bundle, SpiffeId, TrustDomain};

/// A fault of the bundle endpoints, for tests of those who fetch from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `"keys": []`: everything of the trust domain is revoked (Trust Domain and Bundle 4.1.3).
    EmptyKeys,
    /// One JWT authority and no X.509 one.
    JwtOnly,
    /// The bundle, and beside it a key of a use that nobody knows.
    UnknownUseBeside,
    /// Nothing but a key of a use that nobody knows.
    UnknownUseOnly,
    /// The bundle as it was before its last change.
    OlderBundle,
    /// This bundle.
    Bundle(Arc<Bundle>),
    /// This body.
    Garbage(Vec<u8>),
    /// A body that never ends, as fast as it is read.
    EndlessBody,
    /// A body of one byte at a time, with this pause between; it never ends either.
    SlowBody(Duration),
    /// `302 Found` to this location.
    Redirect(String),
    /// This HTTP status, with no body.
    Status(u16),
    /// A good SVID of another SPIFFE ID of the trust domain. Of no effect on `https_web`.
    WrongSpiffeId(SpiffeId),
    /// A certificate whose time is over. Of no effect on `https_web`.
    ExpiredCertificate,
    /// The right SPIFFE ID, signed by an authority that is in no bundle. Of no effect on `https_web`.
    UntrustedCertificate,
    /// Connections are taken and closed at once.
    Hangup,
}

/// Someone who has it their way in SPIRE at once, whatever anyone does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meddling {
    /// There is no relationship with this trust domain.
    NoRelationship(TrustDomain),
    /// This bundle is stored of its trust domain.
    Bundle(Arc<Bundle>),
    /// The entry of this ID federates with nobody.
    NoFederation(String),
}

impl Meddling {
    pub(super) fn have_it_so(&self, state: &mut State) {
        match self {
            Self::NoRelationship(trust_domain) => {
                state.relationships.remove(trust_domain);
            }
            Self::Bundle(bundle) => {
                state.bundles.insert(bundle.trust_domain().clone(), Arc::clone(bundle));
            }
            Self::NoFederation(id) => {
                let revision = state.number();
                if let Some(entry) =
                    state.entries.get_mut(id).filter(|entry| !entry.federates_with.is_empty())
                {
                    entry.federates_with.clear();
                    entry.revision = revision;
                }
            }
        }
    }
}
