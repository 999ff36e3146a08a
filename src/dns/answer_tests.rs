use std::collections::BTreeSet;

use hickory_proto::op::{Edns, MessageType, OpCode, Query};
use proptest::prelude::*;

use super::*;
use crate::dns::testing::{ask, decoded, labelled, zone, zone_with};

fn reply(packet: &[u8], way: Way) -> (Asked, Message) {
    match answer(Some(&zone()), packet, way, false) {
        Answer::Reply(asked, bytes) => (asked, decoded(&bytes)),
        Answer::Ask(_) => panic!("asked of somebody else"),
        Answer::Silence => panic!("not answered"),
    }
}

fn asked(name: &str, kind: RecordType) -> (Asked, Message) {
    reply(&ask(name, kind, None), Way::Udp)
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| format!("{} {} {}", record.name, record.ttl, record.data)).collect()
}

#[test]
fn addresses_are_answered_as_they_were_asked() {
    let (outcome, message) = asked("CaRt.shop.west.example.", RecordType::A);
    assert_eq!(outcome, Asked::Answered);
    assert_eq!(texts(&message.answers), ["CaRt.shop.west.example. 5 127.64.0.1"]);
    assert_eq!(message.queries[0].name().to_ascii(), "CaRt.shop.west.example.");
    assert!(message.metadata.authoritative && !message.metadata.recursion_available);
    assert!(message.metadata.recursion_desired, "as it was asked");
    assert!(message.edns.is_none(), "nor was there any");
    let (_, message) = asked("cart.shop.west.example.", RecordType::AAAA);
    assert_eq!(texts(&message.answers), ["cart.shop.west.example. 5 fd00::1"]);
    let (_, message) = asked("cart.shop.west.example.", RecordType::ANY);
    assert_eq!(message.answers.len(), 2);
}

#[test]
fn ports_are_answered_with_the_addresses_beside() {
    let (_, message) = asked("_http._tcp.cart.shop.west.example.", RecordType::SRV);
    assert_eq!(
        texts(&message.answers),
        ["_http._tcp.cart.shop.west.example. 5 0 0 80 cart.shop.west.example."]
    );
    assert_eq!(message.additionals.len(), 2);
    let (_, message) = asked("cart.shop.west.example.", RecordType::SRV);
    let ports: BTreeSet<u16> = message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::SRV(srv) => srv.port,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(ports, [80, 443].into());
}

#[test]
fn what_is_not_there_is_told_with_its_zone() {
    for (name, kind, outcome, code) in [
        ("other.shop.west.example.", RecordType::A, Asked::Unknown, ResponseCode::NXDomain),
        ("cart.shop.west.example.", RecordType::TXT, Asked::Empty, ResponseCode::NoError),
        ("shop.west.example.", RecordType::A, Asked::Empty, ResponseCode::NoError),
        ("v4.shop.west.example.", RecordType::AAAA, Asked::Empty, ResponseCode::NoError),
        ("_http._tcp.cart.shop.west.example.", RecordType::A, Asked::Empty, ResponseCode::NoError),
    ] {
        let (said, message) = asked(name, kind);
        assert_eq!((said, message.metadata.response_code), (outcome, code), "{name}");
        assert!(message.answers.is_empty() && message.metadata.authoritative, "{name}");
        let soa = texts(&message.authorities);
        assert_eq!(soa.len(), 1, "{name}: {soa:?}");
        assert!(soa[0].starts_with("shop.west.example. 5 ") && soa[0].ends_with(" 5"), "{name}: {soa:?}");
    }
    let (_, message) = asked("shop.west.example.", RecordType::SOA);
    assert_eq!((message.answers.len(), message.authorities.len()), (1, 0));
}

#[test]
fn what_is_not_ours_is_refused_or_asked_of_others() {
    for name in
        ["www.example.com.", "gateway.west.example.", "west.example.", ".", "cart.shop.svc.cluster.local."]
    {
        let (outcome, message) = asked(name, RecordType::A);
        assert_eq!(
            (outcome, message.metadata.response_code),
            (Asked::Refused, ResponseCode::Refused),
            "{name}"
        );
        assert!(message.authorities.is_empty() && !message.metadata.authoritative, "{name}");
        assert!(matches!(
            answer(Some(&zone()), &ask(name, RecordType::A, None), Way::Udp, true),
            Answer::Ask(_)
        ));
    }
    // Everything at once, nobody has; not by way of others either.
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        for name in ["shop.west.example.", "example.com."] {
            match answer(Some(&zone()), &ask(name, kind, None), Way::Tcp, true) {
                Answer::Reply(Asked::Refused, _) => {}
                _ => panic!("{name} {kind}"),
            }
        }
    }
    // Another class has none of our names.
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    let mut query = Query::query(Name::from_ascii("cart.shop.west.example.").unwrap(), RecordType::A);
    query.set_query_class(DNSClass::CH);
    message.add_query(query);
    assert_eq!(reply(&message.to_vec().unwrap(), Way::Udp).0, Asked::Refused);
}

/// A byte that is no letter makes no name into another.
#[test]
fn bytes_in_a_label_are_not_taken_for_others() {
    for labels in [
        &["cart.shop", "west", "example"][..],
        &["cart\0", "shop", "west", "example"],
        &["cart?", "shop", "west", "example"],
    ] {
        let packet = labelled(labels);
        match answer(Some(&zone()), &packet, Way::Udp, false) {
            Answer::Reply(Asked::Unknown | Asked::Refused, _) => {}
            _ => panic!("{labels:?}"),
        }
    }
}

#[test]
fn before_anything_is_known_nothing_is_missing() {
    for has_upstream in [false, true] {
        let packet = ask("cart.shop.west.example.", RecordType::A, None);
        let Answer::Reply(Asked::Failed, bytes) = answer(None, &packet, Way::Udp, has_upstream) else {
            panic!()
        };
        assert_eq!(decoded(&bytes).metadata.response_code, ResponseCode::ServFail);
    }
}

#[test]
fn an_answer_is_as_large_as_its_way_allows() {
    let name = "many.shop.west.example.";
    let all = |packet: &[u8], way| {
        let (_, message) = reply(packet, way);
        (message.answers.len(), message.metadata.truncation)
    };
    assert_eq!(all(&ask(name, RecordType::SRV, None), Way::Udp), (0, true), "512 bytes");
    assert_eq!(all(&ask(name, RecordType::SRV, Some(4096)), Way::Udp), (0, true), "1,232 are sent at most");
    assert_eq!(all(&ask(name, RecordType::SRV, None), Way::Tcp), (64, false));
    let Answer::Reply(_, bytes) =
        answer(Some(&zone()), &ask(name, RecordType::SRV, Some(100)), Way::Udp, false)
    else {
        panic!()
    };
    assert!(bytes.len() <= 512);
    // What was not asked for is left out before anything else is.
    let name = "few.shop.west.example.";
    let lengths: Vec<(u16, usize, usize, bool)> = (1..=20)
        .map(|ports| {
            let packet = ask(name, RecordType::SRV, None);
            let Answer::Reply(_, bytes) = answer(Some(&zone_with(ports)), &packet, Way::Udp, false) else {
                panic!()
            };
            let message = decoded(&bytes);
            (ports, message.answers.len(), message.additionals.len(), message.metadata.truncation)
        })
        .collect();
    for (ports, answers, additionals, is_truncated) in &lengths {
        assert!(*is_truncated || *answers == usize::from(*ports), "{lengths:?}");
        assert!([0, 2].contains(additionals), "{lengths:?}");
    }
    let is_without =
        |(_, answers, additionals, _): &(u16, usize, usize, bool)| *answers > 0 && *additionals == 0;
    assert!(lengths.iter().any(is_without) && lengths[0].2 == 2 && lengths[19].3, "{lengths:?}");
    let (_, message) = reply(&ask(name, RecordType::SRV, Some(1232)), Way::Udp);
    assert_eq!((message.answers.len(), message.additionals.len()), (7, 2));
    assert_eq!(message.edns.unwrap().max_payload(), 1232);
}

#[test]
fn what_is_no_question_is_refused_as_it_is_or_left_alone() {
    let good = ask("cart.shop.west.example.", RecordType::A, None);
    let code = |packet: &[u8]| match answer(Some(&zone()), packet, Way::Udp, true) {
        Answer::Reply(Asked::Malformed, bytes) => Some(decoded(&bytes).metadata.response_code),
        Answer::Reply(..) | Answer::Ask(_) => panic!("it was taken for a question"),
        Answer::Silence => None,
    };
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    assert_eq!(code(&good[..11]), None);
    assert_eq!(code(&with(2, 0x80)), None, "an answer is never answered");
    assert_eq!(code(&with(2, 0x28)), Some(ResponseCode::NotImp), "UPDATE");
    assert_eq!(code(&with(5, 0)), Some(ResponseCode::FormErr), "no question");
    assert_eq!(code(&with(4, 0xff)), Some(ResponseCode::FormErr), "65,281 questions");
    assert_eq!(code(&with(7, 1)), Some(ResponseCode::FormErr), "an answer in a question");
    assert_eq!(code(&with(11, 3)), Some(ResponseCode::FormErr));
    assert_eq!(code(&good[..20]), Some(ResponseCode::FormErr), "cut off");
    let mut pointing = good.clone();
    pointing[12..14].copy_from_slice(&[0xc0, 12]);
    assert_eq!(code(&pointing), Some(ResponseCode::FormErr), "a name that points at itself");
    let mut newer = Message::from_vec(&good).unwrap();
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    let Answer::Reply(_, bytes) = answer(Some(&zone()), &newer.to_vec().unwrap(), Way::Udp, true) else {
        panic!()
    };
    let refused = decoded(&bytes);
    assert_eq!(u16::from(refused.metadata.response_code), 16, "BADVERS, and BADSIG, have one number");
    assert_eq!(refused.edns.unwrap().version(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Nothing that comes crashes anything, and nothing is answered beyond what its way carries.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool, known: bool) {
        let (zone, way) = (zone(), if tcp { Way::Tcp } else { Way::Udp });
        if let Answer::Reply(_, reply) = answer(known.then_some(&zone), &bytes, way, true) {
            let most = if tcp { 65_535 } else { 1_232 };
            prop_assert!(reply.len() <= most);
            prop_assert_eq!(&reply[..2], &bytes[..2]);
            prop_assert!(reply[2] & 0x80 != 0);
        }
    }

    /// The same for what is nearly a question.
    #[test]
    fn a_question_with_a_few_other_bytes_is_survived(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        edns in proptest::option::of(any::<u16>()),
    ) {
        let mut bytes = ask("_http._tcp.cart.shop.west.example.", RecordType::SRV, edns);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 4);
        if let Answer::Reply(_, reply) = answer(Some(&zone()), &bytes, Way::Udp, false) {
            prop_assert!(reply.len() <= 1_232);
        }
    }
}
