//! The suite of behaviour that the embedded authority is held to, on real SPIRE.

use crate::behaviour::{self, Spire};
use crate::pair::with_pair;
use crate::world::{Domain, Part};
use anyhow::Context;
use entente::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl};
use entente::model::{AuthorityId, SpiffeId, TrustDomain};
use std::path::Path;
use std::time::Duration;

/// The SPIRE of a domain, with the test process as its workload.
struct Real<'a> {
    domain: &'a Domain,
    entry: String,
}

impl Spire for Real<'_> {
    fn trust_domain(&self) -> &TrustDomain {
        self.domain.trust_domain()
    }

    fn server_socket(&self) -> &Path {
        self.domain.spire.server_socket()
    }

    fn workload_socket(&self) -> &Path {
        self.domain.spire.agent_socket()
    }

    fn workload_entry(&self) -> &str {
        &self.entry
    }

    fn bundle_endpoint(&self) -> BundleEndpoint {
        let endpoint_id = SpiffeId::new(self.domain.spire.bundle_endpoint_id()).unwrap();
        BundleEndpoint {
            url: EndpointUrl::parse(&self.domain.bundle_endpoint_url()).unwrap(),
            profile: EndpointProfile::HttpsSpiffe { endpoint_id },
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn agent_has_let_go(&self, tainted: &AuthorityId) -> bool {
        let log = self.domain.spire.agent.log();
        let last = |words: &str| log.rfind(words);
        let knows = log.lines().any(|line| line.contains("tainted") && line.contains(tainted.as_str()));
        knows && last("Agent SVID is tainted by a root authority") <= last("Successfully rotated agent SVID")
    }
}

/// spire-controller-manager would take away what the suite makes through the API, so it is stopped meanwhile.
#[test]
fn real_spire_behaves_as_the_suite_says() {
    with_pair(async |pair| {
        let west = &mut pair.west;
        let id = west.register_test_process("workload", "/workload", &[], &[]).await?;
        let entry = west.spire.entries().await?.remove(&id).context("no entry")?.id;
        west.stop(Part::SpireControllerManager).await?;
        behaviour::all(&Real { domain: west, entry }).await;
        west.restart(Part::SpireControllerManager).await
    });
}
