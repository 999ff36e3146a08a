//! `POST /v1/peers/{peer}/diagnose`: walks the path to a peer, by its trust domain or the name of its object.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::{Control, Problem};
use crate::diagnose::Diagnosis;
use crate::diagnose::run::DiagnoseError;

/// How it is to be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskDiagnosis {
    /// Whether the peer's agent is asked what it sees, too.
    pub ask_peer: bool,
}

pub(super) async fn diagnose(
    State(control): State<Control>,
    Path(peer): Path<String>,
    Json(how): Json<AskDiagnosis>,
) -> Result<Json<Diagnosis>, Problem> {
    let diagnosed = control.diagnoser.diagnose(&peer, how.ask_peer).await;
    diagnosed.map(Json).map_err(|error| match error {
        DiagnoseError::Stopping => Problem::unavailable(error.to_string()),
        DiagnoseError::Name(_) => Problem::bad_request(error.to_string()),
    })
}
