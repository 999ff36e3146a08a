//! `entente svid`: an X509-SVID's chain, up to which authority of which trust domain, and which held bundle verifies it.

mod bundles;
mod chain;
mod live;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use self::bundles::{BundleArg, Held};
use self::chain::Chain;
use super::control::SocketFlag;
use super::exit::{self, NotAsked};
use super::output::{Screen, TextFormat, noticed};
use super::store::ClusterFlags;
use crate::clock;
use crate::identity::source::{AskError, fetch_once};
use crate::identity::workload::{Shown, WorkloadEndpoint, show};

/// The most bytes of PEM that are read.
const MOST: u64 = 4 * 1024 * 1024;

/// Show an SVID's chain, up to which authority, and which held bundle verifies it.
///
/// The SVID is the one that the Workload API gives this process; or that of a PEM file, standard input, or of what listens at an
/// address. The bundles are those given by --bundle, of the Workload API, and of the running agent.
///
/// Exit codes: 0 each SVID is verified; 1 one is not; 3 there is none to look at, or no bundle to verify it with.
#[derive(Args, Debug)]
pub(super) struct SvidArgs {
    /// A PEM file, `-` for standard input, or HOST:PORT for what a TLS server presents there. By default what the Workload API
    /// gives.
    #[arg(value_name = "FILE|-|HOST:PORT")]
    of: Option<String>,

    /// The name that is asked for at HOST:PORT (SNI), as gateways route by. By default the host, where it is a name.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,

    /// The SPIFFE Workload API: `unix:///path` or `tcp://IP:port`.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "ENDPOINT")]
    workload_api: Option<WorkloadEndpoint>,

    /// A bundle to verify with: SPIFFE bundle JSON, or PEM. May be repeated.
    #[arg(long, value_name = "TRUST_DOMAIN=FILE")]
    bundle: Vec<BundleArg>,

    /// The format of what is printed.
    #[arg(short, long, default_value = "text")]
    output: TextFormat,

    #[command(flatten)]
    socket: SocketFlag,

    #[command(flatten)]
    cluster: ClusterFlags,
}

/// Prints it.
pub(super) async fn run(args: &SvidArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let workload = match &args.workload_api {
        Some(endpoint) if args.of.is_none() => Some(ask(endpoint).await?),
        // For its bundles alone: without them, there may be others.
        Some(endpoint) => ask(endpoint).await.ok(),
        None => None,
    };
    let svids = svids(args, workload.as_ref()).await?;
    let held = bundles::held(args, workload.as_ref()).await?;
    let now = clock::now();
    let chains: Vec<Chain> = svids.iter().map(|svid| chain::judge(svid, &held, now)).collect();
    if !args.output.print_value(&json!({ "svids": chains }))? {
        let texts: Vec<String> = chains.iter().map(|chain| chain.describe(screen, now)).collect();
        write!(std::io::stdout().lock(), "{}", texts.join("\n"))?;
    }
    if chains.iter().all(Chain::is_verified) {
        return Ok(ExitCode::SUCCESS);
    }
    let nothing_held = held.bundles.is_empty();
    Ok(if nothing_held { ExitCode::from(exit::NOT_ASKED) } else { exit::of_health(false) })
}

/// An SVID as it was presented, and by whom.
struct Svid {
    from: String,
    certificates: Vec<CertificateDer<'static>>,
}

async fn svids(args: &SvidArgs, workload: Option<&Shown>) -> anyhow::Result<Vec<Svid>> {
    let one = |from: String, certificates: Vec<_>| vec![Svid { from, certificates }];
    let Some(of) = args.of.as_deref() else {
        let shown = workload.ok_or_else(|| {
            NotAsked(
                "whose SVID? Name a PEM file, - or HOST:PORT, or the Workload API by --workload-api or \
                 SPIFFE_ENDPOINT_SOCKET"
                    .to_owned(),
            )
        })?;
        let svid = |(hint, certificates): &(String, Vec<CertificateDer<'static>>)| {
            let hint = if hint.is_empty() { String::new() } else { format!(", hint {hint}") };
            Svid { from: format!("the Workload API{hint}"), certificates: certificates.clone() }
        };
        let svids: Vec<Svid> = shown.chains.iter().map(svid).collect();
        if svids.is_empty() {
            return Err(NotAsked(
                "the Workload API gives this process no SVID: register it in SPIRE".to_owned(),
            )
            .into());
        }
        return Ok(svids);
    };
    if of == "-" {
        return Ok(one("standard input".to_owned(), pem(std::io::stdin(), "standard input")?));
    }
    if Path::new(of).exists() {
        let file = std::fs::File::open(of).with_context(|| format!("{of} cannot be read"))?;
        return Ok(one(of.to_owned(), pem(file, of)?));
    }
    let is_address =
        of.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !is_address {
        return Err(NotAsked(format!("{of} is neither a file that is there nor HOST:PORT")).into());
    }
    let presented = noticed(|| format!("connecting with {of}"), live::presented(of, args.sni.as_deref()));
    Ok(one(format!("the TLS server at {of}"), presented.await?))
}

async fn ask(endpoint: &WorkloadEndpoint) -> anyhow::Result<Shown> {
    let response = noticed(|| format!("asking the Workload API at {endpoint}"), fetch_once(endpoint)).await;
    Ok(response.map(show).map_err(|error| {
        NotAsked(match error {
            AskError::Refused(words) => {
                format!("the Workload API at {endpoint} has nothing for this process: {words}")
            }
            AskError::Unreachable(words) => {
                format!("the Workload API at {endpoint}: {words}; is spire-agent up?")
            }
        })
    })?)
}

/// The certificates of a PEM text; keys in it are passed over.
fn pem(text: impl std::io::Read, name: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let mut bytes = Vec::new();
    text.take(MOST).read_to_end(&mut bytes).with_context(|| format!("{name} cannot be read"))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| anyhow::anyhow!("{name} is no PEM: {error:?}"))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "{name} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
    );
    Ok(certificates)
}

/// Bundles without a source, for messages.
fn names(held: &Held) -> String {
    let names: Vec<&str> = held.bundles.iter().map(|(bundle, _)| bundle.trust_domain().as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
