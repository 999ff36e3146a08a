//! The rules of one exchange: what is said, when, and what is made of what the peer says. No I/O and no clock: frames
//! and times come in, frames are taken out one by one as the stream has room, so that nothing piles up here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::federation::catalogue::Assembly;
use crate::federation::convert::{
    goodbye_from_proto, goodbye_to_proto, message, printable, report_from_proto, report_to_proto,
};
use crate::federation::delta::{DeltaAssembly, Held, Pending};
use crate::model::TrustDomain;
use crate::model::session::{
    Acknowledgement, Catalogue, CatalogueVersion, GoodbyeReason, LinkPlan, LinkState, Outcomes, Refusal,
    TrustReport,
};
use crate::proto::federation::v1::{
    Again, CatalogueAck, DiagnoseReply, DiagnoseRequest, Frame, Heartbeat, Hello, ServiceOutcome, frame::Body,
};
use crate::rate::TokenBucket;

mod aside;
mod catalogues;
mod skew;
mod terms;

use catalogues::Sending;
pub use terms::{Aside, End, Heard, SessionLimits};

/// The version of the protocol that is spoken here.
pub const PROTOCOL_VERSION: u32 = 2;

/// What is to be sent; each is taken out when the stream has room for it.
#[derive(Debug, Default)]
struct Outgoing {
    hello: Option<Hello>,
    goodbye: Option<(GoodbyeReason, String)>,
    report: bool,
    catalogue: bool,
    /// The peer asked for the whole of it.
    whole: bool,
    /// The catalogue that is being sent; a newer one waits until it is out, or a busy exporter would finish none.
    sending: Option<Sending>,
    answer: bool,
    /// The peer asked for the whole of it.
    whole_answer: bool,
    answer_frames: VecDeque<CatalogueAck>,
    /// What these say.
    answering: Arc<Outcomes>,
    /// What the peer is asked to send whole.
    again: Again,
    question: Option<u64>,
    reply: Option<DiagnoseReply>,
}

/// One exchange. `now` is the time since any fixed moment, the same in all calls.
#[derive(Debug)]
pub struct Session {
    peer: TrustDomain,
    limits: SessionLimits,
    started: Duration,
    last_heard: Duration,
    /// When we last told the time.
    last_beat: Duration,
    heartbeats: u64,
    /// Our clock, in milliseconds since 1970.
    unix_millis: i64,
    spoken: Option<u32>,
    bucket: TokenBucket,
    outgoing: Outgoing,

    // ours
    report: TrustReport,
    catalogue: Arc<Catalogue>,
    outcomes: Arc<Outcomes>,
    answered: Option<CatalogueVersion>,
    /// The catalogues that the peer has been sent last, the newest at the end, and the versions that they were sent under.
    offered: VecDeque<(CatalogueVersion, Arc<Catalogue>)>,
    /// When it was last sent the whole.
    whole_sent: Option<Duration>,
    /// What the answer that the peer was given last says, and to which version.
    told: Option<(CatalogueVersion, Arc<Outcomes>)>,
    /// When it was last given the whole answer for the asking.
    whole_answered: Option<Duration>,

    // the peer's
    assembly: Assembly,
    deltas: DeltaAssembly,
    pending: Pending,
    /// Of following these.
    pace: TokenBucket,
    held: Option<Held>,
    /// Whether its catalogue was asked for, whole.
    awaits_whole: bool,
    refused: Vec<ServiceOutcome>,
    answers: Option<Acknowledgement>,
    heard: Heard,
    revision: u64,
    /// Our question that the peer has not answered, and what it said beside the exchange itself: the last of each kind.
    question: Option<u64>,
    asides: [Option<Aside>; 2],
    end: Option<End>,
}

impl Session {
    #[must_use]
    pub fn new(own: &TrustDomain, plan: &LinkPlan, limits: SessionLimits, now: Duration) -> Self {
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: own.to_string(),
            ..Hello::default()
        };
        Self {
            peer: plan.trust_domain.clone(),
            limits,
            started: now,
            last_heard: now,
            last_beat: now,
            heartbeats: 0,
            unix_millis: 0,
            spoken: None,
            bucket: TokenBucket::new(limits.frames_per_second, limits.frames_burst, now),
            outgoing: Outgoing { hello: Some(hello), report: true, catalogue: true, ..Outgoing::default() },
            report: plan.report.clone(),
            catalogue: Arc::clone(&plan.catalogue),
            outcomes: Arc::clone(&plan.outcomes),
            answered: plan.answered,
            offered: VecDeque::new(),
            whole_sent: None,
            told: None,
            whole_answered: None,
            assembly: Assembly::default(),
            deltas: DeltaAssembly::default(),
            pending: Pending::default(),
            pace: TokenBucket::new(limits.changes_per_second, limits.changes_burst, now),
            held: None,
            awaits_whole: false,
            refused: Vec::new(),
            answers: None,
            heard: Heard::default(),
            revision: 0,
            question: None,
            asides: [None, None],
            end: None,
        }
    }

    /// What our clock shows, in milliseconds since 1970: told to the peer, and compared with what it tells. It may be set
    /// back and forth, and decides nothing else.
    pub fn on_clock(&mut self, unix_millis: i64) {
        self.unix_millis = unix_millis;
    }

    /// Whether the peer's Hello has been read and is good.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.spoken.is_some()
    }

    #[must_use]
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Changes whenever [`Self::heard`] does.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When the peer last said something.
    #[must_use]
    pub fn last_heard(&self) -> Duration {
        self.last_heard
    }

    /// Set once the exchange is over; a goodbye may still have to be taken out.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Takes over what the plan says now.
    pub fn on_plan(&mut self, plan: &LinkPlan) {
        if self.report != plan.report {
            self.report = plan.report.clone();
            self.outgoing.report = true;
        }
        if self.catalogue.version != plan.catalogue.version {
            self.catalogue = Arc::clone(&plan.catalogue);
            self.outgoing.catalogue = true;
        }
        if self.answered != plan.answered || self.outcomes != plan.outcomes {
            self.answered = plan.answered;
            self.outcomes = Arc::clone(&plan.outcomes);
            self.outgoing.answer = true;
        }
    }

    /// Ends the exchange with a goodbye.
    pub fn part(&mut self, reason: GoodbyeReason, text: &str) {
        self.finish(End::Ours(reason), Some((reason, text.to_owned())));
    }

    /// The stream was cut.
    pub fn on_closed(&mut self, cause: &str) {
        let message = format!("the connection to {} was cut: {}", self.peer, printable(cause, 300));
        self.finish(End::Link(LinkState::Unreachable { message }), None);
    }

    /// A frame that could not be decoded, or is over the limit.
    pub fn on_unreadable(&mut self, cause: &str) {
        self.refuse(&format!("a frame that cannot be read: {}", printable(cause, 300)));
    }

    /// Time has passed.
    pub fn on_tick(&mut self, now: Duration) {
        self.follow_at(now);
        let message = if !self.is_open() && now.saturating_sub(self.started) >= self.limits.hello {
            format!("the agent of {} said no hello in {:?}", self.peer, self.limits.hello)
        } else if now.saturating_sub(self.last_heard) >= self.limits.silence {
            format!("the agent of {} has said nothing for {:?}", self.peer, self.limits.silence)
        } else {
            return;
        };
        self.finish(End::Link(LinkState::Unreachable { message }), None);
    }

    /// Reads a frame of the peer.
    pub fn on_frame(&mut self, frame: Frame, now: Duration) {
        if self.end.is_some() {
            return;
        }
        if !self.bucket.take(now) {
            let rate = self.limits.frames_per_second;
            return self.refuse(&format!("more than {rate} frames a second"));
        }
        self.last_heard = self.last_heard.max(now);
        let result = match (frame.body, self.is_open()) {
            // a frame of a later version
            (None, _) => Ok(()),
            (Some(Body::Goodbye(goodbye)), _) => {
                self.on_goodbye(goodbye_from_proto(goodbye.reason), &message(&goodbye.message));
                Ok(())
            }
            (Some(Body::Hello(hello)), false) => self.on_hello(&hello),
            (Some(_), false) => Err("a frame before the Hello".to_owned()),
            (Some(Body::Hello(_)), true) => Err("a second Hello".to_owned()),
            (Some(Body::TrustReport(report)), true) => report_from_proto(report)
                .map(|report| self.hear(|heard| heard.remote = Some(report)))
                .map_err(|e| format!("a trust report that is not well formed: {e}")),
            (Some(Body::Catalogue(frame)), true) => self.on_catalogue(frame),
            (Some(Body::CatalogueDelta(frame)), true) => self.on_delta(frame, now),
            (Some(Body::CatalogueAck(ack)), true) => self.on_answer(&ack),
            (Some(Body::Again(again)), true) => {
                self.on_again(again);
                Ok(())
            }
            (Some(Body::Heartbeat(heartbeat)), true) => {
                self.compare_clocks(heartbeat.unix_millis);
                Ok(())
            }
            (Some(Body::DiagnoseRequest(request)), true) => {
                self.hear_aside(Aside::Asked(request.id));
                Ok(())
            }
            (Some(Body::DiagnoseReply(reply)), true) => {
                self.on_reply(&reply);
                Ok(())
            }
        };
        if let Err(cause) = result {
            self.refuse(&cause);
        }
    }

    /// The next frame to send, if there is one now.
    pub fn next_frame(&mut self, now: Duration) -> Option<Frame> {
        self.next_body(now).map(|body| Frame { body: Some(body) })
    }

    fn next_body(&mut self, now: Duration) -> Option<Body> {
        if let Some((reason, text)) = self.outgoing.goodbye.take() {
            return Some(Body::Goodbye(goodbye_to_proto(reason, &text)));
        }
        if self.end.is_some() {
            return None;
        }
        if let Some(hello) = self.outgoing.hello.take() {
            return Some(Body::Hello(Hello { unix_millis: self.unix_millis, ..hello }));
        }
        if !self.is_open() {
            return None;
        }
        // before all else, or a large catalogue would make us silent; and though much is said, for the time that it tells
        if now.saturating_sub(self.last_beat) >= self.limits.heartbeat {
            self.last_beat = now;
            self.heartbeats += 1;
            return Some(Body::Heartbeat(Heartbeat {
                sequence: self.heartbeats,
                unix_millis: self.unix_millis,
            }));
        }
        if std::mem::take(&mut self.outgoing.report) {
            return Some(Body::TrustReport(report_to_proto(&self.report)));
        }
        if let Some(id) = self.outgoing.question.take() {
            return Some(Body::DiagnoseRequest(DiagnoseRequest { id }));
        }
        if let Some(reply) = self.outgoing.reply.take() {
            return Some(Body::DiagnoseReply(reply));
        }
        if let Some(answer) = self.next_answer(now) {
            return Some(Body::CatalogueAck(answer));
        }
        if self.outgoing.again != Again::default() {
            return Some(Body::Again(std::mem::take(&mut self.outgoing.again)));
        }
        self.next_catalogue(now)
    }

    fn on_hello(&mut self, hello: &Hello) -> Result<(), String> {
        if hello.trust_domain != self.peer.as_str() {
            let claimed = printable(&hello.trust_domain, 255);
            return Err(format!("a Hello of trust domain {claimed:?} over the identity of {}", self.peer));
        }
        if hello.protocol_version == 0 {
            return Err("a Hello without a protocol version".to_owned());
        }
        self.spoken = Some(hello.protocol_version.min(PROTOCOL_VERSION));
        self.compare_clocks(hello.unix_millis);
        Ok(())
    }

    fn compare_clocks(&mut self, theirs: i64) {
        if self.unix_millis == 0 {
            return;
        }
        let skew = skew::skew(self.heard.skew, theirs, self.unix_millis);
        if skew != self.heard.skew {
            self.hear(|heard| heard.skew = skew);
        }
    }

    fn on_goodbye(&mut self, reason: GoodbyeReason, text: &str) {
        let end = match reason {
            GoodbyeReason::AlreadyConnected => End::AlreadyConnected,
            GoodbyeReason::NotTrusted => End::Link(LinkState::Refused {
                by: Refusal::NotAccepted,
                message: format!("the agent of {} does not trust us: {text}", self.peer),
            }),
            GoodbyeReason::Unspecified
            | GoodbyeReason::ShuttingDown
            | GoodbyeReason::RelationshipEnded
            | GoodbyeReason::Suspended
            | GoodbyeReason::ProtocolError => End::Link(LinkState::Parted {
                reason,
                message: format!("the agent of {} said goodbye: {text}", self.peer),
            }),
        };
        self.finish(end, None);
    }

    /// Ends the exchange because the peer broke the protocol.
    fn refuse(&mut self, cause: &str) {
        let message = format!("the agent of {} broke the protocol, and we closed: {cause}", self.peer);
        let end = LinkState::Parted { reason: GoodbyeReason::ProtocolError, message };
        self.finish(End::Link(end), Some((GoodbyeReason::ProtocolError, cause.to_owned())));
    }

    fn finish(&mut self, end: End, goodbye: Option<(GoodbyeReason, String)>) {
        if self.end.is_none() {
            // What has come counts, though its turn has not.
            self.follow();
            self.end = Some(end);
            self.outgoing = Outgoing { goodbye, ..Outgoing::default() };
        }
    }

    fn hear(&mut self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard);
        self.revision += 1;
    }
}

#[cfg(test)]
mod tests;
