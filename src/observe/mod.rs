//! What can be seen of a running agent: health, metrics.

pub mod admin;
pub mod metrics;

#[cfg(test)]
pub(crate) mod testing;
