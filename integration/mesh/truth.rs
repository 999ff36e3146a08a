//! Who is answered and who is not, row by row, with what refuses those who are not.
//!
//! The callers here are programs that make TLS themselves and come straight to the gateway of the exporter, as somebody would
//! who keeps to no sidecar's rules. `front` and `back` are `IstioMtls`, and two exports of one workload; `vault` and `chest`
//! are `Mtls`, and two exports of one workload. The client of `front` and `vault` is `web/frontend` of east, that of `back`
//! and `chest` `web/second`.
//!
//! | row | here | also |
//! |---|---|---|
//! | the client that the export names | answered | `traffic.rs`, `web.rs` by sidecars; `mtls.rs` |
//! | another ID of the same trust domain | refused by the server | `traffic.rs`, `web.rs`; `mtls.rs` |
//! | the same namespace and account in a third trust domain, which is trusted as well | refused by the server | |
//! | the same in the server's own trust domain | `IstioMtls`: answered, it is a local caller; `Mtls`: the application refuses | `traffic.rs` |
//! | plaintext | refused by the gateway | locally as it was, and shut out by STRICT: `traffic.rs` |
//! | no identity: TLS without a certificate | refused by the server | |
//! | TLS that is not Istio's, to an `IstioMtls` export | refused by the gateway | |
//! | a server of another identity | refused by the client | a sidecar as client: `traffic.rs` |
//! | two exports on the same pods | each answers its own clients alone | |
//!
//! And what is taken away stops alone, within five seconds: a client, a name that is admitted, an export.

use crate::agent::{Agent, AgentOptions};
use crate::application::{Application, Callee};
use crate::federation::{SOON, TIMING, found, says};
use crate::istiod::{set_status, trust};
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::network::Member;
use crate::process::Process;
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload, hears_from, serve_at};
use crate::world::{Domain, Options, peer};
use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

const HERE: &str = "127.0.0.1";
const API: &str = "entente.dev/v1alpha1";
const SERVICE: &str = "FederatedService";
/// How soon what is taken away stops.
const STOPS: Duration = Duration::from_secs(5);
const TWIN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 40);
const VAULT: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 41);
/// The ALPN by which Istio's sidecars know each other's TLS.
const ISTIO: &str = "istio";

/// An export. Its number is what importers see, its workload's port is 10000 below.
#[derive(Clone, Copy)]
struct Export {
    name: &'static str,
    /// The label `app` of its workload.
    app: &'static str,
    port: u16,
    mode: &'static str,
    /// The service account of its server.
    server: &'static str,
    /// The service account of its client.
    client: &'static str,
}

const FRONT: Export =
    Export { name: "front", app: "twin", port: 18085, mode: "IstioMtls", server: "twin", client: "frontend" };
const BACK: Export = Export { name: "back", port: 18086, client: "second", ..FRONT };
const IN_VAULT: Export =
    Export { name: "vault", app: "vault", port: 18443, mode: "Mtls", server: "vault", client: "frontend" };
const CHEST: Export = Export { name: "chest", port: 18444, server: "chest", client: "second", ..IN_VAULT };
const ALL: [Export; 4] = [FRONT, BACK, IN_VAULT, CHEST];
/// Ports of every caller that lead to an export in another way than its clients go.
const ANONYMOUS: u16 = 1000;
const NOT_ISTIO: u16 = 2000;
const OTHER_SERVER: u16 = 3000;

impl Export {
    const fn target(self) -> u16 {
        self.port - 10_000
    }

    fn is_istio(self) -> bool {
        self.mode == "IstioMtls"
    }

    /// The ways there, of every caller.
    fn callees(self) -> Vec<Callee> {
        let host = format!("{}.shop.west.example", self.name);
        let (sni, alpn) = if self.is_istio() {
            (format!("outbound_.{}_._.{host}", self.port), Some(ISTIO))
        } else {
            (host, None)
        };
        let id = format!("spiffe://west.example/ns/shop/sa/{}", self.server);
        let good = Callee { alpn, ..Callee::new(self.port, (GATEWAY, GATEWAY_PORT).into(), &sni, &id) };
        let anonymous = Callee { port: self.port + ANONYMOUS, anonymous: true, ..good.clone() };
        let not_istio = Callee { port: self.port + NOT_ISTIO, alpn: None, ..good.clone() };
        let other = "spiffe://west.example/ns/shop/sa/other".to_owned();
        let other_server = Callee { port: self.port + OTHER_SERVER, id: other, ..good.clone() };
        vec![good, anonymous, not_istio, other_server]
    }

    fn object(self, client: &str) -> Value {
        let kind = if self.is_istio() { "istio-eastwestgateway" } else { "istio-ingressgateway" };
        json!({
            "apiVersion": API,
            "kind": SERVICE,
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": self.app},
                "ports": [{"name": "tcp", "port": self.port, "targetPort": self.target(), "appProtocol": "tcp"}],
                "tlsMode": self.mode,
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": [format!("spiffe://east.example/ns/web/sa/{client}")]},
                "serverSPIFFEIDs": [format!("spiffe://west.example/ns/shop/sa/{}", self.server)],
                "gateways": [{"type": kind, "port": GATEWAY_PORT, "ip": GATEWAY.to_string()}],
            },
        })
    }
}

/// Somebody with an identity, who calls every export in every way.
struct Caller {
    application: Application,
    member: Member,
}

impl Caller {
    async fn start(meshes: &Meshes, domain: &Domain, account: &str, address: [u8; 2]) -> Result<Self> {
        let member = meshes.join(Ipv4Addr::new(10, 77, address[0], address[1]))?;
        let callees: Vec<Callee> = ALL.into_iter().flat_map(Export::callees).collect();
        let application = Application::calling(domain, &member, ("web", account), &callees).await?;
        Ok(Self { application, member })
    }

    async fn hears(&self, port: u16) -> Result<String> {
        hears_from(&self.member, HERE, port).await
    }

    async fn is_answered(&self, export: Export) -> Result<()> {
        let heard = self.hears(export.port).await?;
        let why = self.application.stats(&format!("callee_{}.ssl", export.port)).await?;
        ensure!(heard == export.name, "{} is heard as {heard:?}: {why}", export.name);
        Ok(())
    }
}

/// What counts those that it refuses.
#[derive(Clone, Copy)]
enum Refuses<'a> {
    Gateway,
    Sidecar(&'static str),
    Application(&'a Application),
    Client(&'a Application, u16),
}

/// Fields are in the order in which they go.
struct Cast {
    frontend: Caller,
    second: Caller,
    of_north: Caller,
    of_west: Caller,
    vault: Application,
    chest: Application,
    vault_member: Member,
    servers: [Process; 2],
    twin: Workload,
    agent: Agent,
    north: Domain,
}

impl Cast {
    async fn start(meshes: &Meshes) -> Result<Self> {
        let (east, west) = (&meshes.east, &meshes.west);
        let north = Domain::start("north.example", Options::default()).await?;
        let agent = befriend(meshes, &north).await?;
        for object in [sidecar(), bare_pod()] {
            west.kubernetes.apply(&object).await?;
        }
        set_status(west, &bare_pod()).await?;
        let role = Role {
            namespace: "shop",
            name: FRONT.app,
            app: FRONT.app,
            address: TWIN,
            presents: FRONT.server,
            gateway: None,
            port: None,
            interception: Interception::None,
        };
        let twin = meshes.start_in_west(role).await?;
        let dir = west.dir().join("w");
        let serve = |one: Export| serve_at(twin.member(), &dir, one.name, Ipv4Addr::LOCALHOST, one.target());
        let servers = [serve(FRONT)?, serve(BACK)?];
        let vault_member = meshes.join(VAULT)?;
        let keeps = async |one: Export| {
            let at = SocketAddrV4::new(VAULT, one.target());
            let clients = [format!("spiffe://east.example/ns/web/sa/{}", one.client)];
            Application::serving(west, &vault_member, ("shop", one.name), at, &clients).await
        };
        let (vault, chest) = (keeps(IN_VAULT).await?, keeps(CHEST).await?);
        for one in ALL {
            west.kubernetes.apply(&one.object(one.client)).await?;
            says(west, SERVICE, Some("shop"), one.name, "Exported").await?;
        }
        Ok(Self {
            frontend: Caller::start(meshes, east, "frontend", [1, 40]).await?,
            second: Caller::start(meshes, east, "second", [1, 41]).await?,
            of_north: Caller::start(meshes, &north, "frontend", [3, 40]).await?,
            of_west: Caller::start(meshes, west, "frontend", [2, 42]).await?,
            vault,
            chest,
            vault_member,
            servers,
            twin,
            agent,
            north,
        })
    }

    async fn refused(&self, meshes: &Meshes, by: Refuses<'_>) -> Result<u64> {
        let stats = match by {
            Refuses::Gateway => meshes.workloads().gateway.proxy.stats("no_filter_chain_match").await?,
            Refuses::Sidecar(counter) => self.twin.proxy.stats(counter).await?,
            Refuses::Application(server) => server.stats("listener.app.ssl.fail_verify").await?,
            Refuses::Client(client, port) => {
                client.stats(&format!("callee_{port}.ssl.fail_verify_san")).await?
            }
        };
        let values = stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok());
        Ok(values.sum())
    }

    /// Nothing is heard, and by the word of who is to refuse that is its doing.
    async fn is_refused(&self, meshes: &Meshes, who: &Caller, port: u16, by: Refuses<'_>) -> Result<()> {
        let before = self.refused(meshes, by).await?;
        let heard = who.hears(port).await?;
        ensure!(heard.is_empty(), "it hears {heard:?}");
        let after = self.refused(meshes, by).await?;
        let why = who.application.stats(&format!("callee_{port}.")).await?;
        ensure!(after > before, "somebody else refused it: {why}");
        Ok(())
    }

    /// The rows; each is waited for alone.
    async fn table(&self, meshes: &Meshes) -> Result<()> {
        let (rbac, no_certificate) = ("tcp.rbac.denied", "fail_verify_no_cert");
        let Self { frontend, second, of_north, of_west, vault, chest, .. } = self;
        let answers: [(&str, &Caller, Export); 5] = [
            ("the client of an IstioMtls export", frontend, FRONT),
            ("the client of another on the same pods", second, BACK),
            ("a caller of the server's own trust domain", of_west, FRONT),
            ("the client of an Mtls export", frontend, IN_VAULT),
            ("the client of another Mtls export on the same pods", second, CHEST),
        ];
        for (row, who, export) in answers {
            eventually(&format!("answered: {row}"), SOON, || who.is_answered(export)).await?;
        }
        let in_vault = Refuses::Application(vault);
        let by_client = |export: Export| Refuses::Client(&frontend.application, export.port + OTHER_SERVER);
        let refusals: [(&str, &Caller, u16, Refuses<'_>); 14] = [
            ("another ID of the trust domain", second, FRONT.port, Refuses::Sidecar(rbac)),
            ("the client of the other export on the same pods", frontend, BACK.port, Refuses::Sidecar(rbac)),
            ("the same in a third trust domain", of_north, FRONT.port, Refuses::Sidecar(rbac)),
            ("the same, at the other export", of_north, BACK.port, Refuses::Sidecar(rbac)),
            ("no identity", frontend, FRONT.port + ANONYMOUS, Refuses::Sidecar(no_certificate)),
            ("TLS that is not Istio's", frontend, FRONT.port + NOT_ISTIO, Refuses::Gateway),
            ("another server", frontend, FRONT.port + OTHER_SERVER, by_client(FRONT)),
            ("Mtls: another ID of the trust domain", second, IN_VAULT.port, in_vault),
            ("Mtls: the client of the other export", frontend, CHEST.port, Refuses::Application(chest)),
            ("Mtls: the same in a third trust domain", of_north, IN_VAULT.port, in_vault),
            ("Mtls: the same in the server's trust domain", of_west, IN_VAULT.port, in_vault),
            ("Mtls: no identity", frontend, IN_VAULT.port + ANONYMOUS, in_vault),
            ("Mtls: another server", frontend, IN_VAULT.port + OTHER_SERVER, by_client(IN_VAULT)),
            (
                "Mtls: another server of another",
                second,
                CHEST.port + OTHER_SERVER,
                Refuses::Client(&second.application, CHEST.port + OTHER_SERVER),
            ),
        ];
        for (row, who, port, by) in refusals {
            eventually(&format!("refused: {row}"), SOON, || self.is_refused(meshes, who, port, by)).await?;
        }
        let before = self.refused(meshes, Refuses::Gateway).await?;
        let heard = hears_from(&frontend.member, &GATEWAY.to_string(), GATEWAY_PORT).await?;
        ensure!(heard.is_empty(), "plaintext is answered: {heard:?}");
        ensure!(self.refused(meshes, Refuses::Gateway).await? > before, "not by the gateway");
        Ok(())
    }

    /// After a change the one stops within [`STOPS`], and the others are answered at every look before and after that.
    async fn stops(
        &self,
        what: &str,
        one: impl AsyncFn() -> Result<bool>,
        others: &[Heard<'_>],
    ) -> Result<()> {
        let since = Instant::now();
        loop {
            let stopped = !one().await?;
            let after = since.elapsed();
            for other in others {
                other.goes_on().await.with_context(|| format!("{what}: after {after:?}"))?;
            }
            if stopped {
                eprintln!("{what}: stopped after {after:.1?}");
                return Ok(());
            }
            ensure!(after < STOPS, "{what}: it is answered after {after:?}");
        }
    }

    async fn taking_away(&self, meshes: &Meshes) -> Result<()> {
        let west = &meshes.west;
        let Self { frontend, second, .. } = self;
        let by_sidecar = &meshes.workloads().frontend;
        let cart = Heard::BySidecar(by_sidecar, CART.port, CART.name);
        let (back, chest) = (Heard::Raw(second, BACK), Heard::Raw(second, CHEST));
        let in_vault = Heard::Raw(frontend, IN_VAULT);

        let both = ["frontend", "second"].map(|name| format!("spiffe://east.example/ns/web/sa/{name}"));
        let clients = async |ids: &[String]| {
            let api = west.kubernetes.api(API, SERVICE, Some("shop")).await?;
            let change = json!({"spec": {"clients": {"spiffeIDs": ids}}});
            api.patch(FRONT.name, &PatchParams::default(), &Patch::Merge(change)).await?;
            anyhow::Ok(())
        };
        clients(&both).await?;
        eventually("both are clients", SOON, || second.is_answered(FRONT)).await?;
        let now_second = Heard::Raw(second, FRONT);
        clients(&both[1..]).await?;
        let is_heard = async |who: &Caller, port| {
            let heard = who.hears(port).await;
            anyhow::Ok(heard.is_ok_and(|heard| !heard.is_empty()))
        };
        let others = [now_second, back, chest, in_vault, cart];
        self.stops("a client", async || is_heard(frontend, FRONT.port).await, &others).await?;

        clients(&both).await?;
        let imported = Heard::BySidecar(by_sidecar, FRONT.port, FRONT.name);
        eventually("the importer's sidecar leads there", SOON, || imported.goes_on()).await?;
        let all_but = json!([
            {"namespace": "shop", "name": BACK.name},
            {"namespace": "shop", "name": IN_VAULT.name},
            {"namespace": "shop", "name": CHEST.name},
            {"namespace": "shop", "name": "cart"},
            {"namespace": "shop", "name": "orders"},
        ]);
        admit(meshes, &all_but).await?;
        let one = async || {
            let heard = by_sidecar.hears(HERE, FRONT.port).await;
            anyhow::Ok(heard.is_ok_and(|heard| !heard.is_empty()))
        };
        self.stops("an admitted name", one, &[back, chest, in_vault, cart]).await?;
        admit(meshes, &json!([{"namespace": "*", "name": "*"}])).await?;
        eventually("it is imported again", SOON, || imported.goes_on()).await?;

        let services = west.kubernetes.api(API, SERVICE, Some("shop")).await?;
        services.delete(FRONT.name, &DeleteParams::background()).await?;
        let one = async || is_heard(second, FRONT.port).await;
        self.stops("an IstioMtls export", one, &[back, chest, in_vault, cart]).await?;
        services.delete(IN_VAULT.name, &DeleteParams::background()).await?;
        let one = async || is_heard(frontend, IN_VAULT.port).await;
        self.stops("an Mtls export", one, &[back, chest, cart]).await
    }
}

/// Who is to be answered all the while.
#[derive(Clone, Copy)]
enum Heard<'a> {
    Raw(&'a Caller, Export),
    BySidecar(&'a Workload, u16, &'static str),
}

impl Heard<'_> {
    async fn goes_on(self) -> Result<()> {
        match self {
            Self::Raw(who, export) => who.is_answered(export).await,
            Self::BySidecar(client, port, name) => {
                let heard = client.hears(HERE, port).await?;
                ensure!(heard == name, "{name} is heard as {heard:?}");
                Ok(())
            }
        }
    }
}

/// West trusts north, as SPIRE and mesh go, and north west.
async fn befriend(meshes: &Meshes, north: &Domain) -> Result<Agent> {
    let west = &meshes.west;
    let mut agent = Agent::start(
        north,
        AgentOptions { args: TIMING.map(str::to_owned).to_vec(), ..AgentOptions::default() },
    )?;
    agent.ready(SOON).await?;
    trust(west, &["east.example", "north.example"]).await?;
    for (here, there) in [(west, north), (north, west)] {
        here.kubernetes.apply(&peer(there).await?).await?;
    }
    for (here, there) in [(west, north), (north, west)] {
        says(here, "TrustDomainPeer", None, there.trust_domain().as_str(), "Ready").await?;
    }
    Ok(agent)
}

/// What east admits of west.
async fn admit(meshes: &Meshes, services: &Value) -> Result<()> {
    let peers = meshes.east.kubernetes.api(API, "TrustDomainPeer", None).await?;
    let change = json!({"spec": {"imports": {"services": services}}});
    peers.patch("west.example", &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}

/// Nothing redirects connections to the sidecar of the two exports: it has to be told where to listen.
fn sidecar() -> Value {
    let ingress = |one: Export| {
        json!({
            "port": {"number": one.target(), "name": format!("tcp-{}", one.name), "protocol": "TCP"},
            "defaultEndpoint": format!("{HERE}:{}", one.target()),
        })
    };
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": FRONT.app, "namespace": "shop"},
        "spec": {
            "workloadSelector": {"labels": {"pod": FRONT.app}},
            "ingress": [ingress(FRONT), ingress(BACK)],
            "egress": [{"hosts": ["*/*"]}],
        },
    })
}

/// Of the two applications.
fn bare_pod() -> Value {
    let (name, ip) = (IN_VAULT.app, VAULT.to_string());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"serviceAccountName": name, "containers": [{"name": "main", "image": "none.example/none"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

#[test]
fn who_is_answered_and_who_is_not() {
    with_meshes(async |meshes| {
        let cast = Cast::start(meshes).await?;
        let done = async {
            cast.table(meshes).await?;
            cast.taking_away(meshes).await
        };
        if let Err(error) = done.await {
            cast.north.keep();
            return Err(error);
        }
        clean(meshes).await
    });
}

/// Takes all of it away again.
async fn clean(meshes: &Meshes) -> Result<()> {
    let west = &meshes.west;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
    let peers = west.kubernetes.api(API, "TrustDomainPeer", None).await?;
    peers.delete("north.example", &at_once).await?;
    let (istio, shop) = ("networking.istio.io/v1", Some("shop"));
    for (api_version, kind, name) in [
        (API, SERVICE, BACK.name),
        (API, SERVICE, CHEST.name),
        (istio, "Sidecar", FRONT.app),
        ("v1", "Pod", FRONT.app),
        ("v1", "Pod", IN_VAULT.app),
    ] {
        west.kubernetes.api(api_version, kind, shop).await?.delete(name, &at_once).await?;
    }
    eventually("west has north as peer no more", SOON, || async {
        ensure!(peers.get_opt("north.example").await?.is_none(), "it has");
        for one in ALL {
            let host = format!("{}.shop.west.example", one.name);
            for (domain, namespace) in [(&meshes.east, "entente-system"), (west, "shop")] {
                let left = found(domain, istio, "ServiceEntry", Some(namespace), &host).await;
                ensure!(left.is_err(), "{} has the ServiceEntry of {host}", domain.trust_domain());
            }
        }
        Ok(())
    })
    .await?;
    trust(west, &["east.example"]).await
}
