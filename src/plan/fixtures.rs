//! Worlds to decide on, for the tests of this folder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::cluster::{
    ClusterPort, ClusterService, ClusterServiceKind, LoadBalancer, Pod, TargetPort, Transport,
};
use crate::model::endpoint::{BundleEndpoint, EndpointProfile, EndpointUrl};
use crate::model::import::Imported;
use crate::model::mesh::{ControlPlane, Mesh, MeshConfig, SdsNames, Seen, Version};
use crate::model::object::{Kind, Meta};
use crate::model::own::Identity;
use crate::model::peer::{Imports, OnDisconnect, ServicePattern};
use crate::model::service::{
    Address, AppProtocol, ClientPattern, ExportedBy, ExportedPort, Gateway, GatewayAddress, GatewayType,
    RemotePort, RemoteService, TlsMode,
};
use crate::model::session::{Catalogue, LinkState, SessionState};
use crate::model::world::{Rejected, Relationships, Settings};
use crate::model::{
    Bundle, NamespacedName, Object, ObjectKey, Peer, Service, ServiceName, SpiffeId, TrustDomain, World,
};
use crate::plan::diff::ANNOTATION_APPLIED;

/// The agent's namespace in every world here.
pub(crate) const NAMESPACE: &str = "entente-system";

pub(crate) fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A world in which everything was read and nothing is there; `own` is our trust domain.
pub(crate) fn world(own: &str) -> World {
    let settings = Settings {
        instance: "main".to_owned(),
        namespace: NAMESPACE.to_owned(),
        spire_class_name: String::new(),
        relationships: Relationships::ControllerManager,
        drain: Duration::from_secs(30),
        poll_interval: Duration::from_secs(300),
        agent_follow: Duration::from_secs(6),
        good_fetches: 3,
        ..Settings::standard()
    };
    let mut world = World::empty(Arc::new(settings), at(0));
    let trust_domain = td(own);
    world.identity = Some(Arc::new(Identity {
        id: id(&format!("spiffe://{own}/ns/entente-system/sa/entente")),
        not_before: at(0),
        not_after: at(3_600),
        bundle: Arc::new(Bundle::new(trust_domain.clone(), [])),
        trust_domain,
        federated: BTreeMap::new(),
        malformed: BTreeMap::new(),
    }));
    world.read = Kind::WATCHED.into_iter().collect();
    world
}

/// A peer that admits everything.
pub(crate) fn peer(name: &str) -> Peer {
    Peer {
        object: name.replace('.', "-"),
        uid: format!("uid-of-{name}"),
        generation: 1,
        resource_version: "1".to_owned(),
        created: Some(at(-100)),
        deletion: None,
        finalizers: Vec::new(),
        ending: Default::default(),
        trust_domain: td(name),
        endpoint: BundleEndpoint {
            url: EndpointUrl::parse("https://bundle.example").unwrap(),
            profile: EndpointProfile::HttpsWeb,
        },
        bootstrap: None,
        agent_addresses: Vec::new(),
        agent_ids: BTreeSet::from([id(&format!("spiffe://{name}/ns/entente-system/sa/entente"))]),
        federates_with: None,
        imports: Imports {
            services: vec![ServicePattern { namespace: None, name: None }],
            as_local: Vec::new(),
            export_to: vec!["*".to_owned()],
            endpoint_cidrs: Vec::new(),
            max_services: 1_000,
            max_endpoints_per_service: 64,
        },
        on_disconnect: OnDisconnect::Keep,
        suspend: false,
        withdraw: false,
        direct_endpoints: false,
    }
}

/// A mesh of this trust domain in which nothing is wrong, and in which nobody else's certificates are taken.
pub(crate) fn mesh(own: &str) -> Mesh {
    Mesh {
        config: Seen::There(MeshConfig {
            object: NamespacedName::new("istio-system", "istio"),
            trust_domain: Some(td(own)),
            aliases: BTreeSet::new(),
            ca_trust_domains: BTreeSet::new(),
            captures_dns: true,
            proxies_allocate: false,
        }),
        control_planes: Seen::There(vec![ControlPlane {
            object: NamespacedName::new("istio-system", "istiod"),
            version: Some(Version::new(1, 30, 2)),
            skips_trust_domains: false,
            allocates_addresses: None,
            shared_config: None,
        }]),
        spire_agents: Seen::There(vec![SdsNames {
            object: NamespacedName::new("spire", "spire-agent"),
            own: "null".to_owned(),
            all: "ROOTCA".to_owned(),
        }]),
    }
}

/// The FederatedService shop/cart: port 18080 to 8080, for `client` in east.example, through one gateway.
pub(crate) fn cart() -> Service {
    service("shop", "cart", "east.example")
}

/// Like [`cart`], exported to one trust domain.
pub(crate) fn service(namespace: &str, name: &str, to: &str) -> Service {
    Service {
        by: ExportedBy::FederatedService,
        object: NamespacedName::new(namespace, name),
        uid: format!("uid-of-{namespace}-{name}"),
        generation: 1,
        created: Some(at(-50)),
        name: ServiceName::new(namespace, name).unwrap(),
        workload_labels: labels(&[("app", name)]),
        endpoints: BTreeSet::new(),
        ports: vec![ExportedPort {
            name: "tcp".to_owned(),
            port: 18_080,
            target_port: 8_080,
            protocol: AppProtocol::Tcp,
            clients: None,
        }],
        tls_mode: TlsMode::IstioMtls,
        exported_to: BTreeSet::from([td(to)]),
        clients: BTreeSet::from([client(&format!("spiffe://{to}/ns/shop/sa/client"))]),
        server_ids: BTreeSet::from([id(&format!("spiffe://west.example/ns/{namespace}/sa/{name}"))]),
        gateways: vec![Gateway {
            gateway_type: GatewayType::EastWestGateway,
            at: gateway("10.77.2.2", 15_443),
        }],
    }
}

/// What [`cart`] looks like at its importer.
pub(crate) fn remote_cart() -> RemoteService {
    RemoteService {
        name: ServiceName::new("shop", "cart").unwrap(),
        ports: vec![RemotePort {
            name: "tcp".to_owned(),
            port: 18_080,
            protocol: AppProtocol::Tcp,
            clients: BTreeSet::new(),
        }],
        tls_mode: TlsMode::IstioMtls,
        server_ids: BTreeSet::from([id("spiffe://west.example/ns/shop/sa/cart")]),
        clients: BTreeSet::from([client("spiffe://east.example/ns/shop/sa/client")]),
        gateways: vec![gateway("10.77.2.2", 15_443)],
        endpoints: Vec::new(),
    }
}

/// A gateway's Service in istio-system, as Istio installs one, with these addresses of its load balancer.
pub(crate) fn service_of_gateway(name: &str, addresses: &[&str]) -> ClusterService {
    let port = |name: &str, number: u16| ClusterPort {
        name: name.to_owned(),
        number,
        target: TargetPort::Number(number),
        node_port: None,
        transport: Transport::Tcp,
        app_protocol: None,
    };
    ClusterService {
        object: NamespacedName::new("istio-system", name),
        uid: format!("uid-of-{name}"),
        created: Some(at(-200)),
        deletion: None,
        labels: BTreeMap::new(),
        selector: labels(&[("istio", name.trim_start_matches("istio-"))]),
        kind: ClusterServiceKind::LoadBalancer,
        cluster_ips: vec!["10.96.0.9".parse().unwrap()],
        is_headless: false,
        ports: vec![port("status-port", 15_021), port("tls", 15_443)],
        external_ips: Vec::new(),
        load_balancer: addresses.iter().map(|ip| LoadBalancer::Ip(ip.parse().unwrap())).collect(),
    }
}

/// A pod that is ready, with a sidecar.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str, of: &[(&str, &str)]) -> Pod {
    Pod {
        object: NamespacedName::new(namespace, name),
        uid: format!("uid-of-{namespace}-{name}"),
        labels: labels(of),
        service_account: "default".to_owned(),
        ip: Some(ip.parse().unwrap()),
        host_ip: None,
        other_ips: Vec::new(),
        is_ready: true,
        uses_host_network: false,
        named_ports: BTreeMap::new(),
        has_sidecar: true,
        has_spire_socket: true,
        is_ambient: false,
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn client(text: &str) -> ClientPattern {
    ClientPattern::parse(text).unwrap()
}

pub(crate) fn gateway(address: &str, port: u16) -> GatewayAddress {
    GatewayAddress { address: Address::parse(address).unwrap(), port }
}

pub(crate) fn session(link: LinkState, services: Option<Vec<RemoteService>>) -> SessionState {
    let mut session = SessionState::idle(at(0));
    session.link = link;
    session.catalogue = services.map(|services| {
        Arc::new(Catalogue {
            version: [7; 32],
            services: services.into_iter().map(|s| (s.name.clone(), Arc::new(s))).collect(),
            held: std::collections::BTreeSet::new(),
            malformed: Vec::new(),
        })
    });
    session
}

pub(crate) trait WorldExt: Sized {
    fn with_peer(self, peer: Peer) -> Self;
    fn with_service(self, service: Service) -> Self;
    fn with_session(self, td: &str, session: SessionState) -> Self;
    fn with_object(self, object: impl Into<Arc<Object>>) -> Self;
    fn with_pod(self, pod: Pod) -> Self;
    fn with_cluster_service(self, service: ClusterService) -> Self;
    fn with_rejected(self, key: ObjectKey, trust_domain: Option<&str>) -> Self;
    /// As the store is once what a plan wants was written: objects, and the ImportedServices of `imported`.
    fn with_written(
        self,
        objects: &BTreeMap<ObjectKey, Arc<Object>>,
        imported: &[(&str, RemoteService)],
    ) -> Self;
}

impl WorldExt for World {
    fn with_peer(mut self, peer: Peer) -> Self {
        self.peers.insert(peer.trust_domain.clone(), Arc::new(peer));
        self
    }

    fn with_service(mut self, service: Service) -> Self {
        self.services.insert(service.object.clone(), Arc::new(service));
        self
    }

    fn with_session(mut self, name: &str, session: SessionState) -> Self {
        Arc::make_mut(&mut self.sessions).insert(td(name), session);
        self
    }

    fn with_object(mut self, object: impl Into<Arc<Object>>) -> Self {
        let object = object.into();
        self.objects.insert(object.key.clone(), object);
        self
    }

    fn with_pod(mut self, pod: Pod) -> Self {
        self.pods.insert(pod.object.clone(), Arc::new(pod));
        self
    }

    fn with_cluster_service(mut self, service: ClusterService) -> Self {
        self.cluster_services.insert(service.object.clone(), Arc::new(service));
        self
    }

    fn with_rejected(mut self, key: ObjectKey, trust_domain: Option<&str>) -> Self {
        let rejected = Rejected {
            uid: "uid".to_owned(),
            generation: 2,
            trust_domain: trust_domain.map(td),
            reason: "Malformed",
            message: "spec is malformed".to_owned(),
            deletion: None,
            finalizers: Vec::new(),
            resource_version: "2".to_owned(),
        };
        self.rejected.insert(key, rejected);
        self
    }

    fn with_written(
        mut self,
        objects: &BTreeMap<ObjectKey, Arc<Object>>,
        imported: &[(&str, RemoteService)],
    ) -> Self {
        for object in objects.values() {
            let mut written = Object::clone(object);
            written.meta.uid = format!("uid-of-{}", object.key.name);
            written.meta.created = Some(at(1));
            self = self.with_object(written);
        }
        for (peer, service) in imported {
            let host = service.name.host(&td(peer)).unwrap();
            let object = NamespacedName::new(NAMESPACE, &host);
            let imported = Imported {
                object: object.clone(),
                uid: format!("uid-of-{host}"),
                generation: 1,
                trust_domain: td(peer),
                service: Arc::new(service.clone()),
            };
            self.imported.insert(object, Arc::new(imported));
        }
        self
    }
}

/// An object of someone else.
pub(crate) fn foreign(kind: Kind, namespace: &str, name: &str, spec: Value) -> Object {
    let mut object = Object::desired(ObjectKey::namespaced(kind, namespace, name), spec);
    object.meta = Meta { uid: "theirs".to_owned(), created: Some(at(-10)), ..Meta::default() };
    object
}

/// An object as a manifest, with the fields that are written.
pub(crate) fn manifest(object: &Object) -> Value {
    let owners: Vec<Value> = object
        .meta
        .owners
        .iter()
        .map(|o| json!({"apiVersion": o.kind.api_version(), "kind": o.kind.kind(), "name": o.name, "uid": o.uid}))
        .collect();
    let mut annotations = object.meta.annotations.clone();
    annotations.remove(ANNOTATION_APPLIED);
    let mut manifest = Map::new();
    manifest.insert("apiVersion".to_owned(), object.key.kind.api_version().into());
    manifest.insert("kind".to_owned(), object.key.kind.kind().into());
    manifest.insert(
        "metadata".to_owned(),
        json!({
            "name": object.key.name,
            "namespace": object.key.namespace,
            "labels": object.meta.labels,
            "annotations": annotations,
            "ownerReferences": owners,
        }),
    );
    manifest.extend(Map::from(object.body.clone()));
    Value::Object(manifest)
}
