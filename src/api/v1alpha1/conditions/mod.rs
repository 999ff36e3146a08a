//! The conditions of every kind, and the reasons that each may have: one enum a condition, one file a kind.
//!
//! A reason is written for the operator who reads it in `kubectl describe`: its comment says what it means, and what to
//! do. Reasons are part of the API: they are added to, never renamed.

use std::fmt;

/// Declares the reasons of one condition.
macro_rules! reasons {
    ($(#[doc = $doc:literal])* $name:ident of $condition:ident {
        $($(#[doc = $reason_doc:literal])* $reason:ident,)+
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $reason_doc])* $reason,)+ }

        impl $name {
            /// The condition that these are reasons of.
            pub const CONDITION: $crate::api::v1alpha1::conditions::ConditionType =
                $crate::api::v1alpha1::conditions::ConditionType::$condition;
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$reason),+];

            /// The word in the condition.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$reason => stringify!($reason),)+ }
            }

            /// The condition and its reasons, in the words of this file.
            pub(super) const fn described(
                kind: &'static str,
            ) -> $crate::api::v1alpha1::conditions::catalogue::Described {
                $crate::api::v1alpha1::conditions::catalogue::Described {
                    kind,
                    condition: Self::CONDITION,
                    about: concat!($($doc),*),
                    reasons: &[$((stringify!($reason), concat!($($reason_doc),*))),+],
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::api::v1alpha1::conditions::Reason for $name {
            fn condition(self) -> $crate::api::v1alpha1::conditions::ConditionType {
                Self::CONDITION
            }

            fn as_str(self) -> &'static str {
                self.as_str()
            }
        }
    };
}

pub mod catalogue;
mod mesh;
mod peer;
mod service;

pub use mesh::*;
pub use peer::*;
pub use service::*;

/// Why a condition stands as it does. A reason belongs to one condition.
pub trait Reason: Copy {
    /// The condition that it is a reason of.
    fn condition(self) -> ConditionType;
    /// The word in `reason`.
    fn as_str(self) -> &'static str;
}

/// Every condition that an object of Entente may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// TrustDomainPeer, FederatedService, ServiceExportRule: the object is well formed and may be acted on.
    Accepted,
    /// TrustDomainPeer: its bundle endpoint serves a bundle that can be used.
    BundleEndpointHealthy,
    /// TrustDomainPeer: SPIRE and our workloads have its freshest bundle.
    BundleDistributed,
    /// TrustDomainPeer: the two agents talk.
    Connected,
    /// TrustDomainPeer: the peer, by its own word, holds our bundle and federates with us.
    Reciprocal,
    /// TrustDomainPeer: the peer holds every authority of ours that may sign.
    RotationSafe,
    /// TrustDomainPeer: each side has answered what the other exports.
    ServicesSynced,
    /// TrustDomainPeer: our own mesh is set up for services to and from it. Absent where there is no mesh.
    MeshReady,
    /// TrustDomainPeer: the gateways through which its services are called take connections from the agent. Absent where none
    /// of its services is imported, or gateways are not tried; no part of Ready.
    GatewaysReachable,
    /// TrustDomainPeer: all of the above, but for GatewaysReachable.
    Ready,
    /// FederatedService, ServiceExportRule: every trust domain that it is exported to has imported it.
    Exported,
    /// FederatedService, ServiceExportRule: callers that are not in `clients` are refused before the application sees them.
    ClientsEnforced,
    /// ImportedService: the TrustDomainPeer admits it.
    Admitted,
    /// ImportedService: what clients need was generated.
    Generated,
    /// ImportedService: it also answers at its local name. There only where `asLocal` asks for it.
    ServedLocally,
    /// ImportedService: clients without Istio take what they are served of it by xDS. There only while one refuses some of it.
    TakenByClients,
}

impl ConditionType {
    /// The word in `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::BundleEndpointHealthy => "BundleEndpointHealthy",
            Self::BundleDistributed => "BundleDistributed",
            Self::Connected => "Connected",
            Self::Reciprocal => "Reciprocal",
            Self::RotationSafe => "RotationSafe",
            Self::ServicesSynced => "ServicesSynced",
            Self::MeshReady => "MeshReady",
            Self::GatewaysReachable => "GatewaysReachable",
            Self::Ready => "Ready",
            Self::Exported => "Exported",
            Self::ClientsEnforced => "ClientsEnforced",
            Self::Admitted => "Admitted",
            Self::Generated => "Generated",
            Self::ServedLocally => "ServedLocally",
            Self::TakenByClients => "TakenByClients",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoint::{BundleAlarm, FetchProblem};

    #[test]
    fn reasons_of_the_bundle_endpoint_are_the_monitors_own() {
        use FetchProblem as P;
        let problems = [
            P::EndpointUnreachable,
            P::EndpointCertificateUntrusted,
            P::EndpointCertificateExpired,
            P::WrongEndpointSpiffeId,
            P::NoBundleToVerifyEndpoint,
            P::BadResponse,
            P::BundleTooLarge,
            P::BundleUnparseable,
        ];
        for problem in problems {
            assert_eq!(BundleEndpointReason::from(problem).as_str(), problem.reason());
        }
        let alarms = [
            BundleAlarm::NoUsableAuthority,
            BundleAlarm::SequenceWentBack { from: 2, to: 1 },
            BundleAlarm::ContentChangedUnderSequence { sequence: 1 },
            BundleAlarm::AuthoritiesSubstituted,
        ];
        for alarm in &alarms {
            assert_eq!(BundleEndpointReason::from(alarm).as_str(), alarm.reason());
        }
        // what no fetch alone can show
        let of_the_plan = [
            BundleEndpointReason::AuthorityShared,
            BundleEndpointReason::AuthorityNearExpiry,
            BundleEndpointReason::RefusedBySpire,
            BundleEndpointReason::SpireDiffersFromEndpoint,
            BundleEndpointReason::PeerDiffersFromEndpoint,
        ];
        let all = 2 + problems.len() + alarms.len() + of_the_plan.len();
        assert_eq!(BundleEndpointReason::ALL.len(), all);
    }

    #[test]
    fn reasons_obey_the_api_conventions() {
        let all = [
            PeerAcceptedReason::ALL.iter().map(|r| r.as_str()).collect::<Vec<_>>(),
            BundleEndpointReason::ALL.iter().map(|r| r.as_str()).collect(),
            BundleDistributedReason::ALL.iter().map(|r| r.as_str()).collect(),
            ConnectedReason::ALL.iter().map(|r| r.as_str()).collect(),
            ReciprocalReason::ALL.iter().map(|r| r.as_str()).collect(),
            RotationSafeReason::ALL.iter().map(|r| r.as_str()).collect(),
            ServicesSyncedReason::ALL.iter().map(|r| r.as_str()).collect(),
            MeshReadyReason::ALL.iter().map(|r| r.as_str()).collect(),
            GatewaysReachableReason::ALL.iter().map(|r| r.as_str()).collect(),
            ReadyReason::ALL.iter().map(|r| r.as_str()).collect(),
            ServiceAcceptedReason::ALL.iter().map(|r| r.as_str()).collect(),
            ExportedReason::ALL.iter().map(|r| r.as_str()).collect(),
            ClientsEnforcedReason::ALL.iter().map(|r| r.as_str()).collect(),
            AdmittedReason::ALL.iter().map(|r| r.as_str()).collect(),
            GeneratedReason::ALL.iter().map(|r| r.as_str()).collect(),
            LocalReason::ALL.iter().map(|r| r.as_str()).collect(),
            TakenReason::ALL.iter().map(|r| r.as_str()).collect(),
        ];
        for reasons in all {
            for reason in &reasons {
                assert!(reason.starts_with(|c: char| c.is_ascii_uppercase()), "{reason}");
                assert!(reason.chars().all(|c| c.is_ascii_alphanumeric()), "{reason}");
            }
            let distinct: std::collections::BTreeSet<_> = reasons.iter().collect();
            assert_eq!(distinct.len(), reasons.len());
        }
    }

    #[test]
    fn a_condition_is_named_as_its_type_is() {
        assert_eq!(ReciprocalReason::CONDITION.as_str(), "Reciprocal");
        assert_eq!(BundleEndpointReason::CONDITION.as_str(), "BundleEndpointHealthy");
        assert_eq!(ServiceAcceptedReason::CONDITION, PeerAcceptedReason::CONDITION);
    }
}
