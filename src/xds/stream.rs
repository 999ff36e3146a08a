//! One stream of one client, from its first request to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::allowance::{Share, Unread};
use super::clients::OpenClient;
use super::session::{Answer, Heard, Introduction, Session};
use super::views::Views;
use super::wire::Progress;
use crate::model::SpiffeId;
use crate::observe::metrics::Metrics;
use crate::plan::xds::view::{ClientKind, View};
use crate::rate::TokenBucket;

/// What a client that has answers to read must read of them, or one of them to its end, each time that patience is over.
const LEAST: u64 = 64 * 1024;
/// How many requests of a stream are taken at once, and each second: more wait.
const BURST: u32 = 2_000;
const EACH_SECOND: u32 = 200;
/// The first change is told at once, and those that follow within this time together.
const GATHER: Duration = Duration::from_millis(20);

/// What a stream needs.
pub(super) struct Stream<S: Session> {
    pub(super) client: SpiffeId,
    /// Where it is kept what the client says.
    pub(super) open: OpenClient,
    pub(super) requests: Streaming<S::Request>,
    /// What has come of a request that is not whole.
    pub(super) unread: Unread,
    /// What it asks for and is not served.
    pub(super) names: Share,
    pub(super) answers: mpsc::Sender<Result<Answer, Status>>,
    /// How far the client has come with reading them.
    pub(super) progress: Arc<Progress>,
    pub(super) patience: Duration,
    pub(super) views: Views,
    pub(super) metrics: Arc<Metrics>,
    /// Ends it.
    pub(super) cancel: CancellationToken,
    /// Ends the connection: a client that does not read leaves no other way.
    pub(super) connection: CancellationToken,
}

impl<S: Session> Stream<S> {
    /// Serves it to its end; the client is told why where the end is its own doing and it reads.
    pub(super) async fn run(mut self) {
        let mut who = Introduction::default();
        let (progress, patience) = (Arc::clone(&self.progress), self.patience);
        let ended = tokio::select! {
            ended = self.serve(&mut who) => ended,
            () = progress.stalled(patience, LEAST) => {
                self.metrics.xds_violation();
                self.connection.cancel();
                Err(Status::deadline_exceeded(format!("what was sent was not read within {} s", patience.as_secs())))
            }
        };
        if let Err(status) = ended {
            tracing::info!(
                client = %self.client, node = who.node, cause = status.message(),
                "a stream of an xDS client was ended"
            );
            let Self { answers, connection, .. } = self;
            let told = async {
                let _ = answers.send(Err(status)).await;
                answers.closed().await;
            };
            if timeout(patience, told).await.is_err() {
                connection.cancel();
            }
        }
    }

    async fn serve(&mut self, who: &mut Introduction) -> Result<(), Status> {
        let mut session = S::default();
        let mut changes = self.views.changes();
        let origin = Instant::now();
        let mut rate = TokenBucket::new(EACH_SECOND, BURST, Duration::ZERO);
        let cancel = self.cancel.clone();
        let mut counted = None;
        let mut told = origin;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Err(Status::unavailable("the agent ends this stream; connect again")),
                request = self.requests.next() => match request {
                    None => return Ok(()),
                    Some(Err(status)) => {
                        return self.broken(status);
                    }
                    Some(Ok(request)) => {
                        self.unread.clear();
                        while !rate.take(origin.elapsed()) {
                            sleep(Duration::from_millis(20)).await;
                        }
                        who.hear(S::node(&request));
                        let kind = who.kind.unwrap_or(ClientKind::Envoy);
                        counted.get_or_insert_with(|| self.metrics.xds_stream(kind));
                        self.hear(&mut session, request, who)?;
                    }
                },
                changed = changes.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent stops"))?;
                    sleep_until(told + GATHER).await;
                    changes.mark_unchanged();
                    told = Instant::now();
                }
            }
            if !self.answer(&mut session, who).await? {
                return Ok(());
            }
            self.names.set(session.unserved()).inspect_err(|_| self.metrics.xds_violation())?;
        }
    }

    /// What to say where requests cannot be read on: what was too much, the client is told.
    fn broken(&self, status: Status) -> Result<(), Status> {
        if matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange) {
            self.metrics.xds_violation();
            return Err(status);
        }
        tracing::debug!(client = %self.client, %status, "a stream of an xDS client broke");
        Ok(())
    }

    fn hear(&self, session: &mut S, request: S::Request, who: &Introduction) -> Result<(), Status> {
        let heard = session.request(request).map_err(|violation| {
            self.metrics.xds_violation();
            Status::resource_exhausted(violation.to_string())
        })?;
        let view = if matches!(heard, Heard::Nacked(_)) { self.view(who) } else { None };
        let wants = |kind, name: &str| session.wants(kind, name);
        self.open.heard(who, &heard, view.as_ref(), session.subscriptions(), wants);
        if let Heard::Nacked(nack) = heard {
            self.metrics.xds_nack(nack.kind);
            tracing::warn!(
                client = %self.client, node = who.node, kind = nack.kind.as_str(), cause = nack.message,
                "an xDS client refused what it was sent, and keeps what it had"
            );
        }
        Ok(())
    }

    /// Sends what is due; while it is not known what is to be served, nothing: the client keeps what it has. Whether the client
    /// is there still.
    async fn answer(&self, session: &mut S, who: &Introduction) -> Result<bool, Status> {
        let Some(view) = self.view(who) else { return Ok(true) };
        for answer in session.answers(&view) {
            let kind = answer.kind;
            self.progress.give();
            if self.answers.send(Ok(answer)).await.is_err() {
                return Ok(false);
            }
            self.metrics.xds_answer(kind);
        }
        Ok(true)
    }

    fn view(&self, who: &Introduction) -> Option<View> {
        self.views.of(&self.client, who.kind.unwrap_or(ClientKind::Envoy))
    }
}
