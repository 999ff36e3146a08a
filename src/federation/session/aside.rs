//! What is asked and told beside the exchange itself: what each side sees of the path.

use super::{Aside, Session};
use crate::federation::diagnose::{checks_from_proto, reply_to_proto};
use crate::model::diagnosis::ToldCheck;
use crate::proto::federation::v1::DiagnoseReply;

impl Session {
    /// Asks the peer what it sees of the path; only the last question is waited for.
    pub fn ask(&mut self, id: u64) {
        self.question = Some(id);
        self.outgoing.question = Some(id);
    }

    /// Answers the peer's question.
    pub fn reply(&mut self, id: u64, checks: &[ToldCheck]) {
        self.outgoing.reply = Some(reply_to_proto(id, checks));
    }

    /// What the peer said beside the exchange itself, once.
    pub fn take_aside(&mut self) -> Option<Aside> {
        self.asides.iter_mut().find_map(Option::take)
    }

    /// A reply to what we did not ask, or no longer wait for, is passed over.
    pub(super) fn on_reply(&mut self, reply: &DiagnoseReply) {
        if self.question == Some(reply.id) {
            self.question = None;
            self.hear_aside(Aside::Told(reply.id, checks_from_proto(&reply.checks)));
        }
    }

    pub(super) fn hear_aside(&mut self, aside: Aside) {
        let [asked, told] = &mut self.asides;
        match aside {
            Aside::Asked(_) => *asked = Some(aside),
            Aside::Told(..) => *told = Some(aside),
        }
    }
}
