//! Trust bundles of other trust domains: their documents, the endpoints that serve them, and what watching them shows.

#[cfg(test)]
pub(crate) mod testing;
