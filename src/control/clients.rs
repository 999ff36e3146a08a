//! `GET /v1/clients`: who is served by xDS, by this replica.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Control;
use crate::xds::ClientState;

/// Who is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedClients {
    pub replica: String,
    pub clients: Vec<ClientState>,
}

pub(super) async fn clients(State(control): State<Control>) -> Json<ServedClients> {
    Json(ServedClients { replica: control.replica.clone(), clients: control.clients.now() })
}
