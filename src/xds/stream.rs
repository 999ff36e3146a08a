//! One stream of one client, from its first request to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::clients::OpenClient;
use super::session::{Answer, Heard, Introduction, Session};
use super::views::Views;
use super::wire::Progress;
use crate::federation::rate::TokenBucket;
use crate::model::SpiffeId;
use crate::observe::metrics::Metrics;
use crate::plan::xds::view::{ClientKind, View};

/// How long a client that has answers to read may go without reading [`LEAST`] bytes or one of them to its end.
const PATIENCE: Duration = Duration::from_secs(30);
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
    pub(super) answers: mpsc::Sender<Result<Answer, Status>>,
    /// How far the client has come with reading them.
    pub(super) progress: Arc<Progress>,
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
        let progress = Arc::clone(&self.progress);
        let ended = tokio::select! {
            ended = self.serve(&mut who) => ended,
            () = progress.stalled(PATIENCE, LEAST) => {
                self.metrics.xds_violation();
                self.connection.cancel();
                Err(Status::deadline_exceeded(format!("what was sent was not read within {} s", PATIENCE.as_secs())))
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
            if timeout(PATIENCE, told).await.is_err() {
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
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Err(Status::unavailable("the agent ends this stream; connect again")),
                request = self.requests.next() => match request {
                    None => return Ok(()),
                    Some(Err(status)) => {
                        tracing::debug!(client = %self.client, %status, "a stream of an xDS client broke");
                        return Ok(());
                    }
                    Some(Ok(request)) => {
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
                    sleep(GATHER).await;
                    changes.mark_unchanged();
                }
            }
            if !self.answer(&mut session, who).await? {
                return Ok(());
            }
        }
    }

    fn hear(&self, session: &mut S, request: S::Request, who: &Introduction) -> Result<(), Status> {
        let heard = session.request(request).map_err(|violation| {
            self.metrics.xds_violation();
            Status::resource_exhausted(violation.to_string())
        })?;
        self.open.heard(who, &heard, session.subscriptions());
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
