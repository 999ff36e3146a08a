//! `tlsMode: Mtls`: the application ends TLS, behind the same port of the same gateway that carries `IstioMtls`; with a
//! sidecar in front of it, and without.

use crate::application::{Application, Callee};
use crate::federation::{SOON, found};
use crate::istiod::{ROOT_NAMESPACE, set_status};
use crate::meshes::{CART, GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::network::Member;
use crate::wait::{always, eventually};
use crate::workload::{Interception, Role, Workload, hears_from, sidecar};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const HERE: &str = "127.0.0.1";
/// The port that the applications end TLS at.
const TLS_PORT: u16 = 8443;
/// The port that importers see.
const PORT: u16 = 443;
const API: &str = "entente.dev/v1alpha1";
const WITHOUT_SIDECAR: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 20);
const WITH_SIDECAR: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 21);

/// The applications of one run. `bare` has no sidecar, `web` has one.
struct Applications {
    bare: Application,
    web: Application,
    web_sidecar: Workload,
    /// In east: what calls `bare` and `web`, and who is no client calling `web`.
    clients: [(Application, Member); 3],
    bare_member: Member,
}

impl Applications {
    async fn start(meshes: &Meshes) -> Result<Self> {
        let (east, west) = (&meshes.east, &meshes.west);
        let caller = "spiffe://east.example/ns/web/sa/caller-of".to_owned();
        let allowed = ["bare", "web"].map(|name| format!("{caller}-{name}"));
        let bare_member = meshes.join(WITHOUT_SIDECAR)?;
        west.kubernetes.apply(&pod_without_sidecar()).await?;
        set_status(west, &pod_without_sidecar()).await?;
        let at = SocketAddrV4::new(WITHOUT_SIDECAR, TLS_PORT);
        let bare = Application::serving(west, &bare_member, ("shop", "bare"), at, &allowed).await?;

        let role = Role {
            namespace: "shop",
            name: "web",
            app: "web",
            address: WITH_SIDECAR,
            presents: "web-sidecar",
            gateway: None,
            port: None,
            interception: Interception::None,
        };
        west.kubernetes.apply(&sidecar(&role, TLS_PORT)).await?;
        let web_sidecar = meshes.start_in_west(role).await?;
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, TLS_PORT);
        let web = Application::serving(west, web_sidecar.member(), ("shop", "web"), at, &allowed).await?;
        let client = async |name: &str, of: &str, last: u8| {
            let member = meshes.join(Ipv4Addr::new(10, 77, 1, last))?;
            let sni = format!("{of}.shop.west.example");
            let id = format!("spiffe://west.example/ns/shop/sa/{of}");
            let callee = Callee::new(PORT, (GATEWAY, GATEWAY_PORT).into(), &sni, &id);
            let application = Application::calling(east, &member, ("web", name), &[callee]).await?;
            anyhow::Ok((application, member))
        };
        let clients = [
            client("caller-of-bare", "bare", 20).await?,
            client("caller-of-web", "web", 21).await?,
            client("other-caller", "web", 22).await?,
        ];
        Ok(Self { bare, web, web_sidecar, clients, bare_member })
    }
}

fn pod_without_sidecar() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare", "namespace": "shop", "labels": {"app": "bare"}},
        "spec": {"serviceAccountName": "bare", "containers": [{"name": "main", "image": "none.example/none"}]},
        "status": {
            "phase": "Running",
            "podIP": WITHOUT_SIDECAR.to_string(),
            "podIPs": [{"ip": WITHOUT_SIDECAR.to_string()}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// Exported without a word about gateways.
fn exported(name: &str) -> Value {
    json!({
        "apiVersion": API,
        "kind": "FederatedService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "workloadLabels": {"app": name},
            "ports": [{"name": "tls", "port": PORT, "targetPort": TLS_PORT}],
            "tlsMode": "Mtls",
            "exportedTrustDomains": ["east.example"],
            "clients": {"spiffeIDs": [format!("spiffe://east.example/ns/web/sa/caller-of-{name}")]},
            "serverSPIFFEIDs": [format!("spiffe://west.example/ns/shop/sa/{name}")],
        },
    })
}

/// Gives the gateway's Service a load balancer with these addresses.
async fn balance(meshes: &Meshes, addresses: &[&str]) -> Result<()> {
    let services = meshes.west.kubernetes.api("v1", "Service", Some(ROOT_NAMESPACE)).await?;
    let kind = json!({"spec": {"type": "LoadBalancer"}});
    services.patch("istio-eastwestgateway", &PatchParams::default(), &Patch::Merge(kind)).await?;
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
    services.patch_status("istio-eastwestgateway", &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

#[test]
fn applications_end_tls_beside_sidecars_that_do() {
    with_meshes(async |meshes| {
        let applications = Applications::start(meshes).await?;
        balance(meshes, &[&GATEWAY.to_string()]).await?;
        for name in ["bare", "web"] {
            meshes.west.kubernetes.apply(&exported(name)).await?;
        }
        let done = flows(meshes, &applications).await;
        let services = meshes.west.kubernetes.api(API, "FederatedService", Some("shop")).await?;
        for name in ["bare", "web"] {
            services.delete(name, &DeleteParams::background()).await?;
        }
        done?;
        let [(_, member), ..] = &applications.clients;
        eventually("what is withdrawn is passed on no more", SOON, || async {
            match hears_from(member, HERE, PORT).await {
                Ok(heard) if !heard.is_empty() => bail!("it hears {heard:?}"),
                _ => Ok(()),
            }
        })
        .await?;
        let pods = meshes.west.kubernetes.api("v1", "Pod", Some("shop")).await?;
        for name in ["bare", "web"] {
            pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
        }
        Ok(())
    });
}

async fn flows(meshes: &Meshes, applications: &Applications) -> Result<()> {
    let [(to_bare, of_bare), (to_web, of_web), (other, of_other)] = &applications.clients;
    for (name, client, member, server) in
        [("bare", to_bare, of_bare, &applications.bare), ("web", to_web, of_web, &applications.web)]
    {
        eventually(&format!("the client hears {name}"), SOON, || async {
            let heard = hears_from(member, HERE, PORT).await?;
            let why = client.stats("cluster.callee").await?;
            ensure!(heard == name, "it hears {heard:?}: {why}; server: {}", server.stats("ssl").await?);
            Ok(())
        })
        .await?;
        eventually("what importers are told of is the gateway that was found", SOON, || async {
            let object = found(&meshes.west, API, "FederatedService", Some("shop"), name).await?;
            let entries = &object.data["status"]["gatewayEntries"];
            let entry =
                json!({"type": "istio-ingressgateway", "address": GATEWAY.to_string(), "port": GATEWAY_PORT});
            ensure!(*entries == json!([entry]), "{}", object.data["status"]);
            Ok(())
        })
        .await?;
    }
    eventually("the sidecar passes TLS on and takes none", SOON, || async {
        let config = applications.web_sidecar.proxy.config().await?;
        let listener = config.listener(&WITH_SIDECAR.to_string(), TLS_PORT)?;
        let chains = listener["filter_chains"].as_array().context("no chains")?;
        ensure!(chains.iter().all(|chain| chain["transport_socket"].is_null()), "{listener}");
        ensure!(listener.to_string().contains("\"DENY\""), "the policy is not there: {listener}");
        Ok(())
    })
    .await?;
    // Who is no client is refused by the application, which alone can know.
    let before = applications.web.stat("listener.app.ssl.fail_verify_san").await?;
    let heard = hears_from(of_other, HERE, PORT).await.unwrap_or_default();
    ensure!(heard.is_empty(), "it hears {heard:?}: {}", other.stats("ssl").await?);
    let refused = applications.web.stat("listener.app.ssl.fail_verify_san").await? - before;
    ensure!(refused > 0, "not by the application: {}", applications.web.stats("ssl").await?);
    // The other mode, on the same port, all the while.
    always("frontend hears cart", Duration::from_secs(2), || async {
        let heard = meshes.workloads().frontend.hears(HERE, CART.port).await?;
        ensure!(heard == CART.name, "{heard:?}");
        Ok(())
    })
    .await
}
