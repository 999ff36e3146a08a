//! Names, namespaces, labels and ports.

use crate::scenarios::trio::{WEST, encoded, with_trio};
use crate::scenarios::{IMPORTED, PEER, SERVICE_ENTRY, found, merge};
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, ensure};
use entente::proto::federation::v1::{Port, Service};
use prost::Message as _;
use serde_json::json;

/// Offers services of these names beside one that nothing is wrong with: that one alone is imported, the others are
/// refused as malformed, and both sides are told.
fn malformed(names: &[(&str, &str)]) {
    with_trio(async |trio, line| {
        let good = trio.hostile.service("shop", "good");
        let named = |&(name, namespace): &(&str, &str)| Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ..good.clone()
        };
        let mut all: Vec<Service> = names.iter().map(named).collect();
        all.push(good.clone());
        let outcomes = trio.offer(&line, &encoded(&all), &["good.shop"]).await?;
        ensure!(outcomes.get("good.shop") == Some(&None), "{outcomes:?}");
        let refused: Vec<_> = outcomes.iter().filter(|(name, _)| *name != "good.shop").collect();
        ensure!(refused.len() == names.len(), "{refused:?}");
        ensure!(refused.iter().all(|(_, why)| why.as_deref() == Some("Malformed")), "{refused:?}");
        trio.says(&["1 imported", &format!("{} refused", names.len()), "Malformed"]).await
    });
}

#[test]
fn a_host_without_a_dot_is_refused() {
    malformed(&[("cart", ""), ("", "cart"), ("", "")]);
}

#[test]
fn a_wildcard_host_is_refused() {
    malformed(&[("*", "shop"), ("cart", "*"), ("*", "*"), ("*.cart", "shop")]);
}

#[test]
fn an_upper_case_host_is_refused() {
    malformed(&[("Cart", "shop"), ("cart", "SHOP")]);
}

#[test]
fn an_over_long_host_is_refused() {
    let (label, huge) = ("a".repeat(64), "a".repeat(100_000));
    malformed(&[(label.as_str(), "shop"), ("cart", label.as_str()), (huge.as_str(), "long")]);
}

#[test]
fn a_host_of_strange_characters_is_refused() {
    let names = [
        ("cart\u{0}", "shop"),
        ("../cart", "shop"),
        ("cart", "shop\n"),
        ("kärt", "shop"),
        ("-", "shop"),
        ("a_b", "c"),
    ];
    malformed(&names);
}

/// A host outside the peer's own trust domain cannot be said: a label has no dot, and the rest is the peer's own name.
#[test]
fn a_public_host_cannot_be_claimed() {
    malformed(&[
        ("api", "example.com"),
        ("login.example", "com"),
        ("api.example.com", "shop"),
        ("www.", "com."),
    ]);
}

#[test]
fn a_host_of_the_cluster_cannot_be_claimed() {
    malformed(&[
        ("kubernetes", "default.svc.cluster.local"),
        ("cart", "shop.svc"),
        ("cart.shop", "svc.cluster.local"),
        ("cart.shop.north.example", "x"),
    ]);
}

/// A service of a namespace that is the cluster's own is one of that name in the peer's trust domain, served beside all
/// others: nothing is made in the namespace.
#[test]
fn foreign_namespaces_get_nothing() {
    let namespaces = ["kube-system", "istio-system", "entente-system", "default"];
    with_trio(async |trio, line| {
        let services: Vec<Service> =
            namespaces.iter().map(|it| trio.hostile.service(it, "kubernetes")).collect();
        let names: Vec<String> = namespaces.iter().map(|it| format!("kubernetes.{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let outcomes = trio.offer(&line, &encoded(&services), &names).await?;
        ensure!(outcomes.values().all(Option::is_none), "{outcomes:?}");
        Ok(())
    });
}

/// Only what `spec.imports` names is imported, whatever else is offered.
#[test]
fn what_is_not_admitted_is_refused() {
    with_trio(async |trio, line| {
        let only = json!({"spec": {"imports": {"services": [{"namespace": "shop", "name": "good"}]}}});
        merge(&trio.east, PEER, None, WEST, only).await?;
        let names = [("shop", "good"), ("shop", "other"), ("kube-system", "good"), ("shop-2", "good")];
        let services: Vec<Service> =
            names.iter().map(|(namespace, name)| trio.hostile.service(namespace, name)).collect();
        // The agent may answer before it has seen what is admitted now.
        crate::wait::eventually("the narrower admission holds", crate::scenarios::SOON, || async {
            let outcomes = line.offer(&encoded(&services)).await?;
            let admitted: Vec<_> = outcomes.iter().filter(|(_, why)| why.is_none()).collect();
            ensure!(admitted.len() == 1, "{outcomes:?}");
            Ok(())
        })
        .await?;
        line.offer(&[]).await?;
        crate::wait::eventually("nothing is imported", crate::scenarios::SOON, || async {
            let all = trio.everything().await?;
            ensure!(!all.keys().any(|name| name.ends_with("good.shop.west.example")), "{all:?}");
            Ok(())
        })
        .await?;
        let outcomes = trio.offer(&line, &encoded(&services), &["good.shop"]).await?;
        for name in ["other.shop", "good.kube-system", "good.shop-2"] {
            ensure!(outcomes.get(name) == Some(&Some("NotAdmitted".to_owned())), "{outcomes:?}");
        }
        trio.says(&["1 imported", "3 refused", "other.shop: NotAdmitted"]).await
    });
}

/// A field that the protocol does not have, as labels were one: 15 as a map of strings, and 1,000 as a string.
fn with_unknown_fields(service: &Service) -> Vec<u8> {
    let mut bytes = service.encode_to_vec();
    let pair = [&b"\x0a\x03app\x12\x04cart"[..]].concat();
    bytes.extend([0x7a, u8::try_from(pair.len()).unwrap()]);
    bytes.extend(pair);
    bytes.extend([0xc2, 0x3e, 4]);
    bytes.extend(b"cart");
    bytes
}

/// The protocol has no labels; what a peer sends in their place reaches no object.
#[test]
fn chosen_labels_reach_no_object() {
    with_trio(async |trio, line| {
        let service = with_unknown_fields(&trio.hostile.service("shop", "good"));
        let outcomes = trio.offer(&line, &[service], &["good.shop"]).await?;
        ensure!(outcomes.get("good.shop") == Some(&None), "{outcomes:?}");
        let host = format!("good.shop.{WEST}");
        for kind in [IMPORTED, SERVICE_ENTRY] {
            let object = found(&trio.east, kind, Some(AGENT_NAMESPACE), &host).await?;
            let labels = object.metadata.labels.unwrap_or_default();
            ensure!(labels.keys().all(|label| label.starts_with("entente.dev/")), "{labels:?}");
            ensure!(!object.data.to_string().contains("\"app\""), "{}", object.data);
        }
        Ok(())
    });
}

/// Ports of one name or one number, without a number, without a legal name, none and too many.
#[test]
fn ports_that_collide_are_refused() {
    with_trio(async |trio, line| {
        let port = |name: &str, port| Port {
            name: name.to_owned(),
            port,
            app_protocol: "tcp".to_owned(),
            ..Port::default()
        };
        let many: Vec<Port> = (1..=65).map(|number| port(&format!("p{number}"), number)).collect();
        let all: Vec<Vec<Port>> = vec![
            vec![port("tcp", 1), port("tcp", 2)],
            vec![port("one", 1), port("two", 1)],
            vec![port("tcp", 0)],
            vec![port("tcp", 65_536)],
            vec![port("", 1)],
            vec![port("TCP*", 1)],
            vec![Port { app_protocol: "udp".to_owned(), ..port("dns", 53) }],
            vec![],
            many,
        ];
        let count = all.len();
        let of =
            |(number, ports)| Service { ports, ..trio.hostile.service("shop", &format!("bad-{number}")) };
        let mut services: Vec<Service> = all.into_iter().enumerate().map(of).collect();
        services.push(trio.hostile.service("shop", "good"));
        let outcomes = trio.offer(&line, &encoded(&services), &["good.shop"]).await?;
        let malformed = outcomes.values().filter(|why| why.as_deref() == Some("Malformed")).count();
        ensure!(malformed == count, "{outcomes:?}");
        Ok(())
    });
}

/// Which of two is meant cannot be known.
#[test]
fn a_service_that_is_offered_twice_is_refused() {
    with_trio(async |trio, line| {
        let mut other = trio.hostile.service("shop", "twice");
        other.gateways.first_mut().context("no gateway")?.port = 443;
        let services = [trio.hostile.service("shop", "twice"), other, trio.hostile.service("shop", "good")];
        let outcomes = trio.offer(&line, &encoded(&services), &["good.shop"]).await?;
        ensure!(outcomes.get("twice.shop") == Some(&Some("Malformed".to_owned())), "{outcomes:?}");
        Ok(())
    });
}
