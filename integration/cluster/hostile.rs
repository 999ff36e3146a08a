//! A peer that has turned bad: the test process with the identity of a domain's agent, by that domain's real SPIRE, which
//! says on the agents' protocol whatever a test wants. What it says is bytes, so that it need not be well formed.

use crate::wait::eventually;
use crate::world::Domain;
use anyhow::{Context, Result, anyhow, ensure};
use entente::identity::peer_tls::{Verdict, client_config};
use entente::identity::source::IdentitySource;
use entente::identity::workload::WorkloadEndpoint;
use entente::model::TrustDomain;
use entente::proto::federation::v1::frame::Body;
use entente::proto::federation::v1::{
    CatalogueAck, CatalogueSnapshot, Frame, Gateway, Heartbeat, Hello, Port, Service, ServiceOutcome, TlsMode,
};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use prost::bytes::BufMut as _;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

const SOON: Duration = Duration::from_secs(30);
/// How long an exchange may take to open, and one try to dial.
const PATIENCE: Duration = Duration::from_secs(90);
const DIAL: Duration = Duration::from_secs(10);
/// How often it says something when a test does not.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A frame of services ends before it is larger.
const FRAME_BYTES: usize = 900 * 1024;

/// The identity of a domain's agent in the hands of the test, and whom it talks to.
pub(crate) struct Hostile {
    source: IdentitySource,
    trust_domain: String,
    /// The agent that it talks to.
    pub(crate) target: SocketAddr,
    /// The version of the protocol that it says it speaks.
    pub(crate) protocol: u32,
    _stop: DropGuard,
}

impl Hostile {
    /// Registers the test process under the SPIFFE ID of the agent of `own`, and waits until SPIRE has given it the SVID and
    /// the bundle of `victim`. The domains must be federated, and no agent run in `own`.
    pub(crate) async fn start(own: &Domain, victim: &Domain) -> Result<Self> {
        let there = victim.trust_domain().to_string();
        let path = "/ns/entente-system/sa/entente";
        let id = own
            .register_test_process("hostile", path, &[("entente.dev/agent", "true")], &[there.as_str()])
            .await?;
        let cancel = CancellationToken::new();
        let endpoint = WorkloadEndpoint::Unix(own.spire.agent_socket().to_owned());
        let (source, _) = IdentitySource::spawn(endpoint, None, cancel.clone());
        let peer = TrustDomain::new(&there)?;
        eventually("SPIRE gives the hostile peer its agent's identity", SOON, || async {
            let svids = source.current().context("no SVID")?;
            ensure!(svids.identity.id.to_string() == id, "{}", svids.identity.id);
            ensure!(svids.identity.federated.contains_key(&peer), "no bundle of {peer}");
            Ok(())
        })
        .await?;
        Ok(Self {
            source,
            trust_domain: own.trust_domain().to_string(),
            target: victim.agent_address(),
            protocol: 1,
            _stop: cancel.drop_guard(),
        })
    }

    /// A TLS connection on which both have proved who they are.
    pub(crate) async fn tls(&self) -> Result<TlsStream<TcpStream>> {
        let verdict = Verdict::default();
        let config = client_config(&self.source, Arc::new(|_| true), verdict.clone())?;
        let stream = TcpStream::connect(self.target).await?;
        let name = ServerName::from(self.target.ip());
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.with_context(|| format!("the agent is {:?}", verdict.get()))
    }

    /// Opens the exchange with these bytes as the first message.
    pub(crate) async fn dial(&self, first: Vec<u8>) -> Result<Line> {
        let mut stream = Some(self.tls().await?);
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionAborted)) }
        });
        let channel = Endpoint::from_static("http://peer").connect_with_connector(connector).await?;
        let (out, queued) = mpsc::channel(64);
        out.send(first).await?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let path = http::uri::PathAndQuery::from_static("/entente.federation.v1.Federation/Exchange");
        let request = tonic::Request::new(ReceiverStream::new(queued));
        let frames = client.streaming(request, path, Raw).await?.into_inner();
        Ok(Line::new(out, frames, self.protocol))
    }

    /// Opens the exchange as an agent does. While the agent has not noticed that the last line is gone, it is tried again; a
    /// peer that said much before is heard at its pace.
    pub(crate) async fn greet(&self) -> Result<Line> {
        eventually("the agent takes the hostile peer's hello", PATIENCE, || async {
            let dialled = self.dial(frame(Body::Hello(self.hello())));
            let line = tokio::time::timeout(DIAL, dialled).await.context("dialling takes too long")??;
            eventually("it says hello", Duration::from_secs(5), || async {
                let said = line.said();
                ensure!(said.ended.is_none(), "it ended: {:?}", said.ended);
                ensure!(said.hello, "no hello");
                Ok(())
            })
            .await?;
            // The answer to a stream that is one too many comes after its hello.
            line.say(Body::Heartbeat(Heartbeat::default())).await?;
            let acked = line.offer(&[]).await?;
            ensure!(acked.is_empty(), "{acked:?}");
            Ok(line)
        })
        .await
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocol_version: self.protocol,
            agent_version: "hostile".to_owned(),
            trust_domain: self.trust_domain.clone(),
            ..Hello::default()
        }
    }

    /// A service of its own that nothing is wrong with.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Service {
        Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ports: vec![Port {
                name: "tcp".to_owned(),
                port: 18080,
                app_protocol: "tcp".to_owned(),
                ..Port::default()
            }],
            tls_mode: TlsMode::IstioMtls.into(),
            server_spiffe_ids: vec![format!("spiffe://{}/ns/shop/sa/any", self.trust_domain)],
            gateways: vec![Gateway { address: "10.77.2.2".to_owned(), port: 15443 }],
            ..Service::default()
        }
    }
}

/// What the agent has said on a line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) hello: bool,
    /// Whole answers, by the version of the catalogue.
    pub(crate) answers: BTreeMap<Vec<u8>, Vec<ServiceOutcome>>,
    /// Why it is over, in the words of the agent's goodbye, or of the transport.
    pub(crate) ended: Option<String>,
    parts: Vec<ServiceOutcome>,
}

/// What became of the services of a catalogue: `name.namespace`, and the reason where it was refused.
pub(crate) type Outcomes = BTreeMap<String, Option<String>>;

/// One exchange. Dropped, the connection is closed.
pub(crate) struct Line {
    out: mpsc::Sender<Vec<u8>>,
    said: Arc<Mutex<Said>>,
    protocol: u32,
    _stop: DropGuard,
}

impl Line {
    fn new(out: mpsc::Sender<Vec<u8>>, frames: Streaming<Frame>, protocol: u32) -> Self {
        let (said, cancel) = (Arc::new(Mutex::new(Said::default())), CancellationToken::new());
        tokio::spawn(listen(frames, out.clone(), Arc::clone(&said), cancel.clone()));
        Self { out, said, protocol, _stop: cancel.drop_guard() }
    }

    pub(crate) fn said(&self) -> Said {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says these bytes as one message.
    pub(crate) async fn bytes(&self, bytes: Vec<u8>) -> Result<()> {
        self.out.send(bytes).await.map_err(|_| anyhow!("the line is over: {:?}", self.said().ended))
    }

    pub(crate) async fn say(&self, body: Body) -> Result<()> {
        self.bytes(frame(body)).await
    }

    /// Offers these services, whatever was offered before; the version under which it is answered.
    pub(crate) async fn send_catalogue(&self, services: &[Vec<u8>]) -> Result<Vec<u8>> {
        let version = self.version_of(services);
        let mut frames = vec![Vec::new()];
        let mut size = 0;
        for service in services {
            size += service.len() + 8;
            if size > FRAME_BYTES {
                frames.push(Vec::new());
                size = service.len() + 8;
            }
            frames.last_mut().context("no frame")?.push(service.clone());
        }
        let last = frames.len() - 1;
        for (number, services) in frames.into_iter().enumerate() {
            let version = version.clone();
            self.say(Body::Catalogue(CatalogueSnapshot { version, services, more: number < last })).await?;
        }
        Ok(version)
    }

    fn version_of(&self, services: &[Vec<u8>]) -> Vec<u8> {
        if self.protocol < 2 { version_of(services) } else { version_of_hashes(services) }
    }

    /// The same; what became of them, by the agent's whole answer.
    pub(crate) async fn offer(&self, services: &[Vec<u8>]) -> Result<Outcomes> {
        // An answer to an equal catalogue that was offered before is not the answer to this one.
        let version = self.version_of(services);
        self.said.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&version);
        self.send_catalogue(services).await?;
        let outcomes = eventually("the catalogue is answered", SOON, || async {
            let said = self.said();
            said.answers.get(&version).cloned().with_context(|| format!("ended: {:?}", said.ended))
        })
        .await?;
        let of = |one: ServiceOutcome| {
            let name = format!("{}.{}", one.name, one.namespace);
            (name, (!one.imported).then_some(one.reason))
        };
        Ok(outcomes.into_iter().map(of).collect())
    }

    /// Waits until the agent has ended the exchange; why.
    pub(crate) async fn ended(&self) -> Result<String> {
        eventually("the agent ends the exchange", SOON, || async { self.said().ended.context("it goes on") })
            .await
    }
}

/// Writes down what the agent says, and keeps the line alive.
async fn listen(
    mut frames: Streaming<Frame>,
    out: mpsc::Sender<Vec<u8>>,
    said: Arc<Mutex<Said>>,
    cancel: CancellationToken,
) {
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.tick().await;
    let end = loop {
        let heard = tokio::select! {
            () = cancel.cancelled() => return,
            _ = beat.tick() => {
                let _ = out.try_send(frame(Body::Heartbeat(Heartbeat::default())));
                continue;
            }
            heard = frames.message() => heard,
        };
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        match heard {
            Ok(Some(Frame { body: Some(Body::Goodbye(goodbye)) })) => break goodbye.message,
            Ok(Some(Frame { body: Some(Body::Hello(_)) })) => said.hello = true,
            Ok(Some(Frame { body: Some(Body::CatalogueAck(ack)) })) => {
                said.parts.extend(ack.outcomes);
                if !ack.more {
                    let whole = std::mem::take(&mut said.parts);
                    said.answers.insert(ack.version, whole);
                }
            }
            // What it is offered it takes, as an agent would say.
            Ok(Some(Frame {
                body: Some(Body::Catalogue(CatalogueSnapshot { version, more: false, .. })),
            })) => {
                let ack = CatalogueAck { version, ..CatalogueAck::default() };
                let _ = out.try_send(frame(Body::CatalogueAck(ack)));
            }
            Ok(Some(_)) => {}
            Ok(None) => break "the stream ended".to_owned(),
            Err(status) => break status.to_string(),
        }
    };
    said.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(end);
}

/// The bytes of a frame.
pub(crate) fn frame(body: Body) -> Vec<u8> {
    Frame { body: Some(body) }.encode_to_vec()
}

/// As `proto/federation.proto` defines it, by this test's own reckoning.
pub(crate) fn version_of(services: &[Vec<u8>]) -> Vec<u8> {
    let mut services: Vec<&Vec<u8>> = services.iter().collect();
    services.sort_unstable();
    let mut hash = Sha256::new();
    for service in services {
        hash.update((service.len() as u64).to_be_bytes());
        hash.update(service);
    }
    hash.finalize().to_vec()
}

/// The same, where 2 is spoken.
fn version_of_hashes(services: &[Vec<u8>]) -> Vec<u8> {
    let mut hashes: Vec<_> = services.iter().map(Sha256::digest).collect();
    hashes.sort_unstable();
    let mut hash = Sha256::new();
    hash.update([0xff; 8]);
    hashes.iter().for_each(|one| hash.update(one));
    hash.finalize().to_vec()
}

/// Sends bytes as they are, and reads frames.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        Frame::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
