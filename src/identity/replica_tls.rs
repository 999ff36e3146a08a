//! TLS between the replicas of one agent: both ends present the SVID that peers see, and accept that very SPIFFE ID, verified
//! with our own trust domain's bundle. So nobody but the agent itself can have a connection taken as passed on.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, ClientConfig, ServerConfig};

use super::peer_tls::{Check, PeerRefusal, dialling, judge_own, serving};
use super::source::IdentitySource;
use super::verify::Role;

/// The protocol of what is passed on, with its version: replicas of two versions that do not know each other's pass
/// nothing on.
pub const ALPN_RELAY: &[u8] = b"entente-relay/1";

/// For the replica that takes connections.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn server_config(source: &IdentitySource) -> Result<ServerConfig, rustls::Error> {
    serving(source, ourselves(source), ALPN_RELAY)
}

/// For a replica that passes connections on.
///
/// # Errors
/// Where the provider does not offer TLS 1.3.
pub fn client_config(source: &IdentitySource) -> Result<ClientConfig, rustls::Error> {
    dialling(source, ourselves(source), ALPN_RELAY)
}

fn ourselves(source: &IdentitySource) -> Check {
    let source = source.clone();
    Arc::new(move |chain, role, now| is_ourselves(&source, chain, role, now))
}

fn is_ourselves(
    source: &IdentitySource,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let own = source.current().ok_or(PeerRefusal::NoIdentity)?;
    match judge_own(source, chain, role, now)? {
        id if id == own.identity.id => Ok(()),
        _ => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::identity::testing::Domain;
    use crate::identity::workload::read;

    async fn handshake(server: &IdentitySource, client: ClientConfig) -> (bool, bool) {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(Arc::new(server_config(server).unwrap()));
        let connector = TlsConnector::from(Arc::new(client));
        let name = rustls::pki_types::ServerName::try_from("replica").unwrap();
        let connecting = async {
            let mut stream = connector.connect(name, here).await.ok()?;
            // the server judges us after our own handshake is done
            (stream.read(&mut [0]).await.ok()? == 0).then_some(())
        };
        let accepting = async {
            let mut stream = acceptor.accept(there).await.ok()?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await.ok()
        };
        let (connected, accepted) = tokio::join!(connecting, accepting);
        (connected.is_some(), accepted.is_some())
    }

    #[tokio::test]
    async fn only_who_has_our_own_id_is_a_replica() {
        let east = Domain::new("east.test");
        let source = east.source(&[]);
        let of = |source: &IdentitySource| client_config(source).unwrap();
        assert_eq!(handshake(&source, of(&source)).await, (true, true));

        // another workload of our trust domain
        let mut response = east.response(&[]);
        response.svids = vec![east.svid("spiffe://east.test/ns/entente-system/sa/other", "")];
        let other = IdentitySource::empty();
        other.publish(read(response, None).unwrap());
        assert_eq!(handshake(&source, of(&other)).await, (false, false));
        // who trusts it is not talked to either
        assert_eq!(handshake(&other, of(&source)).await, (false, false));

        // the agent of a peer whose bundle we hold
        let west = Domain::new("west.test");
        let federated = east.source(&[&west.bundle()]);
        let peer = west.source(&[&east.bundle()]);
        assert_eq!(handshake(&federated, of(&peer)).await, (false, false));
        // our ID, by an authority that is not ours
        let false_east = Domain::new("east.test").source(&[]);
        assert_eq!(handshake(&source, of(&false_east)).await, (false, false));
        // nobody
        assert_eq!(handshake(&source, of(&IdentitySource::empty())).await, (false, false));
        assert_eq!(handshake(&IdentitySource::empty(), of(&source)).await, (false, false));
        // another protocol
        let mut config = of(&source);
        config.alpn_protocols = vec![b"h2".to_vec()];
        assert_eq!(handshake(&source, config).await, (false, false));
    }
}
