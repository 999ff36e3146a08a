//! The embedded authority: the behaviours that it shares with SPIRE, and what only it has.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test ends where it meets what it did not expect, and says what passed"
)]

#[path = "../behaviour/mod.rs"]
mod behaviour;
mod embedded;
mod endpoint;
mod tcp;

use std::path::{Path, PathBuf};
use std::time::Duration;

use behaviour::Spire;
use entente::devkit::{EmbeddedConfig, EmbeddedSpire, NewEntry};
use entente::model::endpoint::BundleEndpoint;
use entente::model::{AuthorityId, SpiffeId, TrustDomain};

/// The embedded authority with one workload.
struct Embedded {
    spire: EmbeddedSpire,
    socket: PathBuf,
    entry: String,
}

impl Spire for Embedded {
    fn trust_domain(&self) -> &TrustDomain {
        self.spire.trust_domain()
    }

    fn server_socket(&self) -> &Path {
        &self.spire.server_socket
    }

    fn workload_socket(&self) -> &Path {
        &self.socket
    }

    fn workload_entry(&self) -> &str {
        &self.entry
    }

    fn bundle_endpoint(&self) -> BundleEndpoint {
        self.spire.bundle_endpoint().unwrap()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn agent_has_let_go(&self, _: &AuthorityId) -> bool {
        true
    }
}

fn west() -> TrustDomain {
    TrustDomain::new("west.example").unwrap()
}

fn id(path: &[&str]) -> SpiffeId {
    SpiffeId::from_segments(west(), path).unwrap()
}

async fn start(dir: &Path) -> Embedded {
    let spire = EmbeddedSpire::start(EmbeddedConfig::new(west(), dir)).await.unwrap();
    let entry = spire.create_entry(NewEntry::workload(id(&["workload"]), "workload")).unwrap();
    let socket = spire.workload_socket("workload").unwrap();
    Embedded { spire, socket, entry }
}

#[tokio::test]
async fn behaves_as_spire_does() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = start(dir.path()).await;
    behaviour::all(&embedded).await;
    embedded.spire.shutdown().await;
}
