//! Clients without Istio: an Envoy that has its configuration from our agent by xDS, and its certificates from SPIRE, calls
//! through the gateway of a mesh, which real istiod has configured.

use crate::envoy::{Admin, Workload, own_program, register};
use crate::federation::{Exported, SOON, address, xds_socket};
use crate::meshes::{CART, Meshes, ORDERS, with_meshes};
use crate::network::Member;
use crate::process::{Process, Spec};
use crate::wait::eventually;
use crate::workload::hears_from;
use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::process::Stdio;

/// Out of which a mesh's agent gives imports their addresses.
const RANGE: &str = "240.241.0.0/16";
/// The counter of those that RBAC has denied at a TCP listener.
const DENIED: &str = "tcp.rbac.denied";

/// A client without a sidecar. Dropped, it is gone.
struct Plain {
    process: Process,
    admin: Admin,
    member: Member,
}

impl Plain {
    /// With the SVID of one service account, and what the agent serves to another, or the same one.
    async fn start(
        meshes: &Meshes,
        name: &str,
        presents: &str,
        served_as: &str,
        at: Ipv4Addr,
    ) -> Result<Self> {
        let east = &meshes.east;
        let dir = east.dir().join("p");
        std::fs::create_dir_all(&dir)?;
        let member = meshes.join(at)?;
        member.own(RANGE)?;
        let program = own_program(&dir, name)?;
        let workload = Workload { path: format!("/ns/web/sa/{presents}"), ..Workload::named(name) };
        let id = register(east, &workload, &program).await?;
        let (admin, file) = (dir.join(format!("{name}.sock")), dir.join(format!("{name}.json")));
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
        command.args(["bootstrap", "envoy", "--node-id", name]).arg("--admin-socket").arg(&admin);
        command.arg("--spire-agent-socket").arg(east.spire.agent_socket());
        command.arg("--xds-socket").arg(xds_socket(east, served_as));
        let printed = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        std::fs::write(&file, printed.stdout)?;
        let args =
            ["--config-path", &file.display().to_string(), "--disable-hot-restart", "--concurrency", "1"];
        let (entering, args) = member.inside(&program, &args.map(str::to_owned))?;
        let mut process = Process::new(Spec {
            name: format!("envoy {id}"),
            program: entering,
            args,
            env: Vec::new(),
            log: dir.join(format!("{name}.log")),
            dir,
        });
        process.start()?;
        let plain = Self { process, admin: Admin::at(admin), member };
        plain.admin.live(&plain.process).await?;
        eventually("it has heard of listeners from the agent", SOON, || async {
            let taken = plain.admin.stat("listener_manager.lds.update_success").await?;
            ensure!(taken > 0, "{}", plain.admin.stats("update").await?);
            Ok(())
        })
        .await
        .with_context(|| plain.process.log_tail())?;
        Ok(plain)
    }

    /// What a client beside it hears of a service of west, at the address that the agent gave it.
    async fn hears(&self, meshes: &Meshes, service: Exported) -> Result<String> {
        hears_from(&self.member, &address(&meshes.east, service).await?, service.port).await
    }
}

/// Without a sidecar a client reaches what a mesh exports by `IstioMtls`: the gateway lets in Istio's ALPN and SNI alone, the
/// server's sidecar its `clients` alone, and the client pins the server.
#[test]
fn plain_envoys_call_through_a_gateway_of_istio() {
    with_meshes(async |meshes| {
        let at = |last| Ipv4Addr::new(10, 77, 1, last);
        let frontend = Plain::start(meshes, "plain", "frontend", "frontend", at(40)).await?;
        let heard = eventually("the frontend hears cart", SOON, || async {
            let heard = frontend.hears(meshes, CART).await?;
            ensure!(heard == CART.name, "{heard:?}: {}", frontend.admin.stats("fail").await?);
            Ok(())
        });
        heard.await.with_context(|| frontend.process.log_tail())?;

        // Whom the exporter does not name has no listener.
        let stranger = Plain::start(meshes, "plain-stranger", "stranger", "stranger", at(41)).await?;
        let refused = stranger.hears(meshes, CART).await;
        ensure!(refused.is_err(), "it hears {refused:?}");

        // It has one if it is given what is another's: then the server's sidecar denies it.
        let thief = Plain::start(meshes, "plain-thief", "stranger", "frontend", at(42)).await?;
        let cart = &meshes.workloads().cart.proxy;
        eventually("the server denies who is no client", SOON, || async {
            let before = cart.stat(DENIED).await?;
            let heard = thief.hears(meshes, CART).await?;
            ensure!(heard.is_empty(), "it hears {heard:?}");
            let denied = cart.stat(DENIED).await? - before;
            ensure!(denied == 1, "{denied} denied; client: {}", thief.admin.stats("fail").await?);
            Ok(())
        })
        .await?;

        // Envoy writes no colon in the names of its counters.
        let counter = format!("cluster.{}_{}.ssl.fail_verify_san", ORDERS.host(), ORDERS.port);
        eventually("the client refuses a server with another identity", SOON, || async {
            let heard = frontend.hears(meshes, ORDERS).await?;
            ensure!(heard.is_empty(), "it hears {heard:?}");
            let refused = frontend.admin.stat(&counter).await?;
            ensure!(refused > 0, "not for its SAN: {}", frontend.admin.stats("fail").await?);
            Ok(())
        })
        .await
    });
}
