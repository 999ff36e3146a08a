//! Trust bundles of other trust domains: their documents, the endpoints that serve them, and what watching them shows.

pub mod document;
mod jwk;
#[cfg(test)]
pub(crate) mod testing;
