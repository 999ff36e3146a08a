//! HTTP/1.1, HTTP/2 and gRPC across trust domains, to a workload behind a headless Service: requests are answered end to
//! end, and who is no client is refused request by request, with the answer that the protocol has for it.

use crate::federation::{SOON, found, says};
use crate::meshes::{GATEWAY, GATEWAY_PORT, Meshes, with_meshes};
use crate::network::Member;
use crate::process::{Process, Spec};
use crate::wait::eventually;
use crate::workload::{Interception, Role, Workload};
use anyhow::{Context, Result, ensure};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const HERE: &str = "127.0.0.1";
const API: &str = "entente.dev/v1alpha1";
const NAME: &str = "catalog";
const HOST: &str = "catalog.shop.west.example";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// What tells the test program, started again, which part it has in a namespace, and what it prints begins with.
const PART: &str = "ENTENTE_MESH_PART";
const HEARD: &str = "HEARD ";
const GRPC: &str = "application/grpc";

/// What is spoken on a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spoken {
    /// As `appProtocol`, and what the client speaks.
    pub(crate) protocol: &'static str,
    /// The port that importers see, and the workload's.
    port: u16,
    pub(crate) target_port: u16,
    /// What the application says it was asked by.
    version: &'static str,
    /// What is heard of a good answer, and of a refusal, first.
    good: &'static str,
    pub(crate) refused: &'static str,
}

pub(crate) const ALL: [Spoken; 3] = [
    Spoken {
        protocol: "http",
        port: 18090,
        target_port: 8090,
        version: "HTTP/1.1",
        good: "200",
        refused: "403 RBAC: access denied",
    },
    Spoken {
        protocol: "http2",
        port: 18091,
        target_port: 8091,
        version: "HTTP/2.0",
        good: "200",
        refused: "403 RBAC: access denied",
    },
    Spoken {
        protocol: "grpc",
        port: 18092,
        target_port: 8092,
        version: "HTTP/2.0",
        good: "grpc-0",
        refused: "grpc-7 RBAC: access denied",
    },
];

/// The client that the export names is answered in each protocol, the server's application learns who it is from its own
/// sidecar, another of its namespace is refused with a status, and a local caller in plaintext is left alone. Shut by the
/// port's own clients, it is refused while the other ports answer.
#[test]
fn http_and_grpc_flow_across_trust_domains_and_are_denied_by_request() {
    with_meshes(async |meshes| {
        let west = &meshes.west;
        for object in [sidecar(), headless(), slice()] {
            west.kubernetes.apply(&object).await?;
        }
        let role = Role {
            namespace: "shop",
            name: NAME,
            app: NAME,
            address: ADDRESS,
            presents: NAME,
            gateway: None,
            port: None,
            interception: Interception::None,
        };
        let workload = meshes.start_in_west(role).await?;
        let _server = serves(&west.dir().join("w"), workload.member(), NAME)?;
        west.kubernetes.apply(&export(false)).await?;
        says(west, "FederatedService", Some("shop"), NAME, "Exported").await?;
        for spoken in ALL {
            flows(meshes, spoken).await?;
        }
        // of the port's own clients, nobody is here
        west.kubernetes.apply(&export(true)).await?;
        eventually("the port is shut to the client", SOON, || {
            hears(&meshes.workloads().frontend, ALL[0], ALL[0].refused)
        })
        .await?;
        eventually("the others answer", SOON, || hears(&meshes.workloads().frontend, ALL[2], ALL[2].good))
            .await?;
        clean(meshes).await
    });
}

async fn flows(meshes: &Meshes, spoken: Spoken) -> Result<()> {
    let workloads = meshes.workloads();
    let protocol = spoken.protocol;
    let by = format!("{NAME} by {} for ", spoken.version);
    let client = "URI=spiffe://east.example/ns/web/sa/frontend";
    eventually(&format!("frontend is answered by {protocol}"), SOON, || async {
        let heard = call(&workloads.frontend, spoken, HERE, spoken.port).await?;
        ensure!(heard.starts_with(spoken.good) && heard.contains(&by), "{heard}");
        ensure!(heard.contains(client), "the application is not told of the client: {heard}");
        Ok(())
    })
    .await?;
    eventually(&format!("the stranger is refused by {protocol}"), SOON, || {
        hears(&workloads.stranger, spoken, spoken.refused)
    })
    .await?;
    eventually(&format!("a local caller is answered in plaintext by {protocol}"), SOON, || async {
        let heard = call(&workloads.local, spoken, &ADDRESS.to_string(), spoken.target_port).await?;
        ensure!(heard.starts_with(spoken.good) && heard.contains(&by), "{heard}");
        Ok(())
    })
    .await
}

async fn hears(client: &Workload, spoken: Spoken, expected: &str) -> Result<()> {
    let heard = call(client, spoken, HERE, spoken.port).await?;
    ensure!(heard.starts_with(expected), "{heard}");
    Ok(())
}

/// What a client beside this sidecar hears.
async fn call(client: &Workload, spoken: Spoken, address: &str, port: u16) -> Result<String> {
    let authority = format!("{HOST}:{}", spoken.port);
    let heard = calls(client, spoken, &format!("{address}:{port}"), &authority, 1).await?;
    heard.into_iter().next().context("it heard nothing")
}

/// What a client beside this sidecar hears when it calls so often, each time by a connection of its own.
async fn calls(
    client: &Workload,
    spoken: Spoken,
    address: &str,
    authority: &str,
    times: usize,
) -> Result<Vec<String>> {
    let part = format!("call {} {address} {authority} {times}", spoken.protocol);
    let (program, args) = client.member().inside(&std::env::current_exe()?, &again())?;
    let mut command = tokio::process::Command::new(program);
    command.args(args).env(PART, part).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER_DEADLINE, command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let heard = text.lines().filter_map(|line| Some(line.split_once(HEARD)?.1.to_owned()));
    let heard: Vec<String> = heard.collect();
    ensure!(heard.len() == times, "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(heard)
}

/// How often each server gave a good answer, by its name; what is none, by its own words.
pub(crate) async fn answers(
    client: &Workload,
    spoken: Spoken,
    port: u16,
    authority: &str,
    times: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for heard in calls(client, spoken, &format!("{HERE}:{port}"), authority, times).await? {
        let good = heard.strip_prefix(spoken.good).and_then(|rest| rest.trim_start().split_once(" by "));
        let name = match good {
            Some((name, rest)) if rest.starts_with(&format!("{} for ", spoken.version)) => name.to_owned(),
            _ => heard,
        };
        *answers.entry(name).or_default() += 1;
    }
    Ok(answers)
}

/// A server of all of it at the namespace's 127.0.0.1, which says this name.
pub(crate) fn serves(dir: &Path, member: &Member, name: &str) -> Result<Process> {
    serves_at(dir, member, name, &ALL.map(|one| one.target_port))
}

/// The same, at these ports.
pub(crate) fn serves_at(dir: &Path, member: &Member, name: &str, ports: &[u16]) -> Result<Process> {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let part = format!("serve {name} {}", ports.join(" "));
    let (program, args) = member.inside(&std::env::current_exe()?, &again())?;
    let mut process = Process::new(Spec {
        name: format!("server of {name}"),
        program,
        args,
        env: vec![(PART.to_owned(), part)],
        log: dir.join(format!("{name}-web.log")),
        dir: dir.to_owned(),
    });
    process.start()?;
    Ok(process)
}

/// The arguments by which this program only plays its part.
fn again() -> [String; 3] {
    ["--exact", "web::plays_its_part", "--nocapture"].map(str::to_owned)
}

/// No test: the client or the server of one, in a namespace. Without a part it has nothing to do.
#[test]
fn plays_its_part() {
    let Ok(part) = std::env::var(PART) else { return };
    let words: Vec<&str> = part.split(' ').collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match words.as_slice() {
        ["serve", name, ports @ ..] => runtime.block_on(serve(name, ports)).unwrap(),
        ["call", protocol, address, authority, times] => {
            for _ in 0..times.parse::<usize>().unwrap() {
                let heard = runtime.block_on(ask(protocol, address, authority));
                println!("\n{HEARD}{}", heard.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
        _ => panic!("{part:?} is no part"),
    }
}

async fn serve(name: &str, ports: &[&str]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for port in ports {
        let listener = TcpListener::bind((HERE, port.parse::<u16>()?)).await?;
        let name = name.to_owned();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| std::future::ready(answer(&name, &request)));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // the other side may end it as it likes
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Says by what it was asked, and for whom, as the sidecar tells; to gRPC as a message and a status after it.
fn answer(name: &str, request: &Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let client = header("x-forwarded-client-cert").unwrap_or("nobody");
    let text = format!("{name} by {:?} for {client}", request.version());
    if !header(CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with(GRPC)) {
        return Ok(Response::new(Full::new(Bytes::from(text)).boxed()));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Frame::data(message(text.as_bytes())?), Frame::trailers(trailers)];
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
    Ok(Response::builder().header(CONTENT_TYPE, GRPC).body(BodyExt::boxed(body))?)
}

/// A message as gRPC frames it.
fn message(bytes: &[u8]) -> Result<Bytes> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(bytes.len())?.to_be_bytes());
    framed.extend_from_slice(bytes);
    Ok(framed.into())
}

/// Status and body of the answer.
async fn ask(protocol: &str, address: &str, authority: &str) -> Result<String> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let request = Request::builder();
    let response = match protocol {
        "http" => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            let request = request.uri("/").header("host", authority);
            sender.send_request(request.body(Full::<Bytes>::default())?).await?
        }
        _ => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            let request = request.uri(format!("http://{authority}/shop.Catalog/Name"));
            let request = if protocol == "grpc" {
                let request = request.method("POST").header(CONTENT_TYPE, GRPC).header("te", "trailers");
                request.body(Full::new(message(b"")?))?
            } else {
                request.body(Full::default())?
            };
            sender.send_request(request).await?
        }
    };
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = response.into_body().collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let bytes = body.to_bytes();
    if protocol != "grpc" {
        return Ok(format!("{status} {}", String::from_utf8_lossy(&bytes)));
    }
    let of =
        |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|value| value.to_str().ok());
    let said = of("grpc-message").map_or_else(
        || String::from_utf8_lossy(bytes.get(5..).unwrap_or_default()).into_owned(),
        |text| text.replace("%20", " "),
    );
    Ok(format!("grpc-{} {said}", of("grpc-status").unwrap_or("none")))
}

/// `shut`: the first port has clients of its own, and nobody here is one.
fn export(shut: bool) -> Value {
    let mut ports: Vec<Value> = ALL
        .iter()
        .map(|one| {
            json!({
                "name": one.protocol,
                "port": one.port,
                "targetPort": one.target_port,
                "appProtocol": one.protocol,
            })
        })
        .collect();
    if shut {
        ports[0]["clients"] = json!({"spiffeIDs": ["spiffe://east.example/ns/web/sa/somebody-else"]});
    }
    json!({
        "apiVersion": API,
        "kind": "FederatedService",
        "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {
            "workloadLabels": {"app": NAME},
            "ports": ports,
            "tlsMode": "IstioMtls",
            "exportedTrustDomains": ["east.example"],
            "clients": {"spiffeIDs": ["spiffe://east.example/ns/web/sa/frontend"]},
            "serverSPIFFEIDs": [format!("spiffe://west.example/ns/shop/sa/{NAME}")],
            "gateways": [{"type": "istio-eastwestgateway", "port": GATEWAY_PORT, "ip": GATEWAY.to_string()}],
        },
    })
}

/// Of a `Sidecar`: where it listens for all of it, and what is spoken there.
pub(crate) fn ingress() -> Vec<Value> {
    let ingress = |one: &Spoken| {
        json!({
            "port": {"number": one.target_port, "name": one.protocol, "protocol": one.protocol.to_uppercase()},
            "defaultEndpoint": format!("{HERE}:{}", one.target_port),
        })
    };
    ALL.iter().map(ingress).collect()
}

/// Nothing redirects connections to the sidecar: it has to be told where to listen, and what is spoken there.
fn sidecar() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {
            "workloadSelector": {"labels": {"pod": NAME}},
            "ingress": ingress(),
            "egress": [{"hosts": ["*/*"]}],
        },
    })
}

fn headless() -> Value {
    // Ports of its own: sidecars listen for those of Services themselves here, where the server would be.
    let port = |one: &Spoken| json!({"name": one.protocol, "appProtocol": one.protocol, "port": one.target_port + 100, "targetPort": one.target_port});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {
            "clusterIP": "None",
            "selector": {"app": NAME},
            "ports": ALL.iter().map(port).collect::<Vec<_>>(),
        },
    })
}

fn slice() -> Value {
    let port = |one: &Spoken| json!({"name": one.protocol, "protocol": "TCP", "port": one.target_port});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": NAME,
            "namespace": "shop",
            "labels": {
                "kubernetes.io/service-name": NAME,
                "service.kubernetes.io/headless": "",
            },
        },
        "addressType": "IPv4",
        "ports": ALL.iter().map(port).collect::<Vec<_>>(),
        "endpoints": [{
            "addresses": [ADDRESS.to_string()],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": NAME, "namespace": "shop"},
        }],
    })
}

/// Takes all of it away again.
async fn clean(meshes: &Meshes) -> Result<()> {
    let west = &meshes.west;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
    for (api_version, kind) in [
        (API, "FederatedService"),
        ("networking.istio.io/v1", "Sidecar"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("v1", "Service"),
        ("v1", "Pod"),
    ] {
        west.kubernetes.api(api_version, kind, Some("shop")).await?.delete(NAME, &at_once).await?;
    }
    for (domain, namespace) in [(&meshes.east, "entente-system"), (west, "shop")] {
        eventually("what was generated is gone", SOON, || async {
            let left = found(domain, "networking.istio.io/v1", "ServiceEntry", Some(namespace), HOST).await;
            ensure!(left.is_err(), "{} has the ServiceEntry", domain.trust_domain());
            Ok(())
        })
        .await?;
    }
    Ok(())
}
