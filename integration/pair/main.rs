//! The pair ring: two whole agents in one process, each with an embedded authority and a directory, on ports that are
//! free. What is broken here is one thing at a time; what is proven is what both sides then say and do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code: a failure ends the test"
)]

mod world;

mod call;
mod commands;
mod demo;
mod diagnose;
mod dns;
mod ending;
mod endpoint;
mod enrol;
mod examples;
mod image;
mod objects;
mod poison;
mod relay;
mod restart;
mod rotate;
mod rotation;
mod verdict;
