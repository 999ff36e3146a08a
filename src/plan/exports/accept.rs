//! Which services stand beside each other: the older before the younger, by their names, their selectors and their ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::policy_size::{MOST_BYTES, Principals, Rules, TooLarge};
use super::unread::Unread;
use super::{Acceptance, ExportProblem};
use crate::api::v1alpha1::conditions::ServiceAcceptedReason;
use crate::istio::authorization_policy::MAX_RULES;
use crate::model::export::Unresolved;
use crate::model::service::TlsMode;
use crate::model::{NamespacedName, Service, ServiceName, TrustDomain};
use crate::plan::authorization::Workloads;
use crate::plan::selectors::DisjointSelectors;

/// What contends for hosts and workloads.
#[derive(Clone, Copy)]
pub(super) enum Candidate<'a> {
    Service(&'a Arc<Service>),
    /// It keeps its host, for when it comes to something again.
    Unresolved(&'a Unresolved),
}

impl<'a> Candidate<'a> {
    /// The oldest first, and of one age in an order that does not change.
    fn age(&self) -> impl Ord + use<'a> {
        let (created, uid, object) = match *self {
            Self::Service(service) => (service.created, &service.uid, &service.object),
            Self::Unresolved(Unresolved { declared: of, .. }) => (of.created, &of.uid, &of.object),
        };
        (created.is_none(), created, uid, object)
    }

    /// By which it is told from the others: whether it comes to something, and its object.
    pub(super) fn key(&self) -> (bool, &'a NamespacedName) {
        match *self {
            Self::Service(service) => (true, &service.object),
            Self::Unresolved(it) => (false, &it.declared.object),
        }
    }
}

/// The candidates, the oldest first, each with whether it stands beside those before it, and beside those that cannot be read
/// now: what stands of them was there first. Where there is no fence and everything can be read, those of one namespace have
/// no part in what becomes of another's.
pub(super) fn accept<'a>(
    mut candidates: Vec<Candidate<'a>>,
    has_fence: bool,
    own: &TrustDomain,
    unread: &'a Unread,
) -> Vec<(Candidate<'a>, Acceptance)> {
    candidates.sort_by(|one, other| one.age().cmp(&other.age()));
    let mut among = Accepted::beside(has_fence, unread);
    candidates.into_iter().map(|candidate| (candidate, among.add(candidate, own))).collect()
}

type Refused = (ServiceAcceptedReason, String);

/// What the services that were accepted so far have taken.
#[derive(Default)]
struct Accepted<'a> {
    hosts: BTreeMap<&'a ServiceName, Who<'a>>,
    selectors: BTreeMap<&'a str, DisjointSelectors<'a, Who<'a>>>,
    policies: BTreeMap<Workloads<'a>, Policy<'a>>,
    /// The principals of the fence, where there is one.
    fence: Option<Principals<'a>>,
}

/// What the policy of one selector is of.
#[derive(Default)]
struct Policy<'a> {
    ports: BTreeMap<u16, &'a Service>,
    rules: Rules<'a>,
}

/// Whose a host or a selector is.
#[derive(Clone, Copy, Debug)]
enum Who<'a> {
    Service(&'a Service),
    Unresolved(&'a Unresolved),
    Unread(&'a str),
}

impl std::fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(service) => service.fmt(f),
            Self::Unresolved(it) => write!(f, "FederatedService {}", it.declared.object),
            Self::Unread(source) => write!(f, "{source}, which cannot be read now"),
        }
    }
}

impl<'a> Accepted<'a> {
    fn beside(has_fence: bool, unread: &'a Unread) -> Self {
        let mut accepted = Self { fence: has_fence.then(Principals::default), ..Self::default() };
        for (source, left) in &unread.left {
            for name in &left.names {
                accepted.hosts.insert(name, Who::Unread(source));
            }
            for (namespace, labels) in &left.workloads {
                let disjoint = accepted.selectors.entry(namespace).or_default();
                // Two that stand beside each other did so before.
                let _ = disjoint.insert(labels, Who::Unread(source));
            }
        }
        accepted
    }

    fn add(&mut self, candidate: Candidate<'a>, own: &TrustDomain) -> Acceptance {
        let (name, who) = match candidate {
            Candidate::Service(service) => (&service.name, Who::Service(service)),
            Candidate::Unresolved(it) => (&it.declared.name, Who::Unresolved(it)),
        };
        let stands = self.named(name, own).and_then(|()| match candidate {
            Candidate::Service(service) => self.stands(service),
            Candidate::Unresolved(_) => Ok(()),
        });
        stands.map_err(|(reason, cause)| ExportProblem::new(reason, format!("{who}: {cause}")))?;
        self.hosts.insert(name, who);
        Ok(())
    }

    fn named(&self, name: &ServiceName, own: &TrustDomain) -> Result<(), Refused> {
        name.host(own).map_err(|e| (ServiceAcceptedReason::from(&e), e.to_string()))?;
        if let Some(winner) = self.hosts.get(name) {
            let cause = format!(
                "{name} is already the name of the older {winner}; give one of them another spec.name"
            );
            return Err((ServiceAcceptedReason::HostTaken, cause));
        }
        Ok(())
    }

    fn stands(&mut self, service: &'a Service) -> Result<(), Refused> {
        let targets: BTreeSet<u16> = service.ports.iter().map(|port| port.target_port).collect();
        if service.tls_mode == TlsMode::Mtls && targets.len() > 1 {
            let cause = "with tlsMode Mtls a gateway knows what is called by the SNI alone, which is the host, so a host leads \
                         to one port of the workload; export each by a FederatedService of its own, with a spec.name of its own"
                .to_owned();
            return Err((ServiceAcceptedReason::OneTargetPort, cause));
        }
        if service.is_outside() {
            // It selects no pods, and no policy holds its clients.
            return Ok(());
        }
        let workloads = (service.object.namespace.as_str(), &service.workload_labels);
        if let Some(policy) = self.policies.get(&workloads) {
            let taken = targets.iter().find_map(|target| Some((*target, *policy.ports.get(target)?)));
            if let Some((target, first)) = taken.filter(|(_, first)| first.tls_mode != service.tls_mode) {
                return Err((ServiceAcceptedReason::TlsModeConflicts, mode_taken(first, target)));
            }
        }
        let disjoint = self.selectors.entry(workloads.0).or_default();
        disjoint.check(&service.workload_labels).map_err(|winner| {
            let cause = format!(
                "its selector can select the same pods as that of the older {winner}, and policies that deny would add up; make \
                 them equal, or give one label different values in the two"
            );
            (ServiceAcceptedReason::SelectorOverlaps, cause)
        })?;
        self.holds(service, workloads)?;
        let disjoint = self.selectors.entry(workloads.0).or_default();
        // It was found to stand beside the others.
        let _ = disjoint.insert(&service.workload_labels, Who::Service(service));
        let policy = self.policies.entry(workloads).or_default();
        for target in targets {
            policy.ports.entry(target).or_insert(service);
        }
        Ok(())
    }

    /// Whether its clients fit into the policy of its workloads, and into the fence.
    fn holds(&mut self, service: &'a Service, workloads: Workloads<'a>) -> Result<(), Refused> {
        let policy = self.policies.entry(workloads).or_default();
        let before = policy.rules.add(service).map_err(|too_large| match too_large {
            TooLarge::Rules(count) => (
                ServiceAcceptedReason::TooManyPorts,
                format!(
                    "with the others of the same selector it has {count} ports with different clients, and one \
                     AuthorizationPolicy holds the rules of at most {}; export fewer, or to the same clients",
                    MAX_RULES - 1
                ),
            ),
            TooLarge::Bytes(bytes) => {
                (ServiceAcceptedReason::PolicyTooLarge, too_large_in_words("its selector", bytes))
            }
        })?;
        let Some(fence) = &mut self.fence else { return Ok(()) };
        fence.add(service).map_err(|bytes| {
            policy.rules.undo(before);
            (ServiceAcceptedReason::PolicyTooLarge, too_large_in_words("the fence", bytes))
        })
    }
}

fn too_large_in_words(of: &str, bytes: usize) -> String {
    format!(
        "with those of the others its clients make the AuthorizationPolicy of {of} some {} KiB, and it is written up to {} KiB; \
         name fewer clients, or many at once by a trailing /*",
        bytes >> 10,
        MOST_BYTES >> 10
    )
}

fn mode_taken(first: &Service, port: u16) -> String {
    format!(
        "port {port} of its workloads is exported with tlsMode {} by the older {first}, and a sidecar either ends TLS on a port or \
         passes it on; give it the same tlsMode, or another target port",
        first.tls_mode.as_str()
    )
}
