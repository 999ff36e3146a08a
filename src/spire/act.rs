//! Changing what SPIRE holds.

use std::collections::BTreeSet;

use tonic::Code;

use super::client::{CALL_TIMEOUT, REFRESH_TIMEOUT};
use super::convert::{bundle_to_proto, relationship_to_proto};
use super::{SpireError, SpireServer};
use crate::model::trust::{BundleRemoval, Relationship, SpireAction};
use crate::model::{Bundle, TrustDomain};
use crate::proto::spire::server::{bundle, entry, trustdomain};
use crate::proto::spire::types;

impl SpireServer {
    /// Makes one change. A call that SPIRE took but whose item it refused is an error with SPIRE's own words. What is
    /// already so is no error: a relationship that exists is updated, what is not there counts as deleted.
    ///
    /// # Errors
    /// [`SpireError::OwnTrustDomain`] for a change to `own`; otherwise what SPIRE or the transport says.
    pub async fn act(&self, own: &TrustDomain, action: &SpireAction) -> Result<(), SpireError> {
        refuse_own(own, action)?;
        match action {
            SpireAction::CreateRelationship(relationship, bundle) => {
                self.create_relationship(relationship, bundle.as_deref()).await
            }
            SpireAction::UpdateRelationship(relationship, bundle) => {
                self.update_relationship(relationship, bundle.as_deref()).await
            }
            SpireAction::DeleteRelationship(trust_domain) => self.delete_relationship(trust_domain).await,
            SpireAction::ChangeFederatesWith { entry, add, remove } => {
                self.change_federates_with(entry, add, remove).await
            }
            SpireAction::SetBundle(bundle) => self.set_bundle(own, bundle).await,
            SpireAction::RefreshBundle(refresh) => self.refresh_bundle(&refresh.trust_domain).await,
            SpireAction::DeleteBundle(trust_domain, removal) => {
                self.delete_bundle(trust_domain, *removal).await
            }
        }
    }

    async fn create_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> Result<(), SpireError> {
        const CALL: &str = "BatchCreateFederationRelationship";
        let request = trustdomain::v1::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship_to_proto(relationship, bundle)],
        };
        let answer = self
            .call(CALL, CALL_TIMEOUT, self.trust_domains().batch_create_federation_relationship(request))
            .await?;
        let statuses = answer.results.into_iter().map(|r| r.status);
        let Err(refusal) = self.only_status(CALL, relationship.trust_domain.as_str(), statuses) else {
            return Ok(());
        };
        // SPIRE reports a relationship that exists as Internal, with the words of its database. Only an update tells
        // the two apart: it fails where there is none, and then the first refusal is the one to report.
        if matches!(refusal.code(), Some(Code::AlreadyExists | Code::Internal)) {
            return self.update_relationship(relationship, bundle).await.map_err(|_| refusal);
        }
        Err(refusal)
    }

    async fn update_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> Result<(), SpireError> {
        const CALL: &str = "BatchUpdateFederationRelationship";
        let request = trustdomain::v1::BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![relationship_to_proto(relationship, bundle)],
            input_mask: Some(types::FederationRelationshipMask {
                bundle_endpoint_url: true,
                bundle_endpoint_profile: true,
                trust_domain_bundle: bundle.is_some(),
            }),
        };
        let answer = self
            .call(CALL, CALL_TIMEOUT, self.trust_domains().batch_update_federation_relationship(request))
            .await?;
        let statuses = answer.results.into_iter().map(|r| r.status);
        self.only_status(CALL, relationship.trust_domain.as_str(), statuses)
    }

    async fn delete_relationship(&self, trust_domain: &TrustDomain) -> Result<(), SpireError> {
        const CALL: &str = "BatchDeleteFederationRelationship";
        let request = trustdomain::v1::BatchDeleteFederationRelationshipRequest {
            trust_domains: vec![trust_domain.to_string()],
        };
        let answer = self
            .call(CALL, CALL_TIMEOUT, self.trust_domains().batch_delete_federation_relationship(request))
            .await?;
        let statuses = answer.results.into_iter().map(|r| r.status);
        gone(self.only_status(CALL, trust_domain.as_str(), statuses))
    }

    /// SPIRE takes the list whole and has no precondition for it, so it is read just before: only what someone else writes between
    /// the two calls is lost.
    async fn change_federates_with(
        &self,
        id: &str,
        add: &BTreeSet<TrustDomain>,
        remove: &BTreeSet<TrustDomain>,
    ) -> Result<(), SpireError> {
        const CALL: &str = "BatchUpdateEntry";
        let mask = types::EntryMask { federates_with: true, ..Default::default() };
        let request = entry::v1::GetEntryRequest { id: id.to_owned(), output_mask: Some(mask) };
        let stands = self.call("GetEntry", CALL_TIMEOUT, self.entries().get_entry(request)).await?;
        let Some(federates_with) = changed(&stands.federates_with, add, remove) else { return Ok(()) };
        let request = entry::v1::BatchUpdateEntryRequest {
            entries: vec![types::Entry { id: id.to_owned(), federates_with, ..Default::default() }],
            input_mask: Some(mask),
        };
        let answer = self.call(CALL, CALL_TIMEOUT, self.entries().batch_update_entry(request)).await?;
        self.only_status(CALL, id, answer.results.into_iter().map(|r| r.status))
    }

    async fn refresh_bundle(&self, trust_domain: &TrustDomain) -> Result<(), SpireError> {
        let request = trustdomain::v1::RefreshBundleRequest { trust_domain: trust_domain.to_string() };
        self.call("RefreshBundle", REFRESH_TIMEOUT, self.trust_domains().refresh_bundle(request)).await
    }

    async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        removal: BundleRemoval,
    ) -> Result<(), SpireError> {
        use bundle::v1::batch_delete_federated_bundle_request::Mode;
        const CALL: &str = "BatchDeleteFederatedBundle";
        let mode = match removal {
            BundleRemoval::Restrict => Mode::Restrict,
            BundleRemoval::Dissociate => Mode::Dissociate,
        };
        let request = bundle::v1::BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain.to_string()],
            mode: mode.into(),
        };
        let answer =
            self.call(CALL, CALL_TIMEOUT, self.bundles().batch_delete_federated_bundle(request)).await?;
        let statuses = answer.results.into_iter().map(|r| r.status);
        gone(self.only_status(CALL, trust_domain.as_str(), statuses))
    }

    /// Stores a federated bundle over the one there is, whether or not there is a relationship. The way back from an
    /// empty bundle: SPIRE stores one that an `https_spiffe` endpoint of its own trust domain serves, and then has
    /// nothing to verify that endpoint with, ever again.
    ///
    /// # Errors
    /// [`SpireError::OwnTrustDomain`] for our own bundle; otherwise what SPIRE or the transport says.
    pub async fn set_bundle(&self, own: &TrustDomain, bundle: &Bundle) -> Result<(), SpireError> {
        const CALL: &str = "BatchSetFederatedBundle";
        let trust_domain = bundle.trust_domain();
        if trust_domain == own {
            let call = "setting a federated bundle";
            return Err(SpireError::OwnTrustDomain { call, trust_domain: own.to_string() });
        }
        let request = bundle::v1::BatchSetFederatedBundleRequest { bundle: vec![bundle_to_proto(bundle)] };
        let answer =
            self.call(CALL, CALL_TIMEOUT, self.bundles().batch_set_federated_bundle(request)).await?;
        self.only_status(CALL, trust_domain.as_str(), answer.results.into_iter().map(|r| r.status))
    }

    /// The outcome of a batch of one. No status, or none that can be told apart, is not success.
    fn only_status(
        &self,
        call: &'static str,
        item: &str,
        statuses: impl Iterator<Item = Option<types::Status>>,
    ) -> Result<(), SpireError> {
        let statuses: Vec<_> = statuses.collect();
        let [Some(status)] = statuses.as_slice() else {
            return Err(self.nonsense(call, format!("{} results for one item, {item}", statuses.len())));
        };
        if status.code == i32::from(Code::Ok) {
            return Ok(());
        }
        Err(self.refused(call, item, status.code, status.message.clone()))
    }
}

/// What is not there counts as deleted.
fn gone(outcome: Result<(), SpireError>) -> Result<(), SpireError> {
    outcome.or_else(|e| if e.code() == Some(Code::NotFound) { Ok(()) } else { Err(e) })
}

/// The list with these changes; `None` where it has them. What is no trust domain to us stays as it is.
fn changed(
    stands: &[String],
    add: &BTreeSet<TrustDomain>,
    remove: &BTreeSet<TrustDomain>,
) -> Option<Vec<String>> {
    let is_one_of = |all: &BTreeSet<TrustDomain>, name: &String| {
        TrustDomain::new(name).is_ok_and(|trust_domain| all.contains(&trust_domain))
    };
    let mut names: Vec<String> = stands.iter().filter(|name| !is_one_of(remove, name)).cloned().collect();
    let known: BTreeSet<TrustDomain> = names.iter().filter_map(|name| TrustDomain::new(name).ok()).collect();
    names.extend(add.difference(&known).map(ToString::to_string));
    (names != stands).then_some(names)
}

fn refuse_own(own: &TrustDomain, action: &SpireAction) -> Result<(), SpireError> {
    let (call, names) = match action {
        SpireAction::CreateRelationship(r, _) => ("creating a relationship", r.trust_domain == *own),
        SpireAction::UpdateRelationship(r, _) => ("updating a relationship", r.trust_domain == *own),
        SpireAction::DeleteRelationship(td) => ("deleting a relationship", td == own),
        SpireAction::ChangeFederatesWith { add, .. } => ("changing federatesWith", add.contains(own)),
        SpireAction::SetBundle(bundle) => ("setting a bundle", bundle.trust_domain() == own),
        SpireAction::RefreshBundle(refresh) => ("refreshing a bundle", refresh.trust_domain == *own),
        SpireAction::DeleteBundle(td, _) => ("deleting a bundle", td == own),
    };
    if names { Err(SpireError::OwnTrustDomain { call, trust_domain: own.to_string() }) } else { Ok(()) }
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
