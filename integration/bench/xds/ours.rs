//! Our server: what a peer exports, taken in and planned as an agent does it, and served by sockets that each stand for a
//! SPIFFE ID.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use entente::clock;
use entente::identity::source::IdentitySource;
use entente::index::Index;
use entente::model::object::Kind;
use entente::model::own::Identity;
use entente::model::service::{
    Address, AppProtocol, ClientPattern, GatewayAddress, RemotePort, RemoteService, TlsMode,
};
use entente::model::session::{Catalogue, SessionState};
use entente::model::trust::SpireState;
use entente::model::world::Settings;
use entente::model::{Bundle, Object, ObjectKey, ServiceName, SpiffeId, TrustDomain};
use entente::observe::metrics::Metrics;
use entente::plan::imports;
use entente::plan::memo::Memo;
use entente::plan::plan_anew;
use entente::plan::xds::view::{ClientKind, Snapshot, View};
use entente::plan::xds::{ResourceType, Xds};
use entente::proto::xds::discovery::{DiscoveryResponse, Packed};
use entente::store::Event;
use entente::xds::{self, Clients, Socket, Sources};
use prost::Message as _;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) fn socket(folder: &Path, client: usize) -> PathBuf {
    folder.join(format!("{client}.sock"))
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).expect("a legal ID")
}

fn client(number: usize) -> SpiffeId {
    id(&format!("spiffe://east.example/ns/web/sa/client-{number}"))
}

/// What a client with an Envoy is sent, as one answer.
pub(crate) fn clusters(count: usize) -> Result<Vec<u8>> {
    let (_, xds) = Planned::new(count)?;
    let view = View::new(Arc::new(Snapshot::new(xds)), &client(0), ClientKind::Envoy);
    let packed = |resource: &entente::plan::xds::Resource| Packed {
        type_url: ResourceType::Cluster.url().to_owned(),
        value: resource.body.clone(),
    };
    let resources: Vec<Packed> = view.all(ResourceType::Cluster).iter().map(packed).collect();
    ensure!(resources.len() == count, "{} clusters are served", resources.len());
    Ok(DiscoveryResponse { resources, ..Default::default() }.encode_to_vec())
}

/// Serves so many clusters to so many clients, until the end of standard input.
pub(crate) fn serve(folder: &Path, count: usize, clients: usize) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let (mut planned, xds) = Planned::new(count)?;
        let (served, serving) = watch::channel(Some(xds));
        let cancel = CancellationToken::new();
        let nowhere = "unix:///nowhere".parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        let (identity, _) = IdentitySource::spawn(nowhere, None, cancel.clone());
        let sockets = (0..clients).map(|number| Socket { path: socket(folder, number), id: client(number) });
        let settings = xds::Settings { sockets: sockets.collect(), ..xds::Settings::default() };
        let metrics = Arc::new(Metrics::default());
        let sources = Sources { identity, served: serving, clients: Clients::default(), metrics };
        let _running = xds::start(settings, sources, cancel.clone()).await?;
        say("ready")?;
        let (lines, mut changes) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let _ = lines.blocking_send(line);
            }
        });
        while let Some(line) = changes.recv().await {
            served.send_replace(Some(planned.change(line.parse()?)?));
            say("changed")?;
        }
        Ok(())
    })
}

fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// An agent's state without its edges.
struct Planned {
    index: Index,
    memo: Memo,
    first: Object,
}

impl Planned {
    fn new(services: usize) -> Result<(Self, Arc<Xds>)> {
        let mut index = index()?;
        let catalogue = Catalogue {
            version: [7; 32],
            services: (0..services)
                .map(|n| service(n, 0))
                .map(|one| (one.name.clone(), Arc::new(one)))
                .collect(),
            held: BTreeSet::new(),
            malformed: Vec::new(),
        };
        let mut session = SessionState::idle(clock::now());
        session.catalogue = Some(Arc::new(catalogue));
        index.world_mut().sessions = Arc::new(BTreeMap::from([(west(), session)]));
        let mut memo = Memo::default();
        let mut objects = BTreeMap::new();
        let xds = loop {
            index.settle_exports();
            let plan = plan_anew(index.world(), &mut memo);
            let writes = plan.writes.into_values().map(|write| Object::clone(&write.object));
            let mut changed: BTreeMap<ObjectKey, Object> = writes
                .map(|mut object| {
                    object.meta.uid = format!("uid-of-{}", object.key);
                    (object.key.clone(), object)
                })
                .collect();
            for (key, write) in plan.statuses.into_iter().filter(|(key, _)| key.kind == Kind::ImportedService)
            {
                let held = changed.remove(&key).or_else(|| objects.get(&key).cloned());
                let mut object: Object = held.with_context(|| format!("{key} is not there"))?;
                object.body.insert("status".to_owned(), write.status);
                changed.insert(key, object);
            }
            if changed.is_empty() {
                break plan.xds.context("nothing is served")?;
            }
            for (key, object) in changed {
                objects.insert(key, object.clone());
                index.store(Event::Applied(object));
            }
        };
        let host = service(0, 0).name.host(&west())?;
        let of_first = |(key, _): &(ObjectKey, Object)| key.kind == Kind::ImportedService && key.name == host;
        let (_, first) = objects.into_iter().find(of_first).context("the first service is not imported")?;
        Ok((Self { index, memo, first }, xds))
    }

    /// The first service has another server.
    fn change(&mut self, number: usize) -> Result<Arc<Xds>> {
        let changed = service(0, number);
        let host = changed.name.host(&west())?;
        self.first.body.insert("spec".to_owned(), imports::spec(&west(), &changed, &host));
        self.first.meta.generation += 1;
        ensure!(self.index.store(Event::Applied(self.first.clone())), "it is a change");
        plan_anew(self.index.world(), &mut self.memo).xds.context("nothing is served")
    }
}

fn west() -> TrustDomain {
    TrustDomain::new("west.example").expect("a legal name")
}

fn service(number: usize, server: usize) -> RemoteService {
    let name = format!("service-{number:05}");
    RemoteService {
        ports: vec![RemotePort {
            name: "http".to_owned(),
            port: 8_080,
            protocol: AppProtocol::Http,
            clients: BTreeSet::new(),
        }],
        tls_mode: TlsMode::IstioMtls,
        server_ids: [id(&format!("spiffe://west.example/ns/shop/sa/{name}-{server:04}"))].into(),
        clients: [ClientPattern::parse("spiffe://east.example/ns/web/*").expect("a legal pattern")].into(),
        gateways: vec![GatewayAddress { address: Address::Ip([203, 0, 113, 10].into()), port: 15_443 }],
        endpoints: Vec::new(),
        name: ServiceName::new("shop", &name).expect("a legal name"),
    }
}

fn index() -> Result<Index> {
    let settings = Settings {
        istio: false,
        import_ranges: Settings::loopback_ranges(),
        serves_xds: true,
        ..Settings::standard()
    };
    let watched: Vec<Kind> = Kind::WATCHED.into_iter().filter(|kind| settings.watches(*kind)).collect();
    let mut index = Index::new(Arc::new(settings), clock::now());
    let own = TrustDomain::new("east.example")?;
    index.identity(Some(Arc::new(Identity {
        id: id("spiffe://east.example/ns/entente-system/sa/entente"),
        trust_domain: own.clone(),
        not_before: clock::now(),
        not_after: clock::now(),
        bundle: Arc::new(Bundle::new(own, [])),
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    })));
    index.spire(Some(Arc::new(SpireState::default())));
    for kind in watched {
        let objects = if kind == Kind::TrustDomainPeer { vec![peer()] } else { Vec::new() };
        index.store(Event::Reset { kind, objects });
    }
    ensure!(index.world().rejected.is_empty(), "{:?}", index.world().rejected);
    Ok(index)
}

fn peer() -> Object {
    let spec = json!({
        "trustDomain": "west.example",
        "bundleEndpoint": { "url": "https://spire.west.example:8443", "profile": { "type": "https_web" } },
        "agent": {
            "addresses": ["entente.west.example:7443"],
            "spiffeIDs": ["spiffe://west.example/ns/entente-system/sa/entente"],
        },
        "imports": { "services": [{ "namespace": "*", "name": "*" }], "maxServices": 10_000 },
    });
    let mut object = Object::desired(ObjectKey::cluster(Kind::TrustDomainPeer, "west.example"), spec);
    object.meta.uid = "uid-of-west".to_owned();
    object
}
