//! The cluster ring: two trust domains as plain processes on one machine. Each has a real kube-apiserver with etcd and
//! kube-controller-manager, real spire-server, spire-agent and spire-controller-manager, and the real CRDs of SPIRE and
//! Istio; our agent runs as a child process. `make tools` builds the programs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "test code: a failure ends the test"
)]
#![allow(dead_code, reason = "the harness has what scenarios need; not every one is there yet")]

mod agent;
mod ask;
mod balancer;
#[path = "../behaviour/mod.rs"]
mod behaviour;
mod bundle_server;
mod cert_manager;
mod chart;
mod crds;
#[cfg(target_os = "linux")]
mod docs;
mod envoy;
mod hostile;
mod http;
mod kind;
mod kubelet;
mod kubernetes;
mod load;
mod pair;
mod ports;
mod process;
mod relay;
mod rights;
mod scenarios;
mod scratch;
mod seed;
mod sni;
mod spire;
mod template;
mod tools;
mod turn;
mod wait;
mod world;

mod stands;
