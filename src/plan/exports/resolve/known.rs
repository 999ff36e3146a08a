//! What is out of a service already, as it stands in the store: what is missed later stays as it was.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::api::v1alpha1::limits;
use crate::model::object::{ANNOTATION_SERVER_IDS, Kind};
use crate::model::{NamespacedName, ObjectKey, SpiffeId, TrustDomain, World};

/// What is out of a service.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By the importers' number of the port, the workload's.
    targets: BTreeMap<u16, u16>,
    server_ids: BTreeSet<SpiffeId>,
}

impl Known {
    /// By the alias of this host, where we made it; else by the status of the FederatedService.
    pub(super) fn of(world: &World, own: &TrustDomain, object: &NamespacedName, host: &str) -> Self {
        let mut known = Self::default();
        let alias = ObjectKey::namespaced(Kind::ServiceEntry, &object.namespace, host);
        let alias = world
            .objects
            .get(&alias)
            .filter(|alias| alias.is_generated_by(&world.settings.instance) && alias.meta.deletion.is_none());
        let mut texts: Vec<&str> = Vec::new();
        if let Some(alias) = alias {
            known.targets = targets(alias.spec().map(|spec| &spec["ports"]), "number");
            let ids = alias.meta.annotations.get(ANNOTATION_SERVER_IDS);
            texts.extend(ids.into_iter().flat_map(|ids| ids.split(',')));
        } else {
            let declared = ObjectKey::namespaced(Kind::FederatedService, &object.namespace, &object.name);
            let status = world.statuses.get(&declared);
            known.targets = targets(status.map(|status| &status["targetPorts"]), "port");
            let ids = status.and_then(|status| status["serverSPIFFEIDs"].as_array());
            texts.extend(ids.into_iter().flatten().filter_map(Value::as_str));
        }
        let ids = texts.into_iter().take(limits::SERVER_IDS).filter_map(|text| SpiffeId::new(text).ok());
        known.server_ids = ids.filter(|id| id.is_member_of(own) && !id.path().is_empty()).collect();
        known
    }

    pub(super) fn target(&self, port: u16) -> Option<u16> {
        self.targets.get(&port).copied()
    }

    pub(super) fn has_server_ids(&self) -> bool {
        !self.server_ids.is_empty()
    }

    pub(super) fn server_ids(&self) -> BTreeSet<SpiffeId> {
        self.server_ids.clone()
    }
}

/// Where ports lead, by their numbers, which this field has.
fn targets(ports: Option<&Value>, field: &str) -> BTreeMap<u16, u16> {
    let number =
        |port: &Value, field: &str| port[field].as_u64().and_then(|number| u16::try_from(number).ok());
    let ports = ports.and_then(Value::as_array).into_iter().flatten();
    ports.filter_map(|port| Some((number(port, field)?, number(port, "targetPort")?))).collect()
}
