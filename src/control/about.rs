//! `GET /v1/about`: who the agent is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::{Control, Problem};
use crate::model::World;
use crate::model::replica::Leader;

/// Who an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    pub version: String,
    /// Absent until the Workload API told.
    pub trust_domain: Option<String>,
    /// The SPIFFE ID that peers see.
    #[serde(rename = "spiffeID")]
    pub spiffe_id: Option<String>,
    pub replica: String,
    /// Whether this replica leads.
    pub leader: bool,
    /// The replica that leads, as far as it is known: its pod, in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leads: Option<String>,
}

pub(super) async fn about(State(control): State<Control>) -> Result<Json<About>, Problem> {
    let world = control.world().await?;
    let identity = world.identity.as_ref();
    Ok(Json(About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: identity.map(|identity| identity.trust_domain.to_string()),
        spiffe_id: identity.map(|identity| identity.id.to_string()),
        replica: control.replica.clone(),
        leader: *control.leading.borrow(),
        leads: match &*control.leader.borrow() {
            Leader::Nobody => None,
            Leader::Us { .. } => Some(control.replica.clone()),
            Leader::Other { name, .. } => Some(name.clone()),
        },
    }))
}

impl Control {
    /// What the agent knows now.
    pub(super) async fn world(&self) -> Result<Arc<World>, Problem> {
        self.worlds.now().await.ok_or_else(|| Problem::unavailable("the agent is stopping"))
    }
}
