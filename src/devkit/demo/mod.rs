//! The demo, and the pieces that the tests on pairs of agents are made of: two trust domains in one process, each with
//! an embedded authority and an agent on a directory, a service in one and its callers in the other.
//!
//! ```text
//!  east.example                                              west.example
//!  EmbeddedSpire --- Workload API --- agent ---- mTLS ---- agent --- Workload API --- EmbeddedSpire
//!                                       |                    |
//!                    generated/: ServiceEntry          generated/: AuthorizationPolicy
//!                                       |                    |
//!                                  Client (client.rs) ---> Service (service.rs, policy.rs)
//! ```
//!
//! The caller takes its target, SNI and pin from the ServiceEntry that its agent wrote, and its trust from its Workload
//! API; the service takes whom to refuse from the AuthorizationPolicy that its agent wrote. What Istio's sidecars and
//! gateway do, these two do here; a table of names stands for DNS.

mod client;
mod domain;
pub mod manifests;
mod policy;
mod rotation;
mod run;
mod service;
mod story;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

pub use client::{Answer, CallError, Client, ClientConfig};
pub use domain::{AGENT_PATH, Domain, DomainConfig};
pub use policy::{Denied, Policies};
pub use run::{Options, run};
pub use service::{Service, ServiceConfig};

/// How often a condition is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What stands for DNS: names and their addresses.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<String, IpAddr>);

impl Names {
    /// The table with one more name.
    #[must_use]
    pub fn with(mut self, name: &str, address: IpAddr) -> Self {
        self.0.insert(name.to_owned(), address);
        self
    }

    /// The address of a name, or of an address written out.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<IpAddr> {
        self.0.get(name).copied().or_else(|| name.parse().ok())
    }
}

/// Looks until `look` succeeds; what it then returns.
///
/// # Errors
/// After `within`, what the last look said, under `what`.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(LOOK);
        let last = match tokio::time::timeout(left, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("no answer"),
        };
        if Instant::now() >= deadline {
            return Err(last.context(format!("not so within {within:?}: {what}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
