//! The mesh ring: what the agents of two trust domains generate, on a real istiod a cluster and
//! real Envoy as client, gateway and server, with SPIRE's certificates. istiod is found, not built: see `istiod.rs`.
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

include!("../cluster/harness.rs");

#[path = "../cluster/envoy.rs"]
mod envoy;

mod application;
mod as_local;
mod chart;
mod configuration;
mod ending;
mod examples;
mod federation;
mod flags;
mod istiod;
mod meshes;
mod mtls;
mod network;
mod one_port;
mod plain;
mod proxy;
mod setup;
mod three;
mod traffic;
mod truth;
mod web;
mod workload;
