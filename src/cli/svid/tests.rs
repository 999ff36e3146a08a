use std::sync::Arc;

use super::*;
use crate::bundle::testing::{self, Ca, ca_params, td};
use crate::model::Bundle;

const ID: &str = "spiffe://west.example/ns/shop/sa/cart";

fn held(bundles: &[(&str, &Ca)]) -> Held {
    let bundle = |(name, ca): &(&str, &Ca)| {
        (Arc::new(Bundle::new(td(name), [ca.authority()])), "the agent".to_owned())
    };
    Held { bundles: bundles.iter().map(bundle).collect(), problem: None }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(i64::try_from(testing::now().as_secs()).unwrap()).unwrap()
}

fn svid(certificates: Vec<CertificateDer<'static>>) -> Svid {
    Svid { from: "standard input".to_owned(), certificates }
}

fn words(chain: &Chain) -> String {
    chain.describe(Screen { is_terminal: false, color: false, width: None }, now())
}

/// As SPIRE below an upstream authority has it: leaf, intermediate, and the root in the bundle.
#[test]
fn a_chain_leads_to_the_authority_that_is_held() {
    let root = Ca::new();
    let intermediate = root.below(ca_params());
    let leaf = intermediate.svid(ID);
    let presented = svid(vec![leaf.der.clone(), intermediate.der.clone()]);
    let other = Ca::new();
    let judged = chain::judge(&presented, &held(&[("east.example", &other), ("west.example", &root)]), now());
    assert!(judged.is_verified(), "{judged:?}");
    let words = words(&judged);
    for part in [
        ID,
        "leaf",
        "intermediate",
        "authority",
        root.authority().id().as_str().get(..16).unwrap(),
        "verified by the bundle of west.example, from the agent",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn what_is_wrong_with_a_chain_is_told() {
    let (ours, theirs, former) = (Ca::new(), Ca::new(), Ca::new());
    let leaf = theirs.svid(ID);
    let presented = svid(vec![leaf.der.clone()]);
    let problem = |held: &Held| {
        let judged = chain::judge(&presented, held, now());
        assert!(!judged.is_verified());
        words(&judged)
    };
    let nothing = problem(&held(&[]));
    assert!(
        nothing.contains("NOT VERIFIED: no bundle of trust domain west.example is held")
            && nothing.contains("none"),
        "{nothing}"
    );
    let stale = problem(&held(&[("west.example", &former)]));
    assert!(stale.contains("in no bundle that is held"), "{stale}");
    // An authority of one trust domain never speaks for another.
    let foreign = problem(&held(&[("west.example", &former), ("east.example", &theirs)]));
    assert!(
        foreign.contains("an authority of east.example, which cannot speak for west.example"),
        "{foreign}"
    );
    let no_svid = chain::judge(&svid(vec![ours.der.clone()]), &held(&[]), now());
    assert!(words(&no_svid).contains("NOT VERIFIED"), "{}", words(&no_svid));
}

#[test]
fn pem_is_read_with_what_else_is_in_the_file() {
    let ca = Ca::new();
    let text = |der: &[u8]| {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    let both = format!("chain of cart:\n{}{}", text(&ca.svid(ID).der), text(&ca.der));
    assert_eq!(pem(both.as_bytes(), "chain.pem").unwrap().len(), 2);
    let error = pem(&b"hello"[..], "chain.pem").unwrap_err().to_string();
    assert!(error.contains("chain.pem") && error.contains("no certificate"), "{error}");
}

/// The server wants a certificate of whoever calls: it has presented its own by then.
#[tokio::test]
async fn what_a_server_presents_is_seen_though_it_refuses_us() {
    use rustls::server::WebPkiClientVerifier;

    let provider = crate::identity::tls::provider;
    let ca = Ca::new();
    let leaf = ca.svid(ID);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der.clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13][..]] {
        let key = leaf.key.clone_key();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_single_cert(vec![leaf.der.clone()], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        });
        let seen = live::presented(&address, Some("cart.shop.west.example")).await.unwrap();
        assert_eq!(seen, std::slice::from_ref(&leaf.der));
        server.await.unwrap();
        let gone = live::presented(&address, None).await.unwrap_err();
        assert!(gone.is::<NotAsked>() && gone.to_string().contains("refused"), "{gone:#}");
    }
}
