//! Real SPIRE of one trust domain: spire-server, spire-agent and spire-controller-manager as plain processes, and the
//! calls by which tests see what SPIRE holds.

use crate::ports;
use crate::process::{Process, Spec};
use crate::template;
use crate::tools::Tools;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::bundle::v1::{
    BatchSetFederatedBundleRequest, GetBundleRequest, ListFederatedBundlesRequest,
};
use entente::proto::spire::server::entry::v1::ListEntriesRequest;
use entente::proto::spire::server::entry::v1::entry_client::EntryClient;
use entente::proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use entente::proto::spire::server::localauthority::v1::{
    ActivateX509AuthorityRequest, GetX509AuthorityStateRequest, PrepareX509AuthorityRequest,
};
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use entente::proto::spire::server::trustdomain::v1::{
    ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use entente::proto::spire::types::{Bundle, Entry, FederationRelationship};
use entente::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use entente::proto::workload::{X509svidRequest, X509svidResponse};
use hyper_util::rt::TokioIo;
use spiffe::TrustDomain;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

const READY_DEADLINE: Duration = Duration::from_secs(180);
/// Not shorter, however short workloads' SVIDs are: a join token is good once, so an agent whose own SVID ran out while
/// it was stopped could not come back.
const AGENT_TTL: Duration = Duration::from_secs(3600);

/// How SPIRE is set. The defaults are short, so that tests see in seconds what takes hours elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpireOptions {
    /// Lifetime of an X.509 authority; the next one is prepared at half of it, activated at a sixth before its end.
    pub(crate) ca_ttl: Duration,
    /// Lifetime of an X509-SVID; SPIRE renews at half of it, and cuts it to what the authority has left.
    pub(crate) svid_ttl: Duration,
    /// What our bundle endpoint tells pollers; SPIRE polls at a quarter of it, at 15 s at least.
    pub(crate) refresh_hint: Duration,
    /// How soon entries reach the agent.
    pub(crate) sync_interval: Duration,
    /// How often spire-controller-manager compares SPIRE with the objects.
    pub(crate) gc_interval: Duration,
    /// Of the objects that spire-controller-manager follows, beside those without one.
    pub(crate) class_name: &'static str,
    /// What signs the server's authorities.
    pub(crate) upstream: Upstream,
}

/// An upstream authority of a SPIRE server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// The server's authorities sign themselves.
    #[default]
    None,
    /// A root on disk.
    Disk,
    /// An Issuer of cert-manager in the domain's cluster: `cert_manager.rs`.
    CertManager,
}

impl Default for SpireOptions {
    fn default() -> Self {
        Self {
            ca_ttl: Duration::from_secs(6 * 3600),
            svid_ttl: Duration::from_secs(3600),
            refresh_hint: Duration::from_secs(60),
            sync_interval: Duration::from_secs(1),
            gc_interval: Duration::from_secs(5),
            class_name: "",
            upstream: Upstream::None,
        }
    }
}

/// The processes of a SPIRE deployment. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Spire {
    pub(crate) server: Process,
    pub(crate) agent: Process,
    pub(crate) controller_manager: Process,
    trust_domain: TrustDomain,
    server_socket: PathBuf,
    agent_socket: PathBuf,
    server_address: SocketAddr,
    bundle_endpoint: SocketAddr,
    server_data: PathBuf,
    agent_data: PathBuf,
    health: SocketAddr,
    dir: PathBuf,
    kubeconfig: PathBuf,
    server_api: OnceLock<Channel>,
    /// What [`Self::bundle_document`] returned last, and the bundle that it is of.
    document: Mutex<Option<(Bundle, String)>>,
}

/// A second server of a trust domain, with authorities of its own. Killed when dropped.
#[derive(Debug)]
pub(crate) struct SecondServer {
    pub(crate) process: Process,
    pub(crate) socket: PathBuf,
}

impl Spire {
    /// Writes the configuration of all three into `dir`, from the templates in `spire/`; starts nothing.
    pub(crate) fn prepare(
        trust_domain: &TrustDomain,
        dir: &Path,
        kubeconfig: &Path,
        options: &SpireOptions,
    ) -> Result<Self> {
        let tools = Tools::get()?;
        let (server_data, agent_data) = (dir.join("server"), dir.join("agent"));
        std::fs::create_dir_all(&server_data)?;
        std::fs::create_dir_all(&agent_data)?;
        let process = |program: &str, args: [OsString; 3], env: Vec<(String, String)>| -> Result<Process> {
            Ok(Process::new(Spec {
                name: format!("{program} of {trust_domain}"),
                program: tools.program(program)?,
                args: args.into_iter().filter(|argument| !argument.is_empty()).collect(),
                env: [env, vec![("HOME".to_owned(), dir.display().to_string())]].concat(),
                dir: dir.to_owned(),
                log: dir.join(format!("{program}.log")),
            }))
        };
        let config = |name: &str| dir.join(name).into_os_string();
        let controller_env = vec![
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
            ("ENABLE_WEBHOOKS".to_owned(), "false".to_owned()),
        ];
        let spire = Self {
            server: process("spire-server", ["run".into(), "-config".into(), config("server.conf")], vec![])?,
            agent: process("spire-agent", ["run".into(), "-config".into(), config("agent.conf")], vec![])?,
            controller_manager: process(
                "spire-controller-manager",
                ["-config".into(), config("controller-manager.yaml"), OsString::new()],
                controller_env,
            )?,
            trust_domain: trust_domain.clone(),
            server_socket: dir.join("server.sock"),
            agent_socket: dir.join("agent.sock"),
            server_address: ports::free()?,
            bundle_endpoint: ports::free()?,
            server_data,
            agent_data,
            health: ports::free()?,
            dir: dir.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            server_api: OnceLock::new(),
            document: Mutex::default(),
        };
        spire.set(options)?;
        Ok(spire)
    }

    /// Writes the configuration, for the next start.
    pub(crate) fn set(&self, options: &SpireOptions) -> Result<()> {
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        let text = |path: &Path| path.display().to_string();
        let trust_domain = self.trust_domain.to_string();
        let server_port = self.server_address.port().to_string();
        let server = template::fill(
            "server.conf.tmpl",
            &[
                ("TRUST_DOMAIN", &trust_domain),
                ("SERVER_PORT", &server_port),
                ("SERVER_SOCKET", &text(&self.server_socket)),
                ("DATA_DIR", &text(&self.server_data)),
                ("LOG_LEVEL", "INFO"),
                ("CA_TTL", &seconds(options.ca_ttl)),
                ("X509_SVID_TTL", &seconds(options.svid_ttl)),
                ("AGENT_TTL", &seconds(options.svid_ttl.max(AGENT_TTL))),
                ("SYNC_INTERVAL", &seconds(options.sync_interval)),
                ("BUNDLE_ENDPOINT_PORT", &self.bundle_endpoint.port().to_string()),
                ("REFRESH_HINT", &seconds(options.refresh_hint)),
            ],
        )?;
        let agent = template::fill(
            "agent.conf.tmpl",
            &[
                ("TRUST_DOMAIN", &trust_domain),
                ("SERVER_PORT", &server_port),
                ("AGENT_SOCKET", &text(&self.agent_socket)),
                ("DATA_DIR", &text(&self.agent_data)),
                ("LOG_LEVEL", "DEBUG"),
                ("SYNC_INTERVAL", &seconds(options.sync_interval)),
            ],
        )?;
        let controller_manager = template::fill(
            "controller-manager.yaml.tmpl",
            &[
                ("CLUSTER_NAME", &trust_domain.replace('.', "-")),
                ("TRUST_DOMAIN", &trust_domain),
                ("SERVER_SOCKET", &text(&self.server_socket)),
                ("CLASS_NAME", options.class_name),
                ("GC_INTERVAL_NS", &options.gc_interval.as_nanos().to_string()),
                ("HEALTH_PORT", &self.health.port().to_string()),
            ],
        )?;
        let server = match options.upstream {
            Upstream::None => server,
            Upstream::Disk => self.below_a_root(&server)?,
            Upstream::CertManager => self.below_cert_manager(&server)?,
        };
        std::fs::write(self.dir.join("server.conf"), server)?;
        std::fs::write(self.dir.join("agent.conf"), agent)?;
        std::fs::write(self.dir.join("controller-manager.yaml"), controller_manager)?;
        Ok(())
    }

    /// Makes a root, and the configuration of a server whose authorities it signs.
    fn below_a_root(&self, config: &str) -> Result<String> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let (certificate, key_file) = (self.server_data.join("root.pem"), self.server_data.join("root.key"));
        std::fs::write(&certificate, params.self_signed(&key)?.pem())?;
        std::fs::write(&key_file, key.serialize_pem())?;
        let plugin = format!(
            "plugins {{\n    UpstreamAuthority \"disk\" {{\n        plugin_data {{\n            cert_file_path = {:?}\n            \
             key_file_path = {:?}\n        }}\n    }}\n",
            certificate.display().to_string(),
            key_file.display().to_string()
        );
        with_plugin(config, &plugin)
    }

    fn below_cert_manager(&self, config: &str) -> Result<String> {
        let plugin = template::fill(
            "upstream-cert-manager.conf.tmpl",
            &[
                ("NAMESPACE", crate::cert_manager::NAMESPACE),
                ("ISSUER", crate::cert_manager::ISSUER),
                ("KUBECONFIG", &self.kubeconfig.display().to_string()),
            ],
        )?;
        with_plugin(config, &format!("plugins {{\n{plugin}"))
    }

    /// Starts the server; returns once its API answers.
    pub(crate) async fn start_server(&mut self) -> Result<()> {
        self.server.start()?;
        let what = format!("the API of {} answers", self.server.name());
        eventually(&what, READY_DEADLINE, || self.own_bundle())
            .await
            .with_context(|| self.server.log_tail())?;
        Ok(())
    }

    /// Starts the agent, which attests with a new join token the first time and keeps its identity after; returns
    /// once its Workload API is there.
    pub(crate) async fn start_agent(&mut self) -> Result<()> {
        let token_file = self.agent_data.join("join_token");
        if !token_file.exists() {
            let node = format!("spiffe://{}/node", self.trust_domain);
            let output = self.cli(&["token", "generate", "-spiffeID", &node]).await?;
            let token =
                output.trim().strip_prefix("Token: ").with_context(|| format!("no token in {output:?}"))?;
            std::fs::write(&token_file, token)?;
            std::fs::write(self.agent_data.join("bootstrap.pem"), self.cli(&["bundle", "show"]).await?)?;
        }
        // A killed agent leaves its socket behind.
        let _ = std::fs::remove_file(&self.agent_socket);
        self.agent.start()?;
        let what = format!("the Workload API of {} is there", self.agent.name());
        let look = || async { Ok(UnixStream::connect(&self.agent_socket).await?) };
        eventually(&what, READY_DEADLINE, look).await.with_context(|| self.agent.log_tail())?;
        Ok(())
    }

    /// Starts spire-controller-manager, whose CRDs must be there; returns once it says that it is ready.
    pub(crate) async fn start_controller_manager(&mut self) -> Result<()> {
        self.controller_manager.start()?;
        let what = format!("{} is ready", self.controller_manager.name());
        let look = || async {
            match crate::http::get(self.health, "/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/readyz: {status}: {body}"),
            }
        };
        eventually(&what, READY_DEADLINE, look).await.with_context(|| self.controller_manager.log_tail())
    }

    /// Starts a second server of this trust domain, on the datastore of the first, with keys and a configuration of its own
    /// in `dir`; returns once its API answers.
    pub(crate) async fn start_second_server(&self, dir: &Path) -> Result<SecondServer> {
        let first_dir = self.server_data.parent().context("the server has no folder")?;
        let data = dir.join("server2");
        std::fs::create_dir_all(&data)?;
        let socket = dir.join("server2.sock");
        let text = |path: &Path| path.display().to_string();
        let changes = [
            (
                format!("data_dir = \"{}\"", text(&self.server_data)),
                format!("data_dir = \"{}\"", text(&data)),
            ),
            (format!("{}/keys.json", text(&self.server_data)), format!("{}/keys.json", text(&data))),
            (text(&self.server_socket), text(&socket)),
            (self.server_address.port().to_string(), ports::free()?.port().to_string()),
            (self.bundle_endpoint.port().to_string(), ports::free()?.port().to_string()),
        ];
        let mut config = std::fs::read_to_string(first_dir.join("server.conf"))?;
        for (from, to) in changes {
            config.contains(&from).then_some(()).with_context(|| format!("server.conf has no {from}"))?;
            config = config.replace(&from, &to);
        }
        let file = dir.join("server2.conf");
        std::fs::write(&file, config)?;
        let mut process = Process::new(Spec {
            name: format!("the second spire-server of {}", self.trust_domain),
            program: Tools::get()?.program("spire-server")?,
            args: vec!["run".into(), "-config".into(), file.into()],
            env: vec![("HOME".to_owned(), text(dir))],
            dir: dir.to_owned(),
            log: dir.join("spire-server2.log"),
        });
        process.start()?;
        let look = || async {
            let request = GetX509AuthorityStateRequest {};
            let channel = unix_channel(&socket);
            LocalAuthorityClient::new(channel).get_x509_authority_state(request).await?;
            Ok(())
        };
        eventually("the second server answers", READY_DEADLINE, look)
            .await
            .with_context(|| process.log_tail())?;
        Ok(SecondServer { process, socket })
    }

    /// Where the SPIRE Server API is.
    pub(crate) fn server_socket(&self) -> &Path {
        &self.server_socket
    }

    /// Where the SPIRE Server API is over TCP, for SPIRE's agents and for who has an admin SVID.
    pub(crate) const fn server_address(&self) -> SocketAddr {
        self.server_address
    }

    /// Where the Workload API is.
    pub(crate) fn agent_socket(&self) -> &Path {
        &self.agent_socket
    }

    /// Where the bundle endpoint listens; a relay in front of it has another address.
    pub(crate) const fn bundle_endpoint(&self) -> SocketAddr {
        self.bundle_endpoint
    }

    /// The identity that the bundle endpoint presents.
    pub(crate) fn bundle_endpoint_id(&self) -> String {
        format!("spiffe://{}/spire/server", self.trust_domain)
    }

    /// Runs `spire-server` as an operator would, with the socket after the command; its standard output.
    pub(crate) async fn cli(&self, args: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(Tools::get()?.program("spire-server")?)
            .args(args)
            .arg("-socketPath")
            .arg(&self.server_socket)
            .output()
            .await?;
        if !output.status.success() {
            bail!("spire-server {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Our own bundle as a SPIFFE bundle document, as one would paste it at a peer.
    pub(crate) async fn bundle_document(&self) -> Result<String> {
        let own = self.own_bundle().await?;
        // The command takes a tenth of a second of a processor, and nearly every scenario asks.
        let known = self.document.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, document)) = known.filter(|(of, _)| *of == own) {
            return Ok(document);
        }
        let document = self.cli(&["bundle", "show", "-format", "spiffe"]).await?;
        *self.document.lock().unwrap_or_else(PoisonError::into_inner) = Some((own, document.clone()));
        Ok(document)
    }

    /// The connection to the SPIRE Server API, made anew when the server is.
    pub(crate) fn api(&self) -> Channel {
        self.server_api.get_or_init(|| unix_channel(&self.server_socket)).clone()
    }

    /// Our own bundle, as the SPIRE Server API has it.
    pub(crate) async fn own_bundle(&self) -> Result<Bundle> {
        Ok(BundleClient::new(self.api()).get_bundle(GetBundleRequest {}).await?.into_inner())
    }

    /// The bundles of other trust domains that SPIRE holds.
    pub(crate) async fn federated_bundles(&self) -> Result<BTreeMap<String, Bundle>> {
        let request = ListFederatedBundlesRequest::default();
        let response = BundleClient::new(self.api()).list_federated_bundles(request).await?;
        Ok(response
            .into_inner()
            .bundles
            .into_iter()
            .map(|bundle| (bundle.trust_domain.clone(), bundle))
            .collect())
    }

    /// The relationships that SPIRE has, by trust domain.
    pub(crate) async fn relationships(&self) -> Result<BTreeMap<String, FederationRelationship>> {
        let request = ListFederationRelationshipsRequest::default();
        let response = TrustDomainClient::new(self.api()).list_federation_relationships(request).await?;
        let list = response.into_inner().federation_relationships;
        Ok(list.into_iter().map(|relationship| (relationship.trust_domain.clone(), relationship)).collect())
    }

    /// The registration entries that SPIRE has, by SPIFFE ID.
    pub(crate) async fn entries(&self) -> Result<BTreeMap<String, Entry>> {
        let request = ListEntriesRequest::default();
        let response = EntryClient::new(self.api()).list_entries(request).await?.into_inner();
        Ok(response
            .entries
            .into_iter()
            .filter_map(|entry| {
                let id = entry.spiffe_id.as_ref()?;
                Some((format!("spiffe://{}{}", id.trust_domain, id.path), entry))
            })
            .collect())
    }

    /// Has SPIRE fetch the bundle of a related trust domain now, rather than at its next poll; returns when it did.
    pub(crate) async fn refresh(&self, trust_domain: &str) -> Result<()> {
        let request = RefreshBundleRequest { trust_domain: trust_domain.to_owned() };
        TrustDomainClient::new(self.api()).refresh_bundle(request).await?;
        Ok(())
    }

    /// Puts a bundle of another trust domain in place of the one that SPIRE holds.
    pub(crate) async fn set_federated_bundle(&self, bundle: Bundle) -> Result<()> {
        let request = BatchSetFederatedBundleRequest { bundle: vec![bundle] };
        let response = BundleClient::new(self.api()).batch_set_federated_bundle(request).await?.into_inner();
        match response.results.first().and_then(|result| result.status.as_ref()) {
            Some(status) if status.code == 0 => Ok(()),
            other => bail!("SPIRE did not take the bundle: {other:?}"),
        }
    }

    /// Prepares a new X.509 authority, which is published at once; its ID. See [`Self::activate_authority`].
    pub(crate) async fn prepare_authority(&self) -> Result<String> {
        let mut client = LocalAuthorityClient::new(self.api());
        let response = client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await?.into_inner();
        Ok(response.prepared_authority.context("SPIRE prepared no authority")?.authority_id)
    }

    /// Lets a prepared authority sign from now on. To taint and revoke the old one: `cli(&["localauthority", ..])`.
    pub(crate) async fn activate_authority(&self, authority_id: &str) -> Result<()> {
        let request = ActivateX509AuthorityRequest { authority_id: authority_id.to_owned() };
        LocalAuthorityClient::new(self.api()).activate_x509_authority(request).await?;
        Ok(())
    }

    /// Lets sign what is prepared, if anything is.
    pub(crate) async fn activate_what_is_prepared(&self) -> Result<()> {
        let mut client = LocalAuthorityClient::new(self.api());
        let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await?.into_inner();
        match state.prepared {
            Some(prepared) => self.activate_authority(&prepared.authority_id).await,
            None => Ok(()),
        }
    }

    /// What the Workload API gives the test process now. See `Domain::register_test_process`.
    pub(crate) async fn workload(&self) -> Result<X509svidResponse> {
        let channel = unix_channel(&self.agent_socket);
        let mut request = tonic::Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", "true".parse()?);
        let mut stream = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner();
        stream.message().await?.context("the Workload API ended the stream")
    }
}

/// The configuration of a server with one more plugin, before its others.
fn with_plugin(config: &str, plugin: &str) -> Result<String> {
    config.contains("plugins {\n").then_some(()).context("server.conf has no plugins")?;
    Ok(config.replacen("plugins {\n", plugin, 1))
}

/// A gRPC channel over a Unix socket, connected when it is first used, and again when it was cut.
pub(crate) fn unix_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}
