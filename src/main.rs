//! Entry point of `entente`; everything is in the library.

fn main() {}
