//! How much memory the requests of one SPIFFE ID may take, on all of its streams: parts of requests that are not whole yet, and
//! names that it asks for though nobody serves them to it. Names that are served cost next to nothing: all have the same.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use hyper::body::Frame;
use prost::bytes::Bytes;
use tonic::Status;

use crate::model::SpiffeId;

/// The bytes of all streams of one ID. A request of 20,000 names and their versions has about two million.
pub(super) const MOST_OF_ONE: usize = 64 * 1024 * 1024;

/// The allowances of all IDs that are here. Clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowances(Arc<Mutex<BTreeMap<SpiffeId, Weak<AtomicUsize>>>>);

impl Allowances {
    /// Nothing yet of what this ID may take.
    pub(super) fn of(&self, id: &SpiffeId) -> Share {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(id).and_then(Weak::upgrade);
        let taken = known.unwrap_or_else(|| {
            all.retain(|_, taken| taken.strong_count() > 0);
            let taken = Arc::new(AtomicUsize::new(0));
            all.insert(id.clone(), Arc::downgrade(&taken));
            taken
        });
        Share { taken, own: 0 }
    }
}

/// What one holder has of an ID's allowance, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    taken: Arc<AtomicUsize>,
    own: usize,
}

impl Share {
    /// Has just so many bytes from now on.
    ///
    /// # Errors
    /// The ID has no more of them; then it has what it had.
    pub(super) fn set(&mut self, bytes: usize) -> Result<(), Status> {
        let all = self.taken.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if bytes > self.own && all - self.own.min(all) > MOST_OF_ONE {
            self.taken.fetch_sub(bytes, Ordering::AcqRel);
            let most = MOST_OF_ONE >> 20;
            return Err(Status::resource_exhausted(format!(
                "the requests of this SPIFFE ID take more than {most} MiB on all of its streams"
            )));
        }
        self.taken.fetch_sub(self.own, Ordering::AcqRel);
        self.own = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.own, Ordering::AcqRel);
    }
}

/// The part of a request that is not whole yet, as its reader and its stream share it.
#[derive(Clone, Debug)]
pub(super) struct Unread(Arc<Mutex<Share>>);

impl Unread {
    pub(super) fn new(share: Share) -> Self {
        Self(Arc::new(Mutex::new(share)))
    }

    /// A request is whole, and no part of one any more.
    pub(super) fn clear(&self) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).set(0);
    }

    fn add(&self, bytes: usize) -> Result<(), Status> {
        let mut share = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = share.own.saturating_add(bytes);
        share.set(bytes)
    }
}

/// The requests of a stream as bytes, counted as they come.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) requests: tonic::body::Body,
    pub(super) unread: Unread,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut body.requests).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(frame.and_then(|frame| {
            body.unread.add(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        })))
    }
}
