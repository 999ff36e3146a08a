//! From a packet to what is answered: pure.

use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::Way;
use super::question::{self, Question, Read};
use crate::observe::metrics::Asked;
use crate::plan::dns::{Found, Host, NamedPort, What, Zone};

/// How long an answer may be kept, in seconds, also that there is none: what is taken away is gone everywhere within it.
const TTL: u32 = 5;

/// What becomes of a packet.
pub(super) enum Answer {
    Reply(Asked, Vec<u8>),
    /// The name is not ours: to be asked of somebody else.
    Ask(Box<Question>),
    /// It is not to be answered.
    Silence,
}

/// What becomes of a packet. `zone`: what is known, if anything is. `has_upstream`: whether others can be asked.
pub(super) fn answer(zone: Option<&Zone>, packet: &[u8], way: Way, has_upstream: bool) -> Answer {
    let question = match question::read(packet, way, has_upstream) {
        Read::Nothing => return Answer::Silence,
        Read::Refused(bytes) => return Answer::Reply(Asked::Malformed, bytes),
        Read::Question(question) => question,
    };
    let reply =
        |asked, bytes: Option<Vec<u8>>| bytes.map_or(Answer::Silence, |bytes| Answer::Reply(asked, bytes));
    let refuse = |question: &Question| reply(Asked::Refused, question.reply(ResponseCode::Refused, |_| {}));
    // Nobody may have everything at once, from us or through us.
    if matches!(question.query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return refuse(&question);
    }
    // Which names are ours is not known yet, and what is ours is asked of nobody else.
    let Some(zone) = zone else { return reply(Asked::Failed, question.failed()) };
    let is_internet = question.query.query_class() == DNSClass::IN;
    let found = if is_internet { zone.find(&question.labels()) } else { Found::Elsewhere };
    match found {
        Found::Elsewhere if has_upstream => Answer::Ask(question),
        Found::Elsewhere => refuse(&question),
        Found::Ours { apex, what } => {
            let (asked, bytes) = ours(&question, apex, &what);
            reply(asked, bytes)
        }
    }
}

/// The answer for a name of ours, in the zone that its last `apex` labels name.
fn ours(question: &Question, apex: usize, what: &What<'_>) -> (Asked, Option<Vec<u8>>) {
    let (name, kind) = (question.name(), question.query.query_type());
    let records = match what {
        What::Host(host) => of_host(name, host, kind),
        What::Port { host, labels, port } => of_port(name, host, *labels, port, kind),
        What::Empty | What::Nothing => Records::default(),
    };
    let zone = name.trim_to(apex);
    let is_zone = name.iter().count() == apex;
    let (asked, code) = match what {
        What::Nothing => (Asked::Unknown, ResponseCode::NXDomain),
        _ if records.answers.is_empty() => (Asked::Empty, ResponseCode::NoError),
        _ => (Asked::Answered, ResponseCode::NoError),
    };
    let bytes = question.reply(code, |message| {
        message.metadata.authoritative = true;
        if kind == RecordType::SOA && is_zone {
            message.add_answer(authority(&zone));
        } else if records.answers.is_empty() {
            // RFC 2308: how long it may be kept that there is nothing.
            message.add_authority(authority(&zone));
        }
        records.put(message);
    });
    (asked, bytes)
}

#[derive(Default)]
struct Records {
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

impl Records {
    fn put(self, message: &mut Message) {
        message.add_answers(self.answers);
        message.add_additionals(self.additionals);
    }
}

fn of_host(name: &Name, host: &Host, kind: RecordType) -> Records {
    match kind {
        // RFC 8482: of what there is, something.
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            Records { answers: addresses(name, host, kind), additionals: Vec::new() }
        }
        RecordType::SRV => Records {
            answers: host.ports.iter().map(|port| srv(name, name, port)).collect(),
            additionals: addresses(name, host, RecordType::ANY),
        },
        _ => Records::default(),
    }
}

fn of_port(name: &Name, host: &Host, labels: usize, port: &NamedPort, kind: RecordType) -> Records {
    if !matches!(kind, RecordType::SRV | RecordType::ANY) {
        return Records::default();
    }
    let target = name.trim_to(labels);
    Records {
        answers: vec![srv(name, &target, port)],
        additionals: addresses(&target, host, RecordType::ANY),
    }
}

fn addresses(name: &Name, host: &Host, kind: RecordType) -> Vec<Record> {
    let record = |address: &IpAddr| {
        let (of, data) = match address {
            IpAddr::V4(v4) => (RecordType::A, RData::A(A(*v4))),
            IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(*v6))),
        };
        (kind == RecordType::ANY || kind == of).then(|| Record::from_rdata(name.clone(), TTL, data))
    };
    host.addresses.iter().filter_map(record).collect()
}

/// There is one server for a name: neither priority nor weight chooses (RFC 2782).
fn srv(name: &Name, target: &Name, port: &NamedPort) -> Record {
    let data = RData::SRV(SRV::new(0, 0, port.number, target.clone()));
    Record::from_rdata(name.clone(), TTL, data)
}

/// The SOA of a zone. Its serial never changes: nobody transfers it.
fn authority(zone: &Name) -> Record {
    let ttl = i32::try_from(TTL).unwrap_or(i32::MAX);
    let mailbox = zone.prepend_label("hostmaster").unwrap_or_else(|_| zone.clone());
    let soa = SOA::new(zone.clone(), mailbox, 1, ttl, ttl, ttl, TTL);
    Record::from_rdata(zone.clone(), TTL, RData::SOA(soa))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
