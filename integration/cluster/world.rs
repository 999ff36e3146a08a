//! Whole trust domains: one Kubernetes control plane and one SPIRE each, on 127.0.0.1, told apart by ports and folders.

use crate::cert_manager::CertManager;
use crate::crds;
use crate::kubernetes::{Kubernetes, SPIRE_USER, kubeconfig_of};
use crate::ports;
use crate::process::{Process, Signal};
use crate::scratch::Scratch;
use crate::seed;
use crate::spire::{Spire, SpireOptions, Upstream};
use crate::template;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use entente::proto::spire::server::bundle::v1::BatchDeleteFederatedBundleRequest;
use entente::proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long agents, SPIRE and istiod may take for what is a matter of seconds.
pub(crate) const SOON: Duration = Duration::from_secs(40);
/// The label of the registrations that a [`peer`] selects, with the value `true`.
pub(crate) const FEDERATE: &str = "federate";
/// The namespace of the agent.
pub(crate) const AGENT_NAMESPACE: &str = "entente-system";
/// The ClusterStaticEntry that registers the agent; see `spire/agent-registration.yaml.tmpl`.
pub(crate) const AGENT_REGISTRATION: &str = "entente";
const CFTD: (&str, &str) = ("spire.spiffe.io/v1alpha1", "ClusterFederatedTrustDomain");
const STATIC_ENTRY: (&str, &str) = ("spire.spiffe.io/v1alpha1", "ClusterStaticEntry");
/// What [`Domain::reset`] deletes, in order.
const OBJECTS: [(&str, &str); 13] = [
    ("entente.dev/v1alpha1", "ServiceExportRule"),
    ("entente.dev/v1alpha1", "FederatedService"),
    ("entente.dev/v1alpha1", "TrustDomainPeer"),
    ("entente.dev/v1alpha1", "ImportedService"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "WorkloadEntry"),
    ("networking.istio.io/v1", "Gateway"),
    ("networking.istio.io/v1", "VirtualService"),
    ("networking.istio.io/v1", "DestinationRule"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("spire.spiffe.io/v1alpha1", "ClusterSPIFFEID"),
    CFTD,
];
/// What it deletes in the agent's namespace: leases and invites, and what a chart finds in its way.
const OWN: [(&str, &str); 3] = [("coordination.k8s.io/v1", "Lease"), ("v1", "Secret"), ("v1", "ConfigMap")];
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const RESET_DEADLINE: Duration = Duration::from_secs(60);
/// How many domains are brought up at a time: that is work for the processor, and done no sooner by more at once.
static STARTS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

/// How a trust domain is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) spire: SpireOptions,
}

/// The programs of a trust domain that a test may end and start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Etcd,
    ApiServer,
    KubeControllerManager,
    SpireServer,
    SpireAgent,
    SpireControllerManager,
}

/// One trust domain on real parts. Dropped, its programs are killed and its folder removed (kept while panicking).
pub(crate) struct Domain {
    pub(crate) kubernetes: Kubernetes,
    pub(crate) spire: Spire,
    trust_domain: TrustDomain,
    /// This domain's own link to our program: its path is what tells the agents of two domains apart.
    agent_program: PathBuf,
    agent_address: SocketAddr,
    agent_admin_address: SocketAddr,
    options: Options,
    _cert_manager: Option<CertManager>,
    scratch: Scratch,
}

impl Domain {
    /// Brings up everything but our agent: the control plane with all CRDs, SPIRE, spire-controller-manager and the
    /// agent's registration, which SPIRE has when this returns.
    pub(crate) async fn start(trust_domain: &str, options: Options) -> Result<Self> {
        let _turn = STARTS.acquire().await?;
        Self::start_at_once(trust_domain, options).await
    }

    /// As [`Self::start`], however many are brought up just now: for what the longest row of scenarios waits for.
    pub(crate) async fn start_at_once(trust_domain: &str, options: Options) -> Result<Self> {
        let trust_domain = TrustDomain::new(trust_domain)?;
        let scratch = Scratch::new()?;
        let kubernetes_dir = scratch.folder("k")?;
        let spire_dir = scratch.folder("s")?;
        let kubeconfig = kubeconfig_of(&kubernetes_dir, SPIRE_USER);
        let mut spire = Spire::prepare(&trust_domain, &spire_dir, &kubeconfig, &options.spire)?;
        let name = trust_domain.to_string();
        let mut cert_manager = None;
        let (kubernetes, attested) = if options.spire.upstream == Upstream::CertManager {
            // The server starts with a request to it.
            let kubernetes = start_cluster(&name, &kubernetes_dir).await?;
            cert_manager = Some(CertManager::start(&kubernetes).await?);
            (Ok(kubernetes), start_spire(&mut spire).await)
        } else {
            tokio::join!(start_cluster(&name, &kubernetes_dir), start_spire(&mut spire))
        };
        if kubernetes.is_err() || attested.is_err() {
            scratch.keep();
        }
        attested?;
        let domain = Self {
            kubernetes: kubernetes?,
            spire,
            agent_program: link_program(scratch.path())?,
            trust_domain,
            agent_address: ports::free()?,
            agent_admin_address: ports::free()?,
            options,
            _cert_manager: cert_manager,
            scratch,
        };
        domain.finish().await
    }

    async fn finish(mut self) -> Result<Self> {
        let done = async {
            self.spire.start_controller_manager().await?;
            self.register_agent().await
        };
        if let Err(error) = done.await {
            self.scratch.keep();
            return Err(error);
        }
        Ok(self)
    }

    /// Applies the agent's registration, with `federatesWith` empty, and waits until SPIRE has the entry.
    pub(crate) async fn register_agent(&self) -> Result<()> {
        self.apply_registration("agent-registration.yaml.tmpl").await?;
        self.await_entry(&self.agent_id()).await
    }

    /// Applies the agent's second registration, which may call the SPIRE Server API over TCP; waits for the entry.
    pub(crate) async fn register_agent_as_admin(&self) -> Result<()> {
        self.apply_registration("agent-admin-registration.yaml.tmpl").await?;
        self.await_entry(&format!("{}-admin", self.agent_id())).await
    }

    async fn apply_registration(&self, file: &str) -> Result<()> {
        let values = [
            ("TRUST_DOMAIN", self.trust_domain.to_string()),
            ("UID", own_uid()?.to_string()),
            ("AGENT_PATH", self.agent_program.display().to_string()),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.kubernetes.apply_yaml(&template::fill(file, &values)?).await?;
        Ok(())
    }

    /// Registers the test process itself as a workload, by a ClusterStaticEntry of this name and path, with these
    /// labels; `spire.workload()` then has its SVID. Waits until SPIRE has the entry.
    pub(crate) async fn register_test_process(
        &self,
        name: &str,
        path: &str,
        labels: &[(&str, &str)],
        federates_with: &[&str],
    ) -> Result<String> {
        let id = format!("spiffe://{}{path}", self.trust_domain);
        let program = std::env::current_exe()?.canonicalize()?;
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        self.kubernetes
            .apply(&json!({
                "apiVersion": STATIC_ENTRY.0,
                "kind": STATIC_ENTRY.1,
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "spiffeID": id,
                    "parentID": format!("spiffe://{}/node", self.trust_domain),
                    "selectors": [format!("unix:uid:{}", own_uid()?), format!("unix:path:{}", program.display())],
                    "federatesWith": federates_with,
                },
            }))
            .await?;
        self.await_entry(&id).await?;
        Ok(id)
    }

    async fn await_entry(&self, id: &str) -> Result<()> {
        eventually(&format!("SPIRE has the entry {id}"), RESET_DEADLINE, || async {
            let entries = self.spire.entries().await?;
            entries.get(id).with_context(|| format!("it has {:?}", entries.keys()))?;
            Ok(())
        })
        .await
        .with_context(|| self.spire.controller_manager.log_tail())
    }

    /// Makes a relationship with `other` as an operator does by hand: a ClusterFederatedTrustDomain with the bundle
    /// pasted in. Nothing of ours has a part in it.
    pub(crate) async fn federate_by_hand(&self, other: &Self) -> Result<()> {
        self.federate_by_hand_at(other, &other.bundle_endpoint_url(), &other.spire.bundle_endpoint_id()).await
    }

    /// The same, with another bundle endpoint for `other`.
    pub(crate) async fn federate_by_hand_at(&self, other: &Self, url: &str, endpoint_id: &str) -> Result<()> {
        let object = json!({
            "apiVersion": CFTD.0,
            "kind": CFTD.1,
            "metadata": {"name": other.trust_domain.to_string()},
            "spec": {
                "trustDomain": other.trust_domain.to_string(),
                "bundleEndpointURL": url,
                "bundleEndpointProfile": {
                    "type": "https_spiffe",
                    "endpointSPIFFEID": endpoint_id,
                },
                "trustDomainBundle": other.spire.bundle_document().await?,
            },
        });
        self.kubernetes.apply(&object).await?;
        Ok(())
    }

    pub(crate) const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The SPIFFE ID of the agent.
    pub(crate) fn agent_id(&self) -> String {
        format!("spiffe://{}/ns/{AGENT_NAMESPACE}/sa/entente", self.trust_domain)
    }

    /// Where the agent listens for peers, unless told otherwise: known before it starts.
    pub(crate) const fn agent_address(&self) -> SocketAddr {
        self.agent_address
    }

    pub(crate) const fn agent_admin_address(&self) -> SocketAddr {
        self.agent_admin_address
    }

    /// The program to run as agent: only under this path does SPIRE give it the agent's identity.
    pub(crate) fn agent_program(&self) -> &Path {
        &self.agent_program
    }

    /// Where peers fetch our bundle.
    pub(crate) fn bundle_endpoint_url(&self) -> String {
        format!("https://{}/", self.spire.bundle_endpoint())
    }

    /// Where the domain's files and logs are.
    pub(crate) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Leaves the logs where they are, when this is dropped.
    pub(crate) fn keep(&self) {
        self.scratch.keep();
    }

    fn part(&mut self, part: Part) -> &mut Process {
        match part {
            Part::Etcd => &mut self.kubernetes.etcd,
            Part::ApiServer => &mut self.kubernetes.api_server,
            Part::KubeControllerManager => &mut self.kubernetes.controller_manager,
            Part::SpireServer => &mut self.spire.server,
            Part::SpireAgent => &mut self.spire.agent,
            Part::SpireControllerManager => &mut self.spire.controller_manager,
        }
    }

    /// Ends a program with SIGTERM, and waits until it is gone.
    pub(crate) async fn stop(&mut self, part: Part) -> Result<i32> {
        self.part(part).stop(STOP_DEADLINE).await
    }

    /// Ends a program with SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(&mut self, part: Part) -> Result<()> {
        self.part(part).kill().await
    }

    /// Lets a program stand still: its sockets accept, and nothing answers. `Signal::Continue` lets it go on.
    pub(crate) fn signal(&mut self, part: Part, signal: Signal) -> Result<()> {
        self.part(part).signal(signal)
    }

    /// Starts a program again, with the same data and address, and waits until it is ready.
    pub(crate) async fn restart(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Etcd => {
                self.kubernetes.etcd.start()?;
                self.kubernetes.ready().await
            }
            Part::ApiServer => {
                self.kubernetes.api_server.start()?;
                self.kubernetes.ready().await
            }
            Part::KubeControllerManager => self.kubernetes.controller_manager.start(),
            Part::SpireServer => self.spire.start_server().await,
            Part::SpireAgent => self.spire.start_agent().await,
            Part::SpireControllerManager => self.spire.start_controller_manager().await,
        }
    }

    /// Starts SPIRE again with other times, on the same data; nothing is done if they are the same.
    pub(crate) async fn set(&mut self, options: &Options) -> Result<()> {
        if self.options == *options {
            return Ok(());
        }
        if self.options.spire.upstream != options.spire.upstream {
            bail!("an upstream authority is not changed on the same data");
        }
        for part in [Part::SpireControllerManager, Part::SpireAgent, Part::SpireServer] {
            self.stop(part).await?;
        }
        self.spire.set(&options.spire)?;
        for part in [Part::SpireServer, Part::SpireAgent, Part::SpireControllerManager] {
            self.restart(part).await?;
        }
        self.options = options.clone();
        Ok(())
    }

    /// What a program has written.
    pub(crate) fn log(&mut self, part: Part) -> String {
        self.part(part).log()
    }

    /// Brings the domain back to how it stood at first, for the next scenario: none of our objects, Leases, Secrets and Events, of
    /// Istio's objects, and of SPIRE's but the agent's registration; no relationship, no foreign bundle. What SPIRE has rotated stays so; nothing stays prepared. Agents must have been ended before:
    /// finalizers are taken off by force.
    pub(crate) async fn reset(&self) -> Result<()> {
        for (api_version, kind) in OBJECTS {
            self.delete_all(api_version, kind, None).await?;
        }
        for (api_version, kind) in OWN {
            let api = self.kubernetes.api(api_version, kind, Some(AGENT_NAMESPACE)).await?;
            api.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        }
        for namespace in ["default", AGENT_NAMESPACE, "shop"] {
            let events = self.kubernetes.api("events.k8s.io/v1", "Event", Some(namespace)).await?;
            events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        }
        self.delete_all(STATIC_ENTRY.0, STATIC_ENTRY.1, Some(AGENT_REGISTRATION)).await?;
        let entries = self.kubernetes.api(STATIC_ENTRY.0, STATIC_ENTRY.1, None).await?;
        let bare = json!({"metadata": {"annotations": null}, "spec": {"federatesWith": null}});
        entries.patch(AGENT_REGISTRATION, &PatchParams::default(), &Patch::Merge(bare)).await?;
        eventually("SPIRE has no relationship, and no entry federates", RESET_DEADLINE, || async {
            let relationships = self.spire.relationships().await?;
            let entries = self.spire.entries().await?;
            if relationships.is_empty() && entries.values().all(|entry| entry.federates_with.is_empty()) {
                return Ok(());
            }
            bail!("relationships {:?}, entries {:?}", relationships.keys(), entries.keys())
        })
        .await?;
        let trust_domains = self.spire.federated_bundles().await?.into_keys().collect();
        let request = BatchDeleteFederatedBundleRequest { trust_domains, mode: Mode::Dissociate.into() };
        BundleClient::new(self.spire.api()).batch_delete_federated_bundle(request).await?;
        // A rotation would take it as it is, and nobody would be waited for: peers are told of it from the start.
        self.spire.activate_what_is_prepared().await
    }

    async fn delete_all(&self, api_version: &str, kind: &str, except: Option<&str>) -> Result<()> {
        let Ok(all) = self.kubernetes.api(api_version, kind, None).await else {
            return Ok(()); // a kind that no CRD has is a kind without objects
        };
        for object in all.list(&ListParams::default()).await? {
            let name = object.metadata.name.unwrap_or_default();
            if Some(name.as_str()) == except {
                continue;
            }
            let api = self.kubernetes.api(api_version, kind, object.metadata.namespace.as_deref()).await?;
            if !object.metadata.finalizers.unwrap_or_default().is_empty() {
                let free = json!({"metadata": {"finalizers": null}});
                let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(free)).await;
            }
            match api.delete(&name, &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
        }
        Ok(())
    }
}

async fn start_spire(spire: &mut Spire) -> Result<()> {
    spire.start_server().await?;
    spire.start_agent().await
}

/// The control plane with every CRD, the agent's namespace, and only then garbage collection.
async fn start_cluster(name: &str, dir: &Path) -> Result<Kubernetes> {
    seed::sow(dir, AGENT_NAMESPACE).await?;
    let mut kubernetes = Kubernetes::start(name, dir).await?;
    crds::served(&kubernetes).await?;
    kubernetes.controller_manager.start()?;
    Ok(kubernetes)
}

/// A path of our program that no other domain has: a hard link, or a copy where the folder is on another disk.
fn link_program(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("entente");
    let program = env!("CARGO_BIN_EXE_entente");
    if std::fs::hard_link(program, &path).is_err() {
        std::fs::copy(program, &path).with_context(|| format!("copying {program} to {}", path.display()))?;
    }
    Ok(path)
}

/// The user that the tests, and so all programs, run as.
fn own_uid() -> Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

/// The TrustDomainPeer for `there`: its real bundle endpoint and bundle, its agent, every import admitted, and the
/// registrations labelled `federate: "true"` selected.
pub(crate) async fn peer(there: &Domain) -> Result<Value> {
    Ok(json!({
        "apiVersion": "entente.dev/v1alpha1",
        "kind": "TrustDomainPeer",
        "metadata": {"name": there.trust_domain().to_string()},
        "spec": {
            "trustDomain": there.trust_domain().to_string(),
            "bundleEndpoint": {
                "url": there.bundle_endpoint_url(),
                "profile": {"type": "https_spiffe", "endpointSPIFFEID": there.spire.bundle_endpoint_id()},
            },
            "bootstrapBundle": {"inline": there.spire.bundle_document().await?},
            "agent": {"addresses": [there.agent_address().to_string()], "spiffeIDs": [there.agent_id()]},
            "federatesWith": {"selector": {"matchLabels": {FEDERATE: "true"}}},
            "imports": {"services": [{"namespace": "*", "name": "*"}]},
        },
    }))
}

/// Waits until a condition of an object of ours is True.
pub(crate) async fn says(
    domain: &Domain,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    condition: &str,
) -> Result<()> {
    let what = format!("{kind} {name} of {} says {condition}", domain.trust_domain());
    eventually(&what, SOON, || async {
        let object = found(domain, "entente.dev/v1alpha1", kind, namespace, name).await?;
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        let is = |one: &Value| one["type"] == condition && one["status"] == "True";
        if conditions.into_iter().flatten().any(is) {
            return Ok(());
        }
        bail!("status {}", object.data["status"])
    })
    .await
}

/// An object that must be there.
pub(crate) async fn found(
    domain: &Domain,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<DynamicObject> {
    let object = domain.kubernetes.api(api_version, kind, namespace).await?.get_opt(name).await?;
    object.with_context(|| format!("{} has no {kind} {name}", domain.trust_domain()))
}
