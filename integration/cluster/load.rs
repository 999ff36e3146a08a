//! A steady load of mutual TLS between workloads of two domains, in both directions: each request is a connection of its
//! own, made with the SVID and verified with the bundle that the real Workload API delivered last.

use crate::pair::Pair;
use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use entente::identity::peer_tls::{Authorize, Verdict, client_config, server_config};
use entente::identity::source::IdentitySource;
use entente::identity::workload::WorkloadEndpoint;
use entente::model::TrustDomain;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::{CancellationToken, DropGuard};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

/// The pause between two requests in one direction.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the Workload API may take to deliver what a load needs.
const DELIVERY: Duration = Duration::from_secs(30);
/// Which registrations the peers of scenarios select.
const LABELS: [(&str, &str); 1] = [("federate", "true")];

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Requests that were answered, by the client's trust domain.
    pub(crate) answered: BTreeMap<String, u64>,
    /// What went wrong, with the time since the load began.
    pub(crate) failures: Vec<String>,
    /// Requests by the authority that signed the server's SVID.
    pub(crate) signers: BTreeMap<String, u64>,
}

/// A load that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Mutex<Seen>>,
    _stop: DropGuard,
}

impl Load {
    /// Registers a workload in each domain, waits until each is delivered the bundle of the other, and begins. The
    /// domains must be federated by agents.
    pub(crate) async fn start(pair: &Pair) -> Result<Self> {
        let cancel = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let load = Self { seen: Arc::clone(&seen), _stop: cancel.clone().drop_guard() };
        let began = Instant::now();
        let (east, west) = tokio::try_join!(
            workload(&pair.east, &pair.west, &cancel),
            workload(&pair.west, &pair.east, &cancel)
        )?;
        for (from, to) in [(&east, &west), (&west, &east)] {
            let address = serve(to, cancel.clone()).await?;
            let caller = Caller { source: from.clone(), address, began, seen: Arc::clone(&seen) };
            let cancel = cancel.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = caller.run() => {}
                }
            });
        }
        load.more(5).await?;
        Ok(load)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more requests were answered in each direction; an error as soon as one has failed.
    pub(crate) async fn more(&self, requests: u64) -> Result<()> {
        let before = self.seen().answered;
        eventually("requests are answered in both directions", DELIVERY, || async {
            let seen = self.seen();
            ensure!(seen.answered.len() == 2, "only {:?} calls", seen.answered.keys());
            let more = |(from, count): (&String, &u64)| count - before.get(from).unwrap_or(&0);
            ensure!(seen.answered.iter().map(more).all(|more| more >= requests), "{:?}", seen.answered);
            Ok(())
        })
        .await?;
        self.unharmed()
    }

    /// An error if any request has failed.
    pub(crate) fn unharmed(&self) -> Result<()> {
        let seen = self.seen();
        ensure!(seen.failures.is_empty(), "{} requests failed: {:#?}", seen.failures.len(), seen.failures);
        Ok(())
    }

    /// Waits until servers answer with SVIDs of this authority.
    pub(crate) async fn signed_by(&self, authority: &str) -> Result<()> {
        eventually(&format!("a server has an SVID of {authority}"), DELIVERY, || async {
            let seen = self.seen();
            ensure!(seen.signers.contains_key(authority), "{:?}", seen.signers);
            Ok(())
        })
        .await
    }
}

/// Makes the test process a workload of a domain; what its Workload API gives it, once the other's bundle is there.
async fn workload(here: &Domain, there: &Domain, cancel: &CancellationToken) -> Result<IdentitySource> {
    here.register_test_process("load", "/ns/shop/sa/load", &LABELS, &[]).await?;
    let endpoint = WorkloadEndpoint::Unix(here.spire.agent_socket().to_owned());
    let (source, _) = IdentitySource::spawn(endpoint, None, cancel.clone());
    let peer = TrustDomain::new(there.trust_domain())?;
    eventually("the workload is delivered the peer's bundle", DELIVERY, || async {
        let svids = source.current().context("no SVID")?;
        ensure!(svids.identity.id.path() == "/ns/shop/sa/load", "{}", svids.identity.id);
        ensure!(svids.identity.federated.contains_key(&peer), "no bundle of {peer}");
        Ok(())
    })
    .await?;
    Ok(source)
}

/// Whom either end accepts: the workload of another domain, verified.
fn anyone() -> Authorize {
    Arc::new(|id| id.path() == "/ns/shop/sa/load")
}

async fn serve(source: &IdentitySource, cancel: CancellationToken) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(server_config(source, anyone())?));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            tokio::spawn(tokio::time::timeout(PATIENCE, answer(acceptor.clone(), stream)));
        }
    });
    Ok(address)
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut asked = [0; 4];
    stream.read_exact(&mut asked).await?;
    stream.write_all(b"pong").await?;
    Ok(stream.shutdown().await?)
}

struct Caller {
    source: IdentitySource,
    address: SocketAddr,
    began: Instant,
    seen: Arc<Mutex<Seen>>,
}

impl Caller {
    async fn run(self) {
        loop {
            let called = tokio::time::timeout(PATIENCE, self.call()).await;
            let called = called.map_err(anyhow::Error::from).and_then(|called| called);
            self.count(called);
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn count(&self, called: Result<String>) {
        let from = self.source.current().map(|s| s.identity.trust_domain.to_string()).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match called {
            Ok(signer) => {
                *seen.answered.entry(from).or_default() += 1;
                *seen.signers.entry(signer).or_default() += 1;
            }
            Err(error) => {
                let after = self.began.elapsed();
                seen.failures.push(format!("from {from} after {after:.1?}: {error:#}"));
            }
        }
    }

    /// One request; the authority that signed the server's SVID.
    async fn call(&self) -> Result<String> {
        let verdict = Verdict::default();
        let config = client_config(&self.source, anyone(), verdict.clone())?;
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::from(self.address.ip());
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let mut stream = connecting.with_context(|| format!("the server is {:?}", verdict.get()))?;
        stream.write_all(b"ping").await?;
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.context("the server refused the client, or hung up")?;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        signer(chain.first().context("an empty chain")?)
    }
}

fn signer(leaf: &[u8]) -> Result<String> {
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let id = leaf.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(a) => a.key_identifier.as_ref().map(|k| hex::encode(k.0)),
        _ => None,
    });
    id.context("the SVID does not name its authority")
}
