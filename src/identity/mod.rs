//! Who we are and whom we believe: TLS by SPIFFE ID.

pub mod tls;
pub mod verify;
