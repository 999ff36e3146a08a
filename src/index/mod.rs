//! From events of the stores to the world: each kind is parsed in `parse/`.

pub mod parse;
