use serde_json::json;

use super::*;
use crate::model::ObjectKey;
use crate::model::object::{Kind, Meta};

fn object(kind: Kind, name: &str, body: Value) -> Object {
    let key = ObjectKey::namespaced(kind, "istio-system", name);
    Object { key, meta: Meta::default(), body: body.as_object().cloned().unwrap_or_default().into() }
}

fn read(mesh: &str) -> MeshConfig {
    config(&object(Kind::ConfigMap, "istio", json!({"data": {"mesh": mesh}}))).unwrap()
}

fn names(set: &BTreeSet<TrustDomain>) -> Vec<String> {
    set.iter().map(ToString::to_string).collect()
}

#[test]
fn a_mesh_configuration_is_read() {
    let read = read(
        "trustDomain: west.example\n\
         trustDomainAliases: [old.example, 'Not A Domain']\n\
         caCertificates:\n\
         - trustDomains: [east.example, north.example]\n\
         - pem: none\n\
         defaultConfig:\n\
         \x20 proxyMetadata:\n\
         \x20   ISTIO_META_DNS_CAPTURE: \"true\"\n",
    );
    assert_eq!(read.trust_domain.unwrap().to_string(), "west.example");
    assert_eq!(names(&read.aliases), ["old.example"]);
    assert_eq!(names(&read.ca_trust_domains), ["east.example", "north.example"]);
    assert!(read.captures_dns && !read.proxies_allocate);
}

#[test]
fn what_is_not_set_is_as_istio_has_it() {
    for empty in ["", "{}", "rootNamespace: istio-system"] {
        let read = read(empty);
        assert_eq!(read.trust_domain.unwrap().to_string(), "cluster.local");
        assert!(read.aliases.is_empty() && read.ca_trust_domains.is_empty() && !read.captures_dns);
    }
}

#[test]
fn fields_may_have_their_names_in_protobuf() {
    let read = read("{trust_domain: west.example, ca_certificates: [{trust_domains: [east.example]}]}");
    assert_eq!(read.trust_domain.unwrap().to_string(), "west.example");
    assert_eq!(names(&read.ca_trust_domains), ["east.example"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let cases = [
        (json!({}), "no key `mesh`"),
        (json!({"data": {"mesh": "a: [b"}}), "no YAML"),
        (json!({"data": {"mesh": "- a"}}), "no mapping"),
        (json!({"data": {"mesh": deep}}), "no YAML"),
    ];
    for (body, expected) in cases {
        let error = config(&object(Kind::ConfigMap, "istio", body)).unwrap_err();
        assert!(error.contains(expected) && error.contains("ConfigMap istio-system/istio"), "{error}");
    }
}

fn istiod(labels: &[(&str, &str)], image: &str, env: Value) -> ControlPlane {
    let spec = json!({"template": {"spec": {"containers": [
        {"name": "other", "image": "none:9.9.9"},
        {"name": "discovery", "image": image, "env": env},
    ]}}});
    let mut object = object(Kind::Deployment, "istiod", json!({"spec": spec}));
    object.meta.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    control_plane(&object)
}

#[test]
fn an_istiod_has_a_version_and_settings() {
    type Labels<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Labels<'_>, &str, Option<Version>); 5] = [
        (&[("app.kubernetes.io/version", "1.29.6")], "pilot:1.30.2", Some(Version::new(1, 29, 6))),
        (&[], "docker.io/istio/pilot:1.30.2-distroless", Some(Version::new(1, 30, 2))),
        (&[], "registry.example:5000/pilot", None),
        (&[], "registry.example:5000/pilot:1.28.0@sha256:00", Some(Version::new(1, 28, 0))),
        (&[("app.kubernetes.io/version", "unknown")], "pilot:latest", None),
    ];
    for (labels, image, version) in cases {
        assert_eq!(istiod(labels, image, json!([])).version, version, "{image}");
    }
    let plain = istiod(&[], "pilot", json!([]));
    assert!(
        !plain.skips_trust_domains && plain.allocates_addresses.is_none() && plain.shared_config.is_none()
    );
    let set = istiod(
        &[],
        "pilot",
        json!([
            {"name": "PILOT_SKIP_VALIDATE_TRUST_DOMAIN", "value": "true"},
            {"name": "PILOT_ENABLE_IP_AUTOALLOCATE", "value": "false"},
            {"name": "SHARED_MESH_CONFIG", "value": "shared"},
        ]),
    );
    assert!(set.skips_trust_domains);
    assert_eq!((set.allocates_addresses, set.shared_config.as_deref()), (Some(false), Some("shared")));
}

#[test]
fn names_of_bundles_are_read_from_hcl_and_json() {
    let cases = [
        (
            "agent {\n  sds {\n    default_bundle_name = \"null\"\n    default_all_bundles_name = \"ROOTCA\"\n  }\n}",
            true,
        ),
        (
            "{\"agent\": {\"sds\": {\n\"default_bundle_name\": \"null\",\n\"default_all_bundles_name\": \"ROOTCA\"}}}",
            true,
        ),
        ("agent { sds { default_all_bundles_name = \"ROOTCA\" } }", false),
        ("agent {\n  # default_bundle_name = \"null\"\n  // default_all_bundles_name = \"ROOTCA\"\n}", false),
        ("agent {\n url = \"a//b\" \n}", false),
    ];
    for (text, expected) in cases {
        let body = json!({"data": {"agent.conf": text}});
        let read = sds_names(&object(Kind::ConfigMap, "spire-agent", body)).unwrap();
        assert_eq!(read.serves_foreign(), expected, "{text}: {read:?}");
    }
    assert!(sds_names(&object(Kind::ConfigMap, "spire-agent", json!({"data": {}}))).is_none());
}
