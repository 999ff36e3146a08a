//! What is seen of running agents: metrics, the page, Events and traces; and that the alert rules do what they say, by Prometheus'
//! own tool.

use super::{Agents, PEER, READY, SOON, both_ready, make_peers, merge, peer_says, quick};
use crate::agent::Agent;
use crate::chart::{CHART, RELEASE, run_helm};
use crate::pair::with_pair;
use crate::tools::Tools;
use crate::wait::{always, eventually};
use crate::world::Domain;
use anyhow::{Context, Result, ensure};
use kube::api::{DynamicObject, ListParams};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const ALERTS: &str = "charts/entente/files/alerts.yaml";
const DASHBOARD: &str = "charts/entente/files/dashboard.json";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs promtool; what it said, where it found something wrong.
fn promtool(args: &[&str], file: &Path) -> Result<()> {
    let output = Command::new(Tools::get()?.program("promtool")?).args(args).arg(file).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {args:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn alert_rules_fire_when_they_say_so_and_not_before() {
    promtool(&["check", "rules"], &repository(ALERTS)).unwrap();
    promtool(&["test", "rules"], &repository("integration/alerts/alerts_test.yaml")).unwrap();
}

/// An agent that is gone is missed by its release's rules, whatever other agent the same Prometheus sees.
#[test]
fn an_agent_that_is_gone_is_missed_beside_another() {
    let folder = tempfile::tempdir().unwrap();
    let values = "metrics.serviceMonitor.enabled=true,metrics.prometheusRule.enabled=true";
    let args =
        ["template", RELEASE, CHART, "--namespace", "edge", "--show-only", "templates/monitoring.yaml"];
    let args = [&args[..], &["--set", values]].concat();
    let (code, printed, said) =
        crate::pair::runtime().block_on(run_helm(folder.path(), None, &args)).unwrap();
    assert_eq!(code, 0, "{said}");
    let objects = crate::kubernetes::documents(&printed).unwrap();
    let rules = objects.iter().find(|object| object["kind"] == "PrometheusRule").unwrap();
    // JSON is YAML.
    std::fs::write(folder.path().join("rules.yaml"), rules["spec"].to_string()).unwrap();
    let gone = r#"entente_build_info{namespace="edge",job="entente-admin"}"#;
    let other = r#"entente_build_info{namespace="core",job="entente-admin"}"#;
    let firing = r#"ALERTS{alertname="EntenteDown",alertstate="firing"}"#;
    let labels = r#"alertname="EntenteDown",alertstate="firing",job="entente-admin",namespace="edge",severity="critical""#;
    let test = json!({
        "rule_files": ["rules.yaml"], "evaluation_interval": "30s",
        "tests": [{
            "interval": "30s",
            "input_series": [{"series": gone, "values": "1x10 _x60"}, {"series": other, "values": "1x70"}],
            "promql_expr_test": [
                {"expr": firing, "eval_time": "5m", "exp_samples": []},
                {"expr": firing, "eval_time": "16m", "exp_samples": [{"labels": format!("ALERTS{{{labels}}}"), "value": 1}]},
            ],
        }],
    });
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, test.to_string()).unwrap();
    promtool(&["test", "rules"], &file).unwrap();
}

/// The queries of a dashboard, wherever they stand.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(ToOwned::to_owned));
            fields.values().for_each(|field| queries(field, found));
        }
        Value::Array(all) => all.iter().for_each(|one| queries(one, found)),
        _ => {}
    }
}

#[test]
fn the_queries_of_the_dashboard_are_read_by_prometheus() {
    let text = std::fs::read_to_string(repository(DASHBOARD)).unwrap();
    let mut found = Vec::new();
    queries(&serde_json::from_str(&text).unwrap(), &mut found);
    assert!(found.len() > 20, "{found:?}");
    let rules: Vec<Value> =
        (1..).zip(found).map(|(n, expr)| json!({"record": format!("query:{n}"), "expr": expr})).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yaml");
    // JSON is YAML.
    std::fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules", "--lint=none"], &file).unwrap();
}

/// A collector of traces that keeps the names of what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<BTreeSet<String>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for scope in request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans)
        {
            names.extend(scope.spans.into_iter().map(|span| span.name));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self) -> Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(format!("http://{address}"))
    }

    fn has(&self, names: &[&str]) -> Result<()> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<_> = names.iter().filter(|name| !seen.contains(**name)).collect();
        ensure!(missing.is_empty(), "{missing:?} are not among {seen:?}");
        Ok(())
    }
}

#[test]
fn a_federation_is_seen_by_metrics_page_events_and_traces() {
    with_pair(async |pair| {
        let (east, west) = (&pair.east, &pair.west);
        let collector = Collector::default();
        let mut options = quick();
        options.args.extend(["--view".to_owned(), format!("--otlp-endpoint={}", collector.serve().await?)]);
        options.env.push(("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "500".to_owned()));
        let mut agents = Agents { east: Agent::start(east, options)?, west: Agent::start(west, quick())? };
        tokio::try_join!(agents.east.ready(READY), agents.west.ready(READY))?;
        make_peers(pair).await?;
        both_ready(pair).await?;
        metrics(&agents.east, west).await?;
        page(&agents, east, west).await?;
        eventually("a turn and an exchange are traced", SOON, || async {
            collector.has(&["plan", "apply", "operation", "peer.heard"])
        })
        .await?;
        events(east, west).await?;
        // What lasted as long as the stream is traced once that has ended; it goes out before the agent does.
        ensure!(agents.east.stop().await? == 0, "{}", agents.east.log());
        collector.has(&["peer.exchange"])
    });
}

async fn metrics(agent: &Agent, there: &Domain) -> Result<()> {
    let peer = there.trust_domain();
    eventually("the metrics tell of the peer", SOON, || async {
        let (status, text) = agent.get("/metrics").await?;
        ensure!(status == 200 && text.ends_with("# EOF\n"), "{status}: {text}");
        for line in [
            "entente_ready 1".to_owned(),
            "entente_leader 1".to_owned(),
            "entente_workload_api_up 1".to_owned(),
            "entente_spire_api_up 1".to_owned(),
            format!(
                "entente_peer_condition{{trust_domain=\"{peer}\",type=\"Reciprocal\",status=\"True\"}} 1"
            ),
            format!("entente_peer_stream{{trust_domain=\"{peer}\",state=\"Connected\"}} 1"),
            "entente_pending_operations{operation=\"write\"} 0".to_owned(),
        ] {
            ensure!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
        for name in ["entente_reconcile_seconds_count{step=\"apply\"}", "process_resident_memory_bytes"] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
            ensure!(value.trim().parse::<f64>()? > 0.0, "{name} {value}");
        }
        Ok(())
    })
    .await
}

async fn page(agents: &Agents, here: &Domain, there: &Domain) -> Result<()> {
    eventually("the page shows the peer", SOON, || async {
        let (status, html) = agents.east.get("/").await?;
        ensure!(status == 200, "{status}: {html}");
        let words = [
            here.trust_domain().to_string(),
            there.trust_domain().to_string(),
            "All is well with 1 of 1".into(),
        ];
        for word in words {
            ensure!(html.contains(&word), "{word} is not in\n{html}");
        }
        Ok(())
    })
    .await?;
    let (status, _) = agents.east.get("/style.css").await?;
    ensure!(status == 200, "{status}");
    // It is there where it is asked for, and nowhere else.
    let (status, _) = agents.west.get("/").await?;
    ensure!(status == 404, "{status}");
    Ok(())
}

/// The Events of an object, as `kubectl describe` finds them: by its name, kind and uid.
async fn told(here: &Domain, name: &str) -> Result<Vec<DynamicObject>> {
    let api = here.kubernetes.api(PEER.0, PEER.1, None).await?;
    let uid = api.get(name).await?.metadata.uid.unwrap_or_default();
    let events = here.kubernetes.api("v1", "Event", Some("default")).await?;
    let fields =
        format!("involvedObject.kind=TrustDomainPeer,involvedObject.name={name},involvedObject.uid={uid}");
    Ok(events.list(&ListParams::default().fields(&fields)).await?.items)
}

/// Each change that a person should know is told on the object, and who makes one again and again fills nothing.
async fn events(here: &Domain, there: &Domain) -> Result<()> {
    let peer = there.trust_domain().to_string();
    let suspend = async |on: bool| {
        merge(here, PEER, None, &peer, json!({"spec": {"suspend": on}})).await?;
        let (status, reason) = if on { ("False", "Suspended") } else { ("True", "Ready") };
        peer_says(here, there, "Ready", status, reason).await.map(drop)
    };
    suspend(true).await?;
    eventually("it is told", SOON, || async {
        let told = told(here, &peer).await?;
        for (kind, reason) in [("Normal", "Confirmed"), ("Normal", "Ready"), ("Warning", "Suspended")] {
            let found = told.iter().find(|one| one.data["type"] == kind && one.data["reason"] == reason);
            let found = found.with_context(|| format!("no Event {kind} {reason} among {told:?}"))?;
            ensure!(found.data["message"].as_str().is_some_and(|text| text.len() > 20), "{:?}", found.data);
        }
        Ok(())
    })
    .await?;
    let before = told(here, &peer).await?.len();
    for _ in 0..3 {
        suspend(false).await?;
        suspend(true).await?;
    }
    // Several conditions turn each time; equal words are one Event, counted.
    always("there is no storm", Duration::from_secs(2), || async {
        let now = told(here, &peer).await?.len();
        ensure!(now <= before + 16, "{before} Events became {now}");
        Ok(())
    })
    .await?;
    suspend(false).await
}
