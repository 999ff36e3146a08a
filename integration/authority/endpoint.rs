//! The bundle endpoint over HTTP, and its faults.

use std::sync::Arc;
use std::time::Duration;

use entente::devkit::{EmbeddedConfig, EmbeddedSpire, Fault};
use entente::identity::tls::provider;
use rustls::{ClientConfig, RootCertStore};

use crate::west;

async fn start() -> (tempfile::TempDir, EmbeddedSpire, reqwest::Client) {
    let dir = tempfile::tempdir().unwrap();
    let spire = EmbeddedSpire::start(EmbeddedConfig::new(west(), dir.path())).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(spire.web_root().clone()).unwrap();
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    (dir, spire, client)
}

#[tokio::test]
async fn only_get_of_the_root_is_answered() {
    let (_dir, spire, client) = start().await;
    let url = spire.web_bundle_url.as_str();
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let document: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(document["spiffe_sequence"], 1);
    assert_eq!(document["spiffe_refresh_hint"], 300);
    assert_eq!(document["keys"].as_array().unwrap().len(), 1);
    assert_eq!(client.head(url).send().await.unwrap().status(), 405);
    assert_eq!(client.post(url).send().await.unwrap().status(), 405);
    assert_eq!(client.get(format!("{url}bundle.json")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn faults_are_what_they_say() {
    let (_dir, spire, client) = start().await;
    let url = spire.web_bundle_url.as_str();
    let get = async |fault: Fault| {
        spire.set_fault(Some(fault));
        client.get(url).send().await
    };
    let keys = async |fault: Fault| {
        let body = get(fault).await.unwrap().bytes().await.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let keys = document["keys"].as_array().unwrap().clone();
        keys.iter().map(|k| k["use"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(Fault::EmptyKeys).await, [""; 0]);
    assert_eq!(keys(Fault::JwtOnly).await, ["jwt-svid"]);
    assert_eq!(keys(Fault::UnknownUseOnly).await, ["of-the-future"]);
    assert_eq!(keys(Fault::UnknownUseBeside).await, ["x509-svid", "of-the-future"]);
    let old = spire.bundle();
    spire.prepare().unwrap();
    assert_eq!(keys(Fault::OlderBundle).await.len(), 1);
    assert_eq!(keys(Fault::Bundle(Arc::clone(&old))).await.len(), 1);
    assert_eq!(get(Fault::Status(503)).await.unwrap().status(), 503);
    let redirected = get(Fault::Redirect("https://elsewhere.example/".to_owned())).await.unwrap();
    assert_eq!(
        (redirected.status().as_u16(), &redirected.headers()["location"]),
        (302, &"https://elsewhere.example/".parse().unwrap())
    );
    assert!(get(Fault::Hangup).await.is_err());

    let mut endless = get(Fault::EndlessBody).await.unwrap();
    let mut read = 0;
    while read < 4 * 1024 * 1024 {
        read += endless.chunk().await.unwrap().unwrap().len();
    }
    let mut slow = get(Fault::SlowBody(Duration::from_secs(30))).await.unwrap();
    slow.chunk().await.unwrap().unwrap();
    let more = tokio::time::timeout(Duration::from_millis(300), slow.chunk()).await;
    assert!(more.is_err(), "a byte came in 300 ms, and one in 30 s was to come");
}
