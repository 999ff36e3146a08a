//! The actor's part in asking a peer what it sees, and in being asked.

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::Actor;
use crate::federation::diagnose::{ANSWER_EVERY, Ask, AskError, PATIENCE, Question};
use crate::federation::link::Say;
use crate::model::diagnosis::ToldCheck;

/// Most of our own questions to one peer at a time.
const MAX_ASKED: usize = 4;

/// A question of ours that the peer has not answered yet.
pub(super) struct Asked {
    link: u64,
    ask: Ask,
}

impl Actor {
    pub(super) fn on_ask(&mut self, ask: Ask) {
        // who asked may have given up
        self.asked.retain(|_, asked| !asked.ask.is_closed());
        let current = self.current.and_then(|number| Some((number, self.links.get(&number)?)));
        let Some((number, link)) = current else {
            let _ = ask.send(Err(AskError::NotConnected));
            return;
        };
        let id = self.next_question;
        if self.asked.len() >= MAX_ASKED || link.say.try_send(Say::Ask(id)).is_err() {
            let _ = ask.send(Err(AskError::Busy));
            return;
        }
        self.next_question += 1;
        self.asked.insert(id, Asked { link: number, ask });
    }

    pub(super) fn on_told(&mut self, id: u64, checks: Vec<ToldCheck>) {
        if let Some(asked) = self.asked.remove(&id) {
            let _ = asked.ask.send(Ok(checks));
        }
    }

    /// A stream has ended, and with it what was asked over it: dropped, its askers learn so.
    pub(super) fn forget_asked(&mut self, link: u64) {
        self.asked.retain(|_, asked| asked.link != link);
    }

    /// The peer asks what we see. Who asks again before it was answered is passed over, on whatever stream.
    pub(super) fn on_question(&mut self, link: u64, id: u64) {
        let Some(say) = self.links.get(&link).map(|link| link.say.clone()) else { return };
        if self.answering.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let at = self.next_answer.max(Instant::now());
        self.next_answer = at + ANSWER_EVERY;
        let (reply, told) = oneshot::channel();
        let question = Question { peer: self.peer.clone(), reply };
        let task = self.tasks.spawn(answer(self.questions.clone(), question, told, (at, id), say));
        self.answering = Some(task);
    }
}

async fn answer(
    questions: mpsc::Sender<Question>,
    question: Question,
    told: oneshot::Receiver<Vec<ToldCheck>>,
    (at, id): (Instant, u64),
    say: mpsc::Sender<Say>,
) {
    sleep_until(at).await;
    let answered = timeout(PATIENCE, async {
        questions.send(question).await.ok()?;
        told.await.ok()
    });
    if let Ok(Some(checks)) = answered.await {
        // the stream may have ended meanwhile
        let _ = say.send(Say::Reply(id, checks)).await;
    }
}
