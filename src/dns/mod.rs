//! The DNS server: names of imported services, by UDP and TCP.
//!
//! ```text
//! plan.zone  ->  Served (the last one that was known)
//!                   |
//! udp, tcp  ->  limits  ->  answer (pure: bytes to bytes, or a question for upstream)  ->  upstream
//! ```
//!
//! Whoever reaches it is answered: it tells the names and addresses of what our side admitted, and nothing else. Who calls what
//! is decided where the call arrives, by SPIFFE ID. The wire format is hickory's; which names are ours is `plan::dns`.

mod answer;
mod question;
mod tcp;
mod udp;
mod upstream;

#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod testing;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::observe::metrics::{Asked, Metrics};
use crate::plan::Plan;
use crate::plan::dns::Zone;
use crate::rate::{Places, Sources};
use upstream::Upstream;

/// How the server is run.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Both for UDP and TCP.
    pub listen: SocketAddr,
    /// Whom other names are asked of; nobody: they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// How many questions a second are answered to one source.
    pub rate: u32,
}

/// A running server: its tasks end when they are cancelled, or with the error that ended them.
#[derive(Debug)]
pub struct DnsServer {
    /// Where it is asked, by UDP and TCP.
    pub listen: SocketAddr,
    pub tasks: JoinSet<anyhow::Result<()>>,
}

/// What answers, whatever a question came by.
#[derive(Debug)]
struct Answers {
    zone: RwLock<Option<Arc<Zone>>>,
    upstream: Option<Upstream>,
    sources: Sources,
    connections: Places,
    waiting: Waiting,
    metrics: Arc<Metrics>,
}

/// Places of questions that wait for an upstream, by the way that they came, and of each source a share of them. They are fewer
/// than all that is answered at a time: our own names are answered whatever becomes of the others.
#[derive(Debug)]
struct Waiting {
    udp: Places,
    tcp: Places,
}

impl Waiting {
    /// In all, and of one source.
    const UDP: (usize, usize) = (udp::AT_ONCE / 2, 128);
    const TCP: (usize, usize) = (tcp::CONNECTIONS / 2, 8);
}

impl Default for Waiting {
    fn default() -> Self {
        Self { udp: Places::new(Self::UDP.0, Self::UDP.1), tcp: Places::new(Self::TCP.0, Self::TCP.1) }
    }
}

/// What is sent for a question.
struct Reply {
    bytes: Vec<u8>,
    /// There was no place for it: nothing more is to be read from there for now.
    is_last: bool,
}

/// Which way a question came, and what its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Udp,
    Tcp,
}

impl DnsServer {
    /// Binds, and serves what the plans say from then on; until the first one that knows, every question is answered with a
    /// failure, so that whoever asks turns to another replica and takes nothing for missing.
    ///
    /// # Errors
    /// Where the address cannot be bound, or an upstream is this server itself.
    pub async fn start(
        config: DnsConfig,
        plans: watch::Receiver<Arc<Plan>>,
        metrics: Arc<Metrics>,
        cancel: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (udp, tcp) = bind(config.listen).await?;
        let listen = udp.local_addr()?;
        if let Some(own) = config.upstreams.iter().find(|upstream| is_own(listen, **upstream)) {
            anyhow::bail!(
                "--dns-upstream {own} is where this agent itself answers DNS (--dns-listen {listen})"
            );
        }
        let upstream = (!config.upstreams.is_empty()).then(|| Upstream::new(config.upstreams));
        let answers = Arc::new(Answers {
            zone: RwLock::default(),
            upstream,
            sources: Sources::new(config.rate, config.rate.saturating_mul(2)),
            connections: Places::new(tcp::CONNECTIONS, tcp::CONNECTIONS_OF_ONE),
            waiting: Waiting::default(),
            metrics,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&answers).follow(plans, cancel.clone()));
        tasks.spawn(udp::serve(udp, Arc::clone(&answers), cancel.clone()));
        tasks.spawn(tcp::serve(tcp, answers, cancel));
        Ok(Self { listen, tasks })
    }
}

/// Both sockets, on one port.
async fn bind(listen: SocketAddr) -> anyhow::Result<(UdpSocket, TcpListener)> {
    // A port that the system chose for one may be taken for the other.
    const TRIES: u32 = 16;
    let mut tried = 0;
    loop {
        tried += 1;
        let tcp = TcpListener::bind(listen).await.with_context(|| format!("TCP {listen}"))?;
        let at = tcp.local_addr()?;
        match UdpSocket::bind(at).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(_) if listen.port() == 0 && tried < TRIES => {}
            Err(error) => return Err(error).with_context(|| format!("UDP {at}")),
        }
    }
}

/// Whether who asks there asks this server. Of other addresses of this machine nobody knows; that a question comes back is
/// seen when it does (`upstream`).
fn is_own(listen: SocketAddr, upstream: SocketAddr) -> bool {
    let is_here = upstream.ip() == listen.ip() || listen.ip().is_unspecified() && upstream.ip().is_loopback();
    upstream.port() == listen.port() && is_here
}

impl Answers {
    fn zone(&self) -> Option<Arc<Zone>> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves the newest zone that is known. A plan that knows none leaves the last one: silence takes nothing away.
    async fn follow(
        self: Arc<Self>,
        mut plans: watch::Receiver<Arc<Plan>>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let zone = plans.borrow_and_update().zone.clone();
            if let Some(zone) = zone.filter(|zone| self.zone().as_ref() != Some(zone)) {
                self.metrics.zone_changed(clock::now());
                *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(zone);
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = plans.changed() => match changed {
                    Ok(()) => {}
                    Err(_) if cancel.is_cancelled() => return Ok(()),
                    Err(_) => anyhow::bail!("the planning ended though the agent runs"),
                },
            }
        }
    }

    /// The answer to a packet; none to what is no question.
    async fn answer(&self, packet: &[u8], way: Way, from: IpAddr) -> Option<Reply> {
        let zone = self.zone();
        let places = match way {
            Way::Udp => &self.waiting.udp,
            Way::Tcp => &self.waiting.tcp,
        };
        let mut is_last = false;
        let answer = answer::answer(zone.as_deref(), packet, way, self.upstream.is_some());
        let (asked, bytes) = match (answer, &self.upstream) {
            (answer::Answer::Silence, _) => (Asked::Malformed, None),
            (answer::Answer::Reply(asked, bytes), _) => (asked, Some(bytes)),
            (answer::Answer::Ask(question), Some(upstream)) => match places.take(from) {
                Some(place) => match upstream.ask(&question, way, &place).await {
                    Some(bytes) => (Asked::Forwarded, Some(bytes)),
                    None => (Asked::Failed, question.failed()),
                },
                None => {
                    is_last = true;
                    (Asked::Limited, question.failed())
                }
            },
            (answer::Answer::Ask(question), None) => (Asked::Failed, question.failed()),
        };
        self.metrics.asked(asked);
        bytes.map(|bytes| Reply { bytes, is_last })
    }
}

/// How long a client of TCP may take for a message, and for the next one.
const PATIENCE: Duration = Duration::from_secs(10);
