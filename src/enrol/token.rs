//! The invite token: `entente1.` and base64url of a length, a message (`proto/enrol.proto`) and a checksum, so that a
//! token that was cut or mistyped is told from one that is wrong.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::offer::{Offer, OfferError};
use crate::index::parse::field;
use crate::model::{BundleDigest, TrustDomain};
use crate::proto::enrol::v1 as wire;

/// What a token of this version begins with.
const PREFIX: &str = "entente1.";
/// What tokens of every version begin with.
const FAMILY: &str = "entente";
/// Longest token that is read, in bytes.
pub const MAX_TOKEN: usize = 64 * 1024;
/// Bytes of the length before the message, and of the checksum after it.
const LENGTH: usize = 4;
const CHECKSUM: usize = 6;

/// Names an invite; no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId([u8; 8]);

impl InviteId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// As it is shown: 16 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if lower { Self::from_bytes(&hex::decode(text).ok()?) } else { None }
    }

    /// As it is sent; `None` unless it is 8 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What proves that one was invited; used once, never shown, never logged.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// As it is sent; `None` unless it is 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// For the token and the request, and nothing else.
    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What is kept of it. It is random, so that a plain hash cannot be searched.
    #[must_use]
    pub fn hash(&self, id: &InviteId) -> SecretHash {
        let mut hash = Sha256::new();
        hash.update(b"entente.dev/invite/1");
        hash.update(id.as_bytes());
        hash.update(self.0);
        SecretHash(hash.finalize().into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The hash of a [`Secret`], compared in constant time.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Reads it as it is kept.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text).ok()?.try_into().ok().map(Self)
    }

    /// As it is kept.
    #[must_use]
    pub fn to_text(self) -> String {
        hex::encode(self.0)
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// An invite, as the joiner gets it.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: InviteId,
    pub secret: Secret,
    /// The trust domain that is invited.
    pub joiner: TrustDomain,
    /// How the inviter is reached; with an address at least.
    pub inviter: Offer,
    /// Of the inviter's bundle.
    pub fingerprint: BundleDigest,
    pub expires: Timestamp,
}

/// Why text is no token that can be used. None of it repeats what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is no invite token: one begins with {PREFIX:?}; copy all that `entente invite` printed")]
    NotAToken,
    #[error("this invite token is of another version: bring both agents to the same version of entente")]
    OtherVersion,
    #[error(
        "this invite token is longer than {MAX_TOKEN} bytes, as none is: copy what `entente invite` printed, once"
    )]
    TooLong,
    #[error("this invite token was cut: its end is missing; copy all of it")]
    Cut,
    #[error(
        "this invite token was changed on its way (its checksum is wrong): copy it again, whole and once"
    )]
    Changed,
    #[error("this invite token names something that cannot be used: {0}")]
    Offer(#[from] OfferError),
    #[error("this invite token is not well formed ({0}); ask for a new one")]
    Malformed(&'static str),
}

impl Token {
    /// Reads a token as it was pasted: white space in it, as terminals and mails add, is left out.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix(FAMILY).and_then(|rest| rest.split_once('.')).map(|(v, _)| v);
            let other = version.is_some_and(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
            return Err(if other { TokenError::OtherVersion } else { TokenError::NotAToken });
        };
        Self::from_wire(&decode(&checked(encoded)?)?)
    }

    /// The token as it is printed: one line of letters, digits, `.`, `-` and `_`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let message = self.to_wire().encode_to_vec();
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let sum = checksum(&message);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([length.as_slice(), &message, &sum].concat()))
    }

    fn to_wire(&self) -> wire::Token {
        wire::Token {
            id: self.id.as_bytes().to_vec(),
            secret: self.secret.expose().to_vec(),
            joiner: self.joiner.to_string(),
            inviter: Some(self.inviter.to_wire()),
            fingerprint: self.fingerprint.as_bytes().to_vec(),
            expires: self.expires.as_second(),
        }
    }

    fn from_wire(token: &wire::Token) -> Result<Self, TokenError> {
        let malformed = TokenError::Malformed;
        let inviter = Offer::parse(token.inviter.as_ref().ok_or(malformed("no inviter"))?)?;
        if inviter.agent_addresses.is_empty() {
            return Err(malformed("no address of the inviter's agent"));
        }
        let joiner = field::trust_domain("joiner", &token.joiner).map_err(|_| malformed("the joiner"))?;
        if joiner == inviter.trust_domain {
            return Err(malformed("it invites the inviter"));
        }
        Ok(Self {
            id: InviteId::from_bytes(&token.id).ok_or(malformed("the ID of the invite"))?,
            secret: Secret::from_bytes(&token.secret).ok_or(malformed("the secret"))?,
            joiner,
            inviter,
            fingerprint: BundleDigest::from_bytes(&token.fingerprint).ok_or(malformed("the fingerprint"))?,
            expires: Timestamp::from_second(token.expires).map_err(|_| malformed("the expiry"))?,
        })
    }
}

/// The message, where all of it is there and unchanged.
fn checked(encoded: &str) -> Result<Vec<u8>, TokenError> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !encoded.chars().all(is_legal) {
        return Err(TokenError::Changed);
    }
    let bytes = match URL_SAFE_NO_PAD.decode(encoded) {
        Ok(bytes) => bytes,
        // one character more or less than whole groups, or bits left over, as a cut leaves them
        Err(_) => {
            let whole = encoded.len() - encoded.len() % 4;
            let kept = encoded.get(..whole).unwrap_or_default();
            URL_SAFE_NO_PAD.decode(kept).map_err(|_| TokenError::Changed)?
        }
    };
    let (length, rest) = bytes.split_at_checked(LENGTH).ok_or(TokenError::Cut)?;
    let length = <[u8; LENGTH]>::try_from(length).map_err(|_| TokenError::Cut)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_TOKEN {
        return Err(TokenError::Changed);
    }
    if rest.len() < length.saturating_add(CHECKSUM) {
        return Err(TokenError::Cut);
    }
    let (message, sum) = rest.split_at_checked(length).ok_or(TokenError::Cut)?;
    if sum == checksum(message) { Ok(message.to_vec()) } else { Err(TokenError::Changed) }
}

fn decode(message: &[u8]) -> Result<wire::Token, TokenError> {
    wire::Token::decode(message).map_err(|_| TokenError::Malformed("it cannot be read"))
}

fn checksum(message: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Sha256::digest([PREFIX.as_bytes(), message].concat()).into();
    let mut sum = [0; CHECKSUM];
    for (to, from) in sum.iter_mut().zip(digest) {
        *to = from;
    }
    sum
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
