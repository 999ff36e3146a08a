//! Trust bundles of other trust domains: their documents, the endpoints that serve them, and what watching them shows.

#[cfg(test)]
mod alarm_tests;
pub mod document;
pub mod endpoint;
mod jwk;
pub mod monitor;
#[cfg(test)]
pub(crate) mod testing;
mod tls;
pub mod watch;
pub mod web_roots;
