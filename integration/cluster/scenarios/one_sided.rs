//! One-sided trust: one link is broken at a time, with the agents as they are installed; both sides name the side and the
//! cause within 30 seconds, and are well again once it is mended.

use super::{CFTD, PEER, READY, STATIC_ENTRY, condition, delete, found, merge, peer, spire_holds, with};
use crate::agent::{Agent, AgentOptions};
use crate::pair::{Pair, with_pair};
use crate::relay::{Network, Relay};
use crate::tools::Tools;
use crate::wait::eventually;
use crate::world::{AGENT_REGISTRATION, Domain, Part};
use anyhow::{Context, Result, bail, ensure};
use entente::proto::spire::server::bundle::v1::BatchDeleteFederatedBundleRequest;
use entente::proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::trustdomain::v1::BatchDeleteFederationRelationshipRequest;
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use entente::proto::spire::types::X509Certificate;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How soon both sides name it.
const NAMED: Duration = Duration::from_secs(30);
/// How soon both are well again: SPIRE's own poll of a mended endpoint may have to come first.
const HEALED: Duration = Duration::from_secs(90);
const WEST: &str = "west.example";
const EAST: &str = "east.example";
/// A registration of east that federates with west, beside the agent's own.
const CART: &str = "cart";

/// East, where links break, and west; west's bundle endpoint is reached through a network that can be cut.
struct Scene<'a> {
    pair: &'a mut Pair,
    agents: Option<(Agent, Agent)>,
    to_endpoint: Relay,
}

/// What east tells of a relationship that is not there.
const NONE_THERE: &str = "SPIRE here has no federation relationship with you";

/// A condition, by side, that must come to be: name, status, reason, and words of its message.
type Says<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

fn start(domain: &Domain, env: Vec<(String, String)>) -> Result<Agent> {
    Agent::start(domain, AgentOptions { env, ..AgentOptions::default() })
}

impl<'a> Scene<'a> {
    async fn new(pair: &'a mut Pair) -> Result<Self> {
        let mut agents = (start(&pair.east, Vec::new())?, start(&pair.west, Vec::new())?);
        tokio::try_join!(agents.0.ready(READY), agents.1.ready(READY))?;
        let to_endpoint = Relay::start(pair.west.spire.bundle_endpoint()).await?;
        let url = format!("https://{}/", to_endpoint.address());
        pair.east.register_test_process(CART, "/shop/cart", &[("federate", "true")], &[]).await?;
        let of_west = with(peer(&pair.west).await?, "/spec/bundleEndpoint/url", json!(url))?;
        pair.east.kubernetes.apply(&of_west).await?;
        pair.west.kubernetes.apply(&peer(&pair.east).await?).await?;
        let scene = Self { pair, agents: Some(agents), to_endpoint };
        scene.well().await?;
        Ok(scene)
    }

    /// Both sides name what was broken just now; how long that took.
    async fn named(&self, what: &str, east: &[Says<'_>], west: &[Says<'_>]) -> Result<()> {
        let since = Instant::now();
        let look = || async {
            for (domain, other, all) in [(&self.pair.east, WEST, east), (&self.pair.west, EAST, west)] {
                let peer = found(domain, PEER, None, other).await?;
                for (name, status, reason, words) in all {
                    let said = condition(&peer, name)?;
                    let named = said.0 == *status && said.1 == *reason;
                    if !named || !words.iter().all(|word| said.2.contains(word)) {
                        let all = &peer.data["status"]["conditions"];
                        bail!(
                            "{} does not say {name}={status} {reason} {words:?}: {all}",
                            domain.trust_domain()
                        );
                    }
                }
            }
            Ok(())
        };
        eventually(what, NAMED, look).await?;
        eprintln!("{what}: both sides named it after {:?}", since.elapsed());
        Ok(())
    }

    async fn well(&self) -> Result<()> {
        let since = Instant::now();
        let look = || async {
            for (domain, other) in [(&self.pair.east, WEST), (&self.pair.west, EAST)] {
                let peer = found(domain, PEER, None, other).await?;
                for (name, reason) in [("Reciprocal", "Confirmed"), ("Ready", "Ready")] {
                    let said = condition(&peer, name)?;
                    let all = &peer.data["status"]["conditions"];
                    ensure!(said.0 == "True" && said.1 == reason, "{}: {all}", domain.trust_domain());
                }
            }
            Ok(())
        };
        eventually("both sides are well", HEALED, look).await?;
        eprintln!("both sides are well after {:?}", since.elapsed());
        Ok(())
    }

    /// Restarts east's agent with this environment beside its own.
    async fn restart_east(&mut self, env: Vec<(String, String)>) -> Result<()> {
        let (mut east, west) = self.agents.take().context("no agents")?;
        ensure!(east.stop().await? == 0, "east's agent ended badly");
        let mut east = start(&self.pair.east, env)?;
        east.ready(READY).await?;
        self.agents = Some((east, west));
        Ok(())
    }

    async fn delete_relationship(&self) -> Result<()> {
        let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![WEST.to_owned()] };
        let api = self.pair.east.spire.api();
        TrustDomainClient::new(api).batch_delete_federation_relationship(request).await?;
        Ok(())
    }

    async fn delete_bundle(&self) -> Result<()> {
        let trust_domains = vec![WEST.to_owned()];
        let request = BatchDeleteFederatedBundleRequest { trust_domains, mode: Mode::Dissociate.into() };
        BundleClient::new(self.pair.east.spire.api()).batch_delete_federated_bundle(request).await?;
        Ok(())
    }
}

#[test]
fn one_broken_link_is_named_by_both_sides_within_30_seconds_and_heals() {
    with_pair(async |pair| {
        let mut scene = Scene::new(pair).await?;
        the_object_cannot_be_written(&scene).await.context("1. the ClusterFederatedTrustDomain")?;
        the_relationship_is_deleted(&mut scene).await.context("2. the relationship")?;
        the_bundle_is_deleted(&scene).await.context("3. the bundle, deleted")?;
        the_bundle_is_replaced(&scene).await.context("3. the bundle, replaced")?;
        federates_with_is_stripped(&scene).await.context("4. federatesWith")?;
        the_registration_is_gone(&scene).await.context("5. the agent's own registration")?;
        the_endpoint_is_down(&scene).await.context("6. the bundle endpoint")?;
        #[cfg(target_os = "linux")]
        a_clock_is_wrong(&mut scene).await.context("7. the clock")?;
        Ok(())
    });
}

/// The API server's own admission refuses what everybody but it would write.
const DENIED: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: frozen}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - apiGroups: [spire.spiffe.io]
      apiVersions: [v1alpha1]
      operations: [CREATE, UPDATE]
      resources: [clusterfederatedtrustdomains]
  validations:
  - expression: "false"
    message: nobody may write these today
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: frozen}
spec: {policyName: frozen, validationActions: [Deny]}
"#;

async fn the_object_cannot_be_written(scene: &Scene<'_>) -> Result<()> {
    let east = &scene.pair.east;
    east.kubernetes.apply_yaml(DENIED).await?;
    let name = found_relationship(east).await?;
    eventually("nobody may write it", NAMED, || async {
        let change = json!({"metadata": {"annotations": {"touched": "yes"}}});
        let error = merge(east, CFTD, None, &name, change).await.err().context("it is written")?;
        ensure!(error.to_string().contains("nobody may write"), "{error:#}");
        Ok(())
    })
    .await?;
    delete(east, CFTD, None, &name).await?;
    let cause = "cannot be written";
    scene
        .named(
            "the ClusterFederatedTrustDomain is deleted, and may not be written",
            &[
                (
                    "BundleDistributed",
                    "False",
                    "AwaitingRelationship",
                    &[cause, "nobody may write these today"],
                ),
                ("Reciprocal", "False", "WeDoNotHoldPeerBundle", &["relationship"]),
            ],
            // Why is for east's operator: the words of its API server are told to nobody else.
            &[("Reciprocal", "False", "PeerHasNoRelationship", &[EAST, "AwaitingRelationship", NONE_THERE])],
        )
        .await?;
    for kind in ["ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"] {
        delete(east, ("admissionregistration.k8s.io/v1", kind), None, "frozen").await?;
    }
    scene.well().await
}

/// The name of the relationship's object.
async fn found_relationship(domain: &Domain) -> Result<String> {
    let all =
        domain.kubernetes.api(CFTD.0, CFTD.1, None).await?.list(&kube::api::ListParams::default()).await?;
    let name = all.items.first().and_then(|object| object.metadata.name.clone());
    name.context("there is no ClusterFederatedTrustDomain")
}

async fn the_relationship_is_deleted(scene: &mut Scene<'_>) -> Result<()> {
    scene.pair.east.stop(Part::SpireControllerManager).await?;
    scene.delete_relationship().await?;
    let cause = "spire-controller-manager has not made it";
    scene
        .named(
            "SPIRE's relationship is deleted",
            &[
                ("BundleDistributed", "False", "AwaitingRelationship", &[cause]),
                ("Reciprocal", "False", "WeDoNotHoldPeerBundle", &["relationship"]),
            ],
            &[("Reciprocal", "False", "PeerHasNoRelationship", &[EAST, "AwaitingRelationship", NONE_THERE])],
        )
        .await?;
    scene.pair.east.restart(Part::SpireControllerManager).await?;
    scene.well().await
}

async fn the_bundle_is_deleted(scene: &Scene<'_>) -> Result<()> {
    // Else the agent has SPIRE hold it again before anybody could see.
    scene.to_endpoint.set(Network::Cut);
    scene.delete_bundle().await?;
    scene
        .named(
            "the bundle is deleted in SPIRE",
            &[
                ("Reciprocal", "False", "WeDoNotHoldPeerBundle", &["holds no usable bundle"]),
                ("BundleEndpointHealthy", "False", "EndpointUnreachable", &[]),
            ],
            &[("Reciprocal", "False", "PeerRefusesUs", &[EAST, "bundle"])],
        )
        .await?;
    scene.to_endpoint.set(Network::Whole);
    scene.well().await
}

async fn the_bundle_is_replaced(scene: &Scene<'_>) -> Result<()> {
    let (east, west) = (&scene.pair.east, &scene.pair.west);
    let mut wrong = west.spire.own_bundle().await?;
    wrong.x509_authorities = vec![X509Certificate { asn1: stranger()?, tainted: false }];
    scene.to_endpoint.set(Network::Cut);
    east.spire.set_federated_bundle(wrong.clone()).await?;
    scene
        .named(
            "the bundle is replaced in SPIRE",
            &[("Reciprocal", "False", "WeDoNotHoldPeerBundle", &["does not verify"])],
            &[("Reciprocal", "False", "PeerRefusesUs", &[EAST])],
        )
        .await?;
    scene.to_endpoint.set(Network::Whole);
    scene.well().await?;
    // With an endpoint that answers nobody need see it: the agent puts back what it verified.
    east.spire.set_federated_bundle(wrong).await?;
    spire_holds(east, west).await?;
    scene.well().await
}

/// An authority of nobody that we know, as DER.
fn stranger() -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(&KeyPair::generate()?)?.der().to_vec())
}

async fn federates_with_is_stripped(scene: &Scene<'_>) -> Result<()> {
    let east = &scene.pair.east;
    let set = async |name: &str, names: Value| {
        merge(east, STATIC_ENTRY, None, name, json!({"spec": {"federatesWith": names}})).await
    };
    set(CART, json!(null)).await?;
    scene
        .named(
            "someone strips federatesWith of a workload",
            &[("BundleDistributed", "False", "RegistrationContested", &["ClusterStaticEntry", CART])],
            &[("Reciprocal", "False", "PeerRefusesUs", &[EAST, "RegistrationContested", "takes you back"])],
        )
        .await?;
    set(CART, json!([WEST])).await?;
    scene.well().await?;
    set(AGENT_REGISTRATION, json!(null)).await?;
    scene
        .named(
            "someone strips federatesWith of the agent",
            &[("BundleDistributed", "False", "RegistrationContested", &[AGENT_REGISTRATION])],
            &[("Reciprocal", "False", "PeerRefusesUs", &[EAST])],
        )
        .await?;
    set(AGENT_REGISTRATION, json!([WEST])).await?;
    scene.well().await
}

async fn the_registration_is_gone(scene: &Scene<'_>) -> Result<()> {
    let east = &scene.pair.east;
    delete(east, STATIC_ENTRY, None, AGENT_REGISTRATION).await?;
    scene
        .named(
            "the agent's own registration is deleted",
            &[(
                "BundleDistributed",
                "False",
                "WorkloadApiUnavailable",
                &["no identity issued", "registration"],
            )],
            &[(
                "Reciprocal",
                "False",
                "PeerRefusesUs",
                &[EAST, "WorkloadApiUnavailable", "the Workload API here"],
            )],
        )
        .await?;
    east.register_agent().await?;
    scene.well().await
}

async fn the_endpoint_is_down(scene: &Scene<'_>) -> Result<()> {
    for network in [Network::Cut, Network::Silent] {
        scene.to_endpoint.set(network);
        let url = scene.to_endpoint.address().to_string();
        scene
            .named(
                &format!("the bundle endpoint is {network:?}"),
                &[
                    ("BundleEndpointHealthy", "False", "EndpointUnreachable", &[&url]),
                    // East trusts west as before.
                    ("Reciprocal", "True", "Confirmed", &[]),
                    ("Ready", "False", "BundleEndpointUnhealthy", &[]),
                ],
                &[
                    ("RotationSafe", "False", "PeerCannotFetchOurBundle", &[EAST, "cannot be reached"]),
                    ("Reciprocal", "True", "Confirmed", &[]),
                    ("Ready", "False", "NotRotationSafe", &[]),
                ],
            )
            .await?;
        scene.to_endpoint.set(Network::Whole);
        scene.well().await?;
    }
    Ok(())
}

/// East's agent alone lives a minute ahead, and then behind.
#[cfg(target_os = "linux")]
async fn a_clock_is_wrong(scene: &mut Scene<'_>) -> Result<()> {
    let library = Tools::get()?.program("libfaketime.so.1")?.display().to_string();
    for (offset, of_west, of_east) in [
        ("+60s", "60 s behind ours", "60 s ahead of ours"),
        ("-60s", "60 s ahead of ours", "60 s behind ours"),
    ] {
        let env =
            [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        scene.restart_east(env).await?;
        scene
            .named(
                &format!("east's clock is off by {offset}"),
                &[
                    ("Connected", "True", "ClocksDiffer", &[WEST, of_west]),
                    ("Ready", "False", "ClocksDiffer", &[]),
                ],
                &[
                    ("Connected", "True", "ClocksDiffer", &[EAST, of_east]),
                    ("Ready", "False", "ClocksDiffer", &[]),
                ],
            )
            .await?;
        scene.restart_east(Vec::new()).await?;
        scene.well().await?;
    }
    Ok(())
}
