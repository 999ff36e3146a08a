//! What can be seen of a running agent: health, metrics, traces, and a page for people.

pub mod admin;
pub mod metrics;
pub mod seen;
pub mod traces;
pub mod view;

#[cfg(test)]
mod files_tests;
#[cfg(test)]
pub(crate) mod testing;
