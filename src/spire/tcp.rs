//! TLS to SPIRE's server API over TCP: an admin SVID of our own, and exactly the server's SPIFFE ID.

use std::io;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::identity::peer_tls::{Check, Verifier, judge_own};
use crate::identity::source::IdentitySource;
use crate::identity::tls::provider;

/// What gives the configuration of each new connection: an error while there is no SVID of the admin registration. SPIRE
/// lets a client without a certificate connect, and then refuses its calls for as long as that connection lasts.
///
/// # Errors
/// Where the TLS provider refuses its own protocol versions.
pub fn admin_configs(
    identity: IdentitySource,
) -> Result<impl Fn() -> io::Result<Arc<ClientConfig>> + Send + Sync + 'static, rustls::Error> {
    let config = admin_config(identity.clone())?;
    Ok(move || {
        if identity.current().is_some_and(|svids| svids.admin.is_some()) {
            return Ok(Arc::clone(&config));
        }
        Err(io::Error::other(
            "the Workload API delivers no SVID of the admin registration, which is told by its hint (--admin-hint)",
        ))
    })
}

/// The configuration; it follows the identity, so it is made once. The SVID that it presents is the one of the admin
/// registration, never the one that peers see.
fn admin_config(identity: IdentitySource) -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(server_check(identity.clone()))))
        .with_client_cert_resolver(Arc::new(AdminResolver(identity)));
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AdminResolver(IdentitySource);

impl ResolvesClientCert for AdminResolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let svids = self.0.current()?;
        let admin = svids.admin.as_ref()?;
        Some(Arc::clone(&admin.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes SPIRE servers of our own trust domain alone.
fn server_check(identity: IdentitySource) -> Check {
    Arc::new(move |chain, role, now| {
        let id = judge_own(&identity, chain, role, now)?;
        if id.path() == "/spire/server" {
            return Ok(());
        }
        Err(rustls::Error::General(format!("{id} is not a SPIRE server")))
    })
}
