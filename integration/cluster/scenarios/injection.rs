//! What Istio's sidecar injector is given of ours: templates that mount SPIRE's socket into each kind of proxy. They are Go templates,
//! which Helm reads as Istio does.

use crate::chart::run_helm;
use crate::kind::KIND;
use crate::kubernetes::documents;
use crate::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

const SOCKET: &str = "workload-socket";

fn values(file: &str) -> Result<Value> {
    let text = std::fs::read_to_string(Path::new(KIND).join("values").join(file))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{file} does not parse"))
}

/// The pod that a template comes to with what the injector knows of a pod: its annotations, and whether the cluster's sidecars are
/// native.
async fn pod(template: &str, native: bool, annotations: &Value) -> Result<Value> {
    let istiod = values("istiod.yaml")?;
    let text = istiod["sidecarInjectorWebhook"]["templates"][template].as_str();
    let text = text.with_context(|| format!("there is no template {template}"))?;
    let scratch = Scratch::new()?;
    let chart = scratch.folder("chart")?;
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: injector\nversion: 0.1.0\n")?;
    let whole = format!("{{{{- with .Values.pod }}}}\napiVersion: v1\nkind: Pod\n{text}\n{{{{- end }}}}\n");
    std::fs::write(scratch.folder("chart/templates")?.join("pod.yaml"), whole)?;
    let known = json!({"pod": {"NativeSidecars": native, "ObjectMeta": {"Annotations": annotations}}});
    std::fs::write(chart.join("values.yaml"), serde_json::to_vec(&known)?)?;
    let chart = chart.display().to_string();
    let (code, printed, said) = run_helm(scratch.path(), None, &["template", "injector", &chart]).await?;
    ensure!(code == 0, "{template}: {said}");
    documents(&printed)?.pop().context("it renders nothing")
}

/// The one list of containers in which the proxy is; another without an image beside it is what the API server refuses.
fn list_of_the_proxy(pod: &Value) -> Result<&'static str> {
    let is_there = |list: &&str| !pod["spec"][*list].is_null();
    let lists: Vec<&'static str> = ["containers", "initContainers"].into_iter().filter(is_there).collect();
    let [list] = lists.as_slice() else { anyhow::bail!("{lists:?}: {pod}") };
    let mount = json!([{"name": SOCKET, "mountPath": "/run/secrets/workload-spiffe-uds", "readOnly": true}]);
    let proxy = json!([{"name": "istio-proxy", "volumeMounts": mount}]);
    ensure!(pod["spec"][*list] == proxy, "{pod}");
    let socket = json!([{"name": SOCKET, "csi": {"driver": "csi.spiffe.io", "readOnly": true}}]);
    ensure!(pod["spec"]["volumes"] == socket, "{pod}");
    Ok(list)
}

/// A sidecar is where Istio's own template has it, by the cluster's nodes or by the pod's word; a gateway's proxy is a container.
#[test]
fn the_socket_is_mounted_where_the_proxy_is() {
    let says = |word: &str| json!({"sidecar.istio.io/nativeSidecar": word});
    let cases = [
        ("spire", true, json!({}), "initContainers"),
        ("spire", false, json!({}), "containers"),
        ("spire", true, says("false"), "containers"),
        ("spire", false, says("true"), "initContainers"),
        ("spire-gateway", true, json!({}), "containers"),
        ("spire-gateway", false, json!({}), "containers"),
    ];
    crate::pair::runtime().block_on(async {
        for (template, native, annotations, expected) in cases {
            let pod = pod(template, native, &annotations).await.unwrap();
            let list = list_of_the_proxy(&pod).unwrap();
            assert_eq!(list, expected, "{template}, native {native}, {annotations}");
        }
    });
}

/// Each proxy asks for the template of its kind.
#[test]
fn sidecars_and_gateways_have_templates_of_their_own() {
    let (istiod, gateway) = (values("istiod.yaml").unwrap(), values("eastwest-gateway.yaml").unwrap());
    assert_eq!(istiod["sidecarInjectorWebhook"]["defaultTemplates"], json!(["sidecar", "spire"]));
    assert_eq!(gateway["podAnnotations"]["inject.istio.io/templates"], "gateway,spire-gateway");
}
