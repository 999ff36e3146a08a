//! The steps of the path, what came of each, and what follows from what.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use crate::model::diagnosis::Side;
use crate::model::diagnosis::{Outcome, ToldCheck};

/// The steps, each declared after those that it needs.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal needs [$($needed:ident),*],)+) => {
        /// One step of the path between two trust domains, in the order in which they are looked at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Step { $($(#[$doc])* #[serde(rename = $name)] $step,)+ }

        impl Step {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$step),+];

            /// Its name, in kebab-case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$step => $name,)+ }
            }

            /// Where this step fails after one of these did, it is by that.
            #[must_use]
            pub const fn needs(self) -> &'static [Self] {
                match self { $(Self::$step => &[$(Self::$needed),*],)+ }
            }
        }
    };
}

steps! {
    /// The TrustDomainPeer is there, accepted and in use.
    PeerObject = "peer-object" needs [],
    /// The Workload API answers the agent.
    WorkloadApi = "workload-api" needs [],
    /// The agent has an SVID, which is valid now.
    OwnSvid = "own-svid" needs [WorkloadApi],
    /// SPIRE's server API answers, and is of our trust domain.
    SpireServer = "spire-server" needs [],
    EndpointDns = "endpoint-dns" needs [PeerObject],
    EndpointTcp = "endpoint-tcp" needs [PeerObject, EndpointDns],
    /// TLS, and who answers, by the profile.
    EndpointTls = "endpoint-tls" needs [PeerObject, EndpointTcp],
    EndpointHttp = "endpoint-http" needs [PeerObject, EndpointTls],
    /// The document parses, by our reader and by SPIRE's.
    BundleDocument = "bundle-document" needs [PeerObject, EndpointHttp],
    /// It holds an X.509 authority that is valid now.
    BundleAuthorities = "bundle-authorities" needs [PeerObject, BundleDocument],
    /// Nothing in how it changed has to be explained.
    BundleAlarms = "bundle-alarms" needs [PeerObject, BundleAuthorities],
    /// SPIRE has the relationship, with the endpoint of the TrustDomainPeer.
    Relationship = "relationship" needs [PeerObject, SpireServer, BundleAuthorities],
    /// SPIRE holds a usable bundle: the one that the endpoint serves.
    BundleInSpire = "bundle-in-spire" needs [PeerObject, SpireServer, BundleAuthorities, Relationship],
    /// The agent's own registration federates with the peer.
    AgentRegistration = "agent-registration" needs [PeerObject, OwnSvid, SpireServer, BundleAuthorities, BundleAlarms, BundleInSpire],
    /// The Workload API delivers the bundle that SPIRE holds.
    BundleInWorkloadApi = "bundle-in-workload-api" needs [PeerObject, OwnSvid, BundleInSpire, AgentRegistration],
    /// The selected registrations federate with the peer.
    WorkloadRegistrations = "workload-registrations" needs [PeerObject, SpireServer, BundleAuthorities, BundleAlarms, BundleInSpire],
    /// Our own mesh lets services to and from the peer work.
    Mesh = "mesh" needs [PeerObject],
    /// The gateways through which the peer's services are called take connections.
    Gateways = "gateways" needs [PeerObject],
    AgentDns = "agent-dns" needs [PeerObject],
    AgentTcp = "agent-tcp" needs [PeerObject, AgentDns],
    /// Both agents accept each other's certificate and ID.
    AgentMtls = "agent-mtls" needs [PeerObject, OwnSvid, BundleInWorkloadApi, AgentTcp],
    /// The exchange with the peer's agent stands.
    Session = "session" needs [PeerObject, OwnSvid, BundleInWorkloadApi, AgentMtls],
    /// What the peer's agent says of the same steps on its side.
    PeerView = "peer-view" needs [PeerObject, Session],
    /// The peer holds our bundle, and its workloads get it.
    OurBundleAtPeer = "our-bundle-at-peer" needs [PeerObject, SpireServer, Session, PeerView],
    ClockSkew = "clock-skew" needs [PeerObject],
    /// This replica of the agent leads: the others write nothing and talk to no peer.
    Leadership = "leadership" needs [],
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Step {
    /// Whether it may fail for some seconds while all is well: after a rotation, a start, or an edit.
    #[must_use]
    pub const fn is_in_motion(self) -> bool {
        matches!(
            self,
            Self::SpireServer
                | Self::Relationship
                | Self::BundleInSpire
                | Self::AgentRegistration
                | Self::BundleInWorkloadApi
                | Self::WorkloadRegistrations
                | Self::Mesh
                | Self::AgentTcp
                | Self::AgentMtls
                | Self::Session
                | Self::PeerView
                | Self::OurBundleAtPeer
        )
    }
}

/// One step, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub step: Step,
    pub outcome: Outcome,
    pub message: String,
    /// What to do, where it failed: names the command or the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Where, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
}

/// What is found at one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Passed(String),
    Failed { side: Side, message: String, remedy: String },
    Skipped(String),
}

impl Finding {
    #[must_use]
    pub fn passed(message: impl Into<String>) -> Self {
        Self::Passed(message.into())
    }

    #[must_use]
    pub fn skipped(message: impl Into<String>) -> Self {
        Self::Skipped(message.into())
    }

    #[must_use]
    pub fn failed(side: Side, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Failed { side, message: message.into(), remedy: remedy.into() }
    }
}

/// Gathers checks in order: what fails after something that it needs is no cause of its own.
#[derive(Debug, Default)]
pub struct Checks {
    list: Vec<Check>,
    broken: BTreeSet<Step>,
}

impl Checks {
    /// Looks at a step.
    pub fn look(&mut self, step: Step, look: impl FnOnce() -> Finding) {
        let needed = step.needs().iter().find(|needed| self.broken.contains(needed));
        let (outcome, message, remedy, side) = match (look(), needed) {
            (Finding::Passed(message), _) => (Outcome::Passed, message, None, None),
            (Finding::Skipped(message), None) => (Outcome::Skipped, message, None, None),
            (Finding::Skipped(message) | Finding::Failed { message, .. }, Some(needed)) => {
                self.broken.insert(step);
                (Outcome::Skipped, format!("follows from {needed}: {message}"), None, None)
            }
            (Finding::Failed { side, message, remedy }, None) => {
                self.broken.insert(step);
                (Outcome::Failed, message, Some(remedy), Some(side))
            }
        };
        self.list.push(Check { step, outcome, message, remedy, side });
    }

    #[must_use]
    pub fn into_list(self) -> Vec<Check> {
        self.list
    }
}

/// The first broken link of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Broken {
    pub side: Side,
    /// The step; by the peer's own name of it where the peer told.
    pub step: String,
    /// Whether we have it from the peer alone.
    pub told_by_peer: bool,
    pub message: String,
    pub remedy: String,
}

/// What is concluded from all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Every step that could be looked at is well.
    Healthy,
    Broken,
    /// This replica does not lead: what it could see is well, and the exchange with the peer is another's.
    Incomplete,
}

/// The path to one peer, as far as this agent and the peer's see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Absent while the Workload API has not told.
    pub own_trust_domain: Option<String>,
    pub peer_trust_domain: String,
    /// The TrustDomainPeer, where there is one.
    pub object: Option<String>,
    pub verdict: Verdict,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
    pub checks: Vec<Check>,
    /// What the peer's agent says of its own side; absent where it was not asked or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Vec<ToldCheck>>,
}

/// What a peer is told to do about what is for our own operator.
const HERE: &str = "our operator must run `entente diagnose` for you here";

impl Check {
    /// The check as a peer is told of it: no more than it needs to know whose turn it is. What passed needs no words, and
    /// where our sockets are and what our workloads are called is for our own operator.
    #[must_use]
    pub fn to_told(&self) -> ToldCheck {
        let (message, remedy) = match (self.outcome, self.step) {
            (Outcome::Passed | Outcome::Skipped, _) => ("", ""),
            (Outcome::Failed, Step::WorkloadApi) => ("the Workload API does not answer our agent", HERE),
            (Outcome::Failed, Step::OwnSvid) => ("our agent has no SVID that is valid", HERE),
            (Outcome::Failed, Step::SpireServer) => {
                ("our SPIRE server's API does not answer our agent", HERE)
            }
            (Outcome::Failed, Step::WorkloadRegistrations) => {
                ("not all workloads that are to federate with you do", HERE)
            }
            // It would have us look at networks of its choice: by a redirect, a name of its own, or its gateways.
            (Outcome::Failed, Step::EndpointDns) => {
                ("we cannot resolve the host of your bundle endpoint", HERE)
            }
            (Outcome::Failed, Step::EndpointTcp) => ("we cannot connect to your bundle endpoint", HERE),
            (Outcome::Failed, Step::EndpointTls) => {
                ("your bundle endpoint does not prove to us who it is", HERE)
            }
            (Outcome::Failed, Step::EndpointHttp) => ("your bundle endpoint does not answer us", HERE),
            (Outcome::Failed, Step::BundleDocument) => {
                ("our reader, or that of SPIRE, refuses what your bundle endpoint serves", HERE)
            }
            (Outcome::Failed, Step::Gateways) => ("we do not reach all of your gateways", HERE),
            (Outcome::Failed, Step::Mesh) => ("our mesh is not set up for services to or from you", HERE),
            (Outcome::Failed, _) => (self.message.as_str(), self.remedy.as_deref().unwrap_or_default()),
        };
        ToldCheck {
            step: self.step.as_str().to_owned(),
            outcome: self.outcome,
            message: message.to_owned(),
            remedy: remedy.to_owned(),
            side: self.side,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_needs_only_earlier_ones() {
        for (at, step) in Step::ALL.iter().enumerate() {
            for needed in step.needs() {
                assert!(Step::ALL[..at].contains(needed), "{step} needs {needed}");
            }
        }
    }

    #[test]
    fn a_peer_learns_no_paths_and_no_names_of_workloads() {
        let secret = "unix:///run/secret spiffe://east.example/workload";
        for step in Step::ALL {
            for outcome in [Outcome::Passed, Outcome::Failed, Outcome::Skipped] {
                let check = Check {
                    step: *step,
                    outcome,
                    message: secret.to_owned(),
                    remedy: Some(secret.to_owned()),
                    side: None,
                };
                let told = check.to_told();
                let is_private = [
                    Step::WorkloadApi,
                    Step::OwnSvid,
                    Step::SpireServer,
                    Step::WorkloadRegistrations,
                    Step::Mesh,
                    Step::Gateways,
                    Step::EndpointDns,
                    Step::EndpointTcp,
                    Step::EndpointTls,
                    Step::EndpointHttp,
                    Step::BundleDocument,
                ]
                .contains(step);
                let says = told.message.contains("secret") || told.remedy.contains("secret");
                assert_eq!(says, outcome == Outcome::Failed && !is_private, "{told:?}");
                assert_eq!((told.step.as_str(), told.outcome), (step.as_str(), outcome));
            }
        }
    }

    #[test]
    fn what_follows_from_a_failure_is_no_cause_of_its_own() {
        let mut checks = Checks::default();
        checks.look(Step::EndpointDns, || Finding::failed(Side::Ours, "no such host", "mend it"));
        checks.look(Step::EndpointTcp, || Finding::skipped("not tried"));
        checks.look(Step::EndpointTls, || Finding::failed(Side::Theirs, "closed", "mend it"));
        checks.look(Step::Relationship, || Finding::passed("there"));
        checks.look(Step::AgentDns, || Finding::skipped("not needed"));
        checks.look(Step::AgentTcp, || Finding::failed(Side::Theirs, "closed", "mend it"));
        checks.look(Step::Session, || Finding::passed("it stands all the same"));
        let list = checks.into_list();
        let outcomes: Vec<Outcome> = list.iter().map(|check| check.outcome).collect();
        use Outcome::{Failed, Passed, Skipped};
        assert_eq!(outcomes, [Failed, Skipped, Skipped, Passed, Skipped, Failed, Passed]);
        assert_eq!(list[2].message, "follows from endpoint-tcp: closed");
    }
}
