//! Client of the SPIRE Server API: what SPIRE holds ([`read`](SpireServer::read)), and the changes that the plan asks
//! for ([`act`](SpireServer::act)).
//!
//! SPIRE is trusted to be our own, but what it answers is still bounded in size, count and time, and one item that
//! does not parse harms only itself.

mod act;
mod address;
mod authorities;
mod client;
mod convert;
mod error;
mod jwk;
mod read;
pub mod replicas;
pub mod tcp;
pub mod watch;

pub use address::{AddressError, ServerAddress};
pub use client::SpireServer;
pub use convert::{bundle_from_proto, bundle_to_proto};
pub(crate) use convert::{relationship_from_proto, relationship_to_proto};
pub use error::SpireError;
pub(crate) use jwk::public_members;

#[cfg(test)]
mod tests;
