//! Looks at the real path: short, bounded, and at nothing but what our own configuration names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use super::evidence::{AddressSeen, EndpointSeen, TcpFailure};
use crate::bundle::endpoint::EndpointClient;
use crate::bundle::monitor::verifying_bundle;
use crate::federation::diagnose::PathProbe;
use crate::model::reach::Attempt;
use crate::model::service::GatewayAddress;
use crate::model::{Peer, TrustDomain, World};
use crate::plan::{monitors, reach as planned};
use crate::reach;

/// How long each stage of a look is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// DNS, and TCP to one address.
    step: Duration,
    /// A whole fetch, with its redirects and body.
    fetch: Duration,
}

impl Pace {
    /// For an operator.
    pub(super) const PATIENT: Self = Self { step: Duration::from_secs(4), fetch: Duration::from_secs(8) };
    /// For a peer, which waits for ten seconds.
    pub(super) const QUICK: Self = Self { step: Duration::from_millis(1500), fetch: Duration::from_secs(3) };
}

/// Most addresses of one name, and most of an agent's addresses, that are tried.
const ADDRESSES: usize = 4;

/// Resolves `host:port`.
async fn resolve(host_port: &str, pace: Pace) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(pace.step, lookup_host(host_port)).await;
    let found = found.map_err(|_| format!("DNS gave no answer within {:?}", pace.step))?;
    let addresses: Vec<SocketAddr> = found.map_err(|e| e.to_string())?.take(ADDRESSES).collect();
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
}

/// The first address that takes a connection.
async fn connect(addresses: &[SocketAddr], pace: Pace) -> Result<SocketAddr, TcpFailure> {
    let deadline = Instant::now() + 2 * pace.step;
    let mut last = TcpFailure { cause: "it has no address".to_owned(), is_refused: false };
    for address in addresses {
        last = match timeout_at(deadline.min(Instant::now() + pace.step), TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(*address),
            Ok(Err(error)) => TcpFailure {
                cause: format!("{address}: {error}"),
                is_refused: error.kind() == std::io::ErrorKind::ConnectionRefused,
            },
            Err(_) => TcpFailure {
                cause: format!("{address}: no answer within {:?}", pace.step),
                is_refused: false,
            },
        };
    }
    Err(last)
}

/// The peer's bundle endpoint, stage by stage.
pub(super) async fn endpoint(
    client: &EndpointClient,
    world: &World,
    peer: &Peer,
    pace: Pace,
) -> EndpointSeen {
    let mut seen = EndpointSeen::default();
    let Some(host_port) = host_port(peer.endpoint.url.as_str()) else { return seen };
    let addresses = match seen.dns.insert(resolve(&host_port, pace).await) {
        Ok(addresses) => addresses.clone(),
        Err(_) => return seen,
    };
    if seen.tcp.insert(connect(&addresses, pace).await).is_err() {
        return seen;
    }
    let target = monitors::monitors(world).remove(&peer.trust_domain);
    let state = world.endpoints.get(&peer.trust_domain).cloned().unwrap_or_default();
    let verify_with = target.and_then(|target| verifying_bundle(&target, &state));
    let client = client.clone().with_timeouts(pace.step, pace.fetch);
    let fetch = client.probe(&peer.trust_domain, &peer.endpoint, verify_with.as_deref(), world.now);
    seen.fetch = Some(fetch.await);
    seen
}

/// `host:port` of a URL that was checked when its object was read.
fn host_port(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

/// The gateways that carry the peer's services, of those that the agent tries: admission let them through.
pub(super) async fn gateways(world: &World, peer: &TrustDomain) -> BTreeMap<GatewayAddress, Attempt> {
    let look = async |gateway: GatewayAddress| {
        let attempt = timeout(Pace::PATIENT.step, reach::attempt(&gateway)).await;
        (gateway, attempt.unwrap_or(Attempt::Silent))
    };
    let known = planned::tried(world, peer).into_keys().take(planned::MOST);
    futures::future::join_all(known.map(look)).await.into_iter().collect()
}

/// The addresses of the peer's agent; hands are shaken only where that is asked for.
pub(super) async fn agent(probe: &PathProbe, peer: &Peer, shake_hands: bool) -> Vec<AddressSeen> {
    let look = async |address: &String| {
        let mut seen = AddressSeen {
            address: address.clone(),
            dns: resolve(address, Pace::PATIENT).await,
            tcp: None,
            handshake: None,
        };
        if let Ok(addresses) = &seen.dns {
            let tcp = connect(addresses, Pace::PATIENT).await;
            let is_open = tcp.is_ok();
            seen.tcp = Some(tcp);
            if is_open && shake_hands {
                seen.handshake = Some(probe.reach(peer, address).await);
            }
        }
        seen
    };
    futures::future::join_all(peer.agent_addresses.iter().take(ADDRESSES).map(look)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_url_is_known() {
        for (url, wanted) in [
            ("https://a.example/", "a.example:443"),
            ("https://a.example:8443/x", "a.example:8443"),
            ("https://127.0.0.1:1/", "127.0.0.1:1"),
            ("https://[::1]:8443/", "[::1]:8443"),
        ] {
            assert_eq!(host_port(url).as_deref(), Some(wanted));
        }
    }

    #[tokio::test]
    async fn a_name_that_is_none_and_a_port_that_is_closed_are_told_apart() {
        assert!(resolve("nowhere.invalid:443", Pace::QUICK).await.is_err());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(
            connect(&resolve(&open.to_string(), Pace::QUICK).await.unwrap(), Pace::QUICK).await,
            Ok(open)
        );
        drop(listener);
        assert!(connect(&[open], Pace::QUICK).await.unwrap_err().is_refused);
    }
}
