//! What every condition and reason means, for people: `entente explain`, and `docs/reference/conditions.md`.

use super::{
    AdmittedReason, BundleDistributedReason, BundleEndpointReason, ClientsEnforcedReason, ConditionType,
    ConnectedReason, ExportedReason, GatewaysReachableReason, GeneratedReason, LocalReason, MeshReadyReason,
    PeerAcceptedReason, ReadyReason, ReciprocalReason, RotationSafeReason, ServiceAcceptedReason,
    ServicesSyncedReason, TakenReason,
};

/// A condition of a kind of objects, and its reasons.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Which objects have it.
    pub kind: &'static str,
    pub condition: ConditionType,
    /// What it tells, as its source has it: lines begin with a space.
    pub(super) about: &'static str,
    /// Each reason with what it means and what to do, in the same way.
    pub(super) reasons: &'static [(&'static str, &'static str)],
}

impl Described {
    /// What it tells.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.about.trim()
    }

    /// Each reason, with what it means and what to do.
    pub fn reasons(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.reasons.iter().map(|(reason, meaning)| (*reason, meaning.trim()))
    }
}

const PEER: &str = "TrustDomainPeer";
const EXPORT: &str = "FederatedService, ServiceExportRule";
const IMPORT: &str = "ImportedService";

/// Every condition, in the order in which things come to be.
pub const ALL: [Described; 17] = [
    PeerAcceptedReason::described(PEER),
    BundleEndpointReason::described(PEER),
    BundleDistributedReason::described(PEER),
    ConnectedReason::described(PEER),
    ReciprocalReason::described(PEER),
    RotationSafeReason::described(PEER),
    ServicesSyncedReason::described(PEER),
    MeshReadyReason::described(PEER),
    GatewaysReachableReason::described(PEER),
    ReadyReason::described(PEER),
    ServiceAcceptedReason::described(EXPORT),
    ExportedReason::described(EXPORT),
    ClientsEnforcedReason::described(EXPORT),
    AdmittedReason::described(IMPORT),
    GeneratedReason::described(IMPORT),
    LocalReason::described(IMPORT),
    TakenReason::described(IMPORT),
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::reference::golden;

    /// An enum of reasons that is in none of the sources below, or not in `ALL`, is in no documentation.
    #[test]
    fn nothing_is_left_out() {
        let sources = [include_str!("mesh.rs"), include_str!("peer.rs"), include_str!("service.rs")];
        let declared: usize =
            sources.iter().map(|text| text.lines().filter(|line| *line == "reasons! {").count()).sum();
        assert_eq!(ALL.len(), declared);
        for described in ALL {
            assert!(!described.about().is_empty(), "{}", described.condition);
            for (reason, meaning) in described.reasons() {
                assert!(meaning.len() > 10, "{} {reason} is not explained", described.condition);
            }
        }
    }

    #[test]
    fn the_reference_has_every_reason() {
        let mut text = String::from(
            "# Conditions and their reasons\n\nEvery condition that an object of Entente may have, each reason with what it means \
             and what to do. The message of a\ncondition names the object and the cause; `entente explain REASON` prints what is \
             here, and `entente diagnose PEER` finds\nthe first link that is broken.\n",
        );
        for described in ALL {
            write!(text, "\n## {} ({})\n\n{}\n\n", described.condition, described.kind, described.about())
                .unwrap();
            text.push_str("| reason | what it means, and what to do |\n|---|---|\n");
            for (reason, meaning) in described.reasons() {
                writeln!(text, "| `{reason}` | {} |", meaning.replace('|', "\\|")).unwrap();
            }
        }
        golden("docs/reference/conditions.md", &text);
    }
}
