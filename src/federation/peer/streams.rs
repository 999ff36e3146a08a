//! The streams of one peer: which is kept, and what follows from how they begin and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{ANOTHER_STREAM, Actor, LinkHandle, SAID};
use crate::federation::link::{Link, LinkEvent, Parting, Proof, Stream};
use crate::federation::session::{Aside, End, Heard, Session};
use crate::identity::peer_tls::{PeerRefusal, judge};
use crate::identity::verify::Role;
use crate::model::session::{GoodbyeReason, LinkState};
use crate::observe::traces;

impl Actor {
    /// Judges the chains of running streams by the bundles and IDs of now.
    pub(super) fn judge_again(&mut self) {
        let authorize = self.authorize();
        let mut refused = Vec::new();
        for (number, link) in self.links.iter().filter(|(_, link)| !link.ended) {
            let Proof { chain, role, at, .. } = &link.proof;
            if let Err(refusal) = judge(&self.source, &authorize, chain, *role, *at) {
                refused.push((*number, refusal));
            }
        }
        for (number, refusal) in refused {
            self.part(number, GoodbyeReason::NotTrusted, &refusal.to_string());
            let state = self.no_longer_trusted(&refusal);
            if self.current == Some(number) {
                self.current = None;
                self.set_link(state);
                self.schedule();
            }
        }
    }

    fn no_longer_trusted(&self, refusal: &PeerRefusal) -> LinkState {
        tracing::warn!(peer = %self.peer, %refusal, "a stream of the peer is no longer trusted");
        let message = format!("the stream of the agent of {} is closed: {refusal}", self.peer);
        match refusal {
            PeerRefusal::NotAccepted(_) => LinkState::WrongPeerId { message },
            PeerRefusal::Svid(_) | PeerRefusal::NoIdentity => LinkState::Unverified { message },
        }
    }

    pub(super) fn on_inbound(&mut self, stream: Stream) {
        let already = || (GoodbyeReason::AlreadyConnected, ANOTHER_STREAM.to_owned());
        let refused = !self.is_kept_over_current(&stream.proof);
        let parting = self.parting().or_else(|| refused.then(already));
        self.start(stream, parting);
    }

    /// Starts the exchange on a stream; one that is to be parted says nothing but its goodbye.
    pub(super) fn start(&mut self, stream: Stream, mut refusal: Parting) {
        // without an identity there was no handshake
        let Some(svids) = self.source.current() else { return };
        // the handshake was judged by the plan and the bundles of its time, which may have gone by
        let Proof { chain, role, at, .. } = &stream.proof;
        if let Err(cause) = judge(&self.source, &self.authorize(), chain, *role, *at) {
            let state = self.no_longer_trusted(&cause);
            if *role == Role::Server {
                self.schedule();
                self.set_failed(state);
            }
            refusal = Some((GoodbyeReason::NotTrusted, cause.to_string()));
        }
        let limits = self.timings.session;
        let now = self.origin.elapsed();
        let mut session = Session::new(&svids.identity.trust_domain, &self.plan, limits, now);
        if let Some((reason, text)) = &refusal {
            session.part(*reason, text);
        }
        let number = self.next_number;
        self.next_number += 1;
        let parting = watch::Sender::new(refusal);
        let last_heard = Arc::new(AtomicU64::new(0));
        let (say, said) = mpsc::channel(SAID);
        let link = Link {
            number,
            plan: self.planned.subscribe(),
            parting: parting.subscribe(),
            say: said,
            events: self.events.clone(),
            last_heard: Arc::clone(&last_heard),
            origin: self.origin,
            tick: limits.heartbeat.min(limits.silence).min(limits.hello) / 4,
            goodbye: self.timings.goodbye,
        };
        let proof = stream.proof.clone();
        let heard = Heard::default();
        self.links.insert(
            number,
            LinkHandle { proof, parting, say, last_heard, opened: None, heard, ended: false },
        );
        self.tasks.spawn(link.run(stream, session).instrument(traces::exchange(&self.peer)));
    }

    /// Whether a stream with this proof takes the place of the one that counts.
    fn is_kept_over_current(&self, newcomer: &Proof) -> bool {
        let Some(current) = self.current.and_then(|number| self.links.get(&number)) else { return true };
        let Some(svids) = self.source.current() else { return false };
        let we_sort_first = svids.identity.trust_domain.as_str() < self.peer.as_str();
        let preferred = |proof: &Proof| (proof.role == Role::Server) == we_sort_first;
        let silent = {
            let heard = Duration::from_millis(current.last_heard.load(Ordering::Relaxed));
            let since_opened = current.opened.map_or(Duration::MAX, |at| at.elapsed());
            self.origin.elapsed().saturating_sub(heard).min(since_opened)
        };
        let is_dead = silent > self.timings.session.heartbeat.mul_f64(1.5);
        is_dead || (preferred(newcomer) && !preferred(&current.proof))
    }

    pub(super) fn on_event(&mut self, number: u64, event: LinkEvent) {
        match event {
            LinkEvent::Open => self.on_open(number),
            LinkEvent::Heard(heard) => {
                if let Some(link) = self.links.get_mut(&number) {
                    // It goes on answering.
                    let answers = link.heard.acknowledged != heard.acknowledged;
                    self.owed = self.owed.filter(|_| !answers);
                    link.heard = *heard;
                }
                if self.current == Some(number) {
                    self.publish_heard(number);
                }
            }
            LinkEvent::Aside(Aside::Asked(id)) => self.on_question(number, id),
            LinkEvent::Aside(Aside::Told(id, checks)) => self.on_told(id, checks),
            LinkEvent::Ended(end) => {
                self.forget_asked(number);
                self.on_end(number, end);
            }
            LinkEvent::Closed => {
                self.links.remove(&number);
            }
        }
    }

    fn on_open(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if link.ended || link.parting.borrow().is_some() {
            return;
        }
        link.opened = Some(Instant::now());
        let (proof, dialled) = (link.proof.clone(), link.proof.role == Role::Server);
        if !self.is_kept_over_current(&proof) {
            return self.part(number, GoodbyeReason::AlreadyConnected, ANOTHER_STREAM);
        }
        if let Some(old) = self.current.replace(number) {
            self.part(old, GoodbyeReason::AlreadyConnected, ANOTHER_STREAM);
        }
        // what was being dialled would be refused
        self.dialling = None;
        tracing::info!(peer = %self.peer, id = %proof.id, dialled, "connected");
        self.set_link(LinkState::Connected);
        self.publish_heard(number);
    }

    fn on_end(&mut self, number: u64, end: End) {
        let was_current = self.current == Some(number);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.ended = true;
        let dialled = link.proof.role == Role::Server;
        let lived = link.opened.map_or(Duration::ZERO, |at| at.elapsed());
        if was_current {
            self.current = None;
        } else if self.current.is_some() {
            return;
        }
        // a stream that is accepted and ended at once must not be dialled without pause
        self.failures =
            if lived >= self.timings.session.heartbeat { 0 } else { self.failures.saturating_add(1) };
        if was_current {
            self.dialled_last = dialled;
            self.expect(&end, lived);
        }
        if was_current || dialled {
            self.schedule();
        }
        tracing::info!(peer = %self.peer, ?end, "the exchange ended");
        match end {
            End::Link(state) if was_current => self.set_link(state),
            // someone who dials us and breaks off has not shown that we cannot reach the peer
            End::Link(state) if dialled || matches!(state, LinkState::Parted { .. }) => {
                self.set_failed(state)
            }
            End::Link(_) | End::Ours(_) | End::AlreadyConnected => {}
        }
        // while another stream is about to take its place, nothing has been lost
        if self.links.values().all(|link| link.ended) {
            self.set_not_connected();
        }
    }

    /// A peer that shut down is back at once, mostly: another replica of its agent leads then.
    fn expect(&mut self, end: &End, lived: Duration) {
        if lived >= self.timings.session.heartbeat {
            self.expectations = super::EXPECTATIONS;
        }
        let shut_down =
            matches!(end, End::Link(LinkState::Parted { reason: GoodbyeReason::ShuttingDown, .. }));
        let is_expected = shut_down && self.expectations > 0;
        if is_expected {
            self.expectations -= 1;
        }
        self.expected_until = is_expected.then(|| Instant::now() + self.timings.return_within);
    }

    pub(super) fn part_all(&mut self, reason: GoodbyeReason, text: &str) {
        let numbers: Vec<u64> = self.links.keys().copied().collect();
        for number in numbers {
            self.part(number, reason, text);
        }
    }

    fn part(&mut self, number: u64, reason: GoodbyeReason, text: &str) {
        if let Some(link) = self.links.get(&number) {
            link.parting.send_if_modified(|parting| {
                let first = parting.is_none();
                if first {
                    *parting = Some((reason, text.to_owned()));
                }
                first
            });
        }
    }
}
