//! Three meshes: a client `a` in east, a service `b` in all three, a service `c` in west and north alone. What east may
//! call of the others is reached there, by the address and by the name of their gateways, and nothing else is.

use crate::agent::{Agent, AgentOptions};
use crate::federation::{SOON, TIMING, found, says};
use crate::istiod::{Istiod, ROOT_NAMESPACE};
use crate::network::{Member, Network, which};
use crate::process::{Process, Spec};
use crate::proxy::Door;
use crate::wait::eventually;
use crate::web;
use crate::workload::{Interception, POD, Role, Workload};
use crate::world::{Domain, Options, peer};
use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use tokio::runtime::Runtime;

const HERE: &str = "127.0.0.1";
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 53);
const EXPORT: (&str, &str) = ("entente.dev/v1alpha1", "FederatedService");
const GATEWAY_PORT: u16 = 15443;
/// Of the Service `b` of east.
const LOCAL_PORT: u16 = 8000;
const TARGET_PORT: u16 = 8080;
/// Of the Service `b` of east for the first of [`web::ALL`]; those of the others follow it.
const LOCAL_WEB_PORT: u16 = 8010;
/// How long nobody may answer where nobody is to.
const CALLS: usize = 5;
/// Answers for the names that it is given as `name=address`; there is no other name.
const DNS: &str = "
import socket, struct, sys
names = dict(pair.split('=') for pair in sys.argv[2:])
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    query, client = server.recvfrom(512)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question, kind = query[12:at + 5], struct.unpack('>H', query[at + 1:at + 3])[0]
    name = '.'.join(labels).lower()
    known = name in names
    print(name, kind, known, flush=True)
    answer = b''
    if known and kind == 1:
        answer = b'\\xc0\\x0c' + struct.pack('>HHIH', 1, 1, 1, 4) + socket.inet_aton(names[name])
    flags = 0x8580 if known else 0x8583
    server.sendto(query[:2] + struct.pack('>HHHHH', flags, 1, 1 if answer else 0, 0, 0) + question + answer, client)
";

/// A service of one of the others, as east calls it. Each has a port of its own: a sidecar that connections are not
/// redirected to has one listener for a port.
#[derive(Clone, Copy)]
struct Remote {
    /// The index of its domain.
    domain: usize,
    name: &'static str,
    port: u16,
}

const REMOTES: [Remote; 4] = [
    Remote { domain: 1, name: "b", port: 18080 },
    Remote { domain: 2, name: "b", port: 18090 },
    Remote { domain: 1, name: "c", port: 18082 },
    Remote { domain: 2, name: "c", port: 18092 },
];
const DOMAINS: [&str; 3] = ["east.example", "west.example", "north.example"];

impl Remote {
    fn host(self) -> String {
        format!("{}.shop.{}", self.name, DOMAINS[self.domain])
    }

    /// What its workload is called, and answers.
    fn workload(self) -> String {
        workload(self.name, self.domain)
    }

    /// The port for what is spoken, by its place in [`web::ALL`]: one for both domains, since HTTP names its host.
    fn web_port(self, place: usize) -> u16 {
        let first = if self.name == "b" { 18180 } else { 18182 };
        first + 100 * u16::try_from(place).unwrap_or_default()
    }

    fn export(self, gateway: &Value) -> Value {
        let mut at = json!({"type": "istio-eastwestgateway", "port": GATEWAY_PORT});
        for (name, value) in gateway.as_object().into_iter().flatten() {
            at[name] = value.clone();
        }
        let mut ports = vec![json!({"name": "tcp", "port": self.port, "targetPort": TARGET_PORT})];
        ports.extend(web::ALL.iter().enumerate().map(|(place, spoken)| {
            json!({
                "name": spoken.protocol,
                "appProtocol": spoken.protocol,
                "port": self.web_port(place),
                "targetPort": spoken.target_port,
            })
        }));
        json!({
            "apiVersion": EXPORT.0,
            "kind": EXPORT.1,
            "metadata": {"name": self.name, "namespace": "shop"},
            "spec": {
                "workloadLabels": {"app": self.name},
                "ports": ports,
                "tlsMode": "IstioMtls",
                "exportedTrustDomains": [DOMAINS[0]],
                "clients": {"spiffeIDs": ["spiffe://east.example/ns/shop/sa/a"]},
                "serverSPIFFEIDs": [format!("spiffe://{}/ns/shop/sa/{}", DOMAINS[self.domain], self.workload())],
                "gateways": [at],
            },
        })
    }
}

fn workload(name: &str, domain: usize) -> String {
    format!("{name}-{}", DOMAINS[domain].split('.').next().unwrap_or_default())
}

fn gateway_address(domain: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, u8::try_from(domain).unwrap_or_default() + 1, 2)
}

fn gateway_name(domain: usize) -> String {
    format!("ingress.{}", DOMAINS[domain])
}

/// Fields are in the order in which they go.
struct Three {
    client: Workload,
    workloads: Vec<Workload>,
    servers: Vec<Process>,
    doors: Vec<Door>,
    dns: Process,
    resolver: Member,
    network: Network,
    agents: Vec<Agent>,
    istiods: Vec<Istiod>,
    domains: Vec<Domain>,
}

impl Three {
    async fn start() -> Result<Self> {
        crate::istiod::program()?;
        let start = |name| Domain::start(name, Options::default());
        let (east, west, north) = tokio::join!(start(DOMAINS[0]), start(DOMAINS[1]), start(DOMAINS[2]));
        let domains = vec![east?, west?, north?];
        let parts = Self::parts(&domains).await;
        if parts.is_err() {
            domains.iter().for_each(Domain::keep);
        }
        let ((client, workloads, servers), doors, dns, resolver, network, agents, istiods) = parts?;
        Ok(Self { client, workloads, servers, doors, dns, resolver, network, agents, istiods, domains })
    }

    #[allow(clippy::type_complexity, reason = "the fields, without the domains")]
    async fn parts(
        domains: &[Domain],
    ) -> Result<(Running, Vec<Door>, Process, Member, Network, Vec<Agent>, Vec<Istiod>)> {
        // East only imports: its mesh takes nobody else's certificates.
        let istiods = tokio::try_join!(
            Istiod::start(&domains[0], &[]),
            Istiod::start(&domains[1], &[DOMAINS[0]]),
            Istiod::start(&domains[2], &[DOMAINS[0]]),
        )?;
        let istiods = vec![istiods.0, istiods.1, istiods.2];
        let open =
            |(domain, istiod): (&Domain, &Istiod)| Door::open(domain.dir().join("xds.sock"), istiod.xds());
        let doors = domains.iter().zip(&istiods).map(open).collect::<Result<Vec<_>>>()?;
        let mut network = Network::new(domains[0].dir())?;
        let resolver = network.join(RESOLVER)?;
        network.resolve_at(RESOLVER)?;
        let dns = serve_dns(&resolver, domains[0].dir())?;
        let running = start_workloads(domains, &mut network, &doors).await?;
        let agents = federate(domains).await?;
        Ok((running, doors, dns, resolver, network, agents, istiods))
    }

    fn east(&self) -> &Domain {
        &self.domains[0]
    }

    /// Exports all of the others' services, behind gateways at these places.
    async fn export(&self, gateway: impl Fn(usize) -> Value) -> Result<()> {
        for remote in REMOTES {
            let domain = &self.domains[remote.domain];
            domain.kubernetes.apply(&remote.export(&gateway(remote.domain))).await?;
            says(domain, EXPORT.1, Some("shop"), remote.name, "Exported").await?;
        }
        Ok(())
    }

    async fn withdraw(&self) -> Result<()> {
        for remote in REMOTES {
            let api = self.domains[remote.domain].kubernetes.api(EXPORT.0, EXPORT.1, Some("shop")).await?;
            if api.get_opt(remote.name).await?.is_some() {
                api.delete(remote.name, &DeleteParams::background()).await?;
            }
        }
        eventually("east has nothing of the others", SOON, || async {
            for remote in REMOTES {
                if self.entry(remote).await.is_ok() {
                    bail!("{} is there", remote.host());
                }
                let config = self.client.proxy.config().await?;
                ensure!(config.listener(HERE, remote.port).is_err(), "the client has {}", remote.host());
            }
            Ok(())
        })
        .await
    }

    async fn entry(&self, remote: Remote) -> Result<Value> {
        let (version, host) = ("networking.istio.io/v1", remote.host());
        let entry = found(self.east(), version, "ServiceEntry", Some("entente-system"), &host).await?;
        Ok(entry.data["spec"].clone())
    }

    /// The client hears the very service of the very domain that it calls.
    async fn reaches_all(&self) -> Result<()> {
        for remote in REMOTES {
            eventually(&format!("a reaches {}", remote.host()), SOON, || async {
                let heard = self.client.hears(HERE, remote.port).await?;
                let why = self.client.proxy.stats("fail").await?;
                ensure!(
                    heard == remote.workload(),
                    "it hears {heard:?}; {why}; DNS: {}",
                    self.dns.log_tail()
                );
                Ok(())
            })
            .await?;
        }
        self.local_alone().await
    }

    /// What east has itself is called as ever, and by its local name it alone.
    async fn local_alone(&self) -> Result<()> {
        eventually("the local service alone answers", SOON, || async {
            for _ in 0..CALLS {
                self.hears_local().await?;
            }
            Ok(())
        })
        .await
    }

    /// Which of the others' services east serves at the local name as well.
    async fn as_local(&self, patterns: &Value) -> Result<()> {
        let peers = self.east().kubernetes.api("entente.dev/v1alpha1", "TrustDomainPeer", None).await?;
        for other in &DOMAINS[1..] {
            let change = json!({"spec": {"imports": {"asLocal": patterns}}});
            peers.patch(other, &PatchParams::default(), &Patch::Merge(change)).await?;
        }
        Ok(())
    }

    async fn hears_local(&self) -> Result<()> {
        let heard = self.client.hears(HERE, LOCAL_PORT).await?;
        ensure!(heard == workload("b", 0), "{heard:?}");
        Ok(())
    }
}

/// A workload of the namespace `shop`, with a server where it has a port.
fn role<'a>(name: &'a str, app: &'a str, address: Ipv4Addr, port: Option<u16>) -> Role<'a> {
    Role {
        namespace: "shop",
        name,
        app,
        address,
        presents: name,
        gateway: None,
        port,
        interception: Interception::None,
    }
}

/// The client, the other workloads, and what serves HTTP beside the sidecars of some.
type Running = (Workload, Vec<Workload>, Vec<Process>);

/// A server of TCP and HTTP, with its sidecar.
async fn start_server(
    domain: &Domain,
    network: &mut Network,
    door: &Door,
    role: Role<'_>,
) -> Result<(Workload, Process)> {
    let workload = Workload::start(domain, network, door, role).await?;
    let mut sidecar = crate::workload::sidecar(&role, TARGET_PORT);
    let ingress = sidecar.pointer_mut("/spec/ingress").and_then(Value::as_array_mut);
    ingress.context("no ingress")?.extend(web::ingress());
    ensure!(sidecar["spec"]["workloadSelector"]["labels"][POD] == role.name, "{sidecar}");
    domain.kubernetes.apply(&sidecar).await?;
    let server = web::serves(&domain.dir().join("w"), workload.member(), role.name)?;
    Ok((workload, server))
}

async fn start_workloads(domains: &[Domain], network: &mut Network, doors: &[Door]) -> Result<Running> {
    let (mut workloads, mut servers) = (Vec::new(), Vec::new());
    for (number, domain) in domains.iter().enumerate() {
        domain.kubernetes.namespace("shop").await?;
        let place = |last| Ipv4Addr::new(10, 77, u8::try_from(number).unwrap_or_default() + 1, last);
        let name = workload("b", number);
        for object in service(&name, place(3)) {
            domain.kubernetes.apply(&object).await?;
        }
        let b = role(&name, "b", place(3), Some(TARGET_PORT));
        let (b, web) = start_server(domain, network, &doors[number], b).await?;
        workloads.push(b);
        servers.push(web);
        if number == 0 {
            continue;
        }
        let name = workload("c", number);
        let c = role(&name, "c", place(4), Some(TARGET_PORT));
        let (c, web) = start_server(domain, network, &doors[number], c).await?;
        workloads.push(c);
        servers.push(web);
        let gateway = Role {
            namespace: ROOT_NAMESPACE,
            gateway: Some("eastwestgateway"),
            ..role("istio-eastwestgateway", "istio-eastwestgateway", gateway_address(number), None)
        };
        domain.kubernetes.apply(&gateway_service()).await?;
        workloads.push(Workload::start(domain, network, &doors[number], gateway).await?);
    }
    let a = role("a", "a", Ipv4Addr::new(10, 77, 1, 10), None);
    Ok((Workload::start(&domains[0], network, &doors[0], a).await?, workloads, servers))
}

fn gateway_service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "istio-eastwestgateway", "namespace": ROOT_NAMESPACE},
        "spec": {
            "selector": {"app": "istio-eastwestgateway"},
            "ports": [{"name": "tls", "protocol": "TCP", "port": GATEWAY_PORT, "targetPort": GATEWAY_PORT}],
        },
    })
}

/// The Service `b`, and where its workload is.
fn service(workload: &str, address: Ipv4Addr) -> [Value; 2] {
    let tcp = json!({"name": "tcp", "protocol": "TCP", "port": LOCAL_PORT, "targetPort": TARGET_PORT});
    let web = web::ALL.iter().zip(LOCAL_WEB_PORT..).map(|(spoken, port)| {
        let (name, target) = (spoken.protocol, spoken.target_port);
        json!({"name": name, "appProtocol": name, "protocol": "TCP", "port": port, "targetPort": target})
    });
    let ports: Vec<Value> = std::iter::once(tcp).chain(web).collect();
    let of_slice =
        |port: &Value| json!({"name": port["name"], "protocol": "TCP", "port": port["targetPort"]});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "b", "namespace": "shop"},
        "spec": {
            "selector": {"app": "b"},
            "ports": ports,
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "b", "namespace": "shop", "labels": {"kubernetes.io/service-name": "b"}},
        "addressType": "IPv4",
        "ports": ports.iter().map(of_slice).collect::<Vec<_>>(),
        "endpoints": [{
            "addresses": [address.to_string()],
            "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "name": workload, "namespace": "shop"},
        }],
    });
    [service, slice]
}

/// East's agent with those of the other two.
async fn federate(domains: &[Domain]) -> Result<Vec<Agent>> {
    let options = || AgentOptions { args: TIMING.map(str::to_owned).to_vec(), ..AgentOptions::default() };
    let mut agents =
        domains.iter().map(|domain| Agent::start(domain, options())).collect::<Result<Vec<_>>>()?;
    for agent in &mut agents {
        agent.ready(SOON).await?;
    }
    let [east, others @ ..] = domains else { bail!("no domains") };
    for other in others {
        east.kubernetes.apply(&peer(other).await?).await?;
        other.kubernetes.apply(&peer(east).await?).await?;
    }
    for other in others {
        says(east, "TrustDomainPeer", None, other.trust_domain().as_str(), "Ready").await?;
        says(other, "TrustDomainPeer", None, east.trust_domain().as_str(), "Ready").await?;
    }
    Ok(agents)
}

fn serve_dns(member: &Member, dir: &Path) -> Result<Process> {
    let names = [1, 2].map(|domain| format!("{}={}", gateway_name(domain), gateway_address(domain)));
    let args = ["-c".to_owned(), DNS.to_owned(), RESOLVER.to_string()];
    let args: Vec<String> = args.into_iter().chain(names).collect();
    let (program, args) = member.inside(&which("python3")?, &args)?;
    let log = dir.join("dns.log");
    let name = "DNS server".to_owned();
    let mut process = Process::new(Spec { name, program, args, env: Vec::new(), dir: dir.to_owned(), log });
    process.start()?;
    Ok(process)
}

/// Runs a test on the three, which it must leave without any export. If it fails, the logs are kept.
fn with_three(test: impl AsyncFnOnce(&Three) -> Result<()>) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static THREE: Mutex<Option<Three>> = Mutex::new(None);
    let runtime = RUNTIME.get_or_init(|| Runtime::new().unwrap());
    let mut shared = THREE.lock().unwrap_or_else(PoisonError::into_inner);
    let done = runtime.block_on(async {
        if shared.is_none() {
            *shared = Some(Three::start().await?);
        }
        let three = shared.as_ref().context("no meshes")?;
        let done = test(three).await;
        if done.is_err() {
            three.domains.iter().for_each(Domain::keep);
        }
        done
    });
    drop(shared);
    if let Err(error) = done {
        panic!("{error:#}");
    }
}

/// Before any export a client reaches what its own mesh has, and nothing of the others.
#[test]
fn before_the_export_only_the_local_service_is_reached() {
    with_three(async |three| {
        three.withdraw().await?;
        three.local_alone().await?;
        for remote in REMOTES {
            let heard = three.client.hears(HERE, remote.port).await;
            ensure!(heard.is_err(), "{} answers {heard:?}", remote.host());
        }
        Ok(())
    });
}

/// After it, the others' services are reached too, each at its own host; also the one that is only remote.
#[test]
fn services_of_two_other_meshes_are_reached_by_the_address_of_their_gateways() {
    with_three(async |three| {
        three.export(|domain| json!({"ip": gateway_address(domain).to_string()})).await?;
        ensure!(three.entry(REMOTES[0]).await?["resolution"] == "STATIC");
        three.reaches_all().await?;
        three.withdraw().await?;
        three.local_alone().await
    });
}

/// The same, with gateways that have names.
#[test]
fn services_of_two_other_meshes_are_reached_by_the_name_of_their_gateways() {
    with_three(async |three| {
        three.export(|domain| json!({"hostname": gateway_name(domain)})).await?;
        ensure!(three.entry(REMOTES[0]).await?["resolution"] == "DNS");
        three.reaches_all().await?;
        ensure!(three.dns.log().contains("ingress.west.example 1 True"), "nobody asked for the name");
        three.withdraw().await?;
        three.local_alone().await
    });
}

/// How many calls of the local name are all to be answered, and by all.
const MERGED_CALLS: usize = 40;

/// Where the importer asks for it, the one local name reaches the service in all three meshes, and no call is lost; and
/// its own alone again once that is asked for no more.
#[test]
fn the_local_name_reaches_all_three_meshes() {
    with_three(async |three| {
        three.export(|domain| json!({"ip": gateway_address(domain).to_string()})).await?;
        three.as_local(&json!([{"namespace": "shop", "name": "b"}])).await?;
        let all: BTreeSet<String> = (0..DOMAINS.len()).map(|domain| workload("b", domain)).collect();
        let hear = |calls: usize| async move {
            let mut heard = Vec::new();
            for _ in 0..calls {
                heard.push(three.client.hears(HERE, LOCAL_PORT).await?);
            }
            Ok::<_, anyhow::Error>(heard)
        };
        eventually("each of the three answers at the local name", SOON, || async {
            let heard: BTreeSet<String> = hear(12).await?.into_iter().collect();
            ensure!(heard == all, "{heard:?}: {}", three.client.proxy.stats("fail").await?);
            Ok(())
        })
        .await?;
        let heard = hear(MERGED_CALLS).await?;
        let of = |name: &String| heard.iter().filter(|one| *one == name).count();
        let counts: Vec<(&String, usize)> = all.iter().map(|name| (name, of(name))).collect();
        eprintln!("{MERGED_CALLS} calls of the local name: {counts:?}");
        ensure!(heard.iter().all(|one| all.contains(one)), "a call was lost: {heard:?}");
        ensure!(counts.iter().all(|(_, count)| *count >= MERGED_CALLS / 10), "{counts:?}");
        three.as_local(&json!([])).await?;
        three.local_alone().await?;
        three.withdraw().await?;
        three.local_alone().await
    });
}

/// Every name by which a client in its namespace may call a Service.
fn names(service: &str) -> [String; 3] {
    ["shop", "shop.svc", "shop.svc.cluster.local"].map(|rest| format!("{service}.{rest}"))
}

/// HTTP/1.1, HTTP/2 and gRPC: each of the others' services at its own host; and, once that is asked for, at the local name of
/// all three, by every form of that name, and at the one of a service that only the others have. No request is lost.
#[test]
fn http_and_grpc_reach_all_three_meshes() {
    with_three(async |three| {
        let answers = async |spoken: web::Spoken, port: u16, host: &str, times: usize| {
            web::answers(&three.client, spoken, port, &format!("{host}:{port}"), times).await
        };
        let only =
            async |spoken: web::Spoken, port: u16, host: &str, names: &BTreeSet<String>, times: usize| {
                eventually(&format!("{names:?} answer at {host} by {}", spoken.protocol), SOON, || async {
                    let heard: BTreeSet<String> =
                        answers(spoken, port, host, times).await?.into_keys().collect();
                    ensure!(heard == *names, "{heard:?}");
                    Ok(())
                })
                .await
            };
        three.export(|domain| json!({"ip": gateway_address(domain).to_string()})).await?;
        let own = BTreeSet::from([workload("b", 0)]);
        for (place, spoken) in web::ALL.into_iter().enumerate() {
            for remote in REMOTES {
                let its = BTreeSet::from([remote.workload()]);
                only(spoken, remote.web_port(place), &remote.host(), &its, CALLS).await?;
            }
            let port = LOCAL_WEB_PORT + u16::try_from(place)?;
            only(spoken, port, &names("b")[0], &own, CALLS).await?;
        }
        three
            .as_local(&json!([{"namespace": "shop", "name": "b"}, {"namespace": "shop", "name": "c"}]))
            .await?;
        let of_b: BTreeSet<String> = (0..DOMAINS.len()).map(|domain| workload("b", domain)).collect();
        let of_c: BTreeSet<String> = (1..DOMAINS.len()).map(|domain| workload("c", domain)).collect();
        for (place, spoken) in web::ALL.into_iter().enumerate() {
            let port = LOCAL_WEB_PORT + u16::try_from(place)?;
            let of_peers = REMOTES[2].web_port(place);
            for (service, port, all) in [("b", port, &of_b), ("c", of_peers, &of_c)] {
                for name in names(service) {
                    only(spoken, port, &name, all, MERGED_CALLS).await?;
                }
                let heard = answers(spoken, port, &names(service)[0], MERGED_CALLS).await?;
                eprintln!("{MERGED_CALLS} calls of {service} by {}: {heard:?}", spoken.protocol);
                let even = heard.values().all(|count| *count >= MERGED_CALLS / 10);
                ensure!(even && heard.keys().eq(all), "{heard:?}");
            }
        }
        three.as_local(&json!([])).await?;
        only(web::ALL[0], LOCAL_WEB_PORT, &names("b")[0], &own, CALLS).await?;
        three.withdraw().await
    });
}
