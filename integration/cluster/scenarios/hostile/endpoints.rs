//! Who answers for a service, and where.

use crate::scenarios::trio::{OWN_GATEWAY, WEST, encoded, with_trio};
use crate::scenarios::{PEER, SOON, merge};
use crate::wait::eventually;
use anyhow::{Result, ensure};
use entente::proto::federation::v1::{Gateway, Service};
use serde_json::json;

/// Offers services with these server IDs beside a good one, which alone is imported; each is refused for `reason`.
fn server_ids(reason: &'static str, all: &[&[&str]]) {
    with_trio(async |trio, line| {
        let of = |(number, ids): (usize, &&[&str])| Service {
            server_spiffe_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..trio.hostile.service("shop", &format!("bad-{number}"))
        };
        let mut services: Vec<Service> = all.iter().enumerate().map(of).collect();
        services.push(trio.hostile.service("shop", "good"));
        let outcomes = trio.offer(&line, &encoded(&services), &["good.shop"]).await?;
        let refused = outcomes.values().filter(|why| why.as_deref() == Some(reason)).count();
        ensure!(refused == all.len(), "{outcomes:?}");
        trio.says(&["1 imported", reason]).await
    });
}

/// Else who is impersonated is the importer, or another peer.
#[test]
fn server_ids_of_another_domain_are_refused() {
    server_ids(
        "ForeignServerId",
        &[
            &["spiffe://east.example/ns/web/sa/frontend"],
            &["spiffe://north.example/ns/shop/sa/cart"],
            &["spiffe://west.example/ns/shop/sa/cart", "spiffe://north.example/ns/shop/sa/cart"],
            &["spiffe://west.example.north.example/ns/shop/sa/cart"],
            &["spiffe://sub.west.example/ns/shop/sa/cart"],
        ],
    );
}

/// Without one anybody of a trusted domain could answer.
#[test]
fn no_server_id_is_refused() {
    server_ids(
        "Malformed",
        &[
            &[],
            &[""],
            &["spiffe://west.example"],
            &["spiffe://west.example/*"],
            &["*"],
            &["https://west.example/ns/shop/sa/cart"],
            &["spiffe://west.example/ns/shop/sa/cart?query"],
        ],
    );
}

/// Offers services at these addresses beside a good one, which alone is imported; each is refused for `reason`.
fn endpoints(reason: &'static str, all: &[(&str, u32)]) {
    with_trio(async |trio, line| {
        let of = |(number, (address, port)): (usize, &(&str, u32))| Service {
            gateways: vec![
                Gateway { address: "10.77.2.2".to_owned(), port: 15443 },
                Gateway { address: (*address).to_owned(), port: *port },
            ],
            ..trio.hostile.service("shop", &format!("bad-{number}"))
        };
        let mut services: Vec<Service> = all.iter().enumerate().map(of).collect();
        services.push(trio.hostile.service("shop", "good"));
        let outcomes = trio.offer(&line, &encoded(&services), &["good.shop"]).await?;
        let refused = outcomes.values().filter(|why| why.as_deref() == Some(reason)).count();
        ensure!(refused == all.len(), "{outcomes:?}");
        trio.says(&["1 imported", reason]).await
    });
}

#[test]
fn loopback_and_unspecified_endpoints_are_refused() {
    endpoints(
        "AddressNotAdmitted",
        &[
            ("127.0.0.1", 443),
            ("127.9.9.9", 443),
            ("::1", 443),
            ("::ffff:127.0.0.1", 443),
            ("0.0.0.0", 443),
            ("::", 443),
            ("64:ff9b::7f00:1", 443),
            ("localhost.localhost.localhost", 443),
        ],
    );
}

#[test]
fn link_local_and_multicast_endpoints_are_refused() {
    endpoints(
        "AddressNotAdmitted",
        &[
            ("169.254.169.254", 80),
            ("fe80::1", 80),
            ("::ffff:169.254.169.254", 80),
            ("224.0.0.1", 80),
            ("ff02::1", 80),
            ("255.255.255.255", 80),
            ("240.240.0.1", 80),
        ],
    );
}

#[test]
fn names_of_the_cluster_as_endpoints_are_refused() {
    endpoints(
        "AddressNotAdmitted",
        &[
            ("kubernetes.default.svc.cluster.local", 443),
            ("kubernetes.default.svc", 443),
            ("kubernetes.default", 443),
        ],
    );
}

#[test]
fn unix_sockets_and_non_addresses_as_endpoints_are_refused() {
    endpoints(
        "Malformed",
        &[
            ("unix:///var/run/docker.sock", 1),
            ("/var/run/docker.sock", 1),
            ("@abstract", 1),
            ("", 443),
            ("10.0.0.0/8", 443),
            ("10.0.0.1:443", 443),
            ("10.0.0.1", 0),
            ("10.0.0.1", 65_536),
            ("*.west.example", 443),
            ("kubernetes", 443),
        ],
    );
}

/// A peer that names our own gateway would have us call ourselves.
#[test]
fn our_own_gateway_as_an_endpoint_is_refused() {
    let mapped = format!("::ffff:{OWN_GATEWAY}");
    endpoints("AddressNotAdmitted", &[(OWN_GATEWAY, 15443), (mapped.as_str(), 15443)]);
}

/// Where `endpointCIDRs` are given, nothing is called outside them.
#[test]
fn endpoints_outside_the_admitted_networks_are_refused() {
    with_trio(async |trio, line| {
        let within = json!({"spec": {"imports": {"endpointCIDRs": ["10.77.0.0/16"]}}});
        merge(&trio.east, PEER, None, WEST, within).await?;
        let at = |name: &str, address: &str| Service {
            gateways: vec![Gateway { address: address.to_owned(), port: 15443 }],
            ..trio.hostile.service("shop", name)
        };
        let services = encoded(&[
            at("good", "10.77.2.2"),
            at("beside", "10.78.0.1"),
            at("named", "gateway.of.west.example"),
            at("public", "203.0.113.7"),
        ]);
        let refused = Some("AddressNotAdmitted".to_owned());
        let look = || async {
            let outcomes = line.offer(&services).await?;
            for name in ["beside.shop", "named.shop", "public.shop"] {
                ensure!(outcomes.get(name) == Some(&refused), "{outcomes:?}");
            }
            ensure!(outcomes.get("good.shop") == Some(&None), "{outcomes:?}");
            Ok(())
        };
        eventually("the networks are held to", SOON, look).await?;
        taken_back(trio, &line, "good.shop").await?;
        trio.offer(&line, &services, &["good.shop"]).await?;
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"imports": {"endpointCIDRs": null}}})).await
    });
}

/// Offers nothing, and waits until a service of before is gone.
async fn taken_back(
    trio: &crate::scenarios::trio::Trio,
    line: &crate::hostile::Line,
    name: &str,
) -> Result<()> {
    line.offer(&[]).await?;
    eventually("what was imported is gone", SOON, || async {
        let all = trio.everything().await?;
        let host = format!("{name}.{WEST}");
        ensure!(!all.keys().any(|it| it.ends_with(&host)), "{host} is there");
        Ok(())
    })
    .await
}

/// More endpoints than are admitted, and more than the protocol carries.
#[test]
fn more_endpoints_than_are_admitted_are_refused() {
    with_trio(async |trio, line| {
        let few = json!({"spec": {"imports": {"maxEndpointsPerService": 2}}});
        merge(&trio.east, PEER, None, WEST, few).await?;
        let with = |name: &str, count: u32| Service {
            gateways: (0..count)
                .map(|n| Gateway { address: format!("10.77.3.{}", n % 250 + 1), port: 15443 + n / 250 })
                .collect(),
            ..trio.hostile.service("shop", name)
        };
        let services =
            encoded(&[with("two", 2), with("three", 3), with("many", 500), with("far-too-many", 5_000)]);
        let look = || async {
            let outcomes = line.offer(&services).await?;
            ensure!(outcomes.get("two.shop") == Some(&None), "{outcomes:?}");
            ensure!(outcomes.get("three.shop") == Some(&Some("TooManyEndpoints".to_owned())), "{outcomes:?}");
            ensure!(outcomes.get("many.shop") == Some(&Some("Malformed".to_owned())), "{outcomes:?}");
            // Of this one nothing was built, not even its name.
            ensure!(outcomes.get(".") == Some(&Some("Malformed".to_owned())), "{outcomes:?}");
            Ok(())
        };
        eventually("the limit is held to", SOON, look).await?;
        merge(&trio.east, PEER, None, WEST, json!({"spec": {"imports": {"maxEndpointsPerService": null}}}))
            .await
    });
}
