//! Inviting and joining: the two commands, and everyone who must not get in.

use std::process::Output;
use std::sync::Arc;

use entente::bundle::document;
use entente::enrol::Token;
use entente::enrol::offer::LABEL_JOINED;
use entente::identity::source::IdentitySource;
use entente::identity::tls::provider;
use entente::model::{Bundle, TrustDomain};
use entente::proto::enrol::v1::{EnrolReply, EnrolRequest, Offer, Outcome};
use entente::store::directory::read_document;
use prost::Message as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::world::{EAST, PEERS, Pair, WEST, federating, files, says, td, until};
use entente::devkit::demo::Domain;

/// Runs a command against a domain's agent.
async fn run(domain: &Domain, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    command.args(args).env("ENTENTE_CONTROL", domain.control_socket()).kill_on_drop(true);
    command.output().await.unwrap()
}

/// Its standard output, where it went well.
async fn done(domain: &Domain, args: &[&str]) -> String {
    let output = run(domain, args).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Its standard error, where it did not.
async fn refused(domain: &Domain, args: &[&str]) -> String {
    let output = run(domain, args).await;
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// An invite by `here` for a trust domain, with more arguments.
async fn invite(here: &Domain, joiner: &str, more: &[&str]) -> String {
    let address = here.agent_address().to_string();
    let own = ["--advertise", address.as_str()];
    let advertised: &[&str] = if more.contains(&"--advertise") { &[] } else { &own };
    let args = [&["invite", "--trust-domain", joiner], advertised, more].concat();
    // an agent that has just started has not read everything
    let token = until("it invites", async || {
        let output = run(here, &args).await;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    });
    token.await.trim().to_owned()
}

async fn join(here: &Domain, token: &str, more: &[&str]) -> Output {
    let address = here.agent_address().to_string();
    run(here, &[&["join", token, "--advertise", &address], more].concat()).await
}

/// The TrustDomainPeers that a domain has, by file.
fn peers(domain: &Domain) -> Vec<Value> {
    let manifests = files(&domain.store().join("manifests"));
    let read = manifests.keys().map(|path| read_document(path).unwrap());
    read.filter(|object| object["kind"] == "TrustDomainPeer").collect()
}

async fn open_invites(domain: &Domain) -> Vec<Value> {
    serde_json::from_str(&done(domain, &["invite", "list", "-o", "json"]).await).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_and_a_join_make_two_strangers_peers() {
    let pair = Pair::strangers().await;
    let (east, west) = (&pair.east, &pair.west);
    let file = east.store().join("token");
    let shown = invite(east, WEST, &["--file", file.to_str().unwrap(), "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown.get("token").is_none() && shown["trustDomain"] == WEST, "{shown}");
    assert_eq!(open_invites(east).await.len(), 1);
    let address = west.agent_address().to_string();
    let with = ["join", "--file", file.to_str().unwrap(), "--advertise", &address];

    let dry = done(west, &[with.as_slice(), &["--dry-run"]].concat()).await;
    assert!(dry.contains("would be made here") && dry.contains(EAST) && dry.contains(WEST), "{dry}");
    assert!(peers(east).is_empty() && peers(west).is_empty());
    assert_eq!(open_invites(east).await[0]["triesLeft"], 5, "a dry run uses nothing up");

    let joined: Value =
        serde_json::from_str(&done(west, &[with.as_slice(), &["-o", "json"]].concat()).await).unwrap();
    assert_eq!(joined["fingerprint"], shown["fingerprint"]);
    pair.confirmed().await;
    assert!(open_invites(east).await.is_empty());
    let at_east = &peers(east)[0];
    assert_eq!(at_east["metadata"]["labels"][LABEL_JOINED], "true");
    assert_eq!(
        at_east["metadata"]["annotations"]["entente.dev/joined-fingerprint"], joined["ownFingerprint"],
        "the inviter sees what the joiner shows"
    );
    for (here, there) in [(east, west), (west, east)] {
        let spec = &peers(here)[0]["spec"];
        assert!(spec.get("imports").is_none() && spec.get("federatesWith").is_none(), "{spec}");
        let federating = federating(here, there.trust_domain().as_str()).await;
        assert_eq!(federating, [here.agent_id().to_string()], "the agents alone federate");
    }
    // The operator's own from now on: it ends as any other does.
    west.remove(&format!("{EAST}.yaml")).unwrap();
    until("west's peer is gone", async || {
        anyhow::ensure!(west.conditions(PEERS, EAST).is_empty());
        Ok(())
    })
    .await;
    let again = join(west, &std::fs::read_to_string(&file).unwrap(), &[]).await;
    let again = String::from_utf8(again.stderr).unwrap();
    assert!(again.contains("no invite is open there"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_is_made_good_by_the_operators_word() {
    let pair = Pair::strangers().await;
    let token = invite(&pair.east, WEST, &[]).await;
    let asked = Asker::of(&pair.west).await;
    assert_eq!(asked.ask(&pair.east, &asked.request(&token)).await.unwrap(), Outcome::Accepted);
    let output = join(&pair.west, &token, &[]).await;
    assert!(String::from_utf8(output.stderr).unwrap().contains("no invite is open there"));
    assert!(join(&pair.west, &token, &["--accepted"]).await.status.success());
    pair.confirmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_refused_where_it_does_not_belong() {
    let pair = Pair::strangers().await;
    let (east, west) = (&pair.east, &pair.west);
    let token = invite(east, "north.example", &[]).await;
    let said = refused(west, &["join", &token]).await;
    assert!(said.contains("this invite is for north.example"), "{said}");
    let cut = run(west, &["join", &token[..token.len() - 7]]).await;
    assert_eq!(cut.status.code(), Some(2));
    let cut = String::from_utf8(cut.stderr).unwrap();
    assert!(cut.contains("was cut"), "{cut}");
    assert!(!cut.contains(&token[20..60]), "the token is not repeated");

    let said = refused(east, &["invite", "--trust-domain", EAST, "--advertise", "192.0.2.1:7443"]).await;
    assert!(said.contains("our own trust domain"), "{said}");
    let said =
        refused(east, &["invite", "--trust-domain", WEST, "--ttl", "169h", "--advertise", "192.0.2.1:1"])
            .await;
    assert!(said.contains("7 days"), "{said}");
    let id = open_invites(east).await[0]["id"].as_str().unwrap().to_owned();
    done(east, &["invite", "withdraw", &id]).await;
    assert!(refused(east, &["invite", "withdraw", &id]).await.contains("not there"));
    assert!(open_invites(east).await.is_empty());

    let expiring = invite(east, WEST, &["--ttl", "1s"]).await;
    until("it has expired", async || {
        let said = join(west, &expiring, &[]).await;
        let said = String::from_utf8(said.stderr)?;
        anyhow::ensure!(said.contains("has expired at"), "{said}");
        Ok(())
    })
    .await;
    pair.introduce().await;
    let said = refused(east, &["invite", "--trust-domain", WEST, "--advertise", "192.0.2.1:7443"]).await;
    assert!(said.contains("TrustDomainPeer of west.example already"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_shows_its_secret_to_nobody_but_the_inviter() {
    let pair = Pair::strangers().await;
    let (east, west) = (&pair.east, &pair.west);
    // Someone else's bundle is served where the invite says.
    let elsewhere = west.spire().bundle_endpoint().unwrap().url.to_string();
    let token = invite(east, WEST, &["--bundle-endpoint-url", &elsewhere]).await;
    let said = String::from_utf8(join(west, &token, &[]).await.stderr).unwrap();
    assert!(said.contains("someone else answers there") && said.contains("new invite"), "{said}");

    // Someone else answers where the agent should: west itself, which receives joiners too.
    let theirs = west.agent_address().to_string();
    invite(west, "north.example", &[]).await;
    let token = done(east, &["invite", "--trust-domain", WEST, "--advertise", &theirs]).await;
    let said = String::from_utf8(join(west, token.trim(), &[]).await.stderr).unwrap();
    assert!(said.contains("is not the inviter's agent") && said.contains("nothing was shown"), "{said}");

    // The inviter has rotated since.
    let token = invite(east, WEST, &[]).await;
    east.spire().prepare().unwrap();
    let said = String::from_utf8(join(west, &token, &[]).await.stderr).unwrap();
    assert!(said.contains("has rotated its authorities since"), "{said}");
    let tries: Vec<Value> = open_invites(east).await.iter().map(|i| i["triesLeft"].clone()).collect();
    assert_eq!(tries, [5, 5, 5], "nothing was shown");
    assert!(peers(east).is_empty() && peers(west).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_is_there_while_an_invite_is_open_and_peers_notice_nothing() {
    let pair = Pair::peers().await;
    let east = &pair.east;
    let asker = Asker::of(&pair.west).await;
    let nothing = EnrolRequest::default();
    let closed = asker.ask(east, &nothing).await.unwrap_err();
    assert!(closed.contains("NoApplicationProtocol"), "{closed}");
    invite(east, "north.example", &[]).await;
    assert_eq!(asker.ask(east, &nothing).await.unwrap(), Outcome::InviteNotValid);
    // Without a client certificate there is no handshake.
    let bare = Asker { key: None, ..asker };
    let said = bare.ask(east, &nothing).await.unwrap_err();
    assert!(said.contains("CertificateRequired"), "{said}");
    // A flood is turned away before TLS, and the peers' exchange goes on.
    let mut turned_away = 0;
    for _ in 0..30 {
        turned_away += usize::from(bare.ask(east, &nothing).await.is_err_and(|e| !e.contains("Certificate")));
    }
    assert!(turned_away >= 15, "{turned_away}");
    says(east, "Connected", "True", "Connected").await;
    let id = open_invites(east).await[0]["id"].as_str().unwrap().to_owned();
    done(east, &["invite", "withdraw", &id]).await;
    let closed = bare.ask(east, &nothing).await.unwrap_err();
    assert!(closed.contains("NoApplicationProtocol"), "{closed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_guessed_five_times_and_tells_a_guesser_nothing() {
    let pair = Pair::strangers().await;
    let east = &pair.east;
    let asker = Asker::of(&pair.west).await;
    let token = invite(east, WEST, &[]).await;
    let good = asker.request(&token);
    let unknown = EnrolRequest { invite_id: vec![0; 8], ..good.clone() };
    assert_eq!(asker.ask(east, &unknown).await.unwrap(), Outcome::InviteNotValid);
    assert_eq!(open_invites(east).await[0]["triesLeft"], 5);
    for left in [4, 3, 2, 1] {
        let wrong = EnrolRequest { secret: vec![left; 32], ..good.clone() };
        assert_eq!(asker.ask(east, &wrong).await.unwrap(), Outcome::InviteNotValid);
        assert_eq!(open_invites(east).await[0]["triesLeft"], left);
    }
    // another invite keeps the door open
    invite(east, "north.example", &[]).await;
    let wrong = EnrolRequest { secret: vec![0; 32], ..good.clone() };
    assert_eq!(asker.ask(east, &wrong).await.unwrap(), Outcome::InviteNotValid);
    assert_eq!(asker.ask(east, &good).await.unwrap(), Outcome::InviteNotValid, "the tries were used up");
    assert!(peers(east).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_the_secret_must_be_who_was_invited() {
    let pair = Pair::strangers().await;
    let (east, west) = (&pair.east, &pair.west);
    let asker = Asker::of(west).await;
    let good = asker.request(&invite(east, WEST, &[]).await);
    let offer = |change: &dyn Fn(&mut Offer)| {
        let mut request = good.clone();
        change(request.joiner.as_mut().unwrap());
        request
    };
    let own = west.spire().bundle();
    let of_east = east.spire().bundle();
    let both = Bundle::new(td(WEST), own.authorities().chain(of_east.authorities()).cloned());
    let with_bundle = |bundle: &str| EnrolRequest { bundle: bundle.to_owned(), ..good.clone() };
    let workload = "spiffe://west.example/ns/shop/sa/cart";
    let cases = [
        (offer(&|o| o.trust_domain = "north.example".to_owned()), Outcome::OtherTrustDomain),
        (offer(&|o| o.bundle_endpoint_url = "http://192.0.2.1/".to_owned()), Outcome::BadOffer),
        (with_bundle("{}"), Outcome::BadBundle),
        (with_bundle(r#"{"keys":[]}"#), Outcome::BadBundle),
        (with_bundle(&document::write(&both)), Outcome::SharedAuthority),
        (offer(&|o| o.agent_ids = vec![workload.to_owned()]), Outcome::NotTheAgent),
    ];
    for (request, outcome) in cases {
        assert_eq!(asker.ask(east, &request).await.unwrap(), outcome);
    }
    assert!(peers(east).is_empty());
    assert_eq!(open_invites(east).await[0]["triesLeft"], 5);
    // An SVID of another trust domain does not chain to the bundle.
    let other = Asker::of(east).await;
    assert_eq!(other.ask(east, &good).await.unwrap(), Outcome::NotTheAgent);
    assert_eq!(asker.ask(east, &good).await.unwrap(), Outcome::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_race_with_one_token_one_gets_in() {
    let pair = Pair::strangers().await;
    let east = &pair.east;
    let asker = Asker::of(&pair.west).await;
    let good = asker.request(&invite(east, WEST, &[]).await);
    invite(east, "north.example", &[]).await;
    let outcomes = futures::future::join_all((0..4).map(|_| asker.ask(east, &good))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let accepted = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
    let lost = [Outcome::Accepted, Outcome::InviteNotValid, Outcome::AlreadyAPeer];
    assert!(accepted == 1 && outcomes.iter().all(|outcome| lost.contains(outcome)), "{outcomes:?}");
    assert_eq!(peers(east).len(), 1);
    assert_eq!(asker.ask(east, &good).await.unwrap(), Outcome::InviteNotValid, "a replay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_keep_no_joiner_out() {
    let pair = Pair::strangers().await;
    let east = &pair.east;
    let asker = Asker::of(&pair.west).await;
    let good = asker.request(&invite(east, WEST, &[]).await);
    let dialled = futures::future::join_all((0..8).map(|_| asker.dial(east))).await;
    let silent: Vec<_> = dialled.into_iter().map(Result::unwrap).collect();
    assert_eq!(asker.ask(east, &good).await.unwrap(), Outcome::Accepted);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_whose_command_is_stopped_is_finished() {
    let pair = Pair::strangers().await;
    let (east, west) = (&pair.east, &pair.west);
    // east's key, and an answer that comes once nobody waits for it any more
    let inviter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = inviter.local_addr().unwrap().to_string();
    let token = invite(east, WEST, &["--advertise", &address]).await;
    let own = west.agent_address().to_string();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_entente"));
    command.args(["join", &token, "--advertise", &own]).kill_on_drop(true);
    let mut joining = command.env("ENTENTE_CONTROL", west.control_socket()).spawn().unwrap();
    let mut stream = Asker::of(east).await.accept(&inviter).await;
    let mut request = vec![0; usize::try_from(stream.read_u32().await.unwrap()).unwrap()];
    stream.read_exact(&mut request).await.unwrap();
    joining.kill().await.unwrap();
    // its client has gone, and the agent stays on the line
    let hung_up = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_u8()).await;
    assert!(hung_up.is_err(), "{hung_up:?}");
    let answer = EnrolReply { outcome: Outcome::Accepted.into() }.encode_to_vec();
    stream.write_u32(u32::try_from(answer.len()).unwrap()).await.unwrap();
    stream.write_all(&answer).await.unwrap();
    stream.flush().await.unwrap();
    until("west has its TrustDomainPeer", async || {
        anyhow::ensure!(peers(west).len() == 1);
        Ok(())
    })
    .await;
}

/// A joiner of its own make, which keeps to no rule.
struct Asker {
    key: Option<Arc<CertifiedKey>>,
    trust_domain: TrustDomain,
    offer: Offer,
    bundle: String,
}

impl Asker {
    /// One with the SVID of a domain's agent.
    async fn of(domain: &Domain) -> Self {
        let socket = domain.spire().workload_socket("agent").unwrap();
        let endpoint = format!("unix://{}", socket.display()).parse().unwrap();
        let cancel = CancellationToken::new();
        let (source, _task) = IdentitySource::spawn(endpoint, None, cancel.clone());
        source.subscribe().wait_for(Option::is_some).await.unwrap();
        cancel.cancel();
        let name = domain.trust_domain().to_string();
        Self {
            key: source.current().map(|svids| Arc::clone(&svids.peer_facing)),
            trust_domain: domain.trust_domain().clone(),
            offer: Offer {
                bundle_endpoint_id: format!("spiffe://{name}/spire/server"),
                trust_domain: name,
                agent_addresses: vec![domain.agent_address().to_string()],
                agent_ids: vec![domain.agent_id().to_string()],
                bundle_endpoint_url: domain.spire().bundle_endpoint().unwrap().url.to_string(),
            },
            bundle: document::write(&domain.spire().bundle()),
        }
    }

    /// What a joiner would send for this token.
    fn request(&self, token: &str) -> EnrolRequest {
        let parsed = Token::parse(token).unwrap();
        assert_eq!(parsed.joiner, self.trust_domain);
        EnrolRequest {
            invite_id: parsed.id.as_bytes().to_vec(),
            secret: secret_of(token),
            joiner: Some(self.offer.clone()),
            bundle: self.bundle.clone(),
        }
    }

    /// Receives one joiner, with this SVID.
    async fn accept(&self, listener: &TcpListener) -> tokio_rustls::server::TlsStream<TcpStream> {
        let key = CertifiedKey::clone(self.key.as_ref().unwrap());
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![entente::enrol::ALPN.to_vec()];
        let (tcp, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap()
    }

    async fn dial(&self, inviter: &Domain) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut config = match &self.key {
            Some(key) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                CertifiedKey::clone(key),
            ))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![entente::enrol::ALPN.to_vec()];
        let tcp = TcpStream::connect(inviter.agent_address()).await?;
        let name = ServerName::try_from("inviter.test").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    async fn ask(&self, inviter: &Domain, request: &EnrolRequest) -> Result<Outcome, String> {
        let exchange = async {
            let mut stream = self.dial(inviter).await?;
            let bytes = request.encode_to_vec();
            stream.write_u32(u32::try_from(bytes.len()).unwrap()).await?;
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            let mut answer = vec![0; usize::try_from(stream.read_u32().await?).unwrap()];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(EnrolReply::decode(answer.as_slice()).unwrap().outcome())
        };
        exchange.await.map_err(|error| format!("{error:?}"))
    }
}

/// The secret of a token, which the library shows to nobody.
fn secret_of(token: &str) -> Vec<u8> {
    use base64::Engine as _;
    let encoded = token.strip_prefix("entente1.").unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).unwrap();
    let message = &bytes[4..bytes.len() - 6];
    entente::proto::enrol::v1::Token::decode(message).unwrap().secret
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
