// What brings up whole trust domains, for the rings and benchmarks that stand on it beside the cluster ring, which has the same
// modules and more: `include!("../cluster/harness.rs")`.

mod agent;
mod cert_manager;
mod crds;
mod http;
mod kubernetes;
mod ports;
mod process;
mod scratch;
mod seed;
mod spire;
mod template;
mod tools;
mod wait;
mod world;
