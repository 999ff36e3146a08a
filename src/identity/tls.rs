//! The cryptography behind every TLS connection, named here alone.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The one provider that the agent uses: ring.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
