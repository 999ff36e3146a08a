//! Objects that are not ours, and objects that are bad: each harms only itself.

use anyhow::ensure;
use serde_json::json;

use crate::world::{EAST, HOST, PEERS, Pair, WEST, files, peer_file, says, until, write_peer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_the_same_name_that_is_not_ours_stays_and_is_named() {
    let pair = Pair::strangers().await;
    let theirs = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": HOST, "namespace": "entente-system" },
        "spec": { "hosts": ["something.else.example"], "location": "MESH_EXTERNAL", "resolution": "DNS" },
    });
    let path = pair.east.write("theirs.yaml", &theirs).unwrap();
    let before = std::fs::read_to_string(&path).unwrap();
    pair.introduce().await;
    pair.west.write("cart.yaml", &pair.cart_manifest()).unwrap();
    let name = format!("entente-system_{HOST}");
    until("the import says what stands in its way", async || {
        let [_, status, reason, message] = pair.east.condition("importedservices", &name, "Generated")?;
        ensure!(
            status == "False" && reason == "ObjectNotOurs" && message.contains(HOST),
            "{reason}: {message}"
        );
        Ok(())
    })
    .await;
    until("the exporter is told", async || {
        let [_, _, reason, message] = pair.west.condition("federatedservices", "shop_cart", "Exported")?;
        ensure!(reason == "RefusedByPeer" && message.contains("ObjectNotOurs"), "{reason}: {message}");
        Ok(())
    })
    .await;
    assert!(files(&pair.east.generated().join("serviceentries")).is_empty());

    pair.east.remove(&peer_file(&pair.west)).unwrap();
    until("east is done", async || {
        ensure!(pair.east.conditions(PEERS, WEST).is_empty(), "not yet");
        Ok(())
    })
    .await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_peer_is_not_accepted_and_harms_no_other() {
    let pair = Pair::serving().await;
    says(&pair.east, "Ready", "True", "Ready").await;
    // Statuses are written after what they tell of, and a receipt comes later than what it is given for.
    for (kind, word) in [("ServicesSynced", "1 imported"), ("RotationSafe", "gave a receipt")] {
        until("all is told", async || {
            let [.., message] = pair.east.condition(PEERS, WEST, kind)?;
            ensure!(message.contains(word), "{kind}: {message}");
            Ok(())
        })
        .await;
    }
    let before = pair.east.conditions(PEERS, WEST);
    let generated = files(&pair.east.generated());
    type Edit = fn(&mut serde_json::Value);
    let edits: [(&str, Edit, &str); 4] = [
        (
            "url",
            |spec| spec["bundleEndpoint"]["url"] = json!("http://bad.example/"),
            "spec.bundleEndpoint.url",
        ),
        ("own", |spec| spec["trustDomain"] = json!(EAST), "spec.trustDomain"),
        (
            "agent",
            |spec| spec["agent"]["spiffeIDs"] = json!(["spiffe://west.example/x"]),
            "spec.agent.spiffeIDs",
        ),
        ("bundle", |spec| spec["bootstrapBundle"]["inline"] = json!("{}"), "spec.bootstrapBundle.inline"),
    ];
    for (name, edit, field) in &edits {
        let mut manifest = pair.west.as_peer().unwrap();
        let trust_domain = format!("{name}.bad.example");
        manifest["metadata"]["name"] = json!(trust_domain);
        manifest["spec"]["trustDomain"] = json!(trust_domain);
        manifest["spec"]["agent"]["spiffeIDs"] = json!([format!("spiffe://{trust_domain}/agent")]);
        edit(&mut manifest["spec"]);
        pair.east.write(&format!("{name}.yaml"), &manifest).unwrap();
        until("it is not accepted", async || {
            let [_, status, reason, message] = pair.east.condition(PEERS, &trust_domain, "Accepted")?;
            ensure!(
                status == "False" && !reason.is_empty() && message.contains(field),
                "{reason}: {message}"
            );
            Ok(())
        })
        .await;
    }
    assert_eq!(pair.east.conditions(PEERS, WEST), before);
    assert_eq!(files(&pair.east.generated()), generated, "nothing was written anew");
    pair.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_edited_into_a_bad_one_keeps_what_was() {
    let pair = Pair::serving().await;
    let generated = files(&pair.east.generated());
    write_peer(&pair.east, &pair.west, |spec| spec["bundleEndpoint"]["url"] = json!("http://bad.example/"));
    says(&pair.east, "Accepted", "False", "Invalid").await;
    pair.answers().await;
    assert_eq!(files(&pair.east.generated()), generated);
    write_peer(&pair.east, &pair.west, |_| {});
    pair.confirmed().await;
    assert_eq!(files(&pair.east.generated()), generated);
}
