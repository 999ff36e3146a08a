//! Proxyless gRPC: what two libraries do with what our agent serves them, with real SPIRE on both sides, and what they do not.

use crate::library::{Agent, BY_BUNDLES, Client, Keeper, Library, SENDS_SNI, Server};
use crate::pair::{Pair, with_pair};
use crate::ports;
use crate::ring::{BATCH, FRONTEND, PORT, Ring, SOON, own_address};
use crate::world::{Domain, says};
use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const API: &str = "entente.dev/v1alpha1";
const CART: &str = "/ns/shop/sa/cart";
const DIRECT: &str = "/ns/shop/sa/direct";
/// Within this a change at the exporter must have reached every client.
const TAKEN_AWAY: Duration = Duration::from_secs(5);
/// All that a library has to be told.
const WHOLE: [(&str, &str); 2] = [BY_BUNDLES, SENDS_SNI];

const LIBRARIES: [Library; 2] = [Library::Go, Library::Python];

/// A gRPC service that west exports to the frontend of east.
struct Grpc {
    name: &'static str,
    mode: &'static str,
    server: &'static str,
    gateway: SocketAddr,
    /// Where the application is, behind an Envoy.
    target_port: u16,
}

impl Grpc {
    fn host(&self) -> String {
        format!("{}.shop.west.example", self.name)
    }

    async fn export(&self, pair: &Pair) -> Result<()> {
        let gateway = if self.mode == "Mtls" { "istio-ingressgateway" } else { "istio-eastwestgateway" };
        let object = json!({
            "apiVersion": API,
            "kind": "FederatedService",
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": self.name},
                "ports": [{"name": "grpc", "port": PORT, "targetPort": self.target_port}],
                "tlsMode": self.mode,
                "exportedTrustDomains": ["east.example"],
                "clients": {"spiffeIDs": [format!("spiffe://east.example{FRONTEND}")]},
                "serverSPIFFEIDs": [format!("spiffe://west.example{}", self.server)],
                "gateways": [{"type": gateway, "port": self.gateway.port(), "ip": self.gateway.ip()}],
            },
        });
        pair.west.kubernetes.apply(&object).await?;
        says(&pair.west, "FederatedService", Some("shop"), self.name, "Exported").await
    }
}

/// Who answered, and as whom the client was seen.
fn ensure_seen(said: &Value, library: Library, server: &str, caller: &str) -> Result<()> {
    // The C core shows Python nothing of the server's certificate.
    ensure!(library != Library::Go || said["server"] == format!("spiffe://west.example{server}"), "{said}");
    ensure!(said["caller"] == caller, "{said}");
    Ok(())
}

/// What a library says where a call fails, for the documentation, too.
fn fails(library: Library, what: &str, error: &str, words: &str) -> Result<()> {
    eprintln!("{library:?}, {what}: {error}");
    ensure!(error.contains(words), "{library:?}, {what}: {error}");
    Ok(())
}

/// What the client that is named may, and what it may not for want of being told.
async fn as_frontend(library: Library, frontend: &Keeper, [cart, istio, direct]: &[Grpc; 3]) -> Result<()> {
    let swapped = frontend.with_roots_swapped(("east.example", "west.example"))?;
    let start = |host: &str, flags: &[(&str, &str)]| Client::start(library, frontend, host, flags);
    for (service, caller) in [(cart, ""), (istio, ""), (direct, frontend.id.as_str())] {
        let mut calling = start(&service.host(), &WHOLE)?;
        let said = calling.answered().await.with_context(|| format!("{library:?}: {}", service.name))?;
        ensure_seen(&said, library, service.server, caller)?;
    }
    // Without SNI: whoever ends TLS itself does not need it.
    let mut calling = start(&direct.host(), &[BY_BUNDLES])?;
    ensure_seen(&calling.answered().await?, library, DIRECT, &frontend.id)?;
    let mut calling = start(&cart.host(), &[BY_BUNDLES])?;
    match library {
        Library::Go => fails(library, "without SNI", &calling.refused().await?, "handshake failed")?,
        // The C core sends the host by itself.
        Library::Python => ensure_seen(&calling.answered().await?, library, CART, "")?,
    }
    // A library that is not told of bundle maps has nobody's roots.
    let mut calling = start(&direct.host(), &[SENDS_SNI])?;
    let words = ["signed by unknown authority", "Failed to create security handshaker"];
    fails(library, "without bundle maps", &calling.refused().await?, words[library as usize])?;
    // One trust domain's roots verify nobody of another.
    let flags = [BY_BUNDLES, SENDS_SNI, ("GRPC_XDS_BOOTSTRAP", &swapped.display().to_string())];
    let words = ["signed by unknown authority", "CERTIFICATE_VERIFY_FAILED"];
    let mut calling = start(&direct.host(), &flags)?;
    fails(library, "another's roots", &calling.refused().await?, words[library as usize])?;
    Ok(())
}

/// Channels of both libraries that are answered until the export is gone.
async fn withdrawn(west: &Domain, frontend: &Keeper, cart: &Grpc) -> Result<()> {
    let mut held = Vec::new();
    for library in LIBRARIES {
        let mut calling = Client::start(library, frontend, &cart.host(), &WHOLE)?;
        calling.answered().await?;
        held.push((library, calling));
    }
    let api = west.kubernetes.api(API, "FederatedService", Some("shop")).await?;
    api.delete(cart.name, &DeleteParams::background()).await?;
    for (library, mut calling) in held {
        let since = Instant::now();
        let mut error = calling.call().await?;
        while error["status"] == "SERVING" {
            ensure!(since.elapsed() < TAKEN_AWAY, "{library:?} is answered still");
            error = calling.call().await?;
        }
        eprintln!("{library:?}, withdrawn, after {} ms: {error}", since.elapsed().as_millis());
    }
    Ok(())
}

/// Calls by `xds:///HOST:PORT` go through: at an Envoy of ours that goes by SNI, where the library sends it, and at a server that
/// ends mutual TLS itself, whatever it sends. Another client has no such listener; a server with another ID is refused; a library
/// that has not been told of bundle maps trusts nobody, nor is a server trusted for another trust domain's roots; what is withdrawn
/// is gone.
#[test]
fn libraries_call_servers_across_trust_domains() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let application = Server::plain().await?;
        let direct_at = SocketAddr::new(own_address()?, ports::free()?.port());
        let behind = |name, mode| Grpc {
            name,
            mode,
            server: CART,
            gateway: ring.gateway,
            target_port: application.address.port(),
        };
        let services = [
            behind("cart", "Mtls"),
            behind("istio", "IstioMtls"),
            Grpc {
                name: "direct",
                mode: "Mtls",
                server: DIRECT,
                gateway: direct_at,
                target_port: direct_at.port(),
            },
        ];
        for service in &services {
            service.export(pair).await?;
        }
        let [cart, _, direct] = &services;
        let client = format!("spiffe://east.example{FRONTEND}");
        let (proxy, server, frontend, batch) = tokio::try_join!(
            ring.server(west),
            Server::mutual(west, ("direct", DIRECT), direct_at, std::slice::from_ref(&client)),
            Keeper::start(east, "frontend", FRONTEND, Agent::Listener(ring.xds_east)),
            Keeper::start(east, "batch", BATCH, Agent::Socket(&ring.socket_of_batch)),
        )?;
        ensure!(frontend.id == client, "{}", frontend.id);

        let mut strangers = Vec::new();
        for library in LIBRARIES {
            let mut stranger = Client::start(library, &batch, &direct.host(), &WHOLE)?;
            stranger.refused().await?;
            strangers.push((library, stranger));
        }
        for library in LIBRARIES {
            as_frontend(library, &frontend, &services).await?;
        }
        ensure!(proxy.refused().await? == 0, "{}", proxy.process.log_tail());
        for (library, stranger) in &mut strangers {
            // A library waits for a resource before it says that there is none: Go 15 s, the C core longer.
            let words = ["has been removed", "does not exist"];
            let said = stranger.told(words[*library as usize]).await?;
            eprintln!("{library:?}, another client: {said}");
        }

        // Another workload of west in the server's place.
        drop(server);
        let impostor = ("impostor", "/ns/shop/sa/impostor");
        let impostor = Server::mutual(west, impostor, direct_at, std::slice::from_ref(&client)).await?;
        for library in LIBRARIES {
            let mut calling = Client::start(library, &frontend, &direct.host(), &WHOLE)?;
            let words =
                ["do not match any of the accepted SANs", "did not match SANs from xDS control plane"];
            fails(library, "a server with another ID", &calling.refused().await?, words[library as usize])?;
        }
        drop(impostor);

        withdrawn(west, &frontend, cart).await
    });
}

/// Authorities of both sides rotate, each old one tainted, so that every SVID is replaced at once; calls on connections of their own
/// go on, and none fails: what is kept for a library is as new as what SPIRE gives, and of one moment.
#[test]
fn rotation_fails_no_call_of_a_library() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let direct_at = SocketAddr::new(own_address()?, ports::free()?.port());
        let port = direct_at.port();
        let direct =
            Grpc { name: "direct", mode: "Mtls", server: DIRECT, gateway: direct_at, target_port: port };
        direct.export(pair).await?;
        let client = format!("spiffe://east.example{FRONTEND}");
        let (_server, frontend) = tokio::try_join!(
            Server::mutual(&pair.west, ("direct", DIRECT), direct_at, std::slice::from_ref(&client)),
            Keeper::start(&pair.east, "frontend", FRONTEND, Agent::Listener(ring.xds_east)),
        )?;
        let mut libraries = Vec::new();
        for library in LIBRARIES {
            let mut calling = Client::start(library, &frontend, &direct.host(), &WHOLE)?;
            calling.answered().await?;
            libraries.push(calling);
        }
        let before = frontend.certificate()?;
        let (mut calls, mut failures) = (0_u64, Vec::new());
        let mut rotations = std::pin::pin!(async {
            for agent in [&ring.of_west, &ring.of_east] {
                let args = ["rotate", "x509", "-o", "json", "--taint", "--timeout", "2m"];
                let (code, said, progress) = agent.command(&args).await?;
                ensure!(code == 0, "{said}{progress}");
            }
            anyhow::Ok(())
        });
        let mut rotated = None;
        loop {
            let mut shown = Vec::new();
            let round = async {
                for calling in &mut libraries {
                    calls += 1;
                    let said = calling.fresh().await?;
                    if said["status"] != "SERVING" {
                        failures.push(said.to_string());
                    }
                    shown.push(said["certificate"].as_str().unwrap_or_default().to_owned());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                anyhow::Ok(())
            };
            let Some(at) = rotated else {
                tokio::select! {
                    done = &mut rotations => { done?; rotated = Some(Instant::now()); }
                    called = round => called?,
                }
                continue;
            };
            // Tainted SVIDs are replaced within seconds; then both libraries present the new one.
            round.await?;
            let now = frontend.certificate()?;
            if now != before && shown.iter().all(|one| *one == now) {
                break;
            }
            ensure!(Instant::now() < at + SOON, "{shown:?}, not {now}, which was {before}");
        }
        eprintln!("2 rotations: {calls} calls of libraries, {} failed", failures.len());
        ensure!(failures.is_empty() && calls > 50, "{calls} calls, {failures:?}");
        Ok(())
    });
}
