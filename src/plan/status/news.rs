//! What of a change of conditions a person should know: for an Event and the log, in the same words.
//!
//! A condition that turns True or False is news. One that is not known yet, or is lost sight of, is not: that is in the condition.
//! Where a condition stays as it is, a new reason is news only if it asks something else of somebody. How often the
//! same is told of one object is held back by the store.

use serde_json::Value;

use super::field;
use crate::api::v1alpha1::conditions::{
    BundleDistributedReason as Distributed, BundleEndpointReason as Endpoint, ConditionType, ConnectedReason,
    ExportedReason, MeshReadyReason, ReadyReason, ReciprocalReason, RotationSafeReason, ServicesSyncedReason,
};
use crate::plan::Transition;

/// Reasons that are told even where the condition has the same status already: somebody has to act, or to act otherwise.
const NEWS: [(ConditionType, &str); 26] = [
    (ReadyReason::CONDITION, ReadyReason::EndingHeldBack.as_str()),
    (ReciprocalReason::CONDITION, ReciprocalReason::PeerEnded.as_str()),
    (ReciprocalReason::CONDITION, ReciprocalReason::PeerRefusesUs.as_str()),
    (ReciprocalReason::CONDITION, ReciprocalReason::PeerHasNoRelationship.as_str()),
    (Endpoint::CONDITION, Endpoint::NoUsableAuthority.as_str()),
    (Endpoint::CONDITION, Endpoint::AuthorityShared.as_str()),
    (Endpoint::CONDITION, Endpoint::AuthoritiesSubstituted.as_str()),
    (Endpoint::CONDITION, Endpoint::WrongEndpointSpiffeId.as_str()),
    (Endpoint::CONDITION, Endpoint::EndpointCertificateUntrusted.as_str()),
    (Endpoint::CONDITION, Endpoint::AuthorityNearExpiry.as_str()),
    (Distributed::CONDITION, Distributed::SuspendedUnusableBundle.as_str()),
    (Distributed::CONDITION, Distributed::SuspendedSharedAuthority.as_str()),
    (Distributed::CONDITION, Distributed::SuspendedOversizedBundle.as_str()),
    (Distributed::CONDITION, Distributed::Withdrawn.as_str()),
    (Distributed::CONDITION, Distributed::RegistrationContested.as_str()),
    (ConnectedReason::CONDITION, ConnectedReason::ClocksDiffer.as_str()),
    (ConnectedReason::CONDITION, ConnectedReason::WrongPeerId.as_str()),
    (ConnectedReason::CONDITION, ConnectedReason::RefusedNotAccepted.as_str()),
    (RotationSafeReason::CONDITION, RotationSafeReason::ActivationNear.as_str()),
    (RotationSafeReason::CONDITION, RotationSafeReason::PeerLacksSigningAuthority.as_str()),
    (ServicesSyncedReason::CONDITION, ServicesSyncedReason::SomeRefused.as_str()),
    (ServicesSyncedReason::CONDITION, ServicesSyncedReason::Withdrawn.as_str()),
    (ExportedReason::CONDITION, ExportedReason::RefusedByPeer.as_str()),
    (MeshReadyReason::CONDITION, MeshReadyReason::PeerNotInCaCertificates.as_str()),
    (MeshReadyReason::CONDITION, MeshReadyReason::MeshTrustDomainDiffers.as_str()),
    (MeshReadyReason::CONDITION, MeshReadyReason::SdsNamesNotIstios.as_str()),
];

/// Reasons of True that are to be looked at all the same.
const LOOK: [&str; 2] = [ServicesSyncedReason::SomeRefused.as_str(), ConnectedReason::ClocksDiffer.as_str()];

/// What is news of these conditions, after those.
pub(super) fn transitions(before: &[Value], after: &[Value]) -> Vec<Transition> {
    let of = |condition: &Value| {
        let get = |name| field(condition, name).unwrap_or_default();
        let (kind, status, reason) = (get("type"), get("status"), get("reason"));
        let last = before.iter().find(|c| field(c, "type") == Some(kind));
        let was = last.and_then(|c| field(c, "status")).unwrap_or("Unknown");
        let turned = was != status && status != "Unknown";
        let is_other = last.and_then(|c| field(c, "reason")) != Some(reason);
        let asks = NEWS.iter().any(|(of, news)| of.as_str() == kind && *news == reason);
        (turned || (asks && is_other)).then(|| Transition {
            is_warning: status == "False" || LOOK.contains(&reason),
            condition: kind.to_owned(),
            reason: reason.to_owned(),
            message: get("message").to_owned(),
        })
    };
    after.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(before: Option<(&str, &str, &str)>, after: (&str, &str, &str)) -> Option<bool> {
        let condition = |(kind, status, reason): (&str, &str, &str)| json!({"type": kind, "status": status, "reason": reason, "message": "because"});
        let before: Vec<Value> = before.map(condition).into_iter().collect();
        let told = transitions(&before, &[condition(after)]);
        assert!(told.len() <= 1);
        told.first().map(|transition| transition.is_warning)
    }

    #[test]
    fn a_condition_that_turns_is_told_and_one_that_is_lost_sight_of_is_not() {
        let good = ("Connected", "True", "Connected");
        let bad = ("Connected", "False", "Unreachable");
        let unknown = ("Connected", "Unknown", "NoIdentity");
        assert_eq!(told(None, good), Some(false));
        assert_eq!(told(Some(good), bad), Some(true));
        assert_eq!(told(Some(bad), good), Some(false));
        assert_eq!(told(Some(good), unknown), None);
        assert_eq!(told(Some(good), good), None);
    }

    /// Each of these asks something of a person, though the condition was False, or stays True.
    #[test]
    fn what_asks_for_another_remedy_is_told_and_what_does_not_is_not() {
        let cases = [
            (
                ("RotationSafe", "False", "PeerLacksAuthority"),
                ("RotationSafe", "False", "ActivationNear"),
                Some(true),
            ),
            (
                ("RotationSafe", "False", "ActivationNear"),
                ("RotationSafe", "False", "PeerLacksAuthority"),
                None,
            ),
            (("Connected", "False", "Unreachable"), ("Connected", "False", "WrongPeerId"), Some(true)),
            (("Connected", "True", "Connected"), ("Connected", "True", "ClocksDiffer"), Some(true)),
            (("ServicesSynced", "True", "InSync"), ("ServicesSynced", "True", "SomeRefused"), Some(true)),
            (("ServicesSynced", "True", "SomeRefused"), ("ServicesSynced", "True", "InSync"), None),
            (("ServicesSynced", "True", "SomeRefused"), ("ServicesSynced", "True", "SomeRefused"), None),
            (
                ("Exported", "False", "AwaitingAcknowledgement"),
                ("Exported", "False", "RefusedByPeer"),
                Some(true),
            ),
            (("Accepted", "False", "Invalid"), ("Accepted", "False", "DuplicateTrustDomain"), None),
        ];
        for (before, after, wanted) in cases {
            assert_eq!(told(Some(before), after), wanted, "{before:?} {after:?}");
        }
    }
}
