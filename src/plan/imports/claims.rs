//! Which hosts objects of others have taken: the older of two keeps a host.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::model::object::Kind;
use crate::model::{Object, ObjectKey, World};

/// One object of someone else's, and since when it is there.
type Claim<'a> = (Option<Timestamp>, &'a ObjectKey);

/// The hosts that ServiceEntries, DestinationRules and VirtualServices of others name, anywhere in the cluster. An index,
/// made once a plan.
#[derive(Debug, Default)]
pub struct Claims<'a>(BTreeMap<Kind, BTreeMap<String, Vec<Claim<'a>>>>);

impl<'a> Claims<'a> {
    #[must_use]
    pub fn new(world: &'a World) -> Self {
        let mut claims = Self::default();
        for kind in [Kind::ServiceEntry, Kind::DestinationRule, Kind::VirtualService] {
            let of_kind = claims.0.entry(kind).or_default();
            for (key, object) in world.of_kind(kind) {
                if object.is_generated_by(&world.settings.instance) {
                    continue;
                }
                for host in hosts(world, object) {
                    of_kind.entry(host).or_default().push((object.meta.created, key));
                }
            }
        }
        claims
    }

    /// The oldest of them that keeps `host` from `mine`: it was there before, or is where `mine` is not written yet. Of
    /// VirtualServices and DestinationRules a wildcard above the host does so too: it would lose without a word.
    /// `concerns` tells which of the others are in its way at all.
    #[must_use]
    pub fn keeper(
        &self,
        world: &World,
        host: &str,
        mine: &ObjectKey,
        concerns: impl Fn(&ObjectKey) -> bool,
    ) -> Option<&'a ObjectKey> {
        let observed = world.objects.get(mine).filter(|o| o.is_generated_by(&world.settings.instance));
        let of_kind = self.0.get(&mine.kind)?;
        // A wildcard of a ServiceEntry leaves to others the hosts that they name.
        let has_wildcards = matches!(mine.kind, Kind::VirtualService | Kind::DestinationRule);
        let above = above(host).filter(|_| has_wildcards);
        let names = std::iter::once(host.to_owned()).chain(above);
        let claims: Vec<&Claim<'a>> = names.filter_map(|name| of_kind.get(&name)).flatten().collect();
        let (_, key) = claims
            .into_iter()
            .filter(|(_, key)| *key != mine && concerns(key))
            .filter(|(created, _)| observed.is_none_or(|ours| *created <= ours.meta.created))
            .min()?;
        Some(key)
    }

    /// Any object of the kind that names the host, or a wildcard above it.
    #[must_use]
    pub fn any(
        &self,
        kind: Kind,
        host: &str,
        concerns: impl Fn(&ObjectKey) -> bool,
    ) -> Option<&'a ObjectKey> {
        let of_kind = self.0.get(&kind)?;
        let names = std::iter::once(host.to_owned()).chain(above(host));
        let mut claims = names.filter_map(|name| of_kind.get(&name)).flatten().map(|(_, key)| *key);
        claims.find(|key| concerns(key))
    }
}

/// The wildcards that cover a host.
fn above(host: &str) -> impl Iterator<Item = String> + '_ {
    host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..])).chain(["*".to_owned()])
}

/// The hosts that an object names, in lower case; a name without a dot is one of its namespace (Istio). A VirtualService for
/// gateways alone takes no host from the workloads of the mesh.
fn hosts(world: &World, object: &Object) -> Vec<String> {
    let Some(spec) = object.spec() else { return Vec::new() };
    let list = |name: &str| spec.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let whole = |host: &str| {
        let host = host.to_ascii_lowercase();
        match &object.key.namespace {
            Some(namespace) if !host.contains('.') && host != "*" => {
                format!("{host}.{namespace}.svc.{}", world.settings.cluster_domain)
            }
            _ => host,
        }
    };
    match object.key.kind {
        Kind::DestinationRule => spec.get("host").and_then(Value::as_str).map(whole).into_iter().collect(),
        Kind::VirtualService => {
            let gateways = list("gateways");
            let is_of_mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh");
            let hosts = list("hosts").iter().filter_map(Value::as_str);
            if is_of_mesh { hosts.map(whole).collect() } else { Vec::new() }
        }
        _ => list("hosts").iter().filter_map(Value::as_str).map(|host| host.to_ascii_lowercase()).collect(),
    }
}
