//! The DNS server of whole agents, asked by a client that is not ours (dnspython, through `integration/ask.py`): on machines without
//! Kubernetes, with Istio's addresses and without.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use entente::devkit::demo::{Domain, DomainConfig};
use serde_json::{Value, json};

use crate::world::{EAST, HOST, PORT, Pair, always, says, until, write_peer};

/// The client's process: it ends when its standard input does, with that of the tests.
struct Client {
    stdin: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start() -> anyhow::Result<Self> {
        let mut python = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/integration/ask.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3 cannot be run")?;
        let stdin = python.stdin.take().context("no stdin")?;
        let answers = BufReader::new(python.stdout.take().context("no stdout")?);
        Ok(Self { stdin, answers })
    }
}

/// What the server answers to each question, whose names end with a dot where they are whole. One client asks for all tests: it
/// takes longer to start than to ask.
fn ask(server: SocketAddr, questions: &[Value]) -> anyhow::Result<Vec<Value>> {
    static CLIENT: Mutex<Option<Client>> = Mutex::new(None);
    let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    let Client { stdin, answers } = match &mut *client {
        Some(client) => client,
        none => none.insert(Client::start()?),
    };
    let asked = json!({"server": server.ip(), "port": server.port(), "questions": questions});
    stdin.write_all(format!("{asked}\n").as_bytes())?;
    let mut line = String::new();
    ensure!(answers.read_line(&mut line)? > 0, "integration/ask.py failed; what it said is above");
    Ok(serde_json::from_str(&line)?)
}

/// What the domain's agent answers to one question.
fn answer(domain: &Domain, name: &str, kind: &str) -> anyhow::Result<Value> {
    let server = domain.dns_address().context("it answers no DNS")?;
    ask(server, &[json!({"name": name, "type": kind})])?.pop().context("no answer")
}

/// The one address of a name.
fn address(domain: &Domain, name: &str) -> anyhow::Result<String> {
    let said = answer(domain, name, "A")?;
    let answers = said["answers"].as_array().with_context(|| said.to_string())?;
    ensure!(said["code"] == "NOERROR" && answers.len() == 1, "{said}");
    let record = answers[0].as_str().unwrap_or_default();
    Ok(record.rsplit(' ').next().unwrap_or_default().to_owned())
}

/// What an HTTP server answers, head and all.
fn get(server: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    std::io::read_to_string(stream)
}

/// Both agents; east's answers DNS, and has no Istio where that is said.
async fn pair(istio: bool) -> Pair {
    Pair::with(|config: &mut DomainConfig| {
        if config.trust_domain.as_str() == EAST {
            config.dns.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
            config.cluster.istio = istio;
        }
    })
    .await
}

/// West exports its service, and east's agent answers for it. The address.
async fn exported(pair: &Pair) -> String {
    pair.west.write("cart.yaml", &pair.cart_manifest()).unwrap();
    until("the name is answered", async || address(&pair.east, &format!("{HOST}."))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outside_client_finds_what_is_imported_and_nothing_else() {
    let pair = pair(true).await;
    pair.introduce().await;
    let given = exported(&pair).await;
    pair.answers().await;
    let path = pair.east.generated().join("serviceentries").join(format!("entente-system_{HOST}.yaml"));
    let entry = entente::store::directory::read_document(&path).unwrap();
    assert_eq!(entry["spec"]["addresses"], json!([given]), "what the ServiceEntry has");

    let question = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let questions = [
        question(&format!("_http._tcp.{HOST}."), "SRV"),
        question("other.shop.west.example.", "A"),
        question(&format!("{HOST}."), "AAAA"),
        question("www.example.com.", "A"),
        question("gateway.west.example.", "A"),
        question("cart.shop.east.example.", "A"),
        json!({"name": format!("{HOST}."), "type": "A", "tcp": true, "edns": 4096}),
        json!({"name": "shop.west.example.", "type": "AXFR", "tcp": true}),
    ];
    let said = ask(pair.east.dns_address().unwrap(), &questions).unwrap();
    let code = |at: usize| said[at]["code"].as_str().unwrap_or_default();
    assert_eq!(
        said[0]["answers"],
        json!([format!("_http._tcp.{HOST}. 5 IN SRV 0 0 {PORT} {HOST}.")]),
        "{}",
        said[0]
    );
    assert_eq!(said[0]["additionals"], json!([format!("{HOST}. 5 IN A {given}")]));
    assert_eq!((code(1), code(2)), ("NXDOMAIN", "NOERROR"));
    for none in &said[1..3] {
        let soa = none["authorities"][0].as_str().unwrap();
        assert!(soa.starts_with("shop.west.example. 5 IN SOA ") && none["answers"] == json!([]), "{none}");
        assert!(none["flags"].as_array().unwrap().contains(&json!("AA")), "{none}");
    }
    assert_eq!((code(3), code(4), code(5)), ("REFUSED", "REFUSED", "REFUSED"));
    assert_eq!(
        (&said[6]["answers"], &said[6]["edns"]),
        (&json!([format!("{HOST}. 5 IN A {given}")]), &json!(1232))
    );
    assert_eq!(code(7), "REFUSED", "{}", said[7]);

    // What our side no longer admits is no name any more, though west exports it.
    write_peer(&pair.east, &pair.west, |spec| {
        spec["imports"]["services"] = json!([{ "namespace": "shop", "name": "other" }]);
    });
    until("it is gone", async || {
        let said = answer(&pair.east, &format!("{HOST}."), "A")?;
        ensure!(said["code"] == "NXDOMAIN", "{said}");
        Ok(())
    })
    .await;
    let admin = pair.east.admin_address().unwrap();
    let metrics = get(admin, "/metrics").unwrap();
    for line in
        ["entente_dns_queries_total{outcome=\"Refused\"} 4", "entente_dns_zone_changed_timestamp_seconds "]
    {
        assert!(metrics.lines().any(|it| it.starts_with(line)), "{line}\nis not in\n{metrics}");
    }
    // West's agent answers nobody.
    assert_eq!(pair.west.dns_address(), None);
}

/// A machine without Kubernetes and without Istio: an address of the loopback interface, the same over restarts of the agent and
/// while the peer is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_istio_keeps_its_addresses() {
    let mut pair = pair(false).await;
    pair.introduce().await;
    let edit =
        |spec: &mut Value| spec["imports"]["asLocal"] = json!([{ "namespace": "shop", "name": "cart" }]);
    write_peer(&pair.east, &pair.west, edit);
    let given = exported(&pair).await;
    assert!(given.starts_with("127."), "{given}");
    let stands = |pair: &Pair| {
        let path =
            pair.east.store().join("status/importedservices").join(format!("entente-system_{HOST}.yaml"));
        entente::store::directory::read_document(&path).unwrap()["status"]["addresses"].clone()
    };
    assert_eq!(stands(&pair), json!([given]), "it is kept in the status of the ImportedService");
    assert!(!pair.east.generated().join("serviceentries").exists(), "nothing of Istio's is written");
    until("the local name is answered as well", async || {
        ensure!(address(&pair.east, "cart.shop.svc.cluster.local.")? == given, "with another address");
        let [_, status, reason, _] =
            pair.east.condition("importedservices", &format!("entente-system_{HOST}"), "ServedLocally")?;
        ensure!((status.as_str(), reason.as_str()) == ("True", "ByName"), "{status} {reason}");
        Ok(())
    })
    .await;

    pair.west.stop_agent().await.unwrap();
    says(&pair.east, "Reciprocal", "Unknown", "PeerUnreachable").await;
    pair.east.stop_agent().await.unwrap();
    pair.east.start_agent().await.unwrap();
    until("it answers again", async || {
        ensure!(address(&pair.east, &format!("{HOST}."))? == given, "with another address");
        Ok(())
    })
    .await;
    says(&pair.east, "BundleEndpointHealthy", "True", "Healthy").await;
    always("it goes on to answer while west is away", Duration::from_secs(3), async || {
        ensure!(address(&pair.east, &format!("{HOST}."))? == given, "with another address");
        Ok(())
    })
    .await;
    // Until it has been away for longer than it may.
    write_peer(&pair.east, &pair.west, |spec| {
        edit(spec);
        spec["onDisconnect"] = json!({ "policy": "Withdraw", "after": "1s" });
    });
    until("it is withdrawn", async || {
        let said = answer(&pair.east, &format!("{HOST}."), "A")?;
        ensure!(said["code"] == "NXDOMAIN", "{said}");
        Ok(())
    })
    .await;
    pair.west.start_agent().await.unwrap();
    let again = until("it is back", async || address(&pair.east, &format!("{HOST}."))).await;
    assert_eq!(again, given, "where it was");
}
