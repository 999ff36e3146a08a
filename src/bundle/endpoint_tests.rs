use super::*;
use crate::bundle::testing::{Ca, NOW, Reply, Server, Signed, ca_params, id, leaf_params, td, valid};
use rcgen::SanType;

const ENDPOINT: &str = "spiffe://west.test/spire/server";

fn client(roots: RootCertStore) -> EndpointClient {
    EndpointClient::new(roots).with_timeouts(Duration::from_secs(2), Duration::from_secs(5))
}

fn spiffe(url: &str) -> BundleEndpoint {
    let profile = EndpointProfile::HttpsSpiffe { endpoint_id: id(ENDPOINT) };
    BundleEndpoint { url: EndpointUrl::parse(url).unwrap(), profile }
}

fn web(url: &str) -> BundleEndpoint {
    BundleEndpoint { url: EndpointUrl::parse(url).unwrap(), profile: EndpointProfile::HttpsWeb }
}

fn at() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

async fn fetch(endpoint: &BundleEndpoint, with: Option<&Bundle>) -> Result<Fetched, FetchFailure> {
    client(RootCertStore::empty()).fetch(&td("west.test"), endpoint, with, at()).await
}

/// What is fetched from a server with this SVID when the bundle of `ca` is held.
async fn fetch_from(ca: &Ca, svid: Signed, reply: Reply) -> Result<Fetched, FetchFailure> {
    let server = Server::start(svid, move |_, _| reply.clone()).await;
    fetch(&spiffe(&server.url("/")), Some(&ca.bundle("west.test"))).await
}

fn problem(result: Result<Fetched, FetchFailure>) -> FetchProblem {
    let failure = result.unwrap_err();
    assert!(failure.message.contains("https://") && failure.message.contains("west.test"), "{failure:?}");
    failure.problem
}

fn document(ca: &Ca) -> String {
    document::write(&ca.bundle("west.test"))
}

#[tokio::test]
async fn https_spiffe_is_verified_by_id_and_bundle_and_not_by_host_name() {
    let (ca, next) = (Ca::new(), Ca::new());
    let signed = ca.svid(ENDPOINT);
    let svid = signed.der.clone();
    let fetched = fetch_from(&ca, signed, Reply::Ok(document(&next))).await.unwrap();
    assert_eq!(
        fetched,
        Fetched {
            bundle: (*next.bundle("west.test")).clone(),
            ignored: vec![],
            refused_by_spire: None,
            proof: vec![svid.to_vec()],
        }
    );
}

#[tokio::test]
async fn a_good_svid_of_another_id_is_the_wrong_endpoint() {
    let ca = Ca::new();
    let svid = ca.svid("spiffe://west.test/ns/shop/sa/web");
    let failure = fetch_from(&ca, svid, Reply::Ok(document(&ca))).await.unwrap_err();
    assert_eq!(failure.problem, FetchProblem::WrongEndpointSpiffeId);
    assert!(failure.message.contains("spiffe://west.test/ns/shop/sa/web"), "{}", failure.message);
    assert!(failure.message.contains(ENDPOINT), "{}", failure.message);
}

#[tokio::test]
async fn only_the_given_bundle_verifies_an_endpoint() {
    let (held, elsewhere) = (Ca::new(), Ca::new());
    let answer = || Reply::Ok(document(&held));
    // an authority that is known, but not from the bundle that verifies this endpoint
    let result = fetch_from(&held, elsewhere.svid(ENDPOINT), answer()).await;
    assert_eq!(problem(result), FetchProblem::EndpointCertificateUntrusted);
    let other_domain = elsewhere.svid("spiffe://east.test/spire/server");
    assert_eq!(
        problem(fetch_from(&held, other_domain, answer()).await),
        FetchProblem::EndpointCertificateUntrusted
    );
    // nor the Web PKI
    let mut roots = RootCertStore::empty();
    roots.add(elsewhere.der.clone()).unwrap();
    let mut params = leaf_params(&[ENDPOINT]);
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    let body = document(&held);
    let server = Server::start(elsewhere.sign(&params), move |_, _| Reply::Ok(body.clone())).await;
    let endpoint = spiffe(&server.url("/"));
    let result =
        client(roots).fetch(&td("west.test"), &endpoint, Some(&held.bundle("west.test")), at()).await;
    assert_eq!(problem(result), FetchProblem::EndpointCertificateUntrusted);
    assert_eq!(server.requests(), 0, "nothing is asked of a server that is not believed");
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing() {
    let ca = Ca::new();
    let stolen = Signed { der: ca.svid(ENDPOINT).der, key: ca.svid(ENDPOINT).key };
    let result = fetch_from(&ca, stolen, Reply::Ok(document(&ca))).await;
    assert_eq!(problem(result), FetchProblem::EndpointCertificateUntrusted);
}

#[tokio::test]
async fn without_a_bundle_of_the_endpoints_trust_domain_nothing_is_dialled() {
    let ca = Ca::new();
    let body = document(&ca);
    let server = Server::start(ca.svid(ENDPOINT), move |_, _| Reply::Ok(body.clone())).await;
    let empty = Bundle::new(td("west.test"), []);
    let other = ca.bundle("east.test");
    for with in [None, Some(&empty), Some(&*other)] {
        let result = fetch(&spiffe(&server.url("/")), with).await;
        assert_eq!(problem(result), FetchProblem::NoBundleToVerifyEndpoint);
    }
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn expired_certificates_and_authorities_are_told_apart_from_unknown_ones() {
    let ca = Ca::new();
    for (from, to) in [(-100, -1), (1, 100)] {
        let mut params = leaf_params(&[ENDPOINT]);
        valid(&mut params, from, to);
        let result = fetch_from(&ca, ca.sign(&params), Reply::Ok(document(&ca))).await;
        assert_eq!(problem(result), FetchProblem::EndpointCertificateExpired);
    }
    let mut params = ca_params();
    valid(&mut params, -100, -1);
    let old = Ca::with(params);
    let result = fetch_from(&old, old.svid(ENDPOINT), Reply::Ok(document(&ca))).await;
    assert_eq!(problem(result), FetchProblem::EndpointCertificateExpired);
}

/// Else every fetch would be another failure, and each a status to write.
#[tokio::test]
async fn an_expired_certificate_is_told_in_the_same_words_at_any_time() {
    let ca = Ca::new();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der.clone()).unwrap();
    for (from, to, word) in [(-100, -50, "valid until"), (500, 600, "not valid before")] {
        let mut params = leaf_params(&[ENDPOINT]);
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        valid(&mut params, from, to);
        let body = document(&ca);
        let server = Server::start(ca.sign(&params), move |_, _| Reply::Ok(body.clone())).await;
        let bundle = ca.bundle("west.test");
        for endpoint in [web(&server.url("/")), spiffe(&server.url("/"))] {
            let mut failures = Vec::new();
            for later in [0, 7] {
                let at = Timestamp::from_second(at().as_second() + later).unwrap();
                let client = client(roots.clone());
                let fetched = client.fetch(&td("west.test"), &endpoint, Some(&bundle), at).await;
                failures.push(fetched.unwrap_err());
            }
            assert_eq!(failures[0], failures[1]);
            assert_eq!(failures[0].problem, FetchProblem::EndpointCertificateExpired);
            let absolute = failures[0].message.contains(word) && failures[0].message.contains('T');
            assert!(absolute || endpoint.profile != EndpointProfile::HttpsWeb, "{}", failures[0].message);
        }
    }
}

#[tokio::test]
async fn bodies_are_bounded_in_size_and_time() {
    let ca = Ca::new();
    let started = std::time::Instant::now();
    let large = format!("{}{}", " ".repeat(document::MAX_BYTES), document(&ca));
    for reply in [Reply::Endless, Reply::Ok(large)] {
        assert_eq!(problem(fetch_from(&ca, ca.svid(ENDPOINT), reply).await), FetchProblem::BundleTooLarge);
    }
    let full = format!("{{\"keys\":[]{}}}", " ".repeat(document::MAX_BYTES - 11));
    assert!(fetch_from(&ca, ca.svid(ENDPOINT), Reply::Ok(full)).await.is_ok());
    assert!(started.elapsed() < Duration::from_secs(60));

    for text in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"keys\"", "HTTP/1.1 200 OK\r\n\r\n{}"] {
        let reply = text.to_owned();
        let server = Server::start(ca.svid(ENDPOINT), move |_, _| Reply::Stall(reply.clone())).await;
        let short = EndpointClient::new(RootCertStore::empty())
            .with_timeouts(Duration::from_secs(1), Duration::from_millis(300));
        let bundle = ca.bundle("west.test");
        let result = short.fetch(&td("west.test"), &spiffe(&server.url("/")), Some(&bundle), at()).await;
        assert_eq!(problem(result), FetchProblem::EndpointUnreachable);
    }
}

#[tokio::test]
async fn answers_that_are_no_bundle_are_classified() {
    let ca = Ca::new();
    let raw = |text: &str| Reply::Raw(text.to_owned());
    for (reply, expected) in [
        (Reply::Ok("{}".to_owned()), FetchProblem::BundleUnparseable),
        (Reply::Ok("<html>".to_owned()), FetchProblem::BundleUnparseable),
        (raw("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), FetchProblem::BadResponse),
        (raw("HTTP/1.1 204 No Content\r\n\r\n"), FetchProblem::BadResponse),
        (raw("HTTP/1.1 500 Oops\r\nContent-Length: 11\r\n\r\n{\"keys\":[]}"), FetchProblem::BadResponse),
        (raw("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), FetchProblem::BadResponse),
        (raw("hello, this is no HTTP at all\r\n\r\n"), FetchProblem::BadResponse),
        (raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"keys\""), FetchProblem::EndpointUnreachable),
        (Reply::HangUp, FetchProblem::EndpointUnreachable),
    ] {
        let shown =
            if let Reply::Raw(text) | Reply::Ok(text) = &reply { text.clone() } else { String::new() };
        assert_eq!(problem(fetch_from(&ca, ca.svid(ENDPOINT), reply).await), expected, "{shown}");
    }
}

#[tokio::test]
async fn who_cannot_be_reached_or_speaks_no_tls_is_unreachable() {
    let bundle = Ca::new().bundle("west.test");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let result = fetch(&spiffe(&format!("https://{address}/")), Some(&bundle)).await;
    assert_eq!(problem(result), FetchProblem::EndpointUnreachable);
    let result = fetch(&spiffe("https://no-such-host.invalid/"), Some(&bundle)).await;
    assert_eq!(problem(result), FetchProblem::EndpointUnreachable);
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    let task = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    let result = fetch(&spiffe(&format!("https://{address}/")), Some(&bundle)).await;
    assert_eq!(problem(result), FetchProblem::EndpointUnreachable);
    task.abort();
}

#[tokio::test]
async fn a_redirect_is_followed_only_where_the_same_endpoint_answers() {
    let ca = Ca::new();
    let bundle = ca.bundle("west.test");
    let body = document(&ca);
    let good = Server::start(ca.svid(ENDPOINT), move |path, _| match path {
        "/" => Reply::Redirect("/next".to_owned()),
        "/next" => Reply::Ok(body.clone()),
        "/loop" => Reply::Redirect("/loop".to_owned()),
        _ => Reply::HangUp,
    })
    .await;
    assert!(fetch(&spiffe(&good.url("/")), Some(&bundle)).await.is_ok());
    assert!(fetch(&spiffe(&good.url("/")), Some(&bundle)).await.is_ok());
    assert_eq!(good.requests(), 4, "a redirect is not remembered");
    let looping = fetch(&spiffe(&good.url("/loop")), Some(&bundle)).await;
    assert_eq!(problem(looping), FetchProblem::BadResponse);
    assert_eq!(good.requests(), 8, "at most three redirects are followed");

    let answers = document(&ca);
    let wrong =
        Server::start(ca.svid("spiffe://west.test/other"), move |_, _| Reply::Ok(answers.clone())).await;
    for (to, expected) in [
        (wrong.url("/"), FetchProblem::WrongEndpointSpiffeId),
        (good.url("/next").replace("https://", "http://"), FetchProblem::BadResponse),
        (good.url("/next").replace("https://", "https://user:pass@"), FetchProblem::BadResponse),
        ("file:///etc/passwd".to_owned(), FetchProblem::BadResponse),
        ("https://".to_owned(), FetchProblem::BadResponse),
    ] {
        let location = to.clone();
        let from = Server::start(ca.svid(ENDPOINT), move |_, _| Reply::Redirect(location.clone())).await;
        let result = fetch(&spiffe(&from.url("/")), Some(&bundle)).await;
        assert_eq!(problem(result), expected, "{to}");
    }
    assert_eq!(wrong.requests(), 0);
}

#[tokio::test]
async fn https_web_is_verified_by_web_pki_and_host_name() {
    let (web_ca, ca) = (Ca::new(), Ca::new());
    let mut roots = RootCertStore::empty();
    roots.add(web_ca.der.clone()).unwrap();
    let serve = |issuer: &Ca, name: SanType, from: i64, to: i64| {
        let mut params = leaf_params(&[]);
        params.subject_alt_names = vec![name];
        valid(&mut params, from, to);
        let (signed, body) = (issuer.sign(&params), document(&ca));
        async move { Server::start(signed, move |_, _| Reply::Ok(body.clone())).await }
    };
    let here = || SanType::IpAddress([127, 0, 0, 1].into());
    let elsewhere = SanType::DnsName("elsewhere.test".try_into().unwrap());
    let result = async |server: Server, roots: &RootCertStore| {
        client(roots.clone()).fetch(&td("west.test"), &web(&server.url("/")), None, at()).await
    };
    let good = result(serve(&web_ca, here(), -100, 100).await, &roots).await.unwrap();
    assert_eq!(good.bundle, *ca.bundle("west.test"));
    for (server, expected) in [
        (serve(&web_ca, elsewhere, -100, 100).await, FetchProblem::EndpointCertificateUntrusted),
        (serve(&Ca::new(), here(), -100, 100).await, FetchProblem::EndpointCertificateUntrusted),
        (serve(&web_ca, here(), -100, -1).await, FetchProblem::EndpointCertificateExpired),
        (serve(&web_ca, here(), 1, 100).await, FetchProblem::EndpointCertificateExpired),
    ] {
        assert_eq!(problem(result(server, &roots).await), expected);
    }
    let server = serve(&web_ca, here(), -100, 100).await;
    assert_eq!(
        problem(result(server, &RootCertStore::empty()).await),
        FetchProblem::EndpointCertificateUntrusted
    );
}

/// The first bundle, by the fingerprint of that of `ca`, from a server with this SVID.
async fn first_from(ca: &Ca, svid: Signed, reply: Reply) -> Result<Arc<Bundle>, FirstFetchError> {
    let server = Server::start(svid, move |_, _| reply.clone()).await;
    let expected = ca.bundle("west.test").digest();
    let client = client(RootCertStore::empty());
    client.fetch_first(&td("west.test"), &spiffe(&server.url("/")), expected, at()).await
}

#[tokio::test]
async fn a_first_bundle_is_believed_by_its_fingerprint_and_the_endpoint_by_the_bundle() {
    let (ca, other) = (Ca::new(), Ca::new());
    let bundle = first_from(&ca, ca.svid(ENDPOINT), Reply::Ok(document(&ca))).await.unwrap();
    assert_eq!(bundle, ca.bundle("west.test"));

    // another bundle, however good the endpoint's certificate is by it
    let served = first_from(&ca, other.svid(ENDPOINT), Reply::Ok(document(&other))).await.unwrap_err();
    let digest = other.bundle("west.test").digest();
    assert!(matches!(served, FirstFetchError::Fingerprint { served, .. } if served == digest), "{served:?}");

    // the right bundle, repeated by someone who is not the endpoint: what no digest covers is not believed
    let problem = async |svid: Signed| match first_from(&ca, svid, Reply::Ok(document(&ca))).await {
        Err(FirstFetchError::Endpoint(failure)) => failure.problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(other.svid(ENDPOINT)).await, FetchProblem::EndpointCertificateUntrusted);
    let workload = ca.svid("spiffe://west.test/ns/shop/sa/web");
    assert_eq!(problem(workload).await, FetchProblem::WrongEndpointSpiffeId);
    let leaf = ca.svid(ENDPOINT);
    let stolen = Signed { der: leaf.der, key: ca.svid(ENDPOINT).key };
    assert_eq!(
        problem(stolen).await,
        FetchProblem::EndpointCertificateUntrusted,
        "a certificate without its key proves nothing"
    );
}

#[tokio::test]
async fn each_hop_of_a_first_fetch_is_the_endpoint() {
    let (ca, other) = (Ca::new(), Ca::new());
    let text = document(&ca);
    let target = Server::start(ca.svid(ENDPOINT), move |_, _| Reply::Ok(text.clone())).await;
    let to = target.url("/");
    let redirected = first_from(&ca, ca.svid(ENDPOINT), Reply::Redirect(to.clone())).await.unwrap();
    assert_eq!(redirected, ca.bundle("west.test"));
    let astray = first_from(&ca, other.svid(ENDPOINT), Reply::Redirect(to)).await;
    assert!(matches!(astray, Err(FirstFetchError::Endpoint(_))), "{astray:?}");
}
