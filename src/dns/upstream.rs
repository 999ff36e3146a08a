//! Names that are not ours, asked of somebody else.
//!
//! One question is asked once at a time, however many ask it: whoever comes meanwhile waits for the same answer. So a question
//! that comes back to us, since an upstream asks us in turn, is not asked again: it ends with the time that it is given.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::question::{DATAGRAM, HEADER, Question};
use super::{Way, tcp};
use crate::rate::Place;

/// How long one upstream is given.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// The largest answer that is taken by UDP.
const LARGEST: usize = 4096;

/// Who is asked, and what is being asked.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Arc<[SocketAddr]>,
    asked: Arc<Mutex<BTreeMap<Key, Awaited>>>,
}

/// What two questions have in common where one answer does for both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The question as it is sent, but for its ID; in lower case.
    bytes: Vec<u8>,
}

/// The answer, once it is there; and then `None` where there is none.
type Awaited = watch::Receiver<Option<Option<Arc<[u8]>>>>;

/// A question that is on its way, until it is dropped.
struct Underway {
    key: Key,
    asked: Arc<Mutex<BTreeMap<Key, Awaited>>>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Upstream {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers: servers.into(), asked: Arc::default() }
    }

    /// The answer of the first upstream that gives one, as the client asked; `None` where none does. Who asks waits at a place of
    /// its own: no more questions are on their way than there are places, and who has one is asked for, whatever others ask.
    pub(super) async fn ask(&self, question: &Question, way: Way, _at: &Place) -> Option<Vec<u8>> {
        let key = Key { bytes: packet(question)? };
        let mut awaited = self.awaited(key);
        // The sender went without a word where its task was ended.
        let answer = awaited.wait_for(Option::is_some).await.ok()?.clone()??;
        let bytes = addressed(&answer, question)?;
        if bytes.len() <= question.most() { Some(bytes) } else { fallback(question, way) }
    }

    /// The answer that is on its way, or is asked for now.
    fn awaited(&self, key: Key) -> Awaited {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(awaited) = asked.get(&key) {
            return awaited.clone();
        }
        let (sender, receiver) = watch::channel(None);
        asked.insert(key.clone(), receiver.clone());
        let underway = Underway { key, asked: Arc::clone(&self.asked) };
        let servers = Arc::clone(&self.servers);
        // It goes on where the one who asked first goes away: others may wait.
        tokio::spawn(async move {
            let answer = ask_all(&servers, &underway.key.bytes).await;
            // Before those who wait give their places to others.
            drop(underway);
            sender.send_replace(Some(answer));
        });
        receiver
    }
}

/// By UDP, the client is told to ask by TCP.
fn fallback(question: &Question, way: Way) -> Option<Vec<u8>> {
    match way {
        Way::Udp => question.truncated(),
        Way::Tcp => None,
    }
}

/// The question as it is sent, with the ID 0: nothing of the client's packet but what it means.
fn packet(question: &Question) -> Option<Vec<u8>> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.checking_disabled = question.metadata.checking_disabled;
    let mut query = question.query.clone();
    query.set_name(query.name().to_lowercase());
    message.add_query(query);
    if question.has_edns() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM);
        edns.set_dnssec_ok(question.wants_dnssec());
        message.set_edns(edns);
    }
    message.to_vec().ok()
}

/// The same answer with the ID and the name as this client wrote them.
fn addressed(answer: &[u8], question: &Question) -> Option<Vec<u8>> {
    let mut bytes = answer.to_vec();
    bytes.get_mut(..2)?.copy_from_slice(&question.metadata.id.to_be_bytes());
    let mut at = HEADER;
    for label in question.name().iter() {
        let length = bytes.get(at).copied().filter(|length| usize::from(*length) == label.len())?;
        at += 1;
        bytes.get_mut(at..at + usize::from(length))?.copy_from_slice(label);
        at += usize::from(length);
    }
    Some(bytes)
}

async fn ask_all(servers: &[SocketAddr], packet: &[u8]) -> Option<Arc<[u8]>> {
    for server in servers {
        match timeout(WAIT, ask(*server, packet)).await {
            Ok(Ok(answer)) => return Some(answer.into()),
            Ok(Err(error)) => tracing::debug!(%server, %error, "an upstream DNS server does not answer"),
            Err(_) => tracing::debug!(%server, "an upstream DNS server does not answer in time"),
        }
    }
    None
}

/// Asks one server by UDP, and by TCP where the answer is too large for that.
async fn ask(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let answer = by_udp(server, packet).await?;
    let is_truncated = answer.get(2).is_some_and(|flags| flags & 0x02 != 0);
    if is_truncated { by_tcp(server, packet).await } else { Ok(answer) }
}

async fn by_udp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let any = if server.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    // A port and an ID of chance for each, so that nobody else can answer in its place who does not see it.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let packet = with_id(packet, rand::random());
    socket.send(&packet).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer.get(..length).filter(|answer| is_answer(answer, &packet)) {
            return Ok(answer.to_vec());
        }
    }
}

async fn by_tcp(server: SocketAddr, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let packet = with_id(packet, rand::random());
    tcp::write(&mut stream, &packet).await?;
    let answer = tcp::read(&mut stream).await?.filter(|answer| is_answer(answer, &packet));
    answer.ok_or_else(|| std::io::Error::other("what came is no answer to the question"))
}

fn with_id(packet: &[u8], id: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(place) = packet.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    packet
}

/// Whether these bytes answer this question: ID, QR, and the question itself, whatever the case of its letters.
fn is_answer(answer: &[u8], packet: &[u8]) -> bool {
    answer.get(..2) == packet.get(..2)
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && asked(answer).is_some_and(|answered| Some(answered) == asked(packet))
}

/// The one question of a message.
fn asked(message: &[u8]) -> Option<(Name, RecordType, DNSClass)> {
    let mut decoder = BinDecoder::new(message);
    let header = Header::read(&mut decoder).ok()?;
    let query = Query::read(&mut decoder).ok().filter(|_| header.counts.queries == 1)?;
    Some((query.name().to_lowercase(), query.query_type(), query.query_class()))
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
