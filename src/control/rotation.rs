//! `/v1/rotation`: our authorities by SPIRE server, which peer holds them, and the steps of a rotation, each of which is
//! refused where a peer would refuse our workloads after it.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tonic::Code;

use super::{Control, Problem};
use crate::model::trust::{LocalAuthorities, LocalAuthority};
use crate::model::{AuthorityId, TrustDomain, World};
use crate::plan::rotation::{self, Leave, Refused, Step};
use crate::spire::{SpireError, SpireServer};

/// How it stands with our authorities: the answer to `GET /v1/rotation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationState {
    pub trust_domain: String,
    /// By address.
    pub servers: BTreeMap<String, ServerState>,
    /// Authorities in our bundle that are valid, untainted, and in no slot of a server that is addressed: of an earlier
    /// rotation, or of a SPIRE server that is not addressed.
    pub of_no_server: BTreeSet<String>,
    /// By trust domain.
    pub peers: BTreeMap<String, PeerState>,
    /// Trust domains that SPIRE federates with though there is no TrustDomainPeer, with what shows it: nobody there can be
    /// asked what they hold.
    pub unasked: BTreeMap<String, String>,
}

/// One SPIRE server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerState {
    /// Why it cannot be read; the rest is then what it said last.
    pub failure: Option<String>,
    /// Absent where the server has never told.
    pub active: Option<AuthorityState>,
    pub prepared: Option<AuthorityState>,
    pub old: Option<AuthorityState>,
    /// When SPIRE activates what is prepared by itself, where that is known.
    pub activates_at: Option<Timestamp>,
}

/// An authority in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityState {
    pub id: String,
    pub expires_at: Timestamp,
    /// The upstream authority that signed it; peers hold that one.
    pub upstream: Option<String>,
    /// Whether it is in our bundle itself, and not expired.
    pub published: bool,
    pub tainted: bool,
    /// From when on it may be revoked, where it is tainted.
    pub revocable_at: Option<Timestamp>,
    /// The peers that do not hold what it stands on, with the reason.
    pub lacking: BTreeMap<String, String>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerState {
    /// Why it has no say in a rotation, where it has none.
    pub exempt: Option<String>,
    /// Our authorities that it holds; absent where it has not said.
    pub holds: Option<BTreeSet<String>>,
    /// Whether that is a receipt: its SPIRE servers hold them, and its SPIRE agents had time to follow.
    pub by_receipt: bool,
}

/// Which authority of which server a step is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRequest {
    /// The server's address, as in [`RotationState::servers`].
    pub server: String,
    /// Its authority; of no meaning for `prepare`.
    #[serde(default)]
    pub authority: String,
    /// Of [`RotationState::unasked`], the trust domains that are to have no say.
    #[serde(default)]
    pub ignore: BTreeSet<String>,
}

/// What a step was done to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepDone {
    pub server: String,
    pub authority: String,
}

pub(super) async fn state(State(control): State<Control>) -> Result<Json<RotationState>, Problem> {
    let world = control.settled_world().await?;
    Ok(Json(describe(&world)))
}

/// Prepares the next authority. What is prepared already is taken as it is: SPIRE would put another in its place, of
/// which no peer has heard.
pub(super) async fn prepare(
    State(control): State<Control>,
    Json(request): Json<StepRequest>,
) -> Result<Json<StepDone>, Problem> {
    to_the_end(async move {
        let _one_at_a_time = control.rotating.lock().await;
        let (_, server, authorities) = control.step(&request.server).await?;
        let authority = match authorities.prepared {
            Some(prepared) => prepared.id,
            None => {
                let prepared = server.prepare_authority().await;
                prepared.map_err(|error| Problem::failed(error.to_string()))?.id
            }
        };
        tracing::info!(server = %request.server, %authority, "an authority is prepared");
        control.spire.refresh();
        Ok(done(request.server, &authority))
    })
    .await
}

pub(super) async fn activate(
    State(control): State<Control>,
    Json(request): Json<StepRequest>,
) -> Result<Json<StepDone>, Problem> {
    take(control, request, Step::Activate).await
}

pub(super) async fn taint(
    State(control): State<Control>,
    Json(request): Json<StepRequest>,
) -> Result<Json<StepDone>, Problem> {
    take(control, request, Step::Taint).await
}

pub(super) async fn revoke(
    State(control): State<Control>,
    Json(request): Json<StepRequest>,
) -> Result<Json<StepDone>, Problem> {
    take(control, request, Step::Revoke).await
}

/// Takes a step; one that was taken before is done, since whoever asked may not have heard.
async fn take(control: Control, request: StepRequest, step: Step) -> Result<Json<StepDone>, Problem> {
    to_the_end(async move {
        let _one_at_a_time = control.rotating.lock().await;
        let (server, id, leave) = control.allowed(&request, step).await?;
        if leave == Leave::Take {
            let (taken, what) = match step {
                Step::Activate => (server.activate_authority(&id).await, "activated"),
                Step::Taint => (server.taint_authority(&id).await, "tainted"),
                Step::Revoke => (server.revoke_authority(&id).await, "revoked"),
            };
            // Also after a failure: it may have been done all the same.
            control.spire.refresh();
            taken.map_err(refused)?;
            tracing::info!(server = %request.server, authority = %id, "an authority was {what}");
        }
        Ok(done(request.server, &id))
    })
    .await
}

/// Does it all, also where its asker goes meanwhile: SPIRE would go on, and nobody hold another asker back.
async fn to_the_end<T: Send + 'static>(
    step: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let ended = tokio::spawn(step).await;
    ended.unwrap_or_else(|_| Err(Problem::failed("the step broke off; the agent's log says why")))
}

fn done(server: String, authority: &AuthorityId) -> Json<StepDone> {
    Json(StepDone { server, authority: authority.to_string() })
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn refused(error: SpireError) -> Problem {
    match error.code() {
        Some(Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied) => {
            Problem::changed(error.to_string())
        }
        _ => Problem::unavailable(error.to_string()),
    }
}

impl Control {
    /// What is known, on the replica that knows the peers, once everything was read.
    async fn settled_world(&self) -> Result<std::sync::Arc<World>, Problem> {
        if !*self.leading.borrow() {
            return Err(Problem::elsewhere(format!(
                "replica {} does not lead, and knows no peers: ask the replica that holds the Lease of the leader",
                self.replica
            )));
        }
        let world = self.world().await?;
        if !world.is_read() || world.identity.is_none() || world.spire.is_none() {
            return Err(Problem::unavailable(format!(
                "replica {} has not read everything yet (the store, the Workload API and the SPIRE servers): try again",
                self.replica
            )));
        }
        Ok(world)
    }

    /// A server, as it is at this moment.
    async fn step(
        &self,
        name: &str,
    ) -> Result<(std::sync::Arc<World>, SpireServer, LocalAuthorities), Problem> {
        let world = self.settled_world().await?;
        let server = self.replicas.server(name).ok_or_else(|| {
            let known = world.spire.iter().flat_map(|spire| spire.servers.keys());
            let known: Vec<&str> = known.map(String::as_str).collect();
            Problem::not_found(format!("there is no SPIRE server {name}; there is {}", known.join(", ")))
        })?;
        let authorities = server.read_authorities().await.map_err(refused)?.ok_or_else(|| {
            Problem::conflict(format!(
                "the SPIRE server {name} does not tell its authorities: it is older than 1.11, or its policy denies it"
            ))
        })?;
        Ok((world, server, authorities))
    }

    async fn allowed(
        &self,
        request: &StepRequest,
        step: Step,
    ) -> Result<(SpireServer, AuthorityId, Leave), Problem> {
        let ignored = request.ignore.iter().map(|name| {
            TrustDomain::new(name)
                .map_err(|error| Problem::bad_request(format!("trust domain {name:?} to ignore: {error}")))
        });
        let ignored: BTreeSet<TrustDomain> = ignored.collect::<Result<_, _>>()?;
        let id = AuthorityId::parse(&request.authority)
            .map_err(|error| Problem::bad_request(format!("authority {:?}: {error}", request.authority)))?;
        let (world, server, authorities) = self.step(&request.server).await?;
        let leave = rotation::allow(&world, &request.server, &authorities, &id, step, &ignored);
        let leave = leave.map_err(|refused| match refused {
            Refused::NotYet(words) => Problem::conflict(words),
            Refused::Changed(words) => Problem::changed(words),
            Refused::Never(words) => Problem::forbidden(words),
        })?;
        Ok((server, id, leave))
    }
}

/// What the control API tells of our authorities.
#[must_use]
pub fn describe(world: &World) -> RotationState {
    let activations = rotation::activations(world);
    let servers = world.spire.iter().flat_map(|spire| &spire.servers).map(|(name, server)| {
        let authorities = server.authorities.as_ref();
        let slot = |slot: Option<&LocalAuthority>| slot.map(|authority| authority_state(world, authority));
        let state = ServerState {
            failure: server.failure.clone(),
            active: slot(authorities.map(|a| &a.active)),
            prepared: slot(authorities.and_then(|a| a.prepared.as_ref())),
            old: slot(authorities.and_then(|a| a.old.as_ref())),
            activates_at: activations.get(name.as_str()).copied(),
        };
        (name.clone(), state)
    });
    let peers = world.peers.values().map(|peer| {
        let held = rotation::held(world, peer);
        let state = PeerState {
            exempt: rotation::exempt(world, peer).map(str::to_owned),
            by_receipt: held.as_ref().is_some_and(|held| held.by_receipt),
            holds: held.map(|held| words(&held.ids)),
        };
        (peer.trust_domain.to_string(), state)
    });
    RotationState {
        trust_domain: world.own_trust_domain().map(ToString::to_string).unwrap_or_default(),
        servers: servers.collect(),
        of_no_server: words(&rotation::of_no_server(world)),
        peers: peers.collect(),
        unasked: rotation::unasked(world)
            .into_iter()
            .map(|(name, why)| (name.to_string(), why.to_owned()))
            .collect(),
    }
}

fn words(ids: &BTreeSet<AuthorityId>) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn authority_state(world: &World, authority: &LocalAuthority) -> AuthorityState {
    let published =
        rotation::own_bundle(world).and_then(|own| own.authorities().find(|a| *a.id() == authority.id));
    let lacking = rotation::obstacles(world, authority);
    AuthorityState {
        id: authority.id.to_string(),
        expires_at: authority.expires_at,
        upstream: authority.upstream.as_ref().map(ToString::to_string),
        published: published.is_some_and(|a| a.not_after() >= world.now),
        tainted: published.is_some_and(|a| a.tainted),
        revocable_at: rotation::revocable_at(world, &authority.id),
        lacking: lacking.into_iter().map(|o| (o.trust_domain.to_string(), o.why)).collect(),
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
