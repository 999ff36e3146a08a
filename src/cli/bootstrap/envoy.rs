//! `entente bootstrap envoy`: a configuration with which Envoy takes everything else from an agent, and its certificates from
//! the SPIRE agent of its machine.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::host_and_port;
use crate::model::SpiffeId;
use crate::plan::xds::{SPIRE_CLUSTER, SVID_NAME};

/// The cluster by which Envoy reaches the agent.
const AGENT_CLUSTER: &str = "entente";

/// Print a configuration for an Envoy that is served by an agent
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("agent").required(true).args(["xds", "xds_socket"])))]
pub(in crate::cli) struct EnvoyArgs {
    /// Where the agent serves xDS (its --xds-listen), as Envoy reaches it: HOST:PORT. Envoy shows its SVID, and wants the agent's.
    #[arg(long, requires = "agent_id")]
    xds: Option<String>,

    /// The SPIFFE ID of the agent, which is pinned.
    #[arg(long)]
    agent_id: Option<SpiffeId>,

    /// A Unix socket of the agent (its --xds-socket), in the place of --xds and --agent-id.
    #[arg(long)]
    xds_socket: Option<PathBuf>,

    /// The socket of the SPIRE agent, which serves Envoy its certificates and bundles (SDS).
    #[arg(long, default_value = "/run/spire/agent-sockets/spire-agent.sock")]
    spire_agent_socket: PathBuf,

    /// A name of this Envoy, for the agent's log.
    #[arg(long, default_value = "envoy")]
    node_id: String,

    /// Where its administration interface is: a port of 127.0.0.1. Default: none.
    #[arg(long, conflicts_with = "admin_socket")]
    admin_port: Option<u16>,

    /// The same as a Unix socket.
    #[arg(long)]
    admin_socket: Option<PathBuf>,
}

/// Prints it as JSON, which is YAML too.
pub(super) fn run(args: &EnvoyArgs) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&bootstrap(args)?)?;
    text.push('\n');
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn bootstrap(args: &EnvoyArgs) -> anyhow::Result<Value> {
    let by_ads = json!({"resource_api_version": "V3", "ads": {}});
    let mut config = json!({
        "node": {"id": args.node_id, "cluster": "entente"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT_CLUSTER}}],
            },
            "cds_config": by_ads,
            "lds_config": by_ads,
        },
        "static_resources": {"clusters": [
            // Not pinged: a server that is made with grpc-go, as SPIRE's agent is, closes the connection of a client that pings more
            // often than every five minutes (`too_many_pings`). The end of a Unix socket is seen at once.
            grpc(SPIRE_CLUSTER, "STATIC", &json!({"pipe": {"path": args.spire_agent_socket}}), &json!({})),
            agent(args)?,
        ]},
    });
    let admin = match (&args.admin_socket, args.admin_port) {
        (Some(path), _) => Some(json!({"pipe": {"path": path}})),
        (None, Some(port)) => Some(socket("127.0.0.1", port)),
        (None, None) => None,
    };
    if let (Some(address), Some(fields)) = (admin, config.as_object_mut()) {
        fields.insert("admin".to_owned(), json!({"address": address}));
    }
    Ok(config)
}

/// An agent that is gone without a word is noticed.
fn agent(args: &EnvoyArgs) -> anyhow::Result<Value> {
    let pinged = json!({"connection_keepalive": {"interval": "30s", "timeout": "5s"}});
    if let Some(path) = &args.xds_socket {
        return Ok(grpc(AGENT_CLUSTER, "STATIC", &json!({"pipe": {"path": path}}), &pinged));
    }
    let (Some(address), Some(id)) = (&args.xds, &args.agent_id) else {
        anyhow::bail!("--xds HOST:PORT with --agent-id, or --xds-socket PATH, says where the agent is");
    };
    let (host, port) = host_and_port(address)?;
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" };
    let mut cluster = grpc(AGENT_CLUSTER, kind, &socket(host, port), &pinged);
    if let Some(fields) = cluster.as_object_mut() {
        fields.insert("transport_socket".to_owned(), tls(id));
    }
    Ok(cluster)
}

/// The agent is verified with the bundle of its trust domain, which is Envoy's own, and by its ID.
fn tls(agent: &SpiffeId) -> Value {
    let pin = json!({"san_type": "URI", "matcher": {"exact": agent.to_string()}});
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificate_sds_secret_configs": [secret(SVID_NAME)],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": [pin]},
                    "validation_context_sds_secret_config": secret(&agent.trust_domain().id_string()),
                },
            },
        },
    })
}

fn secret(name: &str) -> Value {
    json!({
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": SPIRE_CLUSTER}}],
            },
        },
    })
}

fn socket(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

/// A cluster that speaks gRPC, with these options of HTTP/2.
fn grpc(name: &str, kind: &str, address: &Value, http2: &Value) -> Value {
    json!({
        "name": name,
        "type": kind,
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": http2},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EnvoyArgs,
    }

    fn of(line: &str) -> anyhow::Result<Value> {
        bootstrap(&Line::try_parse_from(line.split_whitespace())?.args)
    }

    #[test]
    fn an_agent_is_reached_by_socket_or_by_tls_with_its_id() {
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false }, {
            insta::assert_yaml_snapshot!("envoy_by_socket", of("envoy --xds-socket /run/entente/cart.sock").unwrap());
            let line = "envoy --xds entente.example:7445 --agent-id spiffe://east.example/agent --admin-port 9901";
            insta::assert_yaml_snapshot!("envoy_by_tls", of(line).unwrap());
        });
        for line in ["envoy --xds-socket /s", "envoy --xds a:1 --agent-id spiffe://east.example/agent"] {
            let pinged = of(line).unwrap()["static_resources"]["clusters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|cluster| {
                    (cluster["name"].to_string(), cluster.to_string().contains("connection_keepalive"))
                })
                .collect::<Vec<_>>();
            assert_eq!(
                pinged,
                [(json!(SPIRE_CLUSTER).to_string(), false), (json!(AGENT_CLUSTER).to_string(), true)]
            );
        }
        let ipv6 = of("envoy --xds [fd00::1]:7445 --agent-id spiffe://east.example/agent").unwrap();
        let cluster = &ipv6["static_resources"]["clusters"][1];
        assert_eq!(cluster["type"], "STATIC");
        for line in ["envoy", "envoy --xds a:1", "envoy --xds a --agent-id spiffe://east.example/agent"] {
            assert!(of(line).is_err(), "{line}");
        }
    }
}
