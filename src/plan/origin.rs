//! What an object comes from that is made of several services: who owns it, and what its annotation names.
//!
//! What keeps callers out is owned by what lets them in as well, as it stands: garbage collection, which deletes in any order,
//! then takes the Gateway and the alias of a deleted FederatedService first and the policy after them, also where no agent
//! runs, and leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::{generated, istio};
use crate::model::object::{ANNOTATION_SOURCE, Object, ObjectKey, OwnerRef};
use crate::model::service::TlsMode;
use crate::model::world::Settings;
use crate::model::{Service, TrustDomain, World};

/// Owners and sources, without repetition and in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub owners: BTreeSet<OwnerRef>,
    pub sources: BTreeSet<ObjectKey>,
}

impl Origin {
    /// That of these services, alone.
    #[must_use]
    pub fn of<'a>(services: impl IntoIterator<Item = &'a Arc<Service>>) -> Self {
        let mut origin = Self::default();
        for service in services {
            origin.owners.insert(service.owner());
            origin.sources.extend(service.sources());
        }
        origin
    }

    /// With what lets callers in to these services, where it stands.
    #[must_use]
    pub fn with_doors<'a>(
        mut self,
        world: &World,
        own: &TrustDomain,
        services: impl IntoIterator<Item = &'a Arc<Service>>,
    ) -> Self {
        for service in services {
            let host = service.name.host(own).ok();
            let alias = host.as_deref().map(|host| istio::export::alias_key(service, host));
            let is_routed = |_: &&str| service.tls_mode == TlsMode::Mtls;
            let route = host.as_deref().filter(is_routed).map(|host| istio::export::route_key(service, host));
            let doors = [Some(istio::export::gateway_key(service)), alias, route];
            self.owners.extend(doors.iter().flatten().filter_map(|key| owner(world, key)));
        }
        self
    }

    /// Takes in what an object that stands has of these sources, and who owns it.
    pub(super) fn keep(&mut self, standing: &Object, sources: &BTreeMap<String, ObjectKey>) {
        let named = standing.meta.annotations.get(ANNOTATION_SOURCE).map_or("", String::as_str);
        self.sources.extend(named.split(',').filter_map(|source| sources.get(source)).cloned());
        self.owners.extend(standing.meta.owners.iter().cloned());
    }

    /// The object that comes from it.
    #[must_use]
    pub fn object(self, settings: &Settings, key: ObjectKey, spec: Value) -> Object {
        let sources: Vec<String> = self.sources.iter().map(generated::source_of).collect();
        generated::object(settings, key, spec, self.owners.into_iter().collect(), &sources, None)
    }
}

/// An object of ours that stands, as an owner.
fn owner(world: &World, key: &ObjectKey) -> Option<OwnerRef> {
    let there = world.objects.get(key).filter(|there| there.is_generated_by(&world.settings.instance))?;
    let uid = there.meta.uid.clone();
    (!uid.is_empty()).then(|| OwnerRef { kind: key.kind, name: key.name.clone(), uid })
}
