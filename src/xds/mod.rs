//! Clients without Istio: Envoy and gRPC get their configuration by xDS, over mutual TLS with their SVID, or on a Unix socket
//! that stands for one SPIFFE ID. What each may have is decided in `plan::xds`; here are its streams.

mod allowance;
mod caller;
mod clients;
mod discovery;
mod door;
mod here;
mod server;
pub mod session;
mod stream;
#[cfg(test)]
mod tests;
mod views;
mod wire;

pub use clients::{ClientState, Clients, RefusedAnswer};
pub use server::{Served, Settings, Socket, Sources, StartError, start};
