//! The values of the Helm chart: what each switch renders is what the API server takes, and what cannot be is refused.

use super::delete;
use crate::chart::{CHART, RELEASE, helm, run_helm};
use crate::pair::with_pair;
use crate::scratch::Scratch;
use crate::world::{AGENT_NAMESPACE, Domain};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");

/// Values that each turn something on, with the kinds that come of them.
fn matrix() -> Vec<(&'static str, Value, &'static [&'static str])> {
    let from =
        json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-ingress"}}}]);
    vec![
        (
            "nothing",
            json!({}),
            &["Deployment", "Service", "ClusterSPIFFEID", "Secret", "ClusterRole", "Role"],
        ),
        (
            "without Istio",
            json!({"istio": {"enabled": false}, "importAddressRange": "127.64.0.0/10,fd12:3456::/64"}),
            &["Deployment"],
        ),
        (
            "replicas",
            json!({
                "replicas": 3, "listenAddress": "::", "nameOverride": "agent", "instance": "other", "trustDomain": "west.example",
                "podLabels": {"team": "edge"}, "nodeSelector": {"kubernetes.io/os": "linux"}, "priorityClassName": "high",
                "tolerations": [{"key": "edge", "operator": "Exists"}], "imagePullSecrets": [{"name": "pull"}],
                "image": {"digest": format!("sha256:{}", "0".repeat(64))},
            }),
            &["PodDisruptionBudget"],
        ),
        (
            "a load balancer",
            json!({
                "peer": {
                    "service": {
                        "type": "LoadBalancer", "port": 443, "nodePort": 30443, "annotations": {"a": "b"},
                        "loadBalancerClass": "example.com/internal", "loadBalancerSourceRanges": ["192.0.2.0/24"],
                        "externalTrafficPolicy": "Local",
                    },
                    "advertise": ["entente.west.example:443"],
                },
                "bundleEndpoint": {
                    "url": "https://spire.west.example", "profile": "https_spiffe", "spiffeID": "spiffe://west.example/spire/server",
                },
                "webRoots": {"configMap": "roots"}, "tracing": {"endpoint": "http://otel:4317"}, "view": {"enabled": true},
                "serviceAccount": {"create": false, "name": "mine"},
                "rbac": {
                    "bootstrapSecrets": ["bundle"],
                    "operators": [{"kind": "Group", "name": "federation"}, {"kind": "ServiceAccount", "name": "ci", "namespace": "ci"}],
                },
            }),
            &["Service"],
        ),
        (
            "the mesh's gateway, and a sidecar",
            json!({
                "peer": {
                    "service": {"enabled": false},
                    "gateway": {
                        "enabled": true, "hosts": ["entente.west.example"], "bundleEndpoint": {"hosts": ["spire.west.example"]},
                    },
                },
                "istio": {"revision": "1-30", "fence": true, "sidecar": {"enabled": true, "adminFrom": [{"source": {"namespaces": ["monitoring"]}}]}},
                "importAddressRange": "none",
            }),
            &["Gateway", "VirtualService", "PeerAuthentication", "AuthorizationPolicy", "DestinationRule"],
        ),
        (
            "sockets of the node",
            json!({
                "spire": {"workloadApi": {"type": "hostPath"}, "server": {"hostPath": "/run/spire/server"}, "className": "spire-spire"},
                "crds": {"install": false}, "rbac": {"create": false, "aggregate": false},
                "extraArgs": ["--fence"], "extraEnv": [{"name": "A", "value": "b"}],
                "extraVolumes": [{"name": "more", "emptyDir": {}}], "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
            }),
            &["Deployment"],
        ),
        (
            "who may reach it, and who watches it",
            watched(&from),
            &["NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ConfigMap"],
        ),
    ]
}

/// Every port that the chart can open, to whom, and all that watches the agent.
fn watched(from: &Value) -> Value {
    let certificate = json!({
        "caFile": "/certs/root.pem", "certFile": "/certs/chain.pem", "keyFile": "/certs/key.pem", "insecureSkipVerify": true,
    });
    json!({
        "replicas": 2,
        "dns": {
            "enabled": true, "port": 7053, "upstream": ["192.0.2.53", "[2001:db8::53]:5353"], "rate": 1_000_000, "service": {"annotations": {"a": "b"}},
        },
        "xds": {
            "enabled": true, "port": 8445, "allBundles": "EVERYTHING",
            "service": {
                "type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}, "loadBalancerClass": "example.com/internal",
                "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local",
            },
        },
        "networkPolicy": {
            "enabled": true, "peers": from, "admin": from, "dns": from, "xds": from,
            "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        },
        "metrics": {
            "serviceMonitor": {
                "enabled": true, "labels": {"release": "prometheus"}, "scheme": "https", "tlsConfig": certificate,
            },
            "prometheusRule": {"enabled": true}, "dashboard": {"enabled": true, "annotations": {"folder": "SPIFFE"}},
        },
    })
}

/// What the chart renders is what the API server knows, field by field, for every switch; and `helm lint` finds nothing.
#[test]
fn what_the_chart_renders_is_what_the_api_server_takes() {
    with_pair(async |pair| {
        let east = &pair.east;
        east.kubernetes.namespace("istio-system").await?;
        let monitoring = crate::crds::install_monitoring(&east.kubernetes).await?;
        for (what, values, expected) in matrix() {
            let rendered = render(east, &values).await.context(what)?;
            let mut made = BTreeSet::new();
            for object in crate::kubernetes::documents(&rendered).context(what)? {
                let kind = object["kind"].as_str().context("no kind")?.to_owned();
                // Our own definitions are there already, of another owner; the API server looks at them as well.
                east.kubernetes.dry_run(&object).await.with_context(|| format!("{what}: {object:#}"))?;
                made.insert(kind);
            }
            let lacks: Vec<_> = expected.iter().filter(|kind| !made.contains(**kind)).collect();
            ensure!(lacks.is_empty(), "{what}: no {lacks:?} in {made:?}");
        }
        for name in monitoring {
            delete(east, CRD, None, &name).await?;
        }
        Ok(())
    });
}

/// `helm template`, and `helm lint`, with these values.
async fn render(domain: &Domain, values: &Value) -> Result<String> {
    let file = domain.dir().join("matrix.json");
    std::fs::write(&file, serde_json::to_vec(values)?)?;
    let file = file.display().to_string();
    helm(domain, &["lint", "--strict", CHART, "--values", &file]).await?;
    helm(domain, &["template", RELEASE, CHART, "--namespace", AGENT_NAMESPACE, "--values", &file]).await
}

/// What one template of the chart comes to with these values.
async fn of_template(scratch: &Scratch, template: &str, values: &str) -> Result<Vec<Value>> {
    let template = format!("templates/{template}.yaml");
    let args = ["template", RELEASE, CHART, "--show-only", &template, "--set", values];
    let (code, printed, said) = run_helm(scratch.path(), None, &args).await?;
    ensure!(code == 0, "{values}: {said}");
    crate::kubernetes::documents(&printed)
}

/// A policy that restricts what the agents reach lets them reach each other all the same, on the port where the one that leads listens.
#[test]
fn a_policy_of_egress_leaves_the_replicas_their_relay() {
    let given = "networkPolicy.egress[0].ports[0].port=443";
    let to_443 = json!({"ports": [{"port": 443}]});
    let labels = json!({"app.kubernetes.io/name": "entente", "app.kubernetes.io/instance": RELEASE});
    let to_replicas = json!({
        "ports": [{"port": 7555, "protocol": "TCP"}], "to": [{"podSelector": {"matchLabels": labels}}],
    });
    let cases = [
        (format!("replicas=2,relay.port=7555,{given}"), Some(json!([to_443, to_replicas]))),
        (format!("replicas=1,{given}"), Some(json!([to_443]))),
        ("replicas=2".to_owned(), None),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, expected) in cases {
            let values = format!("networkPolicy.enabled=true,{values}");
            let policies = of_template(&scratch, "networkpolicy", &values).await.unwrap();
            let [policy] = policies.as_slice() else { panic!("{policies:?}") };
            assert_eq!(policy["spec"].get("egress"), expected.as_ref(), "{values}");
            let types = policy["spec"]["policyTypes"].as_array().unwrap();
            assert_eq!(types.contains(&json!("Egress")), expected.is_some(), "{values}");
        }
    });
}

/// Who is sent to the DNS port is sent to its number: an upgrade that turns DNS on leaves one of the two container ports, since Helm
/// tells them apart by that alone.
#[test]
fn dns_is_reached_by_number() {
    let values = "dns.enabled=true,dns.port=7553,networkPolicy.enabled=true";
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        let service = of_template(&scratch, "dns", values).await.unwrap().remove(0);
        let by_udp = json!({"name": "dns", "port": 53, "targetPort": 7553, "protocol": "UDP"});
        let by_tcp = json!({"name": "dns-tcp", "port": 53, "targetPort": 7553, "protocol": "TCP"});
        assert_eq!(service["spec"]["ports"], json!([by_udp, by_tcp]));
        let policy = of_template(&scratch, "networkpolicy", values).await.unwrap().remove(0);
        let both = json!([{"port": 7553, "protocol": "UDP"}, {"port": 7553, "protocol": "TCP"}]);
        let rules = policy["spec"]["ingress"].as_array().unwrap();
        assert!(rules.iter().any(|rule| rule["ports"] == both), "{rules:?}");
    });
}

/// A pod that is to end serves on until no node sends it anything, where Kubernetes knows how, and leaves time to say goodbye.
#[test]
fn a_pod_that_is_to_end_serves_on_for_a_moment() {
    let cases = [
        ("1.30.0", "30", Some(json!(5))),
        ("1.30.4-gke.100", "11", Some(json!(5))),
        ("1.36.3", "10", None),
        ("1.29.9", "30", None),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (version, grace, expected) in cases {
            let grace = format!("terminationGracePeriodSeconds={grace}");
            let template = ["template", RELEASE, CHART, "--show-only", "templates/deployment.yaml"];
            let args = [&template[..], &["--kube-version", version, "--set", &grace]].concat();
            let (code, printed, said) = run_helm(scratch.path(), None, &args).await.unwrap();
            assert_eq!(code, 0, "{said}");
            let objects = crate::kubernetes::documents(&printed).unwrap();
            let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            let seconds = container.pointer("/lifecycle/preStop/sleep/seconds");
            assert_eq!(seconds, expected.as_ref(), "{version}, {grace}");
        }
    });
}

/// What extraEnv sets is not set a second time: of two variables of one name an upgrade by Helm may leave none.
#[test]
fn a_variable_is_set_once() {
    let names = [
        "ENTENTE_REPLICA",
        "ENTENTE_RELAY_LISTEN",
        "ENTENTE_RELAY_ADDRESS",
        "ENTENTE_NAMESPACE",
        "ENTENTE_LOG",
        "MORE",
    ];
    let given =
        (0..).zip(names).map(|(n, name)| format!("extraEnv[{n}].name={name},extraEnv[{n}].value=mine"));
    let values = format!("replicas=2,{}", given.collect::<Vec<_>>().join(","));
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        let objects = of_template(&scratch, "deployment", &values).await.unwrap();
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.len() > 15, "{env:?}");
        let mut set = BTreeSet::new();
        for one in env {
            let name = one["name"].as_str().unwrap();
            assert!(set.insert(name), "{name} is there twice");
            assert_eq!(names.contains(&name), one["value"] == "mine", "{one}");
        }
    });
}

/// Prometheus scrapes with a certificate of the mesh where it is told to, and in plaintext where it is not.
#[test]
fn metrics_are_scraped_with_a_certificate_of_the_mesh() {
    let on = "metrics.serviceMonitor.enabled=true";
    let of_monitor = "metrics.serviceMonitor";
    let secret = format!(
        "{on},{of_monitor}.scheme=https,{of_monitor}.tlsConfig.caFile=/certs/root.pem,{of_monitor}.interval=9s"
    );
    let cases = [
        (
            on.to_owned(),
            json!({"port": "http-admin", "path": "/metrics", "interval": "30s", "scheme": "http"}),
        ),
        (
            secret,
            json!({
                "port": "http-admin", "path": "/metrics", "interval": "9s", "scheme": "https",
                "tlsConfig": {"caFile": "/certs/root.pem"},
            }),
        ),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, expected) in cases {
            let monitor = of_template(&scratch, "monitoring", &values).await.unwrap().remove(0);
            assert_eq!(monitor["spec"]["endpoints"], json!([expected]), "{values}");
        }
    });
}

/// A spire-controller-manager that filters by class reads what carries the class as a label, and nothing else.
#[test]
fn registrations_carry_their_class_as_a_label_too() {
    const LABEL: &str = "spire.spiffe.io/class-name";
    let own = r"spire.register.labels.spire\.spiffe\.io/class-name=mine";
    let cases = [
        ("spire.className=spire-mgmt-spire".to_owned(), Some("spire-mgmt-spire")),
        ("spire.className=".to_owned(), None),
        // Not to be written as a label, and so not to be filtered by.
        ("spire.className=a/b".to_owned(), None),
        (format!("spire.className=spire-mgmt-spire,{}", own.replace(r"\\", r"\")), Some("mine")),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, expected) in cases {
            let registrations = of_template(&scratch, "registrations", &values).await.unwrap();
            assert_eq!(registrations.len(), 2, "{values}");
            for registration in registrations {
                let labels = &registration["metadata"]["labels"];
                assert_eq!(labels[LABEL].as_str(), expected, "{values}: {registration}");
                assert_eq!(labels["app.kubernetes.io/instance"], RELEASE);
            }
        }
    });
}

/// The ranges of imports reach the agent with Istio and without; where none are given, it is left to its own default.
#[test]
fn the_ranges_of_imports_reach_the_agent() {
    const NAME: &str = "ENTENTE_IMPORT_ADDRESS_RANGE";
    let given = "10.7.0.0/16";
    let cases = [
        ("istio.enabled=true".to_owned(), None),
        ("istio.enabled=false".to_owned(), None),
        (format!("istio.enabled=true,importAddressRange={given}"), Some(given)),
        (format!("istio.enabled=false,importAddressRange={given}"), Some(given)),
        // as a release of before had it
        (format!("istio.importAddressRange={given}"), Some(given)),
        (format!("istio.importAddressRange=10.8.0.0/16,importAddressRange={given}"), Some(given)),
        (format!("istio.enabled=false,istio.importAddressRange={given}"), None),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, expected) in cases {
            let objects = of_template(&scratch, "deployment", &values).await.unwrap();
            let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
            let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
            let set = env.iter().find(|one| one["name"] == NAME).map(|one| one["value"].as_str().unwrap());
            assert_eq!(set, expected, "{values}");
        }
    });
}

/// Where Istio's namespace is missing, Helm says so before anything is written, and what to do.
#[test]
fn a_mesh_that_is_not_there_is_named() {
    with_pair(async |pair| {
        let kubeconfig = pair.east.kubernetes.admin_kubeconfig();
        let install = async |set: &str| {
            let args =
                ["install", RELEASE, CHART, "--namespace", "elsewhere", "--dry-run=server", "--set", set];
            run_helm(pair.east.dir(), Some(&kubeconfig), &args).await
        };
        let (code, _, said) = install("crds.install=false,istio.namespace=no-mesh").await?;
        let words = ["no namespace no-mesh", "istio.enabled=false"];
        ensure!(code != 0 && words.iter().all(|word| said.contains(word)), "{code}: {said}");
        let (code, _, said) =
            install("crds.install=false,istio.namespace=no-mesh,istio.enabled=false").await?;
        ensure!(code == 0, "{said}");
        let (code, _, said) = install("crds.install=false,istio.namespace=kube-system").await?;
        ensure!(code == 0, "{said}");
        Ok(())
    });
}

/// The notes lead on: who is reached from elsewhere invites, who is not joins, and is asked for its bundle endpoint alone.
#[test]
fn the_notes_are_for_whom_they_are_told() {
    const TO_INVITE: &str = "entente invite -n elsewhere --trust-domain other.example --file token";
    const TO_JOIN: &str = "entente join -n elsewhere --file token";
    let cases: [(&str, &[&str], &[&str]); 6] = [
        // The replica that leads is found by the kubeconfig; in a pod, only that pod's would be asked.
        (
            "peer.service.type=LoadBalancer",
            &[TO_INVITE, "set peer.advertise to", "and bundleEndpoint.url"],
            &[TO_JOIN],
        ),
        (
            "peer.service.type=NodePort,bundleEndpoint.url=https://spire.east.example",
            &[TO_INVITE, "set peer.advertise to"],
            &["bundleEndpoint.url"],
        ),
        (
            "peer.advertise={east.example:443},instance=mine",
            &[
                "At peer.advertise:",
                "east.example:443",
                "entente invite -n elsewhere --instance mine --trust-domain",
                "set bundleEndpoint.url",
            ],
            &["set peer.advertise"],
        ),
        (
            "trustDomain=east.example",
            &[TO_JOIN, "entente invite --trust-domain east.example", "Set bundleEndpoint.url"],
            &[TO_INVITE, "peer.advertise"],
        ),
        (
            "instance=mine",
            &["entente join -n elsewhere --instance mine --file token"],
            &["entente invite -n", "peer.advertise"],
        ),
        ("bundleEndpoint.url=https://spire.east.example", &[TO_JOIN], &["bundleEndpoint.url"]),
    ];
    with_pair(async |pair| {
        let kubeconfig = pair.east.kubernetes.admin_kubeconfig();
        for (values, told, untold) in cases {
            let values = format!("crds.install=false,istio.enabled=false,{values}");
            let args =
                ["install", RELEASE, CHART, "--namespace", "elsewhere", "--dry-run=server", "--set", &values];
            let (code, printed, said) = run_helm(pair.east.dir(), Some(&kubeconfig), &args).await?;
            ensure!(code == 0, "{values}: {said}");
            let (_, notes) = printed.split_once("NOTES:").context("no notes")?;
            for words in told {
                ensure!(notes.contains(words), "{values}: no {words:?} in {notes}");
            }
            for words in untold {
                ensure!(!notes.contains(words), "{values}: {words:?} in {notes}");
            }
        }
        Ok(())
    });
}

/// Whatever a value has in it, the agent is told that, and all of its other settings.
#[test]
fn values_that_mean_something_in_yaml_reach_the_agent() {
    let cases = [
        (
            "spire.server.addresses={[fd00::1]:8081,spire:8081}",
            "ENTENTE_SPIRE_SERVER",
            "[fd00::1]:8081,spire:8081",
        ),
        (
            "spire.server.hostPath=/run/spire,spire.server.socket=the api: one",
            "ENTENTE_SPIRE_SERVER",
            "unix:///spire-server/the api: one",
        ),
        (
            "spire.workloadApi.socket=an agent: one",
            "SPIFFE_ENDPOINT_SOCKET",
            "unix:///spiffe-workload-api/an agent: one",
        ),
        ("webRoots.configMap=roots,webRoots.key=ca #1", "ENTENTE_WEB_ROOTS", "/etc/entente/web-roots/ca #1"),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, name, expected) in cases {
            let objects = of_template(&scratch, "deployment", values).await.unwrap();
            let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
            let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
            let set = |name: &str| {
                let one = env.iter().find(|one| one["name"] == name);
                one.unwrap_or_else(|| panic!("{values}: no {name} in {env:?}"))["value"].as_str().unwrap()
            };
            assert_eq!(set(name), expected, "{values}");
            assert_eq!(set("ENTENTE_INSTANCE"), RELEASE, "{values}");
        }
    });
}

/// A port of the nodes is asked for where the Service has one: also of a Service that is no more than the gateway's way in.
#[test]
fn a_node_port_is_for_a_service_that_has_one() {
    let off = "peer.service.enabled=false,peer.gateway.enabled=true,peer.gateway.hosts={a.example}";
    let cases = [
        (
            "services",
            "peer.service.type=NodePort,peer.service.nodePort=30443".to_owned(),
            ("NodePort", Some(30443)),
        ),
        (
            "services",
            format!("{off},peer.service.type=NodePort,peer.service.nodePort=30443"),
            ("ClusterIP", None),
        ),
        ("services", format!("{off},peer.service.nodePort=30443"), ("ClusterIP", None)),
        (
            "xds",
            "xds.enabled=true,xds.service.type=LoadBalancer,xds.service.nodePort=30445".to_owned(),
            ("LoadBalancer", Some(30445)),
        ),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (template, values, expected) in cases {
            let service = of_template(&scratch, template, &values).await.unwrap().remove(0);
            let port = service["spec"]["ports"][0]["nodePort"].as_u64();
            assert_eq!((service["spec"]["type"].as_str().unwrap(), port), expected, "{values}");
        }
    });
}

/// Values that mean nothing, or not what they seem to, are refused before anything is written, with words that help.
#[test]
fn values_that_cannot_be_are_refused() {
    let gateway = |hosts: &str| format!("peer.gateway.enabled=true,peer.gateway.hosts={{{hosts}}}");
    let refused = [
        ("replica=2".to_owned(), "replica"),
        ("peer.port=443".to_owned(), "1,024"),
        ("spire.workloadApi.type=socket".to_owned(), "/spire/workloadApi/type"),
        ("spire.server.addresses={spire-server}".to_owned(), "addresses"),
        ("peer.advertise={entente.west.example}".to_owned(), "advertise"),
        ("timing.drian=3".to_owned(), "drian"),
        ("importAddressRange=127.64.0.0".to_owned(), "/importAddressRange"),
        ("dns.enabled=true,dns.port=53".to_owned(), "1,024"),
        ("xds.enabled=true,xds.port=445".to_owned(), "1,024"),
        ("xds.service.type=ExternalName".to_owned(), "/xds/service/type"),
        ("peer.service.nodePort=30443".to_owned(), "set peer.service.type to NodePort or LoadBalancer"),
        (
            "xds.enabled=true,xds.service.nodePort=30445".to_owned(),
            "set xds.service.type to NodePort or LoadBalancer",
        ),
        ("dns.upstream={dns.example}".to_owned(), "upstream"),
        ("image.digest=latest".to_owned(), "digest"),
        ("rbac.operators[0].kind=Robot,rbac.operators[0].name=a".to_owned(), "/rbac/operators/0/kind"),
        ("bundleEndpoint.url=http://spire".to_owned(), "/bundleEndpoint/url"),
        ("metrics.serviceMonitor.scheme=tls".to_owned(), "/metrics/serviceMonitor/scheme"),
        ("tracing.endpoint=https://otel:4317".to_owned(), "/tracing/endpoint"),
        ("serviceAccount.create=false".to_owned(), "name the ServiceAccount"),
        ("peer.gateway.enabled=true".to_owned(), "peer.gateway.hosts"),
        (gateway("192.0.2.1"), "no DNS name"),
        (format!("istio.enabled=false,{}", gateway("a.example")), "needs istio.enabled"),
        (
            format!("{},peer.gateway.bundleEndpoint.hosts={{a.example}}", gateway("a.example")),
            "tells them apart",
        ),
    ];
    let scratch = Scratch::new().unwrap();
    crate::pair::runtime().block_on(async {
        for (values, word) in refused {
            let args = ["template", RELEASE, CHART, "--set", &values];
            let (code, printed, said) = run_helm(scratch.path(), None, &args).await.unwrap();
            assert!(code != 0 && printed.is_empty(), "{values} is taken");
            assert!(said.contains(word), "{values}: {said}");
        }
    });
}
