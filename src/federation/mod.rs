//! The exchange with the agents of other trust domains: one mutually authenticated stream a peer (`proto/federation.proto`).
//!
//! ```text
//!  plans (watch) --> manager --> one actor a peer (peer) --> link: pumps frames of one stream
//!                       |              ^      |                      |
//!                    server -- streams-+      +-- client (dials)   session: pure rules, no I/O, no clock
//!                                                                    |
//!  states (watch) <--------------------------------------------- catalogue, convert
//! ```

mod bounds;
pub mod catalogue;
pub mod client;
pub mod convert;
mod delta;
pub mod diagnose;
pub mod manager;
pub mod session;

mod link;
mod peer;
mod relay;
pub(crate) mod server;
pub(crate) mod wire;

pub use manager::{Federation, FederationConfig, RelayConfig, StartError, Timings};

#[cfg(test)]
mod tests;
