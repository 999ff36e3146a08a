//! What commands read in an object: its conditions, and fields that may be missing.

use serde_json::{Value, json};

use super::store::{Objects, Read};
use crate::api::v1alpha1::conditions::ClientsEnforcedReason;
use crate::model::Object;
use crate::model::object::Kind;

/// Every kind that an operator writes, or reads the outcome in.
pub(super) const KINDS: [Kind; 4] =
    [Kind::TrustDomainPeer, Kind::FederatedService, Kind::ServiceExportRule, Kind::ImportedService];

/// The objects of one kind, by namespace and name.
pub(super) fn of_kind(objects: &Objects, kind: Kind) -> impl Iterator<Item = &Object> {
    objects.values().filter(move |object| object.key.kind == kind)
}

/// The conditions of an object, as they stand there.
pub(super) fn conditions(object: &Object) -> impl Iterator<Item = &Value> {
    let conditions = object.status().and_then(|status| status.get("conditions")).and_then(Value::as_array);
    conditions.into_iter().flatten()
}

/// One condition; `None` where it was not judged yet.
pub(super) fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Value> {
    conditions(object).find(|condition| text(Some(condition), "/type") == kind)
}

/// The status of a condition; empty where it was not judged yet.
pub(super) fn truth<'a>(object: &'a Object, kind: &str) -> &'a str {
    text(condition(object, kind), "/status")
}

/// A text in a value; empty where it is not there.
pub(super) fn text<'a>(value: Option<&'a Value>, pointer: &str) -> &'a str {
    value.and_then(|value| value.pointer(pointer)).and_then(Value::as_str).unwrap_or_default()
}

/// A number in a value; zero where it is not there.
pub(super) fn count(value: Option<&Value>, pointer: &str) -> usize {
    let number = value.and_then(|value| value.pointer(pointer)).and_then(Value::as_u64);
    usize::try_from(number.unwrap_or_default()).unwrap_or(usize::MAX)
}

/// The items of a list in a value; none where it is not there.
pub(super) fn list<'a>(value: Option<&'a Value>, pointer: &str) -> &'a [Value] {
    let items = value.and_then(|value| value.pointer(pointer)).and_then(Value::as_array);
    items.map(Vec::as_slice).unwrap_or_default()
}

/// `namespace/name`, or the name alone.
pub(super) fn name(object: &Object) -> String {
    match &object.key.namespace {
        Some(namespace) => format!("{namespace}/{}", object.key.name),
        None => object.key.name.clone(),
    }
}

/// The trust domain that a peer describes, or a service comes from.
pub(super) fn trust_domain(object: &Object) -> &str {
    text(object.spec(), "/trustDomain")
}

/// The condition that says in one word whether an object is well.
const fn verdict(kind: Kind) -> &'static str {
    match kind {
        Kind::TrustDomainPeer => "Ready",
        Kind::ImportedService => "Admitted",
        _ => "Accepted",
    }
}

/// Whether nothing keeps an object from being as its writer wants it: a peer is ready, a service accepted or admitted, and no
/// condition of a service is False that could be otherwise.
pub(super) fn is_well(object: &Object) -> bool {
    complaints(object).is_empty()
}

/// Whether all is well.
pub(super) fn all_well(read: &Read) -> bool {
    read.unreadable.is_empty() && read.objects.values().all(is_well)
}

/// What keeps an object from being well, or what is wrong with one that is: the condition, why, and what to do.
pub(super) fn complaints(object: &Object) -> Vec<(String, String)> {
    let describe = |condition: &Value| {
        let of = |field: &str| text(Some(condition), field).to_owned();
        (format!("{} is {} ({})", of("/type"), of("/status"), of("/reason")), of("/message"))
    };
    let first = verdict(object.key.kind);
    match condition(object, first) {
        None => vec![(
            "not judged yet".to_owned(),
            "no agent has looked at it: does one follow this store?".to_owned(),
        )],
        // Ready sums up the others, and names what is first to be done.
        Some(condition) if text(Some(condition), "/status") != "True" => vec![describe(condition)],
        Some(_) if object.key.kind == Kind::TrustDomainPeer => Vec::new(),
        Some(_) => conditions(object)
            .filter(|condition| text(Some(condition), "/status") == "False" && !is_chosen(condition))
            .map(describe)
            .collect(),
    }
}

/// Whether a condition is False by its writer's own choice: with `tlsMode: Mtls` nobody but the application can hold callers to
/// the list.
fn is_chosen(condition: &Value) -> bool {
    text(Some(condition), "/reason") == ClientsEnforcedReason::ApplicationTerminatesTLS.as_str()
}

/// Everything that was read, for scripts.
pub(super) fn as_value(read: &Read) -> Value {
    let list = |kind: Kind| -> Vec<Value> { of_kind(&read.objects, kind).map(object_value).collect() };
    let value = json!({
        "healthy": all_well(read),
        "peers": list(Kind::TrustDomainPeer),
        "federatedServices": list(Kind::FederatedService),
        "serviceExportRules": list(Kind::ServiceExportRule),
        "importedServices": list(Kind::ImportedService),
    });
    with_unreadable(value, read)
}

/// With what was not read, where there is any.
pub(super) fn with_unreadable(mut value: Value, read: &Read) -> Value {
    let unreadable = read.unreadable.iter().map(|it| json!({ "path": it.path, "message": it.message }));
    if let (false, Some(fields)) = (read.unreadable.is_empty(), value.as_object_mut()) {
        fields.insert("unreadable".to_owned(), unreadable.collect());
    }
    value
}

/// An object, for scripts.
pub(super) fn object_value(object: &Object) -> Value {
    let mut value = json!({ "name": object.key.name, "spec": object.spec(), "status": object.status() });
    if let (Some(namespace), Some(fields)) = (&object.key.namespace, value.as_object_mut()) {
        fields.insert("namespace".to_owned(), namespace.clone().into());
    }
    value
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::model::ObjectKey;

    /// An object with conditions, each as `type status reason message`.
    pub(in crate::cli) fn object(
        key: ObjectKey,
        spec: Value,
        mut status: Value,
        conditions: &[[&str; 4]],
    ) -> Object {
        let conditions = conditions.iter().map(|[kind, status, reason, message]| {
            json!({ "type": kind, "status": status, "reason": reason, "message": message })
        });
        status["conditions"] = conditions.collect();
        let mut object = Object::desired(key, spec);
        object.meta.created = Some("2026-01-01T00:00:00Z".parse().unwrap());
        object.body.insert("status".to_owned(), status);
        object
    }

    fn peer(name: &str, trust_domain: &str, conditions: &[[&str; 4]], status: Value) -> Object {
        let spec = json!({
            "trustDomain": trust_domain,
            "bundleEndpoint": { "url": format!("https://spire.{trust_domain}:8443"), "profile": { "type": "https_web" } },
            "agent": { "addresses": [format!("entente.{trust_domain}:7443")], "spiffeIDs": [format!("spiffe://{trust_domain}/agent")] },
        });
        object(ObjectKey::cluster(Kind::TrustDomainPeer, name), spec, status, conditions)
    }

    const WELL: [[&str; 4]; 8] = [
        ["Accepted", "True", "Accepted", "in use"],
        ["BundleEndpointHealthy", "True", "Healthy", "the bundle is fresh"],
        ["BundleDistributed", "True", "Distributed", "every SPIRE server holds it"],
        ["Connected", "True", "Connected", "the agents talk"],
        ["Reciprocal", "True", "Confirmed", "they hold our bundle, by their own word"],
        ["RotationSafe", "True", "Safe", "they hold every authority of ours"],
        ["ServicesSynced", "True", "Synced", "both catalogues are acknowledged"],
        ["Ready", "True", "Ready", "all is well"],
    ];

    fn cart(exported_to: Value) -> Object {
        let spec = json!({
            "ports": [{ "name": "http", "port": 8080 }, { "name": "grpc", "port": 9090 }],
            "tlsMode": "IstioMtls", "exportedTrustDomains": ["west.example", "north.example"],
            "clients": { "spiffeIDs": ["spiffe://west.example/ns/web/sa/frontend"] },
        });
        let status =
            json!({ "host": "cart.shop.east.example", "imported": "1/2", "exportedTo": exported_to });
        let conditions = [
            ["Accepted", "True", "Accepted", "in use"],
            ["Exported", "True", "Exported", "offered"],
            ["ClientsEnforced", "True", "Enforced", "by policy"],
        ];
        object(ObjectKey::namespaced(Kind::FederatedService, "shop", "cart"), spec, status, &conditions)
    }

    const IMPORTED: [[&str; 4]; 2] =
        [["Admitted", "True", "Admitted", "by spec.imports"], ["Generated", "True", "Generated", "done"]];

    fn import(name: &str, conditions: &[[&str; 4]]) -> Object {
        let spec = json!({
            "trustDomain": "west.example", "host": format!("{name}.bank.west.example"), "namespace": "bank", "name": name,
            "tlsMode": "Mtls", "ports": [{ "name": "tls", "port": 443, "appProtocol": "tls" }],
        });
        let status = json!({ "localHost": "pay.bank.svc.cluster.local" });
        object(ObjectKey::namespaced(Kind::ImportedService, "entente-system", name), spec, status, conditions)
    }

    fn read(objects: impl IntoIterator<Item = Object>) -> Read {
        let objects = objects.into_iter().map(|object| (object.key.clone(), object)).collect();
        Read { objects, unreadable: Vec::new() }
    }

    /// Two peers, a service each way.
    pub(in crate::cli) fn healthy() -> Read {
        let services = json!({ "services": { "exported": 1, "imported": 1, "refused": 0 }, "bundle": {
            "digest": "ab".repeat(32), "sequence": 7, "refreshHint": 300,
            "authorities": [{ "id": "0a".repeat(20), "notAfter": "2026-01-05T00:00:00Z", "tainted": false }] } });
        let outcomes = json!([
            { "trustDomain": "north.example", "acknowledged": true, "outcome": "Imported" },
            { "trustDomain": "west.example", "acknowledged": true, "outcome": "Imported" },
        ]);
        read([
            peer("north", "north.example", &WELL, json!({})),
            peer("west", "west.example", &WELL, services),
            cart(outcomes),
            import("pay", &IMPORTED),
        ])
    }

    /// Our next authority is prepared, and of two peers one does not hold it yet.
    pub(in crate::cli) fn rotating() -> Read {
        let lacks = "west.example does not hold our authority 4f1c2e0a9b7d, which the SPIRE server unix:///run/spire/server.sock \
                     has prepared and activates by itself at 2026-01-04T06:00:00Z: from then on it would refuse our workloads; do \
                     not activate it before; its agent says that it cannot fetch our bundle (connecting with spire.east.example:8443: \
                     timed out)";
        let ready = format!("RotationSafe: {lacks}");
        let mut rotating = WELL;
        rotating[5] = ["RotationSafe", "False", "PeerLacksAuthority", lacks];
        rotating[7] = ["Ready", "False", "NotRotationSafe", &ready];
        let services = json!({ "services": { "exported": 1, "imported": 1, "refused": 0 } });
        read([
            peer("north", "north.example", &WELL, json!({})),
            peer("west", "west.example", &rotating, services),
            cart(json!([{ "trustDomain": "west.example", "acknowledged": true, "outcome": "Imported" }])),
            import("pay", &IMPORTED),
        ])
    }

    /// One peer that cannot be reached, with words of a terminal in them, and one that is new; services that are refused, and a
    /// manifest that cannot be read.
    pub(in crate::cli) fn ill() -> Read {
        let mut read = degraded("connection refused\u{1b}[2J");
        read.unreadable.push(crate::store::Unreadable {
            path: "manifests/broken.yaml".into(),
            message: "line 3: no such field `specs`".to_owned(),
            key: None,
        });
        read
    }

    /// The same, without the manifest; why the peer cannot be reached is given.
    pub(in crate::cli) fn degraded(why: &str) -> Read {
        let unreachable = format!(
            "entente.west.example:7443: {why}: is the agent of west.example running, and does its firewall let us in? It is tried \
             again every 30 s at the most."
        );
        let mut away = WELL;
        away[3] = ["Connected", "False", "PeerUnreachable", "nobody answers"];
        away[4] = ["Reciprocal", "Unknown", "PeerUnreachable", "nobody answers"];
        away[7] = ["Ready", "False", "NotConnected", &unreachable];
        let outcomes = json!([
            { "trustDomain": "north.example", "acknowledged": false, "outcome": "Pending", "reason": "not connected" },
            { "trustDomain": "west.example", "acknowledged": true, "outcome": "Refused", "reason": "spec.imports does not admit it" },
        ]);
        read([
            peer("north", "north.example", &[], json!({})),
            peer(
                "west",
                "west.example",
                &away,
                json!({ "services": { "exported": 1, "imported": 1, "refused": 3 } }),
            ),
            cart(outcomes),
            import(
                "pay",
                &[
                    ["Admitted", "True", "Admitted", "by spec.imports"],
                    [
                        "Generated",
                        "False",
                        "HostTaken",
                        "ServiceEntry shop/pay has this host already: delete that one, or take the service out of spec.imports",
                    ],
                ],
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{degraded, healthy, object};
    use super::*;
    use crate::model::ObjectKey;

    /// What is complained of is what the exit code and `healthy` are of.
    #[test]
    fn what_is_not_well_is_not_healthy() {
        assert!(
            all_well(&healthy()) && healthy().objects.values().all(|object| complaints(object).is_empty())
        );
        let key = ObjectKey::namespaced(Kind::FederatedService, "shop", "cart");
        let service = |conditions: &[[&str; 4]]| {
            let all: Vec<_> =
                [["Accepted", "True", "Accepted", "in use"]].iter().chain(conditions).copied().collect();
            object(key.clone(), json!({}), json!({}), &all)
        };
        let refused = service(&[["Exported", "False", "RefusedByPeer", "west.example refuses it"]]);
        assert!(!is_well(&refused) && complaints(&refused).len() == 1);
        // By design, and for ever.
        let own_tls = service(&[["ClientsEnforced", "False", "ApplicationTerminatesTLS", "only it can"]]);
        assert!(is_well(&own_tls) && complaints(&own_tls).is_empty());
        let unfenced = service(&[["ClientsEnforced", "False", "PolicyNotInPlace", "it is not there"]]);
        assert!(!is_well(&unfenced));
        for object in degraded("refused").objects.values() {
            assert_eq!(is_well(object), complaints(object).is_empty(), "{}", object.key);
        }
    }
}
