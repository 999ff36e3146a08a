//! A zone and questions, for the tests of this folder.

use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use crate::plan::dns::{Host, NamedPort, Zone};
use crate::plan::fixtures::td;

fn host(addresses: &[&str], ports: impl IntoIterator<Item = (String, u16)>) -> Host {
    Host {
        trust_domain: td("west.example"),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: ports.into_iter().map(|(name, number)| NamedPort { number, name }).collect(),
        is_local: false,
    }
}

/// Services of west's namespace `shop`: `cart` with ports 80 and 443, `v4` with one address, `many` with 64 ports, `few` with 7.
pub(crate) fn zone() -> Zone {
    zone_with(7)
}

/// The same, where `few` has so many ports.
pub(crate) fn zone_with(few: u16) -> Zone {
    let both = ["127.64.0.1", "fd00::1"];
    let many = |count: u16| (1..=count).map(|number| (format!("port-{number}"), number));
    let ports = [("http".to_owned(), 80), ("https".to_owned(), 443)];
    Zone::of(
        [
            ("cart.shop.west.example", host(&both, ports)),
            ("v4.shop.west.example", host(&["127.64.0.2"], [])),
            ("many.shop.west.example", host(&both, many(64))),
            ("few.shop.west.example", host(&both, many(few))),
        ]
        .map(|(name, host)| (name, Arc::new(host))),
        "west.example",
        "shop",
    )
}

/// A question with the ID 0x1234, and EDNS of that size.
pub(crate) fn ask(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// A question for the address of a name of these labels, whatever bytes they hold.
pub(crate) fn labelled(labels: &[&str]) -> Vec<u8> {
    let name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap();
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

pub(crate) fn decoded(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}
