//! Answers as bytes: written piece by piece as the client reads, from the bytes that all answers share, so that an answer of any
//! size costs no more memory than a piece of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use hyper::body::Frame;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Status;

use super::session::{Answer, Variant};
use crate::plan::xds::Resource;
use crate::proto::xds::discovery::{DeltaDiscoveryResponse, DiscoveryResponse};

/// How many bytes are handed to HTTP/2 at once: two of its frames.
const PIECE: usize = 2 * 16 * 1024;
/// The flag and the length before each gRPC message.
const PREFIX: usize = 5;

/// An answer that is being written.
#[derive(Debug)]
struct Writing {
    resources: std::vec::IntoIter<Resource>,
    variant: Variant,
    /// What is to be written next: at first what stands before the resources.
    next: BytesMut,
    /// What stands behind them, until they are written.
    tail: Option<Vec<u8>>,
}

impl Writing {
    /// Fails where the answer is longer than gRPC can say.
    fn new(answer: Answer, variant: Variant) -> Result<Self, Status> {
        let type_url = answer.kind.url().to_owned();
        let (before, tail) = match variant {
            Variant::StateOfTheWorld => {
                let before = DiscoveryResponse { version_info: answer.version, ..Default::default() };
                let behind = DiscoveryResponse { type_url, nonce: answer.nonce, ..Default::default() };
                (before.encode_to_vec(), behind.encode_to_vec())
            }
            Variant::Incremental => {
                let removed_resources = answer.removed.iter().map(ToString::to_string).collect();
                let (nonce, rest) = (answer.nonce, Default::default());
                let behind = DeltaDiscoveryResponse { type_url, nonce, removed_resources, ..rest };
                (Vec::new(), behind.encode_to_vec())
            }
        };
        let resources: usize = answer.resources.iter().map(|resource| entry(resource, variant).len()).sum();
        let length = before.len() + resources + tail.len();
        let said = u32::try_from(length)
            .map_err(|_| Status::resource_exhausted("what is served is more than one answer can hold"))?;
        let mut next = BytesMut::with_capacity((PREFIX + length).min(2 * PIECE));
        next.put_u8(0);
        next.put_u32(said);
        next.put_slice(&before);
        Ok(Self { resources: answer.resources.into_iter(), variant, next, tail: Some(tail) })
    }

    /// The next piece; nothing once all is written.
    fn piece(&mut self) -> Option<Bytes> {
        while self.next.len() < PIECE {
            if let Some(resource) = self.resources.next() {
                self.next.put_slice(entry(&resource, self.variant));
            } else if let Some(tail) = self.tail.take() {
                self.next.put_slice(&tail);
            } else {
                break;
            }
        }
        let length = self.next.len().min(PIECE);
        (length > 0).then(|| self.next.split_to(length).freeze())
    }
}

fn entry(resource: &Resource, variant: Variant) -> &[u8] {
    match variant {
        Variant::StateOfTheWorld => resource.bare(),
        Variant::Incremental => resource.incremental(),
    }
}

/// How far a client has come with reading, as its stream and its body share it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes that HTTP/2 has taken, which it does as the client reads.
    taken: AtomicU64,
    /// Answers that there were for it, and those that it has taken to their end.
    given: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// There is one more answer for the client.
    pub(super) fn give(&self) {
        self.given.fetch_add(1, Ordering::AcqRel);
    }

    fn is_behind(&self) -> bool {
        self.given.load(Ordering::Acquire) != self.done.load(Ordering::Acquire)
    }

    /// Returns once something has waited for so long while the client read less than this many bytes.
    pub(super) async fn stalled(&self, patience: Duration, least: u64) {
        loop {
            let (was_behind, done) = (self.is_behind(), self.done.load(Ordering::Acquire));
            let before = self.taken.load(Ordering::Acquire);
            sleep(patience).await;
            let read = self.taken.load(Ordering::Acquire) - before;
            if was_behind && self.is_behind() && done == self.done.load(Ordering::Acquire) && read < least {
                return;
            }
        }
    }
}

/// The body of a stream's response. Its end is gRPC's status.
#[derive(Debug)]
pub(super) struct Body {
    answers: mpsc::Receiver<Result<Answer, Status>>,
    variant: Variant,
    progress: Arc<Progress>,
    writing: Option<Writing>,
    is_ended: bool,
}

impl Body {
    pub(super) const fn new(
        answers: mpsc::Receiver<Result<Answer, Status>>,
        variant: Variant,
        progress: Arc<Progress>,
    ) -> Self {
        Self { answers, variant, progress, writing: None, is_ended: false }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.is_ended = true;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            let _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Frame::trailers(trailers)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        loop {
            if body.is_ended {
                return Poll::Ready(None);
            }
            if let Some(piece) = body.writing.as_mut().and_then(Writing::piece) {
                body.progress.taken.fetch_add(piece.len() as u64, Ordering::AcqRel);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if body.writing.take().is_some() {
                body.progress.done.fetch_add(1, Ordering::AcqRel);
            }
            let frame = match ready!(body.answers.poll_recv(cx)) {
                None => body.end(&Status::ok("")),
                Some(Err(status)) => body.end(&status),
                Some(Ok(answer)) => match Writing::new(answer, body.variant) {
                    Ok(writing) => {
                        body.writing = Some(writing);
                        continue;
                    }
                    Err(status) => body.end(&status),
                },
            };
            return Poll::Ready(Some(Ok(frame)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::xds::{Resource, ResourceType};

    /// All pieces of an answer, whole.
    fn written(answer: Answer, variant: Variant) -> (Vec<u8>, usize) {
        let mut writing = Writing::new(answer, variant).unwrap();
        let pieces: Vec<Bytes> = std::iter::from_fn(|| writing.piece()).collect();
        (pieces.concat(), pieces.iter().map(Bytes::len).max().unwrap())
    }

    fn clusters(count: usize) -> Vec<Resource> {
        (0..count)
            .map(|number| Resource::of_bytes(ResourceType::Cluster, &format!("s{number}"), 700))
            .collect()
    }

    fn answer(resources: Vec<Resource>) -> Answer {
        let (version, nonce) = ("7".to_owned(), "3".to_owned());
        Answer { kind: ResourceType::Cluster, version, nonce, resources, removed: vec!["gone".into()] }
    }

    #[test]
    fn what_is_written_is_what_the_protocol_says() {
        for count in [0, 1, 1_000] {
            let all = clusters(count);
            let (bytes, most) = written(answer(all.clone()), Variant::Incremental);
            let length = u32::from_be_bytes(bytes[1..PREFIX].try_into().unwrap());
            assert_eq!((bytes[0], length as usize), (0, bytes.len() - PREFIX));
            let read = DeltaDiscoveryResponse::decode(&bytes[PREFIX..]).unwrap();
            assert_eq!((read.nonce.as_str(), read.type_url.as_str()), ("3", ResourceType::Cluster.url()));
            assert_eq!(read.removed_resources, ["gone"]);
            assert_eq!(read.resources.len(), count);
            for (read, served) in read.resources.iter().zip(&all) {
                assert_eq!((read.name.as_str(), &read.version), (&*served.name, &served.version.to_string()));
                let packed = read.resource.as_ref().unwrap();
                assert_eq!(
                    (packed.type_url.as_str(), &packed.value),
                    (ResourceType::Cluster.url(), &served.body)
                );
            }
            assert!(most <= PIECE, "{most}");

            let (bytes, most) = written(answer(all.clone()), Variant::StateOfTheWorld);
            let read = DiscoveryResponse::decode(&bytes[PREFIX..]).unwrap();
            assert_eq!((read.nonce.as_str(), read.version_info.as_str()), ("3", "7"));
            assert_eq!(read.type_url, ResourceType::Cluster.url());
            let bodies: Vec<&Bytes> = all.iter().map(|served| &served.body).collect();
            assert_eq!(read.resources.iter().map(|packed| &packed.value).collect::<Vec<_>>(), bodies);
            assert!(most <= PIECE, "{most}");
        }
    }
}
