//! How much an Envoy of ours takes at once, from whom, and for how long.

use crate::application::{Held, Speaks};
use crate::pair::with_pair;
use crate::ring::{Exported, FRONTEND, Ring, SOON, change};
use crate::wait::eventually;
use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use serde_json::json;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// More than Envoy passes on at a time where it is told nothing else (1,024).
const MANY: usize = 1_100;

/// One server has many connections of one client, which all stay. Gateways of both families on one port are one listener, which a
/// stranger does not hold by a handshake that it never ends.
#[test]
fn a_server_takes_many_by_both_families_and_waits_for_no_stranger() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let service = Exported::new("Mtls", Speaks::Tcp).await?;
        ring.export(pair, &service).await?;
        let server = ring.server(&pair.west).await?;
        let frontend = ring.client(&pair.east, "frontend", FRONTEND).await?;
        let at = service.address(&pair.east).await?;
        eventually("the frontend is answered", SOON, || service.call(at)).await?;
        let mut many = Vec::new();
        for number in 0..MANY {
            many.push(Held::open(at).await.with_context(|| format!("connection {number}"))?);
        }
        for (number, held) in many.iter_mut().enumerate() {
            held.say().await.with_context(|| format!("connection {number}, later"))?;
        }
        drop(many);

        let gateway =
            |ip: String| json!({"type": "istio-ingressgateway", "port": ring.gateway.port(), "ip": ip});
        let both = [gateway(ring.gateway.ip().to_string()), gateway("2001:db8::8".to_owned())];
        change(&pair.west, &service, json!({"spec": {"gateways": both}})).await?;
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), ring.gateway.port());
        eventually("the server's Envoy is reached by IPv6", SOON, || async {
            TcpStream::connect(v6).await.map(drop).with_context(|| server.process.log_tail())
        })
        .await?;
        ensure!(server.refused().await? == 0, "the server's Envoy has refused something");
        let host = service.host();
        let (by_v4, by_v6) = tokio::try_join!(silent(ring.gateway, &host), silent(v6, &host))?;
        for waited in [by_v4, by_v6] {
            ensure!((10..20).contains(&waited.as_secs()), "a silent stranger is cut off after {waited:?}");
        }
        eventually("the frontend is answered still", SOON, || service.call(at)).await?;
        ensure!(frontend.refused().await? == 0, "the client's Envoy has refused something");
        Ok(())
    });
}

/// Says hello as a client of TLS does, and nothing more once it is answered: how long it is waited for. What comes to a listener as
/// another takes its place is not answered.
async fn silent(at: SocketAddr, name: &str) -> Result<Duration> {
    let what = format!("{at} begins a handshake");
    let (mut stream, since) = eventually(&what, SOON, || greeted(at, name)).await?;
    let mut all = Vec::new();
    // However it ends it.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .with_context(|| format!("{at} waits for ever"))?;
    Ok(since.elapsed())
}

async fn greeted(at: SocketAddr, name: &str) -> Result<(TcpStream, Instant)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    let mut stream = TcpStream::connect(at).await?;
    let since = Instant::now();
    stream.write_all(&hello).await?;
    ensure!(stream.read(&mut [0; 1]).await? > 0, "closed without a word");
    Ok((stream, since))
}
