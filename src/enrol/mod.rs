//! Inviting and joining: two commands that make two trust domains peers, without anyone pasting a bundle.
//!
//! ```text
//!  inviter                                                joiner
//!  invite: token (fingerprint, secret, where we are) -->  join: takes the token
//!                                                         fetches the inviter's bundle, checks the fingerprint
//!  desk: TLS, ALPN `entente-enrol`, own SVID          <-- dials, verifies chain and exact ID with that bundle
//!  checks invite, secret, trust domain, bundle, SVID  <-- secret, where it is, its bundle
//!  burns the invite, makes its TrustDomainPeer        --> makes its TrustDomainPeer
//! ```
//!
//! What is made are two ordinary TrustDomainPeers that import nothing and select no registration: they are the
//! operators' own from then on.

pub mod adopt;
pub mod desk;
mod dial;
pub mod fingerprint;
pub mod invites;
pub mod join;
pub mod offer;
pub mod screening;
pub mod token;
mod wire;

pub use desk::Desk;
pub use invites::Invites;
pub use offer::Offer;
pub use token::Token;

/// The application protocol of enrolment, on the port that faces peers.
pub const ALPN: &[u8] = b"entente-enrol";
