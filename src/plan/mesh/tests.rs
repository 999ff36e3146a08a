use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::api::v1alpha1::conditions::ReadyReason;
use crate::model::cluster::Pod;
use crate::model::mesh::{ControlPlane, MeshConfig, SdsNames, Version};
use crate::model::object::Kind;
use crate::plan::exports::{exports, testing};
use crate::plan::fixtures::{self, WorldExt as _, cart, foreign, labels, peer, remote_cart, td, world};

const PEER: &str = "east.example";

/// West, which exports `cart` to east.
fn exporting() -> World {
    let mut world = world("west.example").with_peer(peer(PEER)).with_service(cart());
    world.mesh = Some(Arc::new(fixtures::mesh("west.example")));
    config(&mut world).ca_trust_domains.insert(td(PEER));
    testing::with_policies(world)
}

/// West, which imports from east, and exports nothing.
fn importing() -> World {
    let mut world = world("west.example").with_peer(peer(PEER));
    world.mesh = Some(Arc::new(fixtures::mesh("west.example")));
    world.with_written(&BTreeMap::new(), &[(PEER, remote_cart())])
}

fn mesh(world: &mut World) -> &mut Mesh {
    Arc::make_mut(world.mesh.as_mut().unwrap())
}

fn config(world: &mut World) -> &mut MeshConfig {
    let Seen::There(config) = &mut mesh(world).config else { panic!("no configuration") };
    config
}

fn istiod(world: &mut World) -> &mut ControlPlane {
    let Seen::There(all) = &mut mesh(world).control_planes else { panic!("no istiod") };
    all.first_mut().unwrap()
}

fn add(world: &mut World, kind: Kind, namespace: &str, spec: Value) {
    let object = foreign(kind, namespace, "theirs", spec);
    world.objects.insert(object.key.clone(), Arc::new(object));
}

fn found(world: &World) -> Vec<Finding> {
    report(world, world, &exports(world)).of(&td(PEER)).to_vec()
}

fn said(world: &World) -> Option<(Truth, String, String)> {
    let report = report(world, world, &exports(world));
    let peer = world.peers.get(&td(PEER))?;
    let condition = condition(world, &report, peer, None)?;
    Some((condition.status, condition.reason.into_owned(), condition.message))
}

#[test]
fn a_mesh_that_is_well_raises_nothing() {
    for world in [exporting(), importing()] {
        assert_eq!(found(&world), []);
        let (truth, reason, message) = said(&world).unwrap();
        assert_eq!((truth, reason.as_str()), (Truth::True, "Configured"), "{message}");
    }
}

type Case = (&'static str, fn() -> World, fn(&mut World), Severity, Reason, &'static str);

fn wrong_sds(world: &mut World) {
    let object = NamespacedName::new("spire", "spire-agent");
    mesh(world).spire_agents =
        Seen::There(vec![SdsNames { object, own: "ROOTCA".to_owned(), all: "ALL".to_owned() }]);
}

fn gateway(world: &mut World, mode: &str, host: &str) {
    let server = json!({"port": {"number": 15443, "name": "tls", "protocol": "TLS"}, "hosts": [host], "tls": {"mode": mode}});
    add(world, Kind::Gateway, "istio-system", json!({"servers": [server]}));
}

fn allow(world: &mut World, namespace: &str, spec: Value) {
    add(world, Kind::AuthorizationPolicy, namespace, spec);
}

fn by(source: Value) -> Value {
    json!([{"from": [{"source": source}]}])
}

const CASES: &[Case] = &[
    (
        "the exporter does not take the peer's certificates",
        exporting,
        |w| config(w).ca_trust_domains.clear(),
        Severity::Breaks,
        Reason::PeerNotInCaCertificates,
        "caCertificates: [{trustDomains: [east.example]}]",
    ),
    (
        "the mesh of an exporter has another trust domain",
        exporting,
        |w| config(w).trust_domain = Some(td("cluster.local")),
        Severity::Breaks,
        Reason::MeshTrustDomainDiffers,
        "set trustDomain: west.example",
    ),
    (
        "that of an importer has",
        importing,
        |w| config(w).trust_domain = Some(td("cluster.local")),
        Severity::Warns,
        Reason::MeshTrustDomainDiffers,
        "set trustDomain: west.example",
    ),
    (
        "proxies get our bundle alone",
        importing,
        wrong_sds,
        Severity::Breaks,
        Reason::SdsNamesNotIstios,
        "\"ROOTCA\"",
    ),
    (
        "the peer is an alias",
        exporting,
        |w| assert!(config(w).aliases.insert(td(PEER))),
        Severity::Warns,
        Reason::PeerInTrustDomainAliases,
        "take east.example out of trustDomainAliases",
    ),
    (
        "trust domains are not validated",
        exporting,
        |w| istiod(w).skips_trust_domains = true,
        Severity::Warns,
        Reason::TrustDomainsNotValidated,
        "caCertificates[].trustDomains",
    ),
    (
        "names of imported services are not resolved",
        importing,
        |w| config(w).captures_dns = false,
        Severity::Warns,
        Reason::DnsCaptureOff,
        "ISTIO_META_DNS_CAPTURE: \"true\"",
    ),
    (
        "they are given no addresses",
        importing,
        |w| {
            Arc::make_mut(&mut w.settings).import_ranges.clear();
            istiod(w).allocates_addresses = Some(false);
        },
        Severity::Warns,
        Reason::AddressesNotAllocated,
        "PILOT_ENABLE_IP_AUTOALLOCATE=true",
    ),
    (
        "nor by a version that does not by itself",
        importing,
        |w| {
            Arc::make_mut(&mut w.settings).import_ranges.clear();
            istiod(w).version = Some(Version::new(1, 24, 3));
        },
        Severity::Warns,
        Reason::AddressesNotAllocated,
        "Deployment istio-system/istiod",
    ),
    (
        "a version without the API",
        exporting,
        |w| istiod(w).version = Some(Version::new(1, 21, 9)),
        Severity::Warns,
        Reason::IstioTooOld,
        "1.22.0",
    ),
    (
        "an unknown version",
        exporting,
        |w| istiod(w).version = None,
        Severity::Advises,
        Reason::NotAllSeen,
        "1.22.0",
    ),
    (
        "no istiod to be seen",
        exporting,
        |w| mesh(w).control_planes = Seen::Absent,
        Severity::Advises,
        Reason::NotAllSeen,
        "PILOT_SKIP_VALIDATE_TRUST_DOMAIN",
    ),
    (
        "a Gateway that passes on everything",
        exporting,
        |w| gateway(w, "AUTO_PASSTHROUGH", "*.local"),
        Severity::Warns,
        Reason::GatewayExposesAll,
        "spec.servers[].hosts",
    ),
    (
        "a policy by trust domains that istiod ignores",
        exporting,
        |w| {
            istiod(w).version = Some(Version::new(1, 30, 1));
            allow(w, "other", json!({"rules": by(json!({"trustDomains": ["west.example"]}))}));
        },
        Severity::Warns,
        Reason::TrustDomainsIgnored,
        "upgrade Istio to 1.30.2",
    ),
    (
        "an ALLOW by namespaces",
        exporting,
        |w| allow(w, "shop", json!({"rules": by(json!({"namespaces": ["shop"]}))})),
        Severity::Advises,
        Reason::AllowMatchesAnyTrustDomain,
        "`principals`",
    ),
    (
        "an ALLOW by service accounts, in the root namespace",
        exporting,
        |w| {
            allow(
                w,
                "istio-system",
                json!({"action": "ALLOW", "rules": by(json!({"serviceAccounts": ["shop/client"]}))}),
            )
        },
        Severity::Advises,
        Reason::AllowMatchesAnyTrustDomain,
        "`principals`",
    ),
    (
        "importers in ambient mode",
        importing,
        |w| drop(w.namespaces.insert("web".to_owned(), labels(&[("istio.io/dataplane-mode", "ambient")]))),
        Severity::Advises,
        Reason::AmbientWorkloads,
        "inject sidecars",
    ),
    (
        "exported pods without SPIRE",
        exporting,
        |w| drop(w.pods.insert(NamespacedName::new("shop", "one"), Arc::new(pod(true, false, false)))),
        Severity::Warns,
        Reason::WorkloadsNotOnSpire,
        "spec.tlsMode Mtls",
    ),
];

#[test]
fn each_fault_is_found_alone_and_says_what_to_change() {
    for (name, base, damage, severity, reason, remedy) in CASES {
        let mut world = base();
        damage(&mut world);
        let found = found(&world);
        let [one] = found.as_slice() else { panic!("{name}: {found:#?}") };
        assert_eq!((one.severity, one.reason), (*severity, *reason), "{name}: {one:?}");
        assert!(one.remedy.contains(remedy), "{name}: {one:?}");
        let (truth, reason, message) = said(&world).unwrap();
        let expected = if *severity == Severity::Advises { Truth::True } else { Truth::False };
        assert_eq!((truth, reason.as_str()), (expected, one.reason.as_str()), "{name}");
        assert!(message.contains(&one.message) && message.contains(&one.remedy), "{name}: {message}");
    }
}

#[test]
fn every_reason_has_its_case() {
    let tried: BTreeSet<Reason> = CASES.iter().map(|case| case.4).collect();
    let by_state = [Reason::Configured, Reason::MeshConfigUnreadable, Reason::NoMeshConfig];
    let never: Vec<&Reason> =
        Reason::ALL.iter().filter(|one| !tried.contains(one) && !by_state.contains(one)).collect();
    assert!(never.is_empty(), "{never:?}");
}

#[test]
fn only_what_breaks_services_has_a_part_in_ready() {
    let ready = |world: &World| {
        let plan = crate::plan::plan(world);
        let write = plan.statuses.values().find(|write| write.uid == "uid-of-east.example").unwrap();
        let conditions = write.status["conditions"].as_array().unwrap().clone();
        let of = |kind: &str| conditions.iter().find(|one| one["type"] == kind).cloned().unwrap();
        (of("MeshReady"), of("Ready"))
    };
    let mut world = exporting();
    // everything else of Ready is not known here, so what is False is it
    let (mesh, others) = ready(&world);
    assert_eq!(mesh["status"], "True");
    let before = others["reason"].clone();
    config(&mut world).aliases.insert(td(PEER));
    let (mesh, others) = ready(&world);
    assert_eq!((mesh["status"].as_str(), &others["reason"]), (Some("False"), &before));
    config(&mut world).aliases.clear();
    config(&mut world).ca_trust_domains.clear();
    let (mesh, _) = ready(&world);
    assert_eq!(mesh["reason"], "PeerNotInCaCertificates");
    assert!(report(&world, &world, &exports(&world)).breaks(&td(PEER)));
    assert_eq!(ReadyReason::MeshNotReady.as_str(), "MeshNotReady");
}

#[test]
fn what_a_peer_has_nothing_to_do_with_is_not_said_of_it() {
    // a peer for trust alone needs nothing of the mesh
    let mut trusting = world("west.example").with_peer(peer(PEER));
    trusting.mesh = Some(Arc::new(fixtures::mesh("west.example")));
    config(&mut trusting).trust_domain = Some(td("cluster.local"));
    config(&mut trusting).captures_dns = false;
    mesh(&mut trusting).control_planes = Seen::Absent;
    wrong_sds(&mut trusting);
    assert_eq!(found(&trusting), []);
    // but whom its workloads pass for is said
    config(&mut trusting).aliases.insert(td(PEER));
    assert_eq!(found(&trusting).len(), 1);
    // an importer needs no `caCertificates`
    assert!(config(&mut importing()).ca_trust_domains.is_empty());
    // another domain's alias, and one of our own of old, are nothing to this peer
    let mut world = exporting();
    config(&mut world).aliases.extend([td("north.example"), td("old.example")]);
    assert_eq!(found(&world), []);
}

#[test]
fn an_alias_or_an_unchecked_domain_is_let_in_all_the_same() {
    let damages: [fn(&mut World); 2] =
        [|w| assert!(config(w).aliases.insert(td(PEER))), |w| istiod(w).skips_trust_domains = true];
    for damage in damages {
        let mut world = exporting();
        config(&mut world).ca_trust_domains.clear();
        damage(&mut world);
        assert!(found(&world).iter().all(|one| one.severity == Severity::Warns), "{:?}", found(&world));
    }
}

#[test]
fn where_there_is_no_mesh_nothing_is_said_but_to_who_has_services() {
    let mut world = exporting();
    world.mesh = None;
    assert_eq!(said(&world), None);
    let mut unread = exporting();
    mesh(&mut unread).control_planes = Seen::Unread;
    assert_eq!(said(&unread), None);
    // Once Istio is not to be followed any more, what was said of it before does not stand for ever.
    let stands = json!({"conditions": [{"type": "MeshReady", "status": "False", "reason": "IstiodTooOld", "message": "x"}]});
    let condition =
        |world: &World| condition(world, &Report::default(), &world.peers[&td(PEER)], Some(&stands));
    assert!(condition(&unread).is_some());
    Arc::make_mut(&mut unread.settings).istio = false;
    assert_eq!(condition(&unread), None);
    let mut absent = exporting();
    mesh(&mut absent).config = Seen::Absent;
    let (truth, reason, message) = said(&absent).unwrap();
    assert_eq!((truth, reason.as_str()), (Truth::Unknown, "NoMeshConfig"));
    assert!(message.contains("--istio-revision"), "{message}");
    absent.services.clear();
    assert_eq!(said(&absent), None);
    let mut refused = exporting();
    mesh(&mut refused).config = Seen::Unreadable("configmaps is forbidden: let it".to_owned());
    let (truth, reason, message) = said(&refused).unwrap();
    assert_eq!((truth, reason.as_str()), (Truth::Unknown, "MeshConfigUnreadable"));
    assert!(message.contains("forbidden"), "{message}");
}

#[test]
fn what_stands_is_kept_until_the_mesh_was_read() {
    let mut world = exporting();
    world.mesh = None;
    let stored = json!({"conditions": [{"type": "MeshReady", "status": "False", "reason": "GatewayExposesAll", "message": "m"}]});
    let report = report(&world, &world, &exports(&world));
    let kept = condition(&world, &report, &world.peers[&td(PEER)], Some(&stored)).unwrap();
    assert_eq!((kept.status, &*kept.reason, kept.message.as_str()), (Truth::False, "GatewayExposesAll", "m"));
}

#[test]
fn a_wildcard_is_one_for_the_clusters_services() {
    let cases = [
        ("*", true),
        ("istio-system/*", true),
        ("*.local", true),
        ("*/*.local", true),
        ("*.svc.cluster.local", true),
        ("./*.shop.svc.cluster.local", true),
        ("*.cluster.local", true),
        ("*.west.example", false),
        ("*.ocal", false),
        ("shop/cart.shop.svc.cluster.local", false),
        ("cart.shop.west.example", false),
    ];
    for (host, expected) in cases {
        let mut world = exporting();
        gateway(&mut world, "AUTO_PASSTHROUGH", host);
        assert_eq!(!found(&world).is_empty(), expected, "{host}");
        let mut world = exporting();
        gateway(&mut world, "SIMPLE", host);
        assert_eq!(found(&world), [], "{host}");
    }
}

#[test]
fn a_policy_is_told_of_where_it_may_select_exported_workloads() {
    let source = || by(json!({"namespaces": ["shop"]}));
    let cases = [
        ("shop", json!({"rules": source()}), true),
        ("shop", json!({"selector": {"matchLabels": {"tier": "front"}}, "rules": source()}), true),
        ("shop", json!({"selector": {"matchLabels": {"app": "other"}}, "rules": source()}), false),
        ("shop", json!({"action": "DENY", "rules": source()}), false),
        ("shop", json!({"targetRefs": [{"kind": "Gateway", "name": "g"}], "rules": source()}), false),
        ("shop", json!({"rules": by(json!({"principals": ["west.example/ns/shop/sa/a"]}))}), false),
        ("shop", json!({"rules": "odd"}), false),
        ("web", json!({"rules": source()}), false),
        ("istio-system", json!({"rules": source()}), true),
    ];
    for (namespace, spec, expected) in cases {
        let mut world = exporting();
        allow(&mut world, namespace, spec.clone());
        assert_eq!(!found(&world).is_empty(), expected, "{namespace} {spec}");
    }
}

fn pod(has_sidecar: bool, has_spire_socket: bool, is_ambient: bool) -> Pod {
    Pod {
        object: NamespacedName::new("shop", "one"),
        uid: "u".to_owned(),
        labels: labels(&[("app", "cart"), ("pod-template-hash", "1")]),
        service_account: "cart".to_owned(),
        ip: None,
        host_ip: None,
        other_ips: Vec::new(),
        is_ready: true,
        uses_host_network: false,
        named_ports: BTreeMap::new(),
        has_sidecar,
        has_spire_socket,
        is_ambient,
    }
}

#[test]
fn istio_mtls_needs_a_sidecar_on_spire_where_pods_are_known() {
    let with = |pods: &[Pod], tls_mode: TlsMode| {
        let mut world = exporting();
        let mut service = cart();
        service.tls_mode = tls_mode;
        world = world.with_service(service);
        for (at, pod) in pods.iter().enumerate() {
            world.pods.insert(NamespacedName::new("shop", format!("p{at}")), Arc::new(pod.clone()));
        }
        let mut elsewhere = pod(true, false, false);
        elsewhere.object.namespace = "other".to_owned();
        world.pods.insert(NamespacedName::new("other", "p"), Arc::new(elsewhere));
        let mut other = pod(true, false, false);
        other.labels = labels(&[("app", "other")]);
        world.pods.insert(NamespacedName::new("shop", "other"), Arc::new(other));
        exports(&world).reports[&NamespacedName::new("shop", "cart")].exported.clone()
    };
    let (spire, istio, ambient, plain) =
        (pod(true, true, false), pod(true, false, false), pod(false, false, true), pod(false, false, false));
    let cases: [(&[Pod], &str); 8] = [
        (&[], ""),
        (std::slice::from_ref(&spire), ""),
        (&[istio.clone(), spire.clone()], ""),
        (&[plain.clone(), spire.clone()], ""),
        (std::slice::from_ref(&istio), "csi.spiffe.io"),
        (&[plain.clone(), istio.clone(), ambient.clone()], "csi.spiffe.io"),
        (&[plain.clone(), ambient.clone()], "ambient"),
        (&[plain], "no sidecar"),
    ];
    for (pods, expected) in cases {
        match with(pods, TlsMode::IstioMtls) {
            Ok(()) => assert_eq!(expected, "", "{pods:?}"),
            Err(problem) => {
                assert_eq!(problem.reason, ExportedReason::MeshNotOnSpire);
                assert!(!expected.is_empty() && problem.message.contains(expected), "{problem:?}");
            }
        }
        let mtls = with(pods, TlsMode::Mtls);
        assert!(mtls.err().is_none_or(|problem| problem.reason != ExportedReason::MeshNotOnSpire));
    }
}
