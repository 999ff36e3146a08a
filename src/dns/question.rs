//! A packet read as a question, and what every answer to it begins with.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::Way;

/// The length of a DNS header.
pub(super) const HEADER: usize = 12;
/// The most that is sent in one UDP datagram: what passes without fragments nearly everywhere (DNS flag day 2020).
pub(super) const DATAGRAM: u16 = 1232;
/// The least that everybody can take in one (RFC 1035, 4.2.1).
const SMALLEST: u16 = 512;

/// One well-formed question.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) metadata: Metadata,
    pub(super) query: Query,
    edns: Option<Edns>,
    /// The largest answer that may be sent.
    most: u16,
    recursion_available: bool,
}

/// What is read of a packet.
pub(super) enum Read {
    Question(Box<Question>),
    /// An answer that refuses the packet as it is.
    Refused(Vec<u8>),
    /// It is not to be answered: an answer itself, or too short to have an ID.
    Nothing,
}

/// Reads a packet. What is counted in its header is looked at before anything is made of it, so that a few bytes cannot have
/// much memory taken.
pub(super) fn read(packet: &[u8], way: Way, recursion_available: bool) -> Read {
    let Some(header) = packet.first_chunk::<HEADER>() else { return Read::Nothing };
    let [id_high, id_low, flags, _, rest @ ..] = *header;
    let [queries, answers, authorities, additionals] = counts(rest);
    if flags & 0x80 != 0 {
        return Read::Nothing;
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0xf);
    let refuse = |code| bare(id, op_code, flags & 1 != 0, code).map_or(Read::Nothing, Read::Refused);
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    // EDNS, and a signature that nobody looks at.
    if queries != 1 || answers != 0 || authorities != 0 || additionals > 2 {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
    let (metadata, edns) = (message.metadata, message.edns);
    let [query] = <[Query; 1]>::try_from(message.queries).unwrap_or_default();
    let most = match way {
        Way::Tcp => u16::MAX,
        Way::Udp => edns.as_ref().map_or(SMALLEST, |edns| edns.max_payload().clamp(SMALLEST, DATAGRAM)),
    };
    let question = Question { metadata, query, edns, most, recursion_available };
    // RFC 6891, 6.1.3: what is answered to a version that nobody has yet says which one is spoken.
    if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return question.reply(ResponseCode::BADVERS, |_| {}).map_or(Read::Nothing, Read::Refused);
    }
    Read::Question(Box::new(question))
}

fn counts(rest: [u8; 8]) -> [u16; 4] {
    let [a, b, c, d, e, f, g, h] = rest;
    [[a, b], [c, d], [e, f], [g, h]].map(u16::from_be_bytes)
}

/// An answer without the question, to what could not be read whole.
fn bare(id: u16, op_code: OpCode, recursion_desired: bool, code: ResponseCode) -> Option<Vec<u8>> {
    let mut message = Message::error_msg(id, op_code, code);
    message.metadata.recursion_desired = recursion_desired;
    message.to_vec().ok()
}

impl Question {
    /// The name, as it was asked.
    pub(super) fn name(&self) -> &Name {
        self.query.name()
    }

    /// Its labels in lower case. A byte that no host name has stands as `?`, which no name of ours holds.
    pub(super) fn labels(&self) -> Vec<String> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let letter = |byte: &u8| if is_plain(byte) { char::from(byte.to_ascii_lowercase()) } else { '?' };
        self.name().iter().map(|label| label.iter().map(letter).collect()).collect()
    }

    pub(super) fn has_edns(&self) -> bool {
        self.edns.is_some()
    }

    /// Whether DNSSEC's records are asked for.
    pub(super) fn wants_dnssec(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// The largest answer that may be sent.
    pub(super) fn most(&self) -> usize {
        usize::from(self.most)
    }

    /// An answer, within the size that may be sent: an answer that does not fit is left out, and said to be (RFC 2181, 9).
    pub(super) fn reply(&self, code: ResponseCode, fill: impl FnOnce(&mut Message)) -> Option<Vec<u8>> {
        let mut message = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = self.recursion_available;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM);
            edns.set_version(0);
            edns.set_dnssec_ok(self.wants_dnssec());
            message.set_edns(edns);
        }
        fill(&mut message);
        if let Some(bytes) = encode(&message, self.most) {
            return Some(bytes);
        }
        // What was not asked for is the first to go, and nobody misses it.
        message.additionals.clear();
        encode(&message, self.most).or_else(|| encode(&message.truncate(), self.most))
    }

    /// That nobody could be asked.
    pub(super) fn failed(&self) -> Option<Vec<u8>> {
        self.reply(ResponseCode::ServFail, |_| {})
    }

    /// That it does not fit, so that it is asked again by TCP.
    pub(super) fn truncated(&self) -> Option<Vec<u8>> {
        self.reply(ResponseCode::NoError, |message| message.metadata.truncation = true)
    }
}

/// The bytes of a message; nothing where they are more than `most`.
fn encode(message: &Message, most: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(SMALLEST));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    message.emit(&mut encoder).ok()?;
    (bytes.len() <= usize::from(most)).then_some(bytes)
}
