//! One Kubernetes control plane as plain processes: etcd, kube-apiserver with RBAC, kube-controller-manager with
//! garbage collection. There is no scheduler and no node: nothing runs in pods.

use crate::ports;
use crate::process::{Process, Spec};
use crate::tools::Tools;
use crate::wait::eventually;
use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::Scope;
use kube::{Client, Config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The name under which tests apply objects.
pub(crate) const FIELD_MANAGER: &str = "cluster-test";
/// The tests themselves.
const ADMIN: &str = "admin";
/// Our agent: a user of its own, so that the audit log tells its writes from all others.
pub(crate) const AGENT_USER: &str = "entente";
/// spire-controller-manager.
pub(crate) const SPIRE_USER: &str = "spire-controller-manager";
/// kube-controller-manager, with its garbage collector.
pub(crate) const CONTROLLERS_USER: &str = "kube-controller-manager";
/// Everyone may do everything; who is to be held to RBAC uses a service account. The API server listens on 127.0.0.1
/// alone, and a user's bearer token is the user's name with this at its end.
const TOKEN_END: &str = "-of-the-test-cluster";
/// Every write, by whom and to what, without its content.
/// What the ServiceAccounts of the agent's namespace read is there as well.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts:entente-system']}
- {level: None, verbs: [get, list, watch]}
- {level: Metadata}
";
/// Where etcd has its data, in the folder of a control plane.
pub(crate) const ETCD_DATA: &str = "etcd";
/// What stands after seconds may take minutes where the machine does much else.
const READY_DEADLINE: Duration = Duration::from_secs(180);
/// No node, no scheduler: these are the controllers whose work tests see.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
    clusterrole-aggregation-controller";

/// What nobody here reads again and again: a cache of each would have the API server look at the clock every second.
const UNREAD: [&str; 35] = [
    "certificatesigningrequests.certificates.k8s.io",
    "controllerrevisions.apps",
    "cronjobs.batch",
    "csidrivers.storage.k8s.io",
    "csinodes.storage.k8s.io",
    "csistoragecapacities.storage.k8s.io",
    "deviceclasses.resource.k8s.io",
    "endpoints",
    "flowschemas.flowcontrol.apiserver.k8s.io",
    "horizontalpodautoscalers.autoscaling",
    "ingressclasses.networking.k8s.io",
    "ingresses.networking.k8s.io",
    "ipaddresses.networking.k8s.io",
    "jobs.batch",
    "limitranges",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "podtemplates",
    "priorityclasses.scheduling.k8s.io",
    "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
    "replicationcontrollers",
    "resourceclaims.resource.k8s.io",
    "resourceclaimtemplates.resource.k8s.io",
    "resourcequotas",
    "resourceslices.resource.k8s.io",
    "runtimeclasses.node.k8s.io",
    "servicecidrs.networking.k8s.io",
    "storageclasses.storage.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "volumeattachments.storage.k8s.io",
    "volumeattributesclasses.storage.k8s.io",
];

/// The processes of a control plane and how to reach it. Dropped, it is gone.
pub(crate) struct Kubernetes {
    pub(crate) etcd: Process,
    pub(crate) api_server: Process,
    pub(crate) controller_manager: Process,
    /// As administrator.
    pub(crate) client: Client,
    address: SocketAddr,
    dir: PathBuf,
    /// By API version and kind.
    kinds: Mutex<BTreeMap<(String, String), (ApiResource, Scope)>>,
}

impl Kubernetes {
    /// Starts etcd and the API server in `dir`, on the data in its folder `ETCD_DATA` if it has one (see `seed.rs`); returns
    /// once the API server is ready.
    /// The controller manager is left to be started once the CRDs are there: garbage collection looks for new kinds
    /// only every 30 seconds.
    pub(crate) async fn start(name: &str, dir: &Path) -> Result<Self> {
        let tools = Tools::get()?;
        let (etcd_address, peer_address, address) = (ports::free()?, ports::free()?, ports::free()?);
        write_credentials(dir)?;
        for user in [ADMIN, AGENT_USER, SPIRE_USER, CONTROLLERS_USER] {
            write_kubeconfig(dir, address, &format!("{user}{TOKEN_END}"), &kubeconfig_of(dir, user))?;
        }
        let spec = |program: &str, args: Vec<String>| -> Result<Process> {
            Ok(Process::new(Spec {
                name: format!("{program} of {name}"),
                program: tools.program(program)?,
                args: args.into_iter().map(OsString::from).collect(),
                env: vec![("HOME".to_owned(), dir.display().to_string())],
                dir: dir.to_owned(),
                log: dir.join(format!("{program}.log")),
            }))
        };
        let mut kubernetes = Self {
            etcd: spec("etcd", etcd_args(dir, etcd_address, peer_address))?,
            api_server: spec("kube-apiserver", api_server_args(dir, etcd_address, address))?,
            controller_manager: spec("kube-controller-manager", controller_manager_args(dir))?,
            client: client_of(&kubeconfig_of(dir, ADMIN)).await?,
            address,
            dir: dir.to_owned(),
            kinds: Mutex::default(),
        };
        kubernetes.etcd.start()?;
        kubernetes.api_server.start()?;
        kubernetes.ready().await?;
        Ok(kubernetes)
    }

    /// Waits until the API server says that it is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        let look = || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            self.client.request_text(request).await.context("GET /readyz")?;
            Ok(())
        };
        let what = format!("{} is ready", self.api_server.name());
        eventually(&what, READY_DEADLINE, look).await.with_context(|| self.api_server.log_tail())
    }

    /// Makes the namespace if it is not there.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let params = PatchParams::apply(FIELD_MANAGER);
        Api::<Namespace>::all(self.client.clone()).patch(name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    /// Applies every object of a YAML text with several documents, as server-side apply, refusing fields that the
    /// schemas do not know. Namespaced objects without a namespace go to `default`.
    pub(crate) async fn apply_yaml(&self, text: &str) -> Result<Vec<DynamicObject>> {
        let mut applied = Vec::new();
        for document in documents(text)? {
            applied.push(self.apply(&document).await?);
        }
        Ok(applied)
    }

    /// Applies one object; see [`Self::apply_yaml`].
    pub(crate) async fn apply(&self, object: &Value) -> Result<DynamicObject> {
        let (api, name) = self.api_of(object).await?;
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply(FIELD_MANAGER).force()
        };
        api.patch(&name, &params, &Patch::Apply(object))
            .await
            .with_context(|| format!("applying {name}: {object}"))
    }

    /// What the API server would say to an apply of this object; nothing is written.
    pub(crate) async fn dry_run(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api_of(object).await?;
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            dry_run: true,
            ..PatchParams::apply(FIELD_MANAGER).force()
        };
        api.patch(&name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    /// The API of any kind, e.g. `("networking.istio.io/v1", "ServiceEntry", Some("shop"))`. Without a namespace:
    /// cluster-scoped objects, or those of all namespaces.
    pub(crate) async fn api(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Result<Api<DynamicObject>> {
        let (resource, _) = self.kind(api_version, kind).await?;
        Ok(match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// The API of an object, and its name.
    pub(crate) async fn api_of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let name = text("/metadata/name").context("an object without metadata.name")?;
        let (api_version, kind) =
            (text("/apiVersion").context("no apiVersion")?, text("/kind").context("no kind")?);
        let (resource, scope) = self.kind(api_version, kind).await?;
        let api = match (scope, text("/metadata/namespace")) {
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), &resource),
            (Scope::Namespaced, namespace) => {
                Api::namespaced_with(self.client.clone(), namespace.unwrap_or("default"), &resource)
            }
        };
        Ok((api, name.to_owned()))
    }

    /// A kind that the API server has. It is asked once: tests look at objects again and again, and a kind stays.
    async fn kind(&self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope)> {
        let name = (api_version.to_owned(), kind.to_owned());
        let known = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let (resource, capabilities) =
            kube::discovery::pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, kind))
                .await
                .with_context(|| format!("the API server has no {kind} of {api_version}"))?;
        let found = (resource, capabilities.scope);
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(name, found.clone());
        Ok(found)
    }

    /// Where the API server listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The kubeconfig of our agent, which may do everything: see [`Self::service_account_kubeconfig`] for one that is
    /// held to RBAC.
    pub(crate) fn agent_kubeconfig(&self) -> PathBuf {
        kubeconfig_of(&self.dir, AGENT_USER)
    }

    /// The kubeconfig of an administrator.
    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        kubeconfig_of(&self.dir, ADMIN)
    }

    /// Every write that a user (`AGENT_USER`, or `system:serviceaccount:NAMESPACE:NAME`) has asked for since the API
    /// server first started, in order, and whether or not it changed or was allowed anything.
    pub(crate) fn writes_of(&self, user: &str) -> Result<Vec<Write>> {
        let is_write = |write: &Write| !matches!(write.verb.as_str(), "get" | "list" | "watch");
        Ok(self.requests_of(user)?.into_iter().filter(is_write).collect())
    }

    /// Every request of a service account of the agent's namespace, and of others their writes; a watch that has ended
    /// is there twice.
    pub(crate) fn requests_of(&self, user: &str) -> Result<Vec<Request>> {
        let log = std::fs::read_to_string(self.dir.join("audit.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let of_user = |event: &&Value| event.pointer("/user/username").and_then(Value::as_str) == Some(user);
        Ok(events.iter().filter(of_user).map(Request::of).collect())
    }

    /// The UID and the resourceVersion of every object of these kinds, by `Kind namespace/name`: equal before and
    /// after means that nothing was written, nor deleted and made again.
    pub(crate) async fn versions(
        &self,
        kinds: &[(&str, &str)],
    ) -> Result<BTreeMap<String, (String, String)>> {
        let mut versions = BTreeMap::new();
        for (api_version, kind) in kinds {
            for object in self.api(api_version, kind, None).await?.list(&ListParams::default()).await? {
                let metadata = object.metadata;
                let place = metadata.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
                let name = format!("{kind} {place}{}", metadata.name.unwrap_or_default());
                let version =
                    (metadata.uid.unwrap_or_default(), metadata.resource_version.unwrap_or_default());
                versions.insert(name, version);
            }
        }
        Ok(versions)
    }

    /// A kubeconfig that is the service account, with whatever RBAC grants it. The account is made if need be.
    pub(crate) async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.namespace(namespace).await?;
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        accounts.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(object)).await?;
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(7200), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let response = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        let token = response.status.context("the API server gave no token")?.token;
        let path = self.dir.join(format!("{namespace}-{name}.kubeconfig"));
        write_kubeconfig(&self.dir, self.address, &token, &path)?;
        Ok(path)
    }
}

/// One request, as the audit log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// `create`, `update`, `patch`, `delete`, `deletecollection`; `get`, `list`, `watch`.
    pub(crate) verb: String,
    /// The API group; empty for the core group.
    pub(crate) group: String,
    /// Plural, with the subresource if there is one: `serviceentries`, `trustdomainpeers/status`, `leases`.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The HTTP status of the answer; 0 if none was recorded.
    pub(crate) code: u64,
}

/// A request that writes.
pub(crate) type Write = Request;

impl Request {
    fn of(event: &Value) -> Self {
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let subresource = text("/objectRef/subresource");
        let slash = if subresource.is_empty() { "" } else { "/" };
        Self {
            verb: text("/verb"),
            group: text("/objectRef/apiGroup"),
            resource: format!("{}{slash}{subresource}", text("/objectRef/resource")),
            namespace: text("/objectRef/namespace"),
            name: text("/objectRef/name"),
            code: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
        }
    }
}

/// The kubeconfig of one of the users that the API server knows.
pub(crate) fn kubeconfig_of(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}.kubeconfig"))
}

/// The documents of a YAML text that are not empty.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("YAML that does not parse")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// A client with the rights of a kubeconfig.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The certificates and keys of the API server, and the users it knows.
fn write_credentials(dir: &Path) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test cluster");
    std::fs::write(dir.join("ca.crt"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    std::fs::write(dir.join("server.crt"), server.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(dir.join("server.key"), key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    std::fs::write(dir.join("accounts.key"), accounts.serialize_pem())?;
    std::fs::write(dir.join("accounts.pub"), accounts.public_key_pem())?;
    let users = [ADMIN, AGENT_USER, SPIRE_USER, CONTROLLERS_USER];
    let tokens = users.map(|user| format!("{user}{TOKEN_END},{user},{user},system:masters\n"));
    std::fs::write(dir.join("tokens.csv"), tokens.concat())?;
    std::fs::write(dir.join("audit-policy.yaml"), AUDIT_POLICY)?;
    Ok(())
}

fn write_kubeconfig(dir: &Path, address: SocketAddr, token: &str, path: &Path) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority": dir.join("ca.crt"),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    std::fs::write(path, serde_json::to_vec_pretty(&config)?)?;
    Ok(())
}

fn etcd_args(dir: &Path, client: SocketAddr, peer: SocketAddr) -> Vec<String> {
    let data = dir.join(ETCD_DATA);
    vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=default=http://{peer}"),
        // The data need not survive the machine.
        "--unsafe-no-fsync=true".to_owned(),
        "--log-level=warn".to_owned(),
        // One member has nobody to tell that it is there.
        "--heartbeat-interval=500".to_owned(),
        "--election-timeout=5000".to_owned(),
    ]
}

fn api_server_args(dir: &Path, etcd: SocketAddr, address: SocketAddr) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://{etcd}"),
        format!("--bind-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        "--advertise-address=127.0.0.1".to_owned(),
        // There is no service network: nobody reads the endpoints of `kubernetes.default`.
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--audit-policy-file={}", file("audit-policy.yaml")),
        format!("--audit-log-path={}", file("audit.log")),
        "--authorization-mode=RBAC".to_owned(),
        // As installed clusters have it: node agents such as SPIFFE's CSI driver are.
        "--allow-privileged=true".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        // Pods are written by tests, without the tokens that a kubelet would mount.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--enable-priority-and-fairness=false".to_owned(),
        "--profiling=false".to_owned(),
        format!("--watch-cache-sizes={}", UNREAD.map(|resource| format!("{resource}#0")).join(",")),
    ]
}

fn controller_manager_args(dir: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig_of(dir, CONTROLLERS_USER).display()),
        format!("--controllers={CONTROLLERS}"),
        format!("--service-account-private-key-file={}", dir.join("accounts.key").display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--concurrent-gc-syncs=4".to_owned(),
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
    ]
}
