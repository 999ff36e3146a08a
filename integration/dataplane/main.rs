//! The data plane ring: workloads without Istio. Real Envoys take all of their configuration from our agents by xDS, and their
//! certificates from real SPIRE's agent; they stand in front of plain clients in east and of plain servers in west.
//! Everything else is the cluster ring's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "test code: a failure ends the test"
)]
#![allow(dead_code, reason = "the harness of the cluster ring has more than this ring needs")]
#![cfg(target_os = "linux")]

include!("../cluster/harness.rs");

#[path = "../cluster/ask.rs"]
mod ask;
#[path = "../cluster/envoy.rs"]
mod envoy;
#[path = "../cluster/pair.rs"]
mod pair;
#[path = "../cluster/turn.rs"]
mod turn;

mod application;
mod flows;
mod foreign;
mod library;
mod limits;
mod local;
mod machine;
mod machines;
mod protocol;
mod proxy;
mod proxyless;
mod ring;
