//! Hosts that others' Gateways and VirtualServices serve already. istiod keeps the older of two alike, or gives its gateways a
//! configuration that Envoy refuses as a whole; so ours is not put beside one that was there first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::model::object::{Kind, Object, ObjectKey};
use crate::model::service::TlsMode;
use crate::model::{Service, World};
use crate::plan::istio;

use super::way::Through;

/// Most hosts, servers or gateways of one object of others' that are looked at.
const MOST: usize = 1_000;

/// All of others' objects that name a host, by it.
#[derive(Debug, Default)]
pub(super) struct Claims<'a> {
    servers: BTreeMap<String, Vec<Server<'a>>>,
    /// Those that name many hosts at once, and pass Istio's own SNI on.
    wide: Vec<(String, Server<'a>)>,
    routes: BTreeMap<String, Vec<Claim<'a>>>,
}

type Claim<'a> = (Option<Timestamp>, &'a ObjectKey);

#[derive(Clone, Debug)]
struct Server<'a> {
    claim: Claim<'a>,
    selector: BTreeMap<&'a str, &'a str>,
    port: u64,
    is_auto: bool,
}

/// Who else serves a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rival {
    pub key: ObjectKey,
    /// It was there before ours.
    pub is_older: bool,
}

impl<'a> Claims<'a> {
    #[must_use]
    pub(super) fn new(world: &'a World) -> Self {
        let mut claims = Self::default();
        let others = |kind| world.of_kind(kind).map(|(_, object)| object.as_ref());
        let is_other = |object: &&Object| !object.is_generated_by(&world.settings.instance);
        for object in others(Kind::Gateway).filter(is_other) {
            claims.add_gateway(object);
        }
        for object in others(Kind::VirtualService).filter(is_other) {
            let spec = object.spec().unwrap_or(&Value::Null);
            let mut gateways = strings(&spec["gateways"]).filter(|gateway| *gateway != "mesh");
            if gateways.next().is_some() {
                for host in strings(&spec["hosts"]) {
                    claims.routes.entry(host.to_ascii_lowercase()).or_default().push(claim_of(object));
                }
            }
        }
        claims
    }

    fn add_gateway(&mut self, object: &'a Object) {
        let spec = object.spec().unwrap_or(&Value::Null);
        let selector = spec["selector"].as_object().into_iter().flatten();
        let selector: BTreeMap<&str, &str> =
            selector.filter_map(|(label, value)| Some((label.as_str(), value.as_str()?))).collect();
        for server in items(&spec["servers"]).filter(|server| server["tls"].is_object()) {
            let this = Server {
                claim: claim_of(object),
                selector: selector.clone(),
                port: server.pointer("/port/number").and_then(Value::as_u64).unwrap_or_default(),
                is_auto: server.pointer("/tls/mode").is_some_and(|mode| mode == "AUTO_PASSTHROUGH"),
            };
            for host in strings(&server["hosts"]) {
                let host = host.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
                match host.strip_prefix('*') {
                    // Of what ends TLS, or passes it on by plain SNI, the nearest host wins: ours.
                    Some(suffix) if this.is_auto => self.wide.push((suffix.to_owned(), this.clone())),
                    Some(_) => {}
                    None => self.servers.entry(host).or_default().push(this.clone()),
                }
            }
        }
    }

    /// The oldest of others' objects that serves the host at the same gateway in a way that ours could not stand beside.
    #[must_use]
    pub(super) fn rival(
        &self,
        world: &World,
        service: &Service,
        host: &str,
        through: &Through,
    ) -> Option<Rival> {
        let is_auto = service.tls_mode == TlsMode::IstioMtls;
        let same = |server: &&Server<'_>| {
            let apart = server
                .selector
                .iter()
                .any(|(label, value)| through.selector.get(*label).is_some_and(|ours| ours != value));
            server.is_auto == is_auto
                && !apart
                && through.listening.iter().any(|port| u64::from(*port) == server.port)
        };
        let exact = self.servers.get(host).into_iter().flatten();
        let wide = self.wide.iter().filter(|(suffix, _)| host.ends_with(suffix)).map(|(_, server)| server);
        let servers = exact.chain(wide).filter(same).map(|server| server.claim);
        // A route is looked up by the SNI alone; Istio's own has none.
        let routes = self.routes.get(host).into_iter().flatten().filter(|_| !is_auto).copied();
        let (created, key) = servers.chain(routes).min()?;
        let ours = world.objects.get(&istio::export::gateway_key(service));
        let ours = ours.filter(|ours| ours.is_generated_by(&world.settings.instance));
        let is_older = ours.is_none_or(|ours| created <= ours.meta.created);
        Some(Rival { key: key.clone(), is_older })
    }
}

const fn claim_of(object: &Object) -> Claim<'_> {
    (object.meta.created, &object.key)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten().take(MOST)
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    items(value).filter_map(Value::as_str)
}
