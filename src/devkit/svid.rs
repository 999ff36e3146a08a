//! What the authority signs.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::{AuthorityId, SpiffeId};

/// An X509-SVID with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Svid {
    pub id: SpiffeId,
    /// The leaf, DER. The authority is self-signed, so that there is nothing between.
    pub certificate: Vec<u8>,
    /// PKCS#8 DER.
    pub key: Vec<u8>,
    pub signer: AuthorityId,
    pub issued: Timestamp,
    pub not_after: Timestamp,
}

impl Svid {
    /// Whether more than half of its life is over: SPIRE's agents and servers replace it then.
    #[must_use]
    pub fn is_due_at(&self, now: Timestamp) -> bool {
        let life = self.not_after.as_second() - self.issued.as_second();
        now.as_second() - self.issued.as_second() >= life / 2
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id.to_string())
            .field("signer", &self.signer)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What an SVID is to be; the odd ones are for tests of those who verify them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// From now, for so long.
    For(Duration),
    /// Its time is over.
    Expired,
}
