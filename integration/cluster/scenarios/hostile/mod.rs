//! What a trusted peer that has turned bad can do to the agent: nothing but what `spec.imports` admits. Each attack is a
//! test; each finds, and leaves, an honest peer's import as it was (`trio.rs`).

mod endpoints;
mod flood;
mod frames;
mod names;
