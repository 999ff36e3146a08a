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
#[path = "../cluster/pair.rs"]
mod pair;
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
#[path = "../cluster/turn.rs"]
mod turn;
#[path = "../cluster/wait.rs"]
mod wait;
#[path = "../cluster/world.rs"]
mod world;

mod application;
mod flows;
mod protocol;
mod proxy;
mod ring;
