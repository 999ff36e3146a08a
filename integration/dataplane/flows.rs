//! What flows between workloads without Istio, and what does not.

use crate::application::{Held, Speaks};
use crate::ask::Client;
use crate::envoy::{Envoy, Workload};
use crate::foreign;
use crate::pair::with_pair;
use crate::proxy::{From, Proxy};
use crate::ring::{BATCH, CART, Exported, FRONTEND, MODES, PORT, Ring, SOON, change, withdraw};
use crate::wait::{always, eventually};
use crate::world::Part;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Within this a change at the exporter must have reached every client.
const TAKEN_AWAY: Duration = Duration::from_secs(5);
/// And within this a client must call a server that takes the place of another.
const REPLACED: Duration = Duration::from_secs(3);

/// Plain clients in east resolve names by our DNS, and call plain servers in west by TCP, HTTP/1.1 and gRPC, in both modes of TLS,
/// through Envoys that have nothing but what our agents serve them. Another client of east has no such listener, by TLS or by socket. What is exported
/// no more is gone.
#[test]
fn plain_clients_call_plain_servers_across_trust_domains() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let (east, west) = (&pair.east, &pair.west);
        let mut services = Vec::new();
        for mode in MODES {
            for speaks in [Speaks::Tcp, Speaks::Http, Speaks::Grpc] {
                let service = Exported::new(mode, speaks).await?;
                ring.export(pair, &service).await?;
                services.push(service);
            }
        }
        let server = ring.server(west).await?;
        let frontend = ring.client(east, "frontend", FRONTEND).await?;
        let batch = Proxy::start(east, "batch", BATCH, &From::Socket(ring.socket_of_batch.clone())).await?;
        let stranger = ring.client(east, "stranger", "/ns/web/sa/stranger").await?;
        let mut resolver = Client::start()?;
        for service in &services {
            let at = ring.resolve(&mut resolver, &service.host()).await?;
            ensure!(at == service.address(east).await?, "DNS says {at}");
            let what = format!("{} is called in {}", service.speaks.protocol(), service.mode);
            let called = eventually(&what, SOON, || service.call(at)).await;
            called.map_err(|error| {
                error.context(frontend.process.log_tail()).context(server.process.log_tail())
            })?;
        }
        let names: Vec<String> =
            services.iter().map(|service| format!("{}:{PORT}", service.host())).collect();
        let listeners = frontend.listeners().await?;
        ensure!(names.iter().all(|name| listeners.contains(name)), "{listeners:?}");
        for other in [&batch, &stranger] {
            ensure!(other.listeners().await?.is_empty(), "{} has {:?}", other.id, other.listeners().await?);
        }
        for proxy in [&server, &frontend, &batch, &stranger] {
            ensure!(proxy.refused().await? == 0, "{}", proxy.process.log_tail());
        }

        let gone = &services[0];
        let at = gone.address(east).await?;
        withdraw(west, gone).await?;
        let since = Instant::now();
        eventually("what is exported no more is gone", TAKEN_AWAY, || async {
            ensure!(gone.call(at).await.is_err(), "it answers");
            let name = format!("{}:{PORT}", gone.host());
            ensure!(!frontend.listeners().await?.contains(&name), "there is a listener");
            Ok(())
        })
        .await?;
        eprintln!("an export was gone from its client after {} ms", since.elapsed().as_millis());
        let name = format!("{}.", gone.host());
        let is_gone = |said: &serde_json::Value| said["code"] == "NXDOMAIN";
        let left = TAKEN_AWAY.saturating_sub(since.elapsed());
        resolver.until("its name is gone", left, (ring.dns, &name), is_gone).await?;
        services[1].call(services[1].address(east).await?).await
    });
}

/// The server must be who it was said to be, by the roots of its own trust domain, and a client one that the service names: by its own Envoy's word, whatever the
/// client's side still believes.
#[test]
fn who_is_not_meant_is_refused() {
    with_pair(async |pair| {
        let mut ring = Ring::start(pair).await?;
        let service = Exported::new("Mtls", Speaks::Tcp).await?;
        ring.export(pair, &service).await?;
        let mut server = ring.server(&pair.west).await?;
        let frontend = ring.client(&pair.east, "frontend", FRONTEND).await?;
        let at = service.address(&pair.east).await?;
        eventually("the frontend is answered", SOON, || service.call(at)).await?;

        // East hears nothing from now on, and goes on to call.
        ring.of_east.kill().await?;
        let others = json!({"spec": {"clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/other"]}}});
        change(&pair.west, &service, others).await?;
        eventually("the server's Envoy refuses who is no client any more", TAKEN_AWAY, || async {
            ensure!(service.call(at).await.is_err(), "it is answered");
            Ok(())
        })
        .await?;
        let refused = server.admin.stats("ssl.fail_verify_san").await?;
        ensure!(!refused.is_empty(), "not for its ID: {}", server.admin.stats("ssl").await?);
        let again = json!({"spec": {"clients": {"spiffeIDs": [format!("spiffe://east.example{FRONTEND}")]}}});
        change(&pair.west, &service, again).await?;
        eventually("it is answered again", SOON, || service.call(at)).await?;

        // Another workload of west in the server's place.
        server.process.kill().await?;
        let impostor = Envoy::ready(&pair.west, &Workload::named("impostor")).await?;
        let passing = pass_on(ring.gateway, impostor.address()).await?;
        eventually("the client refuses a server with another ID", SOON, || async {
            ensure!(service.call(at).await.is_err(), "it is answered");
            let refused = frontend.admin.stats("ssl.fail_verify_san").await?;
            ensure!(!refused.is_empty(), "not for its ID: {}", frontend.admin.stats("ssl").await?);
            Ok(())
        })
        .await?;
        ensure!(impostor.handshakes().await? == 0, "a handshake was ended well");
        passing.abort();
        drop(impostor);
        foreign::is_refused(&pair.east, &frontend, ring.gateway, || service.call(at)).await
    });
}

/// A server with an ID of its own takes the place of another, and nothing else changes: clients pin the new one within seconds,
/// whether they ask for what changed or for the state of the world.
#[test]
fn a_server_with_another_id_takes_the_place_of_the_first() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let service = Exported::new("Mtls", Speaks::Tcp).await?;
        ring.export(pair, &service).await?;
        let at = service.address(&pair.east).await?;
        let calls = format!("cluster.application_{}.upstream_cx_total", service.application.port);
        let mut server = ring.server(&pair.west).await?;
        let variants = [
            ("incremental", From::Listener(ring.xds_east)),
            ("whole", From::WholeFromListener(ring.xds_east)),
        ];
        for (variant, from) in variants {
            let (name, path) = (format!("cart-{variant}"), format!("{CART}-{variant}"));
            let next =
                Proxy::start(&pair.west, &name, &path, &From::WholeFromListener(ring.xds_west)).await?;
            let frontend = Proxy::start(&pair.east, variant, FRONTEND, &from).await?;
            let called = eventually("the first server answers", SOON, || service.call(at)).await;
            called.map_err(|error| error.context(server.process.log_tail()))?;
            change(&pair.west, &service, json!({"spec": {"serverSPIFFEIDs": [next.id]}})).await?;
            let since = Instant::now();
            let called = eventually("the one in its place answers", REPLACED, || async {
                service.call(at).await?;
                ensure!(next.admin.stat(&calls).await? > 0, "the first one still does");
                Ok(())
            });
            let called = called.await.with_context(|| format!("by a client that is {variant}"));
            called.map_err(|error| error.context(frontend.process.log_tail()))?;
            eprintln!("{variant}: another server was called after {} ms", since.elapsed().as_millis());
            server = next;
        }
        Ok(())
    });
}

/// Agents that are killed, ours and SPIRE's, change nothing for what runs, and nothing when they are back; how old is what is
/// served, a metric tells.
#[test]
fn agents_that_are_gone_change_nothing_for_traffic() {
    with_pair(async |pair| {
        let mut ring = Ring::start(pair).await?;
        let service = Exported::new("IstioMtls", Speaks::Tcp).await?;
        ring.export(pair, &service).await?;
        let server = ring.server(&pair.west).await?;
        let frontend = ring.client(&pair.east, "frontend", FRONTEND).await?;
        let at = service.address(&pair.east).await?;
        eventually("the frontend is answered", SOON, || service.call(at)).await?;
        let mut held = Held::open(at).await?;
        ring.of_west.kill().await?;
        let as_of = served_as_of(&ring).await?;
        always("calls go on without the peer's agent", Duration::from_secs(3), || service.call(at)).await?;
        ensure!(served_as_of(&ring).await? == as_of, "what is served has grown younger");
        ring.of_east.kill().await?;
        for domain in [&mut pair.east, &mut pair.west] {
            domain.kill(Part::SpireAgent).await?;
        }
        always("calls go on without agents", Duration::from_secs(5), || service.call(at)).await?;
        held.say().await?;
        for domain in [&mut pair.east, &mut pair.west] {
            domain.restart(Part::SpireAgent).await?;
        }
        held.say().await?;
        let sent = || async {
            anyhow::Ok([
                frontend.admin.stat("listener_manager.lds.update_success").await?,
                server.admin.stat("listener_manager.lds.update_success").await?,
            ])
        };
        ring.of_east.restart()?;
        ring.of_west.restart()?;
        tokio::try_join!(ring.of_east.ready(SOON), ring.of_west.ready(SOON))?;
        eventually("both Envoys have heard from the agents again", SOON, || async {
            for proxy in [&frontend, &server] {
                let connected = proxy.admin.stat("control_plane.connected_state").await?;
                ensure!(connected == 1, "{} is not connected", proxy.id);
            }
            Ok(())
        })
        .await?;
        always("calls go on with agents that are back", Duration::from_secs(5), || service.call(at)).await?;
        held.say().await?;
        ensure!(frontend.listeners().await?.len() == 1 && server.listeners().await?.len() == 1);
        let as_of = served_as_of(&ring).await?;
        let more = Exported::new("Mtls", Speaks::Tcp).await?;
        ring.export(pair, &more).await?;
        eventually("what is served is younger after a change", SOON, || async {
            ensure!(served_as_of(&ring).await? > as_of, "as of {as_of}");
            Ok(())
        })
        .await?;
        eprintln!("updates of listeners over a restart: {:?}", sent().await?);
        Ok(())
    });
}

/// Authorities of both sides rotate, each old one tainted or revoked, so that every SVID is replaced at once; calls go on, each on
/// a connection of its own, and none fails.
#[test]
fn rotation_fails_no_call() {
    with_pair(async |pair| {
        let ring = Ring::start(pair).await?;
        let mut services = Vec::new();
        for (mode, speaks) in [("IstioMtls", Speaks::Tcp), ("Mtls", Speaks::Http)] {
            let service = Exported::new(mode, speaks).await?;
            ring.export(pair, &service).await?;
            services.push((service.address(&pair.east).await?, service));
        }
        let server = ring.server(&pair.west).await?;
        let frontend = ring.client(&pair.east, "frontend", FRONTEND).await?;
        for (at, service) in &services {
            eventually("the frontend is answered", SOON, || service.call(*at)).await?;
        }
        let (mut calls, mut failures) = (0_u64, Vec::new());
        let mut rotations = std::pin::pin!(async {
            for finish in ["--taint", "--revoke"] {
                for agent in [&ring.of_west, &ring.of_east] {
                    let args = ["rotate", "x509", "-o", "json", finish, "--timeout", "2m"];
                    let (code, said, progress) = agent.command(&args).await?;
                    ensure!(code == 0, "{said}{progress}");
                }
            }
            anyhow::Ok(())
        });
        loop {
            let round = async {
                for (at, service) in &services {
                    calls += 1;
                    if let Err(error) = service.call(*at).await {
                        failures.push(format!("{error:#}"));
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            tokio::select! {
                done = &mut rotations => { done?; break }
                () = round => {}
            }
        }
        eprintln!("4 rotations: {calls} calls, {} failed", failures.len());
        ensure!(failures.is_empty() && calls > 100, "{calls} calls, {failures:?}");
        for proxy in [&server, &frontend] {
            ensure!(proxy.refused().await? == 0, "{}", proxy.process.log_tail());
        }
        Ok(())
    });
}

/// The time when what east's agent serves last changed, in seconds, by its metrics.
async fn served_as_of(ring: &Ring) -> Result<f64> {
    let (_, text) = ring.of_east.get("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix("entente_xds_changed_timestamp_seconds "));
    Ok(line.with_context(|| text.clone())?.trim().parse()?)
}

/// Passes connections on, bytes as they are.
async fn pass_on(from: SocketAddr, to: SocketAddr) -> Result<tokio::task::JoinHandle<()>> {
    let listener =
        eventually("the port is free", SOON, || async { Ok(TcpListener::bind(from).await?) }).await?;
    Ok(tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((mut here, _)) = listener.accept().await {
            all.spawn(async move {
                if let Ok(mut there) = TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                }
            });
        }
    }))
}
