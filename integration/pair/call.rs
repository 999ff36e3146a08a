//! A call from one trust domain to the other, and what it rests on: only what the agents wrote.

use entente::devkit::demo::CallError;
use entente::model::trust::{BundleRemoval, SpireAction};
use entente::spire::SpireServer;
use serde_json::json;

use crate::world::{EAST, HOST, PORT, Pair, WEST, federating, files, td, until, write_peer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_answered_and_another_of_its_trust_domain_is_refused_by_name() {
    let pair = Pair::serving().await;
    let refused = pair.batch.call(HOST, PORT).await.unwrap_err().to_string();
    assert!(refused.contains("AuthorizationPolicy shop/"), "{refused}");
    assert!(refused.contains("spiffe://east.example/ns/web/sa/batch"), "{refused}");

    // Added to the clients, it is let in; the other one, taken out, is refused from then on.
    let mut manifest = pair.cart_manifest();
    manifest["spec"]["clients"]["spiffeIDs"] = json!(["spiffe://east.example/ns/web/sa/batch"]);
    pair.west.write("cart.yaml", &manifest).unwrap();
    until("the other caller is let in", async || Ok(pair.batch.call(HOST, PORT).await?)).await;
    assert!(matches!(pair.fails().await, CallError::Status { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_service_entry_the_call_fails_and_the_agent_writes_it_again() {
    let mut pair = Pair::serving().await;
    pair.east.stop_agent().await.unwrap();
    for path in files(&pair.east.generated().join("serviceentries")).keys() {
        std::fs::remove_file(path).unwrap();
    }
    assert!(matches!(pair.frontend.call(HOST, PORT).await, Err(CallError::NoServiceEntry(_))));
    pair.east.start_agent().await.unwrap();
    pair.answers().await;
}

/// Takes a trust domain out of every registration that federates with it, as its operator could.
async fn strip(domain: &entente::devkit::demo::Domain, name: &str) {
    let server = SpireServer::connect_unix(&domain.spire().server_socket);
    for entry in domain.spire_state().await.unwrap().federating_with(&td(name)) {
        let action = SpireAction::ChangeFederatesWith {
            entry: entry.id.clone(),
            add: [].into(),
            remove: [td(name)].into(),
        };
        server.act(domain.trust_domain(), &action).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_federates_with_at_the_caller_or_the_server_the_call_fails() {
    let mut pair = Pair::serving().await;
    pair.east.stop_agent().await.unwrap();
    pair.west.stop_agent().await.unwrap();

    // The caller can no longer verify the server.
    strip(&pair.east, WEST).await;
    until("the caller refuses the server", async || match pair.frontend.call(HOST, PORT).await {
        Err(CallError::ServerRefused(cause)) => {
            assert!(cause.contains("no bundle"), "{cause}");
            Ok(())
        }
        other => anyhow::bail!("{other:?}"),
    })
    .await;
    pair.east.start_agent().await.unwrap();
    pair.answers().await;

    // The server can no longer verify the caller.
    strip(&pair.west, EAST).await;
    until("the server refuses the caller", async || match pair.frontend.call(HOST, PORT).await {
        Err(CallError::CallerRefused(_)) => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .await;
    pair.west.start_agent().await.unwrap();
    pair.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bundle_the_call_fails() {
    let mut pair = Pair::serving().await;
    pair.east.stop_agent().await.unwrap();
    strip(&pair.east, WEST).await;
    let server = SpireServer::connect_unix(&pair.east.spire().server_socket);
    for action in [
        SpireAction::DeleteRelationship(td(WEST)),
        SpireAction::DeleteBundle(td(WEST), BundleRemoval::Restrict),
    ] {
        server.act(&td(EAST), &action).await.unwrap();
    }
    assert!(matches!(pair.fails().await, CallError::ServerRefused(_)));
    pair.east.start_agent().await.unwrap();
    pair.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_selected_registrations_federate_and_the_agents_own_always_does() {
    let pair = Pair::strangers().await;
    let cart = "spiffe://west.example/ns/shop/sa/cart";
    let agent = pair.west.agent_id().to_string();
    write_peer(&pair.east, &pair.west, |_| {});
    write_peer(&pair.west, &pair.east, |spec| {
        spec.as_object_mut().unwrap().remove("federatesWith");
    });
    pair.confirmed().await;
    assert_eq!(federating(&pair.west, EAST).await, std::slice::from_ref(&agent));
    write_peer(&pair.west, &pair.east, |spec| spec["federatesWith"] = json!({ "spiffeIDs": [cart] }));
    until("the selected one federates", async || {
        let mut names = federating(&pair.west, EAST).await;
        names.sort();
        anyhow::ensure!(names == [agent.as_str(), cart], "{names:?}");
        Ok(())
    })
    .await;
    write_peer(&pair.west, &pair.east, |spec| {
        spec.as_object_mut().unwrap().remove("federatesWith");
    });
    until("what is not selected any more does not", async || {
        let names = federating(&pair.west, EAST).await;
        anyhow::ensure!(names == std::slice::from_ref(&agent), "{names:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_importer_does_not_admit_is_not_there() {
    let pair = Pair::serving().await;
    write_peer(&pair.east, &pair.west, |spec| {
        spec["imports"]["services"] = json!([{ "namespace": "shop", "name": "other" }]);
    });
    assert!(matches!(pair.fails().await, CallError::NoServiceEntry(_)));
    until("the exporter is told", async || {
        let [_, status, reason, message] =
            pair.west.condition("federatedservices", "shop_cart", "Exported")?;
        anyhow::ensure!((status.as_str(), reason.as_str()) == ("False", "RefusedByPeer"), "{reason}");
        anyhow::ensure!(message.contains("NotAdmitted"), "{message}");
        Ok(())
    })
    .await;
    write_peer(&pair.east, &pair.west, |_| {});
    pair.answers().await;
}
