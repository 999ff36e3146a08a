//! One stream to one peer: moves frames between the stream and its session, and tells the peer's actor what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::Instrument as _;

use super::session::{Aside, End, Heard, Session};
use crate::identity::verify::Role;
use crate::model::SpiffeId;
use crate::model::diagnosis::ToldCheck;
use crate::model::session::{GoodbyeReason, LinkPlan};
use crate::observe::traces;
use crate::proto::federation::v1::Frame;

/// What the TLS handshake of a stream proved, kept so that it can be judged again.
#[derive(Clone)]
pub(super) struct Proof {
    pub(super) id: SpiffeId,
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The peer's role in the handshake: server where we dialled.
    pub(super) role: Role,
    /// When it was verified. A stream outlives the SVID that opened it, but not its authority.
    pub(super) at: UnixTime,
}

/// The connection below a stream, which closes when this is dropped.
pub(super) enum Connection {
    Dialled(Channel),
    Accepted {
        close: DropGuard,
        /// Cancelled once the connection is gone.
        gone: CancellationToken,
    },
}

/// How long a connection that we dialled is kept for a last frame to be written, where the peer's half broke and so
/// cannot tell that it was read.
const LAST_WRITE: Duration = Duration::from_millis(250);

impl Connection {
    /// Closes it, at `deadline` at the latest.
    async fn close(self, is_broken: bool, deadline: Instant) {
        match self {
            // a dialler that has read all we said closes; to close before could lose it
            Self::Accepted { close, gone } => {
                let _ = timeout_at(deadline, gone.cancelled()).await;
                drop(close);
            }
            Self::Dialled(channel) => {
                if is_broken {
                    sleep_until(deadline.min(Instant::now() + LAST_WRITE)).await;
                }
                drop(channel);
            }
        }
    }
}

/// A stream to or from a peer.
pub(super) struct Stream {
    pub(super) proof: Proof,
    pub(super) frames: Streaming<Frame>,
    pub(super) out: mpsc::Sender<Frame>,
    pub(super) connection: Connection,
}

/// What happened on a stream.
pub(super) enum LinkEvent {
    /// The peer's Hello is read.
    Open,
    /// The peer said something new.
    Heard(Box<Heard>),
    /// The peer said something beside the exchange itself.
    Aside(Aside),
    /// Nothing more is read.
    Ended(End),
    /// What was to be said is said, or cannot be, and the stream is gone.
    Closed,
}

/// What the actor has said on a stream, beside what its plan says.
pub(super) enum Say {
    Ask(u64),
    Reply(u64, Vec<ToldCheck>),
}

/// Why a stream is to be parted, once it is to be.
pub(super) type Parting = Option<(GoodbyeReason, String)>;

/// The ends of a link's channels that its task holds.
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) plan: watch::Receiver<Arc<LinkPlan>>,
    pub(super) parting: watch::Receiver<Parting>,
    pub(super) say: mpsc::Receiver<Say>,
    pub(super) events: mpsc::Sender<(u64, LinkEvent)>,
    /// When the peer was last heard, in milliseconds since `origin`.
    pub(super) last_heard: Arc<AtomicU64>,
    pub(super) origin: Instant,
    pub(super) tick: Duration,
    /// How long a goodbye may take.
    pub(super) goodbye: Duration,
}

impl Link {
    /// Runs the exchange to its end.
    pub(super) async fn run(mut self, mut stream: Stream, mut session: Session) {
        let ended_at = self.exchange(&mut stream, &mut session).await;
        let end = session.end().cloned().unwrap_or(End::AlreadyConnected);
        self.tell(LinkEvent::Ended(end)).await;
        // ends our half; the peer ends its own when it has read all of ours
        let Stream { mut frames, out, connection, .. } = stream;
        drop(out);
        let deadline = ended_at + self.goodbye;
        let rest = async {
            loop {
                match frames.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return false,
                    Err(_) => return true,
                }
            }
        };
        let is_broken = timeout_at(deadline, rest).await.unwrap_or(true);
        connection.close(is_broken, deadline).await;
        self.tell(LinkEvent::Closed).await;
    }

    async fn exchange(&mut self, stream: &mut Stream, session: &mut Session) -> Instant {
        let mut tick = tokio::time::interval(self.tick);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut pending, mut told, mut ended_at) = (None, Told::default(), None);
        loop {
            if session.end().is_some() {
                ended_at.get_or_insert_with(Instant::now);
            }
            session.on_clock(crate::clock::precise().as_millisecond());
            pending = pending.or_else(|| session.next_frame(self.origin.elapsed()));
            if let (Some(at), None) = (ended_at, &pending) {
                return at;
            }
            let due = session.due().map(|due| self.origin + due);
            tokio::select! {
                permit = stream.out.reserve(), if pending.is_some() => match permit {
                    Ok(permit) => if let Some(frame) = pending.take() { permit.send(frame) },
                    Err(_) => { pending = None; session.on_closed("it is no longer read") }
                },
                frame = stream.frames.message(), if ended_at.is_none() => {
                    session.on_clock(crate::clock::precise().as_millisecond());
                    on_message(session, frame, self.origin.elapsed());
                }
                changed = self.plan.changed(), if ended_at.is_none() => match changed {
                    Ok(()) => session.on_plan(&self.plan.borrow_and_update().clone()),
                    Err(_) => session.part(GoodbyeReason::ShuttingDown, "the agent is stopping"),
                },
                () = parted(&mut self.parting), if ended_at.is_none() => {
                    let parting = self.parting.borrow().clone();
                    if let Some((reason, text)) = parting { session.part(reason, &text) }
                }
                Some(say) = self.say.recv(), if ended_at.is_none() => match say {
                    Say::Ask(id) => session.ask(id),
                    Say::Reply(id, checks) => session.reply(id, &checks),
                },
                _ = tick.tick(), if ended_at.is_none() => session.on_tick(self.origin.elapsed()),
                _ = moment(due, Duration::ZERO), if ended_at.is_none() => session.on_tick(self.origin.elapsed()),
                // the peer does not read
                at = moment(ended_at, self.goodbye) => return at,
            }
            self.report(session, &mut told).await;
        }
    }

    async fn report(&self, session: &mut Session, told: &mut Told) {
        let heard = u64::try_from(session.last_heard().as_millis()).unwrap_or(u64::MAX);
        self.last_heard.store(heard, Ordering::Relaxed);
        if session.is_open() && !told.open {
            told.open = true;
            self.tell(LinkEvent::Open).await;
        }
        if session.revision() != told.revision {
            told.revision = session.revision();
            let heard = LinkEvent::Heard(Box::new(session.heard().clone()));
            self.tell(heard).instrument(traces::heard()).await;
        }
        while let Some(aside) = session.take_aside() {
            self.tell(LinkEvent::Aside(aside)).await;
        }
    }

    async fn tell(&self, event: LinkEvent) {
        // an actor that is gone needs to know nothing
        let _ = self.events.send((self.number, event)).await;
    }
}

/// What the actor was told of the session.
#[derive(Default)]
struct Told {
    open: bool,
    revision: u64,
}

/// Returns `at` once `after` has passed since; never where there is none.
async fn moment(at: Option<Instant>, after: Duration) -> Instant {
    let Some(at) = at else { return std::future::pending().await };
    sleep_until(at + after).await;
    at
}

/// Returns once the stream is to be parted.
async fn parted(parting: &mut watch::Receiver<Parting>) {
    if parting.wait_for(Option::is_some).await.is_err() {
        // the actor is gone, and so is the plan's sender, which ends the exchange
        std::future::pending::<()>().await;
    }
}

fn on_message(session: &mut Session, message: Result<Option<Frame>, Status>, now: Duration) {
    match message {
        Ok(Some(frame)) => session.on_frame(frame, now),
        Ok(None) => session.on_closed("the peer ended the stream without a goodbye"),
        // the decoder's own limits
        Err(status) if status.code() == Code::OutOfRange => session.on_unreadable(status.message()),
        Err(status) => session.on_closed(status.message()),
    }
}
