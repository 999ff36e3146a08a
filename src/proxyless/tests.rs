//! Files as a library finds them, and the way to an agent.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::identity::client_tls;
use crate::identity::testing::Domain;
use crate::model::Bundle;

fn files(response: X509svidResponse) -> Files {
    chosen(response, None).unwrap().1
}

fn read_all(directory: &Path) -> BTreeMap<&'static str, String> {
    let read = |file: &'static str| (file, std::fs::read_to_string(path_of(directory, file)).unwrap());
    [CERTIFICATE, KEY, BUNDLES].map(read).into()
}

#[test]
fn what_is_written_is_of_one_moment_for_its_user_alone_and_written_once() {
    let (east, west) = (Domain::new("east.test"), Domain::new("west.test"));
    let directory = tempfile::tempdir().unwrap();
    let first = files(east.response(&[]));
    assert!(first.put(directory.path()).unwrap());
    let then = read_all(directory.path());
    let folder = std::fs::read_link(directory.path().join(CURRENT)).unwrap();
    assert!(!first.put(directory.path()).unwrap(), "nothing has changed");

    let second = files(east.response(&[&west.bundle()]));
    assert!(second.put(directory.path()).unwrap());
    let now = read_all(directory.path());
    assert!([CERTIFICATE, KEY, BUNDLES].iter().all(|file| now[file] != then[file]), "all is new");
    assert!(!directory.path().join(folder).exists(), "the earlier key is gone");
    for file in [CERTIFICATE, KEY, BUNDLES] {
        let mode = std::fs::metadata(path_of(directory.path(), file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let mode = std::fs::metadata(directory.path().join(CURRENT)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    // What a loss of power left half written is written again.
    std::fs::write(path_of(directory.path(), KEY), "").unwrap();
    assert!(second.put(directory.path()).unwrap());
    assert_eq!(read_all(directory.path()), now);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "a folder, and a link to it");

    let certificates = CertificateDer::pem_slice_iter(now[CERTIFICATE].as_bytes());
    assert_eq!(certificates.collect::<Result<Vec<_>, _>>().unwrap().len(), 1);
    PrivateKeyDer::from_pem_slice(now[KEY].as_bytes()).unwrap();
}

/// A disk that was full, and is no more: no further message of the Workload API is waited for.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_once_it_can_be() {
    let east = Domain::new("east.test");
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        workload_api: "unix:///nowhere".parse().unwrap(),
        id: None,
        directory: directory.path().to_owned(),
        agent: Reach::Socket("/nowhere".into()),
        bootstrap: "{}".to_owned(),
    };
    // Whatever keeps it from being written.
    let in_the_way = directory.path().join(CURRENT);
    std::fs::create_dir(&in_the_way).unwrap();
    let (wanted, latest) = watch::channel(Some(files(east.response(&[]))));
    let writer = Writer { settings: &settings, is_announced: false, failed: String::new() };
    let change = async {
        tokio::time::sleep(AGAIN * 4).await;
        assert!(!path_of(directory.path(), KEY).exists() && !directory.path().join(BOOTSTRAP).exists());
        std::fs::remove_dir(&in_the_way).unwrap();
        tokio::time::sleep(AGAIN * 2).await;
        drop(wanted);
    };
    tokio::join!(writer.run(latest), change);
    assert_eq!(read_all(directory.path()).len(), 3);
    assert_eq!(std::fs::read_to_string(directory.path().join(BOOTSTRAP)).unwrap(), "{}");
}

#[test]
fn a_socket_of_the_agents_own_is_led_to() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join(SOCKET);
    for to in ["/run/one.sock", "/run/other.sock"] {
        files::link(Path::new(to), &link).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(to));
    }
    files::unlink(&link).unwrap();
    assert!(std::fs::symlink_metadata(&link).is_err());
    // What is no link is left for who opens a socket there.
    std::fs::write(&link, "").unwrap();
    files::unlink(&link).unwrap();
    assert!(link.exists());
}

#[test]
fn a_bundle_map_has_each_trust_domain_by_itself() {
    let (east, west) = (Domain::new("east.test"), Domain::new("west.test"));
    let gone = Bundle::new(crate::bundle::testing::td("gone.test"), []);
    let (svids, _) = chosen(east.response(&[&west.bundle(), &gone]), None).unwrap();
    let text = bundles::map(&svids.identity);
    assert_eq!(text, bundles::map(&svids.identity));
    let map: Value = serde_json::from_str(&text).unwrap();
    let all = map["trust_domains"].as_object().unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["east.test", "gone.test", "west.test"]);
    assert_eq!(all["gone.test"]["keys"].as_array().unwrap().len(), 0);
    for domain in [&east, &west] {
        let document = &all[domain.td.as_str()];
        let parsed = crate::bundle::document::parse(&domain.td, document.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.bundle.digest(), domain.bundle().digest());
        let keys = document["keys"].as_array().unwrap();
        assert!(keys.iter().all(|key| key["use"] == "x509-svid" && key.get("kid").is_none()));
    }
}

#[test]
fn the_svid_that_is_wanted_is_taken() {
    let east = Domain::new("east.test");
    let mut response = east.response(&[]);
    let other = "spiffe://east.test/ns/web/sa/other";
    response.svids.push(east.svid(other, "entente-admin"));
    let of = |id: Option<&str>| {
        let id = id.map(|id| SpiffeId::new(id).unwrap());
        chosen(response.clone(), id.as_ref()).map(|(svids, _)| svids.identity.id.to_string())
    };
    assert_eq!(of(None).unwrap(), east.agent);
    assert_eq!(of(Some(other)).unwrap(), other);
    let refused = of(Some("spiffe://east.test/nobody")).unwrap_err();
    assert!(refused.contains("spiffe://east.test/nobody") && refused.contains("--spiffe-id"), "{refused}");
}

/// An agent's listener that says who came, and echoes.
async fn agent(source: IdentitySource) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(client_tls::server_config(&source).unwrap()));
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut word = [0; 5];
            if stream.read_exact(&mut word).await.is_ok() {
                let _ = stream.write_all(&word).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn a_socket_leads_to_the_agent_with_its_id_and_to_no_other() {
    let east = Domain::new("east.test");
    let directory = tempfile::tempdir().unwrap();
    let mut own = east.response(&[]);
    own.svids = vec![east.svid("spiffe://east.test/ns/web/sa/frontend", "")];
    let source = IdentitySource::empty();
    source.publish(read(own, None).unwrap());
    let mut response = east.response(&[]);
    response.svids = vec![east.svid("spiffe://east.test/ns/web/sa/impostor", "")];
    let impostor = IdentitySource::empty();
    impostor.publish(read(response, None).unwrap());
    let another = Domain::new("east.test").source(&[]);
    for (index, (server, expected)) in
        [(east.source(&[]), true), (impostor, false), (another, false)].into_iter().enumerate()
    {
        let path = directory.path().join(format!("{index}.sock"));
        let to = Agent { address: agent(server).await, id: SpiffeId::new(&east.agent).unwrap() };
        let relay = Relay::open(&path, to, &source).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let running = tokio::spawn(relay.run());
        let mut here = UnixStream::connect(&path).await.unwrap();
        let mut heard = Vec::new();
        let _ = here.write_all(b"hello").await;
        let _ = here.read_to_end(&mut heard).await;
        assert_eq!(heard == b"hello", expected, "server {index}");
        running.abort();
    }
}
