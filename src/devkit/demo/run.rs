//! The demo from beginning to end: each step is done, waited for, and told; one that is not seen to be so ends it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::manifests::{Export, federated_service};
use super::story::{Story, Told};
use super::{
    CallError, Client, ClientConfig, Domain, DomainConfig, LOOK, Names, Service, ServiceConfig, eventually,
};
use crate::model::TrustDomain;

pub(super) const PEERS: &str = "trustdomainpeers";
const SERVICES: &str = "federatedservices";
pub(super) const EAST: &str = "east.example";
pub(super) const WEST: &str = "west.example";
pub(super) const HOST: &str = "cart.shop.west.example";
pub(super) const PORT: u16 = 8080;
const GATEWAY: &str = "gateway.west.example";
const FRONTEND: &str = "/ns/web/sa/frontend";
const BATCH: &str = "/ns/web/sa/batch";
const CART: &str = "/ns/shop/sa/cart";
/// How long a step may take.
pub(super) const STEP: Duration = Duration::from_secs(30);

const NOTE: &str = "\
!! DEMO. The SPIFFE authorities here are embedded: keys are in memory, callers are not attested, anyone who can open
!! a socket is its administrator. They stand for SPIRE, on this machine, for this demo, and are NEVER FOR PRODUCTION.";

/// How the demo runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// End after the last step, with the end of the relationship as that; otherwise stay up.
    pub once: bool,
    /// Where its files go: empty, or not there yet. Absent: a folder of its own, which is removed at the end.
    pub dir: Option<PathBuf>,
}

/// Runs the demo, and tells it on `out`. `stop` ends it at any time, with no error.
///
/// # Errors
/// The step that was not seen to be so.
pub async fn run(
    options: &Options,
    out: &mut (dyn Write + Send),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let root = Root::make(options.dir.as_deref())?;
    let mut story = Story::new(out);
    let mut stage = Stage::set(&root.path, &mut story).await?;
    let played = tokio::select! {
        played = stage.play(options, &mut story) => played,
        () = stop.cancelled() => Ok(()),
    };
    stage.strike().await?;
    played?;
    if options.once {
        story.text(&format!("\nAll of it was seen to be so, in {:.1} s.", story.seconds()))?;
    }
    Ok(())
}

/// The folder of the demo.
struct Root {
    path: PathBuf,
    temporary: bool,
}

impl Root {
    fn make(given: Option<&Path>) -> anyhow::Result<Self> {
        let (path, temporary) = match given {
            Some(path) => (std::path::absolute(path)?, false),
            None => (std::env::temp_dir().join(format!("entente-{:08x}", rand::random::<u32>())), true),
        };
        std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let is_empty = std::fs::read_dir(&path)?.next().is_none();
        anyhow::ensure!(is_empty, "{} is not empty: give another folder", path.display());
        Ok(Self { path, temporary })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.temporary {
            // Left over, it harms nobody.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Everything that plays.
pub(super) struct Stage {
    pub(super) east: Domain,
    pub(super) west: Domain,
    cart: Service,
    pub(super) frontend: Client,
    batch: Client,
}

impl Stage {
    /// Starts the domains, the agents, the service and its callers, who have identities then and know nothing of each
    /// other.
    async fn set(root: &Path, story: &mut Story<'_>) -> anyhow::Result<Self> {
        story.text(NOTE)?;
        story.step("Two trust domains, each with its own authority and an agent")?;
        let mut east = Domain::start(DomainConfig::new(TrustDomain::new(EAST)?, root)).await?;
        let mut west = Domain::start(DomainConfig::new(TrustDomain::new(WEST)?, root)).await?;
        for domain in [&mut east, &mut west] {
            domain.start_agent().await?;
            let name = domain.trust_domain();
            let url = domain.spire().bundle_url.as_str();
            story.say(format!("{name}: bundle endpoint {url} (https_spiffe)"))?;
            story.say(format!("{name}: bundle fingerprint {}", domain.spire().bundle().digest()))?;
            story.say(format!(
                "{name}: agent {} for peers at {}, files in {}",
                domain.agent_id(),
                domain.agent_address(),
                domain.store().display()
            ))?;
            if let Some(admin) = domain.admin_address() {
                story.say(format!("{name}: look at http://{admin}/"))?;
            }
        }
        let cart = Service::start(ServiceConfig {
            host: HOST.to_owned(),
            port: PORT,
            namespace: "shop".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "cart".to_owned())]),
            workload_socket: west.register(CART, "cart")?,
            generated: west.generated(),
        })
        .await?;
        let names = Names::default().with(GATEWAY, IpAddr::from([127, 0, 0, 1]));
        let caller = |workload_socket| {
            Client::start(ClientConfig { workload_socket, generated: east.generated(), names: names.clone() })
        };
        let frontend = caller(east.register(FRONTEND, "frontend")?);
        let batch = caller(east.register(BATCH, "batch")?);
        story.say(format!("names: {GATEWAY} is {}; this table stands for DNS", cart.address))?;
        Ok(Self { east, west, cart, frontend, batch })
    }

    async fn play(&mut self, options: &Options, story: &mut Story<'_>) -> anyhow::Result<()> {
        self.identities(story).await?;
        self.federate(story).await?;
        self.export(story).await?;
        self.call(story).await?;
        self.refuse(story).await?;
        self.rotate(story).await?;
        if options.once { self.end(story).await } else { self.stay(story).await }
    }

    /// The agents say goodbye; then everything ends at once.
    async fn strike(mut self) -> anyhow::Result<()> {
        let (east, west) = tokio::join!(self.east.stop_agent(), self.west.stop_agent());
        east.and(west)
    }

    /// The peers as each side tells of the other.
    fn peers(&self) -> [Told<'_>; 2] {
        [
            Told { domain: &self.east, plural: PEERS, name: WEST },
            Told { domain: &self.west, plural: PEERS, name: EAST },
        ]
    }

    async fn identities(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("Identities, from each side's own Workload API")?;
        eventually("every workload has an SVID", STEP, async || {
            self.cart.id()?;
            let callers = [&self.frontend, &self.batch];
            anyhow::ensure!(callers.iter().all(|c| c.identity().is_some()), "a caller has no SVID");
            Ok(())
        })
        .await?;
        story.say(format!("{WEST}: {}", self.cart.id()?))?;
        for caller in [&self.frontend, &self.batch] {
            let identity = caller.identity().context("it has an SVID")?;
            let foreign = identity.federated.len();
            story.say(format!("{EAST}: {}, which knows {foreign} other trust domains", identity.id))?;
        }
        Ok(())
    }

    async fn federate(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("One TrustDomainPeer on each side; the agents do the rest")?;
        for (here, there) in [(&self.east, &self.west), (&self.west, &self.east)] {
            let path = here.write(&peer_file(there), &there.as_peer()?)?;
            story.say(format!("{}: written {}", here.trust_domain(), path.display()))?;
        }
        self.watch(story, "both sides are ready", |stage| {
            for told in stage.peers() {
                let [_, status, reason, message] = told.domain.condition(told.plural, told.name, "Ready")?;
                anyhow::ensure!(status == "True", "{reason}: {message}");
            }
            Ok(())
        })
        .await?;
        for domain in [&self.east, &self.west] {
            let state = domain.spire_state().await?;
            let related: Vec<&str> = state.relationships.keys().map(TrustDomain::as_str).collect();
            let federating = state.entries.values().filter(|e| !e.federates_with.is_empty()).count();
            story.say(format!(
                "{}: its authority has a relationship with {}, and {federating} registrations federate",
                domain.trust_domain(),
                related.join(", ")
            ))?;
        }
        Ok(())
    }

    async fn export(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("West exports a service to one caller; east imports it")?;
        let manifest = federated_service(&Export {
            namespace: "shop",
            name: "cart",
            port: PORT,
            exported_to: EAST,
            clients: &[&format!("spiffe://{EAST}{FRONTEND}")],
            server_id: &format!("spiffe://{WEST}{CART}"),
            gateway: GATEWAY,
            gateway_port: self.cart.address.port(),
        });
        let path = self.west.write("cart.yaml", &manifest)?;
        story.say(format!("{WEST}: written {}", path.display()))?;
        self.watch(story, "the service is exported, and imported", |stage| {
            let [_, status, reason, message] = stage.west.condition(SERVICES, "shop_cart", "Exported")?;
            anyhow::ensure!(status == "True", "{reason}: {message}");
            let entries = generated(&stage.east, "serviceentries");
            anyhow::ensure!(!entries.is_empty(), "{EAST} has no ServiceEntry");
            Ok(())
        })
        .await?;
        for domain in [&self.west, &self.east] {
            for kind in ["authorizationpolicies", "serviceentries", "gateways", "importedservices"] {
                for path in generated(domain, kind) {
                    story.say(format!("{}: its agent wrote {}", domain.trust_domain(), path.display()))?;
                }
            }
        }
        Ok(())
    }

    async fn call(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("A call from one trust domain to the other, over mutual TLS")?;
        // The callers' own Workload APIs may be a moment behind the agent's.
        let answer =
            eventually("the call goes through", STEP, async || Ok(self.frontend.call(HOST, PORT).await?))
                .await?;
        let target = &answer.target;
        story.say(format!("from {}:", target.file.display()))?;
        story.say(format!("  endpoint {}:{}, SNI {}", target.endpoint, target.port, target.sni))?;
        for pin in &target.pins {
            story.say(format!("  accepted there: {pin}, and nobody else"))?;
        }
        story.say(format!("caller {}", answer.client))?;
        story.say(format!("server {}", answer.server))?;
        story.say(format!("answer: {}", answer.body))?;
        Ok(())
    }

    async fn refuse(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("A caller of the same trust domain that is not among the service's clients")?;
        let refused = eventually("the other caller is refused", STEP, async || {
            match self.batch.call(HOST, PORT).await {
                Err(refused @ CallError::Status { .. }) => Ok(refused),
                Err(other) => Err(other.into()),
                Ok(answer) => anyhow::bail!("it was answered: {}", answer.body),
            }
        })
        .await?;
        let text = refused.to_string();
        let name = format!("spiffe://{EAST}{BATCH}");
        anyhow::ensure!(text.contains("AuthorizationPolicy") && text.contains(&name), "{text}");
        story.say(text)?;
        Ok(())
    }

    async fn end(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("West ends the relationship; east is told")?;
        let path = self.west.remove(&peer_file(&self.east))?;
        story.say(format!("{WEST}: removed {}", path.display()))?;
        self.watch(story, "east names what happened, and west has nothing left", |stage| {
            let [_, _, reason, message] = stage.east.condition(PEERS, WEST, "Reciprocal")?;
            anyhow::ensure!(reason == "PeerEnded", "{reason}: {message}");
            let status = stage.west.conditions(PEERS, EAST);
            anyhow::ensure!(status.is_empty(), "{WEST} is not done: {status:?}");
            Ok(())
        })
        .await?;
        let state = self.west.spire_state().await?;
        anyhow::ensure!(state.relationships.is_empty(), "{WEST} has a relationship still");
        anyhow::ensure!(state.bundles.is_empty(), "{WEST} has a bundle of {EAST} still");
        story.say(format!("{WEST}: no relationship, no bundle of {EAST}, no registration that federates"))?;
        let refused = eventually("the call is refused now", STEP, async || {
            match self.frontend.call(HOST, PORT).await {
                Err(refused) => Ok(refused),
                Ok(answer) => anyhow::bail!("it was answered: {}", answer.body),
            }
        })
        .await?;
        story.say(format!("the call of {FRONTEND} now: {refused}"))?;
        Ok(())
    }

    /// Stays up and tells what changes.
    async fn stay(&self, story: &mut Story<'_>) -> anyhow::Result<()> {
        story.step("It stays up: try it, Ctrl-C ends it")?;
        for domain in [&self.east, &self.west] {
            story.text(&format!("           entente status --store dir:{}", domain.store().display()))?;
        }
        let manifest = self.west.manifest(&peer_file(&self.east));
        story.text(&format!("           rm {}    # west ends the relationship", manifest.display()))?;
        story.text("         What changes is told here; a call is made every second.")?;
        let mut last = String::new();
        loop {
            let call = match self.frontend.call(HOST, PORT).await {
                Ok(answer) => answer.body,
                Err(error) => error.to_string(),
            };
            if call != last {
                story.say(format!("call: {call}"))?;
                last = call;
            }
            for told in self.peers() {
                story.conditions(told)?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Waits until `look` succeeds, and tells how the conditions change meanwhile.
    async fn watch(
        &self,
        story: &mut Story<'_>,
        what: &str,
        look: impl Fn(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + STEP;
        loop {
            let looked = look(self);
            for told in self.peers() {
                story.conditions(told)?;
            }
            story.conditions(Told { domain: &self.west, plural: SERVICES, name: "shop_cart" })?;
            match looked {
                Ok(()) => return Ok(()),
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    return Err(error.context(format!("not so within {STEP:?}: {what}")));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

fn peer_file(domain: &Domain) -> String {
    format!("{}.yaml", domain.trust_domain())
}

/// The files of a kind that an agent wrote.
fn generated(domain: &Domain, plural: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(domain.generated().join(plural)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}
