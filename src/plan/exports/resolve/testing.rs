//! What runs in a cluster, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::cluster::{ClusterPort, ClusterService, ClusterServiceKind, Pod, TargetPort, Transport};
use crate::model::export::{Backing, DeclaredPort, DeclaredService, ExportRule};
use crate::model::peer::LabelSelector;
use crate::model::service::TlsMode;
use crate::model::trust::{Entry, SpireState};
use crate::model::{NamespacedName, ServiceName, World};
use crate::plan::fixtures::{at, client, id, labels, td};

use super::{Entries, namespace};

/// A pod of `shop` with the label `app`, and a port named `web`.
pub(in crate::plan) fn pod(name: &str, app: &str, web: Option<u16>) -> Pod {
    Pod {
        object: NamespacedName::new("shop", name),
        uid: format!("uid-of-{name}"),
        labels: labels(&[("app", app)]),
        service_account: app.to_owned(),
        ip: None,
        host_ip: None,
        other_ips: Vec::new(),
        is_ready: true,
        uses_host_network: false,
        named_ports: web.into_iter().map(|number| ("web".to_owned(), number)).collect(),
        has_sidecar: true,
        has_spire_socket: true,
        is_ambient: false,
    }
}

/// A TCP port of a Service.
pub(in crate::plan) fn port(name: &str, number: u16, target: TargetPort) -> ClusterPort {
    ClusterPort {
        name: name.to_owned(),
        number,
        target,
        node_port: None,
        transport: Transport::Tcp,
        app_protocol: None,
    }
}

/// A Service of `shop` for the pods with the label `app` of its name, with port 80 to their port `web`.
pub(in crate::plan) fn cluster_service(name: &str) -> ClusterService {
    ClusterService {
        object: NamespacedName::new("shop", name),
        uid: format!("uid-of-service-{name}"),
        created: Some(at(-40)),
        deletion: None,
        labels: labels(&[("export", "true")]),
        selector: labels(&[("app", name)]),
        kind: ClusterServiceKind::ClusterIp,
        cluster_ips: Vec::new(),
        is_headless: false,
        ports: vec![port("http", 80, TargetPort::Name("web".to_owned()))],
        external_ips: Vec::new(),
        load_balancer: BTreeSet::new(),
    }
}

/// The FederatedService `shop/cart`, of the Service of that name, for clients of east.example.
pub(in crate::plan) fn declared() -> DeclaredService {
    DeclaredService {
        object: NamespacedName::new("shop", "cart"),
        uid: "uid-of-shop-cart".to_owned(),
        generation: 1,
        created: Some(at(-50)),
        deletion: None,
        name: ServiceName::new("shop", "cart").unwrap(),
        backing: Backing::Service("cart".to_owned()),
        ports: Vec::new(),
        tls_mode: TlsMode::IstioMtls,
        exported_to: BTreeSet::from([td("east.example")]),
        clients: BTreeSet::from([client("spiffe://east.example/ns/shop/sa/client")]),
        server_ids: BTreeSet::new(),
        gateways: Vec::new(),
    }
}

/// A port of a FederatedService that says no more than it must.
pub(in crate::plan) fn declared_port(name: &str, port: u16) -> DeclaredPort {
    DeclaredPort { name: name.to_owned(), port, target: None, protocol: None, clients: None }
}

/// A rule for every Service with the label `export: "true"`.
pub(in crate::plan) fn rule(name: &str, created: i64) -> ExportRule {
    ExportRule {
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        generation: 1,
        created: Some(at(created)),
        deletion: None,
        services: LabelSelector {
            match_labels: labels(&[("export", "true")]),
            match_expressions: Vec::new(),
        },
        namespaces: LabelSelector::default(),
        tls_mode: TlsMode::IstioMtls,
        exported_to: BTreeSet::from([td("east.example")]),
        clients: BTreeSet::from([client("spiffe://east.example/ns/shop/sa/client")]),
    }
}

/// An entry of SPIRE.
pub(in crate::plan) fn entry(spiffe_id: &str, selectors: &[&str]) -> Entry {
    Entry {
        id: format!("{spiffe_id} {selectors:?}"),
        spiffe_id: id(spiffe_id),
        selectors: selectors.iter().map(|text| (*text).to_owned()).collect(),
        federates_with: BTreeSet::new(),
    }
}

/// Puts things into a world.
pub(in crate::plan) trait Cluster: Sized {
    fn with_declared(self, declared: DeclaredService) -> Self;
    fn with_rule(self, rule: ExportRule) -> Self;
    fn with_entries(self, entries: Vec<Entry>) -> Self;
    /// Decides what the declarations come to.
    fn settled(self) -> Self;
}

impl Cluster for World {
    fn with_declared(mut self, declared: DeclaredService) -> Self {
        self.declared.insert(declared.object.clone(), Arc::new(declared));
        self
    }

    fn with_rule(mut self, rule: ExportRule) -> Self {
        self.rules.insert(rule.name.clone(), Arc::new(rule));
        self
    }

    fn with_entries(mut self, entries: Vec<Entry>) -> Self {
        let entries: BTreeMap<String, Entry> =
            entries.into_iter().map(|entry| (entry.id.clone(), entry)).collect();
        self.spire = Some(Arc::new(SpireState { entries, ..SpireState::default() }));
        self
    }

    fn settled(mut self) -> Self {
        let entries = self.spire.iter().flat_map(|spire| spire.entries.values());
        let entries = Entries::new(&td("west.example"), entries);
        let names = self.declared.keys().chain(self.cluster_services.keys()).chain(self.services.keys());
        let namespaces: BTreeSet<String> = names.map(|name| name.namespace.clone()).collect();
        for name in namespaces {
            let resolved = namespace(&self, &entries, &name);
            self.resolve(&name, resolved);
        }
        self
    }
}
