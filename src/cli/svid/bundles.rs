//! The bundles that an SVID is verified with, and where each is from.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::SvidArgs;
use crate::bundle::document::parse_bootstrap;
use crate::control::HeldBundles;
use crate::identity::workload::Shown;
use crate::model::{Authority, Bundle, TrustDomain};

/// `TRUST_DOMAIN=FILE`.
#[derive(Clone, Debug)]
pub(super) struct BundleArg {
    trust_domain: TrustDomain,
    path: PathBuf,
}

impl std::str::FromStr for BundleArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, path) = text.split_once('=').ok_or("write it as TRUST_DOMAIN=FILE")?;
        let trust_domain = TrustDomain::new(name).map_err(|error| error.to_string())?;
        Ok(Self { trust_domain, path: path.into() })
    }
}

/// Bundles, each with where it is from.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) bundles: Vec<(Arc<Bundle>, String)>,
    /// Why there are not more.
    pub(super) problem: Option<String>,
}

impl Held {
    /// The bundles of a trust domain.
    pub(super) fn of<'a>(&'a self, name: &'a TrustDomain) -> impl Iterator<Item = &'a (Arc<Bundle>, String)> {
        self.bundles.iter().filter(move |(bundle, _)| bundle.trust_domain() == name)
    }
}

/// Those given, those of the Workload API, and, where there are none of that, the agent's.
pub(super) async fn held(args: &SvidArgs, workload: Option<&Shown>) -> anyhow::Result<Held> {
    let mut held = Held::default();
    for BundleArg { trust_domain, path } in &args.bundle {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{name} cannot be read"))?;
        let parsed = parse_bootstrap(trust_domain, &text)
            .map_err(|error| anyhow::anyhow!("{name} is no bundle of {trust_domain}: {error}"))?;
        held.bundles.push((Arc::new(parsed.bundle), name.to_string()));
    }
    if let Some(shown) = workload {
        let from = "the Workload API".to_owned();
        held.bundles.extend(shown.bundles.values().map(|bundle| (Arc::clone(bundle), from.clone())));
    } else if held.bundles.is_empty() {
        match args.socket.client(&args.cluster).get::<HeldBundles>("/v1/bundles").await {
            Ok(told) => held.bundles = of_agent(&told)?,
            Err(error) => held.problem = Some(format!("{error:#}")),
        }
    }
    Ok(held)
}

fn of_agent(told: &HeldBundles) -> anyhow::Result<Vec<(Arc<Bundle>, String)>> {
    let mut bundles = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, held) in &told.bundles {
        let trust_domain = TrustDomain::new(name.as_str())?;
        let authority = |certificate: &String| -> anyhow::Result<Authority> {
            Ok(Authority::parse(&BASE64.decode(certificate)?)?)
        };
        let authorities: anyhow::Result<Vec<Authority>> =
            held.authorities.iter().map(|held| authority(&held.certificate)).collect();
        let authorities =
            authorities.with_context(|| format!("the agent's bundle of {name} cannot be read"))?;
        if seen.insert(trust_domain.clone()) {
            bundles.push((Arc::new(Bundle::new(trust_domain, authorities)), "the agent".to_owned()));
        }
    }
    Ok(bundles)
}
