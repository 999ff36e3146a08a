//! Catalogues in an exchange: ours as the peer is sent it, the peer's as we hold it, and the answers to both.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Session;
use crate::federation::catalogue::{Frames, Received};
use crate::federation::convert::{outcome_from_proto, outcome_to_proto};
use crate::federation::delta::{Changes, Pending};
use crate::model::session::{Acknowledgement, Catalogue, CatalogueVersion, Outcomes};
use crate::proto::federation::v1::{
    Again, CatalogueAck, CatalogueDelta, CatalogueSnapshot, ServiceOutcome, frame::Body,
};

/// Most outcomes in one frame: with the longest messages well under 1 MiB.
const OUTCOMES_A_FRAME: usize = 200;
/// To how many of our last catalogues an answer is read: it may come while newer ones are on their way.
const OFFERED: usize = 4;
/// A peer that asks again and again is sent the whole catalogue, or answer, no more often than this.
const WHOLE_EVERY: Duration = Duration::from_secs(1);
/// The first protocol knows no changes.
const FIRST: u32 = 1;

/// A catalogue on its way out.
#[derive(Debug)]
pub(super) enum Sending {
    Whole(Frames),
    Changes(Changes),
}

impl Session {
    fn speaks_first(&self) -> bool {
        self.spoken == Some(FIRST)
    }

    pub(super) fn next_catalogue(&mut self, now: Duration) -> Option<Body> {
        if self.outgoing.sending.is_none() {
            self.begin_catalogue(now);
        }
        let (frame, sent) = match self.outgoing.sending.as_mut()? {
            Sending::Whole(frames) => {
                let frame = frames.next();
                let sent = (!frame.more).then(|| (frames.version(), Arc::clone(frames.catalogue())));
                (Body::Catalogue(frame), sent)
            }
            Sending::Changes(changes) => {
                let frame = changes.next();
                let catalogue = changes.catalogue();
                let sent = (!frame.more).then(|| (catalogue.version, Arc::clone(catalogue)));
                (Body::CatalogueDelta(frame), sent)
            }
        };
        if let Some(sent) = sent {
            self.outgoing.sending = None;
            self.offered.retain(|(version, _)| *version != sent.0);
            self.offered.push_back(sent);
            while self.offered.len() > OFFERED {
                self.offered.pop_front();
            }
        }
        Some(frame)
    }

    fn begin_catalogue(&mut self, now: Duration) {
        if self.outgoing.whole {
            if self.whole_sent.is_some_and(|at| now.saturating_sub(at) < WHOLE_EVERY) {
                return;
            }
        } else if !self.outgoing.catalogue {
            return;
        }
        self.outgoing.catalogue = false;
        let whole = std::mem::take(&mut self.outgoing.whole);
        let before = self.offered.back().filter(|_| !whole && !self.speaks_first());
        let changes = before.and_then(|(_, before)| Changes::between(before, &self.catalogue));
        self.outgoing.sending = Some(match changes {
            Some(changes) => Sending::Changes(changes),
            None => {
                self.whole_sent = Some(now);
                Sending::Whole(Frames::new(Arc::clone(&self.catalogue), self.speaks_first()))
            }
        });
    }

    pub(super) fn next_answer(&mut self, now: Duration) -> Option<CatalogueAck> {
        let received = self.heard.catalogue.as_ref().map(|c| c.version);
        if self.outgoing.answer_frames.is_empty() && received.is_some() && received == self.answered {
            let is_due = self.whole_answered.is_none_or(|at| now.saturating_sub(at) >= WHOLE_EVERY);
            if self.outgoing.whole_answer && is_due {
                self.outgoing.whole_answer = false;
                self.whole_answered = Some(now);
                self.told = None;
                self.outgoing.answer = true;
            }
            if !std::mem::take(&mut self.outgoing.answer) {
                return None;
            }
            self.outgoing.answer_frames = self.answer(received?);
            self.outgoing.answering = Arc::clone(&self.outcomes);
        }
        let frame = self.outgoing.answer_frames.pop_front()?;
        if !frame.more {
            let version = CatalogueVersion::try_from(frame.version.as_slice()).ok();
            let said = Arc::clone(&self.outgoing.answering);
            self.told = version.map(|version| (version, said));
        }
        Some(frame)
    }

    /// The answer, or what is another than in the last one; with what is malformed each time.
    fn answer(&self, version: CatalogueVersion) -> VecDeque<CatalogueAck> {
        let told = self.told.as_ref().filter(|_| !self.speaks_first());
        let is_new = |name, outcome| told.is_none_or(|(_, told)| told.get(name) != Some(outcome));
        let ours = self.outcomes.iter().filter(|(name, outcome)| is_new(name, outcome));
        let ours = ours.map(|(name, outcome)| outcome_to_proto(name, outcome));
        let all: Vec<_> = ours.chain(self.refused.iter().cloned()).collect();
        let since = told.map(|(version, _)| version.to_vec()).unwrap_or_default();
        let frame = |outcomes: &[ServiceOutcome]| CatalogueAck {
            version: version.to_vec(),
            outcomes: outcomes.to_vec(),
            more: true,
            since: since.clone(),
        };
        let mut frames: VecDeque<_> = all.chunks(OUTCOMES_A_FRAME).map(frame).collect();
        if frames.is_empty() {
            frames.push_back(frame(&[]));
        }
        if let Some(last) = frames.back_mut() {
            last.more = false;
        }
        frames
    }

    pub(super) fn on_catalogue(&mut self, frame: CatalogueSnapshot) -> Result<(), String> {
        let Some(received) = self.assembly.push(frame).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        let Received { catalogue, held, refused } = received;
        self.held = held;
        self.awaits_whole = false;
        // They were of what this replaces.
        self.pending = Pending::default();
        self.take_catalogue(catalogue, refused);
        Ok(())
    }

    /// Changes to what we hold. Until the whole that was asked for has come, they are not looked at.
    pub(super) fn on_delta(&mut self, frame: CatalogueDelta, now: Duration) -> Result<(), String> {
        if self.awaits_whole {
            return Ok(());
        }
        let Some(delta) = self.deltas.push(frame).map_err(|e| e.to_string())? else {
            return Ok(());
        };
        self.pending.push(delta);
        if self.pending.is_full() {
            self.follow();
        } else {
            self.follow_at(now);
        }
        Ok(())
    }

    /// When changes that wait can be followed; `None` where none do.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        (!self.pending.is_empty()).then(|| self.pace.ready())
    }

    /// Follows the changes that wait, if their pace allows it.
    pub(super) fn follow_at(&mut self, now: Duration) {
        if !self.pending.is_empty() && self.pace.take(now) {
            self.follow();
        }
    }

    /// Follows the changes that wait, all at once.
    pub(super) fn follow(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        if let Some(held) = self.held.as_ref().and_then(|held| held.with(pending.deltas())) {
            let (catalogue, refused) = (Arc::clone(&held.catalogue), held.refused());
            self.held = Some(held);
            self.take_catalogue(catalogue, refused);
        } else {
            self.awaits_whole = true;
            self.outgoing.again.catalogue = true;
        }
    }

    fn take_catalogue(&mut self, catalogue: Arc<Catalogue>, refused: Vec<ServiceOutcome>) {
        self.refused = refused;
        self.outgoing.answer = true;
        self.outgoing.answer_frames.clear();
        self.hear(|heard| heard.catalogue = Some(catalogue));
    }

    /// The peer could not follow, and wants the whole.
    pub(super) fn on_again(&mut self, again: Again) {
        self.outgoing.whole |= again.catalogue;
        self.outgoing.whole_answer |= again.answer;
    }

    pub(super) fn on_answer(&mut self, ack: &CatalogueAck) -> Result<(), String> {
        let version = CatalogueVersion::try_from(ack.version.as_slice())
            .map_err(|_| "an answer to no catalogue: a version is 32 bytes".to_owned())?;
        let Some((_, offered)) = self.offered.iter().find(|(sent, _)| *sent == version) else {
            // to one that we have replaced since
            self.answers = None;
            return Ok(());
        };
        let mut answers = match self.answers.take() {
            Some(answers) if answers.version == offered.version => answers,
            _ => {
                let Some(outcomes) = self.answered_since(&ack.since, offered) else {
                    self.outgoing.again.answer = true;
                    return Ok(());
                };
                Acknowledgement {
                    version: offered.version,
                    offered: Arc::clone(offered),
                    outcomes: Arc::new(outcomes),
                }
            }
        };
        // What we did not offer is not kept: so the answer is no larger than what it answers. Of what is held there it is: the
        // peer does not say it again once we tell of that again.
        let parsed = ack.outcomes.iter().filter_map(|outcome| outcome_from_proto(outcome).ok());
        let outcomes = Arc::make_mut(&mut answers.outcomes);
        outcomes.extend(parsed.filter(|(name, _)| offered.has(name)));
        if ack.more {
            self.answers = Some(answers);
        } else {
            self.hear(|heard| heard.acknowledged = Some(answers));
        }
        Ok(())
    }

    /// What an answer goes on from; `None` where that is not what we have heard.
    fn answered_since(&self, since: &[u8], offered: &Catalogue) -> Option<Outcomes> {
        if since.is_empty() {
            return Some(Outcomes::new());
        }
        let before = self.heard.acknowledged.as_ref().filter(|before| before.version.as_slice() == since)?;
        let still = before.outcomes.iter().filter(|(name, _)| offered.has(name));
        Some(still.map(|(name, outcome)| (name.clone(), outcome.clone())).collect())
    }
}
