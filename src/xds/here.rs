//! Who is connected by TLS: each is judged again when our bundle changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::caller::Proof;
use crate::identity::client_tls;
use crate::identity::source::IdentitySource;

/// The connections that are by TLS, each once, however many streams it has. Clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Here(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    last: u64,
    connections: BTreeMap<u64, (Arc<Proof>, CancellationToken)>,
}

/// One connection; it is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Present {
    here: Here,
    key: u64,
    proof: Arc<Proof>,
    end: CancellationToken,
}

impl Present {
    /// By what it proved its ID, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.proof.chain
    }

    /// Cancelled when the connection is to end, or has ended.
    pub(super) fn end(&self) -> CancellationToken {
        self.end.clone()
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.here.all().connections.remove(&self.key);
    }
}

impl Here {
    pub(super) fn add(&self, proof: Proof) -> Present {
        let (proof, end) = (Arc::new(proof), CancellationToken::new());
        let mut all = self.all();
        all.last += 1;
        let key = all.last;
        all.connections.insert(key, (Arc::clone(&proof), end.clone()));
        Present { here: self.clone(), key, proof, end }
    }

    /// Ends the connections of whom our bundle does not verify any more, each time that it changes.
    pub(super) async fn watch_over(self, source: IdentitySource) {
        let mut identity = source.subscribe();
        while identity.changed().await.is_ok() {
            identity.mark_unchanged();
            // They are judged aside: who connects meanwhile waits for nobody.
            let all: Vec<_> = self.all().connections.values().cloned().collect();
            for (proof, end) in all {
                if client_tls::judge(&source, &proof.chain, proof.at).is_err() {
                    end.cancel();
                }
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn a_connection_is_there_once_and_until_it_ends() {
        let here = Here::default();
        let add = || here.add(Proof { chain: Vec::new(), at: UnixTime::now() });
        let (one, other) = (add(), add());
        assert_eq!(here.all().connections.len(), 2);
        drop(one);
        assert!(!other.end().is_cancelled());
        assert_eq!(here.all().connections.len(), 1);
        drop(other);
        assert!(here.all().connections.is_empty());
    }
}
