//! Who we are and whom we believe: our own SVID from the Workload API, and TLS by SPIFFE ID.

pub mod client_tls;
pub mod peer_tls;
pub mod replica_tls;
pub mod source;
pub mod tls;
pub mod verify;
pub mod workload;

#[cfg(test)]
pub(crate) mod testing;
