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

#[path = "../cluster/agent.rs"]
mod agent;
#[path = "../cluster/cert_manager.rs"]
mod cert_manager;
#[path = "../cluster/crds.rs"]
mod crds;
#[path = "../cluster/envoy.rs"]
mod envoy;
#[path = "../cluster/http.rs"]
mod http;
#[path = "../cluster/kubernetes.rs"]
mod kubernetes;
#[path = "../cluster/ports.rs"]
mod ports;
#[path = "../cluster/process.rs"]
mod process;
#[path = "../cluster/scratch.rs"]
mod scratch;
#[path = "../cluster/spire.rs"]
mod spire;
#[path = "../cluster/template.rs"]
mod template;
#[path = "../cluster/tools.rs"]
mod tools;
#[path = "../cluster/wait.rs"]
mod wait;
#[path = "../cluster/world.rs"]
mod world;

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
mod proxy;
mod setup;
mod three;
mod traffic;
mod truth;
mod web;
mod workload;
