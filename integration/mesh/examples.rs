//! The example of two clusters with Istio, in meshes: who is named in it is answered by it, and who is not is refused.

use crate::federation::{SOON, found, says};
use crate::meshes::{GATEWAY, GATEWAY_PORT, with_meshes};
use crate::wait::eventually;
use crate::web::{ALL, answers, serves_at};
use crate::workload::{Interception, Role, Workload};
use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

const EXPORT: &str = include_str!("../../examples/two-domains-istio/west/manifests/helloworld.yaml");
const NAME: &str = "helloworld";
const PORT: u16 = 5000;

/// A workload without a server of its own.
fn role<'a>(namespace: &'a str, name: &'a str, address: [u8; 4]) -> Role<'a> {
    Role {
        namespace,
        name,
        app: name,
        address: Ipv4Addr::from(address),
        presents: name,
        gateway: None,
        port: None,
        interception: Interception::None,
    }
}

/// The FederatedService of the example as it stands there, with these meshes' gateway; its host, and the first of its clients.
fn export() -> Result<(Value, String)> {
    let mut export: Value = serde_saphyr::from_str(EXPORT)?;
    export["spec"]["gateways"] =
        json!([{"type": "istio-eastwestgateway", "port": GATEWAY_PORT, "ip": GATEWAY.to_string()}]);
    let client = export["spec"]["clients"]["spiffeIDs"][0].as_str().context("it has no client")?.to_owned();
    Ok((export, client))
}

async fn hears(client: &Workload, expected: &str) -> Result<()> {
    let authority = format!("{NAME}.{NAME}.west.example:{PORT}");
    let heard = answers(client, ALL[0], PORT, &authority, 1).await?;
    ensure!(heard.keys().any(|answer| answer.contains(expected)), "{heard:?}");
    Ok(())
}

#[test]
fn the_caller_of_the_example_is_answered_and_the_stranger_is_not() {
    with_meshes(async |meshes| {
        let (export, client) = export()?;
        ensure!(client == "spiffe://east.example/ns/callers/sa/caller", "{client}");
        let west = &meshes.west;
        west.kubernetes.namespace(NAME).await?;
        west.kubernetes.apply(&sidecar()).await?;
        let server = meshes.start_in_west(role(NAME, NAME, [10, 77, 2, 40])).await?;
        let _answers = serves_at(&west.dir().join("w"), server.member(), NAME, &[PORT])?;
        let caller = meshes.start_in_east(role("callers", "caller", [10, 77, 1, 40])).await?;
        let stranger = meshes.start_in_east(role("callers", "a-stranger", [10, 77, 1, 41])).await?;
        west.kubernetes.apply(&export).await?;
        says(west, "FederatedService", Some(NAME), NAME, "Exported").await?;
        eventually("the caller is answered", SOON, || hears(&caller, NAME)).await?;
        eventually("the stranger is refused", SOON, || hears(&stranger, ALL[0].refused)).await?;
        hears(&caller, NAME).await?;

        let api = west.kubernetes.api("entente.dev/v1alpha1", "FederatedService", Some(NAME)).await?;
        api.delete(NAME, &DeleteParams::background()).await?;
        eventually("the export is gone", SOON, || async {
            let left = found(west, "entente.dev/v1alpha1", "FederatedService", Some(NAME), NAME).await;
            ensure!(left.is_err(), "it is there");
            Ok(())
        })
        .await?;
        let sidecars = west.kubernetes.api("networking.istio.io/v1", "Sidecar", Some(NAME)).await?;
        sidecars.delete(NAME, &DeleteParams::background()).await?;
        Ok(())
    });
}

/// Nothing redirects connections to the sidecar: it has to be told where to listen.
fn sidecar() -> Value {
    let ingress = json!([{
        "port": {"number": PORT, "name": "http", "protocol": "HTTP"}, "defaultEndpoint": format!("127.0.0.1:{PORT}"),
    }]);
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": NAME, "namespace": NAME},
        "spec": {
            "workloadSelector": {"labels": {"pod": NAME}}, "ingress": ingress, "egress": [{"hosts": ["*/*"]}],
        },
    })
}
