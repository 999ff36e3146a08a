//! `/v1/invites` and `/v1/join`: inviting a trust domain, and joining one that invites.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Control, Problem};
use crate::api::v1alpha1::trust_domain_peer::{BundleEndpoint, ProfileType};
use crate::clock;
use crate::config::{ProfileArg, ReachArgs};
use crate::enrol::fingerprint::spoken;
use crate::enrol::invites::{DEFAULT_TTL, InviteError, Invites, MAX_TTL};
use crate::enrol::join::{JoinError, Joiner, Until};
use crate::enrol::token::InviteId;
use crate::enrol::{Offer, Token, screening};
use crate::index::parse::field;
use crate::model::{Object, World};
use crate::proto::enrol::v1 as wire;
use crate::store::directory::manifest_of;

/// What the routes of this file work with.
#[derive(Clone, Debug)]
pub struct Enrolment {
    pub invites: Invites,
    pub joiner: Joiner,
    /// How we are reached, where a request does not say.
    pub reach: ReachArgs,
    /// The Lease of the replica that leads.
    pub leader_lease: String,
}

/// How we are reached, where it is not as the agent was told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reach {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_endpoint: Option<BundleEndpoint>,
}

/// `POST /v1/invites`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewInvite {
    /// Who is invited.
    pub trust_domain: String,
    /// One hour where absent, seven days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    #[serde(default)]
    pub reach: Reach,
}

/// An invite that was just made. The token holds its secret, and is nowhere else.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invited {
    pub id: String,
    pub token: String,
    pub trust_domain: String,
    pub inviter: String,
    pub expires: Timestamp,
    /// Of our bundle, for comparison by voice.
    pub fingerprint: String,
}

impl std::fmt::Debug for Invited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invited").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An invite that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenInvite {
    pub id: String,
    pub trust_domain: String,
    pub expires: Timestamp,
    /// How many more wrong secrets it stands.
    pub tries_left: u32,
    pub fingerprint: String,
}

/// `POST /v1/join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    pub token: String,
    /// Stop before the secret is shown.
    #[serde(default)]
    pub dry_run: bool,
    /// The inviter is known to have accepted: do not ask it again.
    #[serde(default)]
    pub accepted: bool,
    #[serde(default)]
    pub reach: Reach,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("dry_run", &self.dry_run).finish_non_exhaustive()
    }
}

/// What joining came to, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinReport {
    pub trust_domain: String,
    pub inviter: String,
    /// The agent of the inviter that proved who it is; absent where it was not asked.
    #[serde(rename = "agentSPIFFEID")]
    pub agent_spiffe_id: Option<String>,
    pub fingerprint: String,
    pub own_fingerprint: String,
    /// Whether anything was made.
    pub joined: bool,
    /// The TrustDomainPeer here, as a manifest.
    pub here: String,
    /// The one at the inviter.
    pub there: String,
}

pub(super) async fn invite(
    State(control): State<Control>,
    Json(request): Json<NewInvite>,
) -> Result<Json<Invited>, Problem> {
    control.leads().await?;
    let world = control.world().await?;
    let own = control.own_offer(&world, &request.reach)?;
    if own.agent_addresses.is_empty() {
        return Err(Problem::bad_request(
            "the joiner has to reach our agent: say where, with --advertise host:port (of the agent, or of this command)",
        ));
    }
    let joiner = field::trust_domain("trust domain", &request.trust_domain)
        .map_err(|problem| Problem::bad_request(problem.message))?;
    if joiner == own.trust_domain {
        return Err(Problem::bad_request(format!("{joiner} is our own trust domain: invite another one")));
    }
    if !world.is_read() {
        return Err(Problem::unavailable("not every object has been read yet: try again in a moment"));
    }
    if screening::is_peer(&world, &joiner) {
        return Err(Problem::conflict(format!(
            "there is a TrustDomainPeer of {joiner} already: nothing is to be done, or delete it first"
        )));
    }
    let bundle = world.spire.as_ref().and_then(|spire| spire.own.clone());
    let bundle = bundle.filter(|bundle| bundle.is_usable_at(world.now)).ok_or_else(|| {
        Problem::unavailable("SPIRE has not told a bundle of ours that can be used: try again in a moment")
    })?;
    let ttl = request.ttl_seconds.map_or(DEFAULT_TTL, Duration::from_secs);
    if !(Duration::from_secs(1)..=MAX_TTL).contains(&ttl) {
        return Err(Problem::bad_request("an invite is open from 1 second to 7 days (168h)"));
    }
    let fingerprint = bundle.digest();
    let created = control.enrolment.invites.create(&joiner, fingerprint, ttl, clock::now()).await;
    let (id, secret, expires) = created.map_err(invite_problem)?;
    tracing::info!(invite = %id, trust_domain = %joiner, %expires, "a trust domain is invited");
    let inviter = own.trust_domain.to_string();
    let trust_domain = joiner.to_string();
    let token = Token { id, secret, joiner, inviter: own, fingerprint, expires };
    Ok(Json(Invited {
        id: id.to_string(),
        token: token.to_text(),
        trust_domain,
        inviter,
        expires,
        fingerprint: spoken(&fingerprint),
    }))
}

pub(super) async fn list(State(control): State<Control>) -> Result<Json<Vec<OpenInvite>>, Problem> {
    let open = control.enrolment.invites.list(clock::now()).await.map_err(invite_problem)?;
    let shown = open.into_iter().map(|(id, invite)| OpenInvite {
        id: id.to_string(),
        trust_domain: invite.joiner.to_string(),
        expires: invite.expires,
        tries_left: invite.tries_left,
        fingerprint: spoken(&invite.fingerprint),
    });
    Ok(Json(shown.collect()))
}

pub(super) async fn withdraw(
    State(control): State<Control>,
    Path(id): Path<String>,
) -> Result<Json<OpenInvite>, Problem> {
    control.leads().await?;
    let parsed = InviteId::parse(&id).ok_or_else(|| {
        Problem::bad_request(format!("{id:.40?} is no ID of an invite: see `entente invite list`"))
    })?;
    let invite = control.enrolment.invites.withdraw(parsed, clock::now()).await.map_err(invite_problem)?;
    tracing::info!(invite = id, trust_domain = %invite.joiner, "an invite is withdrawn");
    Ok(Json(OpenInvite {
        id,
        trust_domain: invite.joiner.to_string(),
        expires: invite.expires,
        tries_left: invite.tries_left,
        fingerprint: spoken(&invite.fingerprint),
    }))
}

pub(super) async fn join(
    State(control): State<Control>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<JoinReport>, Problem> {
    let until = match (request.dry_run, request.accepted) {
        (true, _) => Until::DryRun,
        (false, true) => Until::Accepted,
        (false, false) => Until::Joined,
    };
    let token = Token::parse(&request.token).map_err(|error| Problem::bad_request(error.to_string()))?;
    let world = control.world().await?;
    let own = control.own_offer(&world, &request.reach)?;
    let joined = control.enrolment.joiner.join(&world, &own, &token, until).await.map_err(join_problem)?;
    let manifest = |object: &Object| manifest_of(object);
    Ok(Json(JoinReport {
        trust_domain: own.trust_domain.to_string(),
        inviter: joined.inviter.to_string(),
        agent_spiffe_id: joined.agent.map(|id| id.to_string()),
        fingerprint: joined.fingerprint,
        own_fingerprint: joined.own_fingerprint,
        joined: until != Until::DryRun,
        here: manifest(&joined.here),
        there: manifest(&joined.there),
    }))
}

fn invite_problem(error: InviteError) -> Problem {
    let message = error.to_string();
    match error {
        InviteError::TooMany | InviteError::NotOurs(_) | InviteError::Busy => Problem::conflict(message),
        InviteError::Unknown(_) => Problem::not_found(message),
        InviteError::Store(_) => Problem::unavailable(message),
    }
}

fn join_problem(error: JoinError) -> Problem {
    let message = error.to_string();
    match error {
        JoinError::NotForUs { .. } | JoinError::Expired(_) => Problem::bad_request(message),
        JoinError::NotReady(_)
        | JoinError::Unreachable(_)
        | JoinError::Fetch(_)
        | JoinError::OurStore(..) => Problem::unavailable(message),
        _ => Problem::conflict(message),
    }
}

impl Control {
    /// Invites are changed by the replica that receives joiners.
    async fn leads(&self) -> Result<(), Problem> {
        if *self.leading.borrow() {
            return Ok(());
        }
        let lease = &self.enrolment.leader_lease;
        let read = self.enrolment.joiner.store.read_lease(lease).await;
        let leader = match read.ok().flatten().and_then(|lease| lease.holder) {
            Some(holder) if holder != self.replica => format!("{holder}, which does"),
            _ => format!("the one that does (the holder of the Lease {lease})"),
        };
        Err(Problem::elsewhere(format!("this replica ({}) does not lead: ask {leader}", self.replica)))
    }

    /// How we are reached: as the agent was told, unless the request says otherwise.
    fn own_offer(&self, world: &World, reach: &Reach) -> Result<Offer, Problem> {
        let identity = world.identity.as_ref().ok_or_else(|| {
            Problem::unavailable(
                "the Workload API has not told who we are: is this agent registered in SPIRE?",
            )
        })?;
        let told = &self.enrolment.reach;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (url, id) = match &reach.bundle_endpoint {
            Some(endpoint) => {
                let web = endpoint.profile.kind == ProfileType::HttpsWeb;
                let id = endpoint.profile.endpoint_spiffe_id.clone();
                (Some(endpoint.url.clone()), if web { Some(String::new()) } else { id })
            }
            None => {
                let web = told.bundle_endpoint_profile == Some(ProfileArg::HttpsWeb);
                let id = if web { Some(String::new()) } else { given(&told.bundle_endpoint_spiffe_id) };
                (given(&told.bundle_endpoint_url), id)
            }
        };
        let url = url.ok_or_else(|| {
            Problem::bad_request(
                "the other side has to fetch our bundle: say where it is served, with --bundle-endpoint-url (of the \
                 agent, or of this command)",
            )
        })?;
        let conventional = || format!("spiffe://{}/spire/server", identity.trust_domain);
        let addresses = if reach.addresses.is_empty() { &told.advertise } else { &reach.addresses };
        Offer::parse(&wire::Offer {
            trust_domain: identity.trust_domain.to_string(),
            agent_addresses: addresses.iter().filter(|address| !address.is_empty()).cloned().collect(),
            agent_ids: vec![identity.id.to_string()],
            bundle_endpoint_url: url,
            bundle_endpoint_id: id.unwrap_or_else(conventional),
        })
        .map_err(|error| Problem::bad_request(format!("how we are reached cannot be told: {error}")))
    }
}

#[cfg(test)]
impl Enrolment {
    /// Of a directory, with nobody to talk to.
    pub(super) fn of_directory(folder: &std::path::Path) -> Self {
        use crate::store::{DirectoryStore, DirectoryTimings, Store};
        let store = Store::Directory(DirectoryStore::open(folder, DirectoryTimings::default()).unwrap());
        let endpoints = crate::bundle::endpoint::EndpointClient::new(rustls::RootCertStore::empty());
        let source = crate::identity::source::IdentitySource::empty();
        Self {
            invites: Invites::new(store.clone(), "entente-system", "entente"),
            joiner: Joiner { store, source, endpoints, unfinished: Default::default() },
            reach: ReachArgs::default(),
            leader_lease: "entente-leader".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PeerLease;

    #[tokio::test]
    async fn a_replica_that_does_not_lead_names_the_one_that_does() {
        let folder = tempfile::tempdir().unwrap();
        let mut control = super::super::tests::control(folder.path());
        assert_eq!(control.leads().await, Ok(()));
        control.leading = tokio::sync::watch::channel(false).1;
        let said = control.leads().await.unwrap_err().message;
        assert!(said.contains("the holder of the Lease entente-leader"), "{said}");
        let lease = PeerLease {
            name: "entente-leader".to_owned(),
            holder: "two".to_owned(),
            duration: Duration::from_secs(15),
            labels: Default::default(),
            owners: Vec::new(),
        };
        control.enrolment.joiner.store.touch_lease(&lease).await.unwrap();
        let said = control.leads().await.unwrap_err().message;
        assert!(said.contains("(one) does not lead: ask two, which does"), "{said}");
    }
}
