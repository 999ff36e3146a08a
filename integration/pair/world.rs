//! A pair of trust domains, as scenarios find it, and ways to wait for what it says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use entente::devkit::demo::manifests::{Export, federated_service};
use entente::devkit::demo::{
    Client, ClientConfig, Domain, DomainConfig, Names, Service, ServiceConfig, eventually,
};
use entente::model::TrustDomain;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const EAST: &str = "east.example";
pub(crate) const WEST: &str = "west.example";
pub(crate) const HOST: &str = "cart.shop.west.example";
pub(crate) const PORT: u16 = 8080;
pub(crate) const PEERS: &str = "trustdomainpeers";
pub(crate) const FRONTEND: &str = "spiffe://east.example/ns/web/sa/frontend";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";
const GATEWAY: &str = "gateway.west.example";
/// Within this both sides must name what is broken, and be well again once it is mended.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Two domains, a service in west, two callers in east; only the first of these is among the service's clients.
pub(crate) struct Pair {
    pub(crate) east: Domain,
    pub(crate) west: Domain,
    pub(crate) cart: Service,
    pub(crate) frontend: Client,
    pub(crate) batch: Client,
    _root: TempDir,
}

impl Pair {
    /// Both agents run, and know nothing of each other.
    pub(crate) async fn strangers() -> Self {
        Self::with(|_| {}).await
    }

    /// The same, with domains started otherwise.
    pub(crate) async fn with(tune: impl Fn(&mut DomainConfig)) -> Self {
        // RUST_LOG says what is seen of the agents; by default errors.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let root = tempfile::tempdir().unwrap();
        let domain = async |name: &str| {
            let mut config = DomainConfig::new(td(name), root.path());
            tune(&mut config);
            let mut domain = Domain::start(config).await.unwrap();
            domain.start_agent().await.unwrap();
            domain
        };
        let (east, west) = (domain(EAST).await, domain(WEST).await);
        let cart = Service::start(ServiceConfig {
            host: HOST.to_owned(),
            port: PORT,
            namespace: "shop".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "cart".to_owned())]),
            workload_socket: west.register("/ns/shop/sa/cart", "cart").unwrap(),
            generated: west.generated(),
        })
        .await
        .unwrap();
        let caller = |path: &str, name: &str| {
            Client::start(ClientConfig {
                workload_socket: east.register(path, name).unwrap(),
                generated: east.generated(),
                names: Names::default().with(GATEWAY, IpAddr::from([127, 0, 0, 1])),
            })
        };
        let frontend = caller("/ns/web/sa/frontend", "frontend");
        let batch = caller("/ns/web/sa/batch", "batch");
        Self { east, west, cart, frontend, batch, _root: root }
    }

    /// Both sides have a peer of the other, and said so.
    pub(crate) async fn peers() -> Self {
        let pair = Self::strangers().await;
        pair.introduce().await;
        pair
    }

    /// They are peers, and the service is exported, imported and called.
    pub(crate) async fn serving() -> Self {
        let pair = Self::peers().await;
        pair.serve().await;
        pair
    }

    /// Makes each a peer of the other, and waits until both say that it is mutual.
    pub(crate) async fn introduce(&self) {
        write_peer(&self.east, &self.west, |_| {});
        write_peer(&self.west, &self.east, |_| {});
        self.confirmed().await;
    }

    /// Exports the service, and waits until it answers.
    pub(crate) async fn serve(&self) {
        self.west.write("cart.yaml", &self.cart_manifest()).unwrap();
        self.answers().await;
    }

    pub(crate) fn cart_manifest(&self) -> Value {
        federated_service(&Export {
            namespace: "shop",
            name: "cart",
            port: PORT,
            exported_to: EAST,
            clients: &[FRONTEND],
            server_id: CART,
            gateway: GATEWAY,
            gateway_port: self.cart.address.port(),
        })
    }

    /// Waits until both sides say that the trust is mutual.
    pub(crate) async fn confirmed(&self) {
        says(&self.east, "Reciprocal", "True", "Confirmed").await;
        says(&self.west, "Reciprocal", "True", "Confirmed").await;
    }

    /// Waits until the call goes through.
    pub(crate) async fn answers(&self) {
        let called =
            eventually("the call goes through", SOON, async || Ok(self.frontend.call(HOST, PORT).await?));
        let answer = called.await.unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(
            (answer.client.to_string().as_str(), answer.server.to_string().as_str()),
            (FRONTEND, CART)
        );
    }

    /// Waits until the call fails; with what.
    pub(crate) async fn fails(&self) -> entente::devkit::demo::CallError {
        let called =
            eventually("the call fails", SOON, async || match self.frontend.call(HOST, PORT).await {
                Ok(answer) => anyhow::bail!("it was answered: {}", answer.body),
                Err(error) => Ok(error),
            });
        called.await.unwrap_or_else(|e| panic!("{e:#}"))
    }
}

pub(crate) fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

/// The name of the other side's TrustDomainPeer in a domain's directory.
fn other(domain: &Domain) -> &'static str {
    if domain.trust_domain().as_str() == EAST { WEST } else { EAST }
}

pub(crate) fn peer_file(of: &Domain) -> String {
    format!("{}.yaml", of.trust_domain())
}

/// Writes the TrustDomainPeer of `there` into `here`, edited.
pub(crate) fn write_peer(here: &Domain, there: &Domain, edit: impl FnOnce(&mut Value)) {
    let mut manifest = there.as_peer().unwrap();
    edit(&mut manifest["spec"]);
    here.write(&peer_file(there), &manifest).unwrap();
}

/// Waits until the TrustDomainPeer of the other side has this condition, with a message.
pub(crate) async fn says(domain: &Domain, kind: &str, status: &str, reason: &str) {
    let what = format!("{} says {kind}={status} {reason}", domain.trust_domain());
    let said = eventually(&what, SOON, async || {
        let [_, is, why, message] = domain.condition(PEERS, other(domain), kind)?;
        ensure!((is.as_str(), why.as_str()) == (status, reason), "{is} {why}: {message}");
        ensure!(!message.is_empty(), "it says nothing to its operator");
        Ok(())
    });
    if let Err(error) = said.await {
        panic!("{error:#}\n{:#?}", domain.conditions(PEERS, other(domain)));
    }
}

/// Waits until `look` succeeds.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    eventually(what, SOON, look).await.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Holds that `look` succeeds at every look for so long.
pub(crate) async fn always(what: &str, during: Duration, mut look: impl AsyncFnMut() -> anyhow::Result<()>) {
    let start = tokio::time::Instant::now();
    while start.elapsed() < during {
        look().await.with_context(|| format!("not so any more: {what}")).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every file below a folder, with content and time of change.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, (String, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path, (text, modified));
        }
    }
    found
}

/// Which of a domain's registrations federate with a trust domain.
pub(crate) async fn federating(domain: &Domain, with: &str) -> Vec<String> {
    let state = domain.spire_state().await.unwrap();
    state.federating_with(&td(with)).map(|entry| entry.spiffe_id.to_string()).collect()
}
