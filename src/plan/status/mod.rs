//! From what was decided to the status of each object.

pub mod federated_service;
pub mod imported_service;

#[cfg(test)]
mod tests;
