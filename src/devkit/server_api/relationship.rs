//! `TrustDomain`: federation relationships.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::{Refusal, ServerApi, item_status, page, trust_domain, whole_bundle};
use crate::model::Bundle;
use crate::model::trust::Relationship;
use crate::proto::spire::server::trustdomain::v1 as api;
use crate::proto::spire::server::trustdomain::v1::trust_domain_server::TrustDomain;
use crate::proto::spire::types;
use crate::spire::{bundle_to_proto, relationship_from_proto, relationship_to_proto};

impl ServerApi {
    fn parse_relationship(
        &self,
        proto: &types::FederationRelationship,
        mask: types::FederationRelationshipMask,
    ) -> Result<(Relationship, Option<Arc<Bundle>>), Refusal> {
        let refused = |cause: String| {
            Refusal::because(Code::InvalidArgument, "failed to convert federation relationship", cause)
        };
        let relationship = relationship_from_proto(proto).map_err(refused)?;
        let bundle = proto.trust_domain_bundle.as_ref().filter(|_| mask.trust_domain_bundle);
        let bundle = bundle
            .map(whole_bundle)
            .transpose()
            .map_err(|cause| refused(format!("failed to parse bundle: {cause}")))?;
        if let Some(bundle) = &bundle
            && *bundle.trust_domain() != relationship.trust_domain
        {
            return Err(refused(format!(
                "trust domain bundle ({:?}) must match the trust domain of the federation relationship ({:?})",
                bundle.trust_domain().as_str(),
                relationship.trust_domain.as_str(),
            )));
        }
        Ok((relationship, bundle.map(Arc::new)))
    }

    fn create(&self, proto: &types::FederationRelationship) -> Result<(), Refusal> {
        let (relationship, bundle) = self.parse_relationship(proto, ALL)?;
        let trust_domain = relationship.trust_domain.clone();
        if trust_domain == *self.shared.trust_domain() {
            let words = "unable to create federation relationship for server trust domain";
            return Err(Refusal::new(Code::InvalidArgument, words));
        }
        self.shared.change(|state, _| {
            if state.relationships.contains_key(&trust_domain) {
                return Err(Refusal::because(
                    Code::Internal,
                    "failed to create federation relationship",
                    "datastore-sql: UNIQUE constraint failed: federated_trust_domains.trust_domain",
                ));
            }
            // What is given replaces what is there; what is not given leaves it.
            if let Some(bundle) = bundle {
                state.bundles.insert(trust_domain.clone(), bundle);
            }
            state.relationships.insert(trust_domain.clone(), relationship);
            Ok(())
        })?;
        self.poller.poll_soon(&trust_domain);
        Ok(())
    }

    fn update(
        &self,
        proto: &types::FederationRelationship,
        mask: types::FederationRelationshipMask,
    ) -> Result<(), Refusal> {
        let (new, bundle) = self.parse_relationship(proto, mask)?;
        let trust_domain = new.trust_domain.clone();
        self.shared.change(|state, _| {
            let Some(held) = state.relationships.get_mut(&trust_domain) else {
                return Err(Refusal::because(
                    Code::Internal,
                    "failed to update federation relationship",
                    "unable to fetch federation relationship: record not found",
                ));
            };
            if mask.bundle_endpoint_url {
                held.endpoint.url = new.endpoint.url;
            }
            if mask.bundle_endpoint_profile {
                held.endpoint.profile = new.endpoint.profile;
            }
            if let Some(bundle) = bundle {
                state.bundles.insert(trust_domain.clone(), bundle);
            }
            Ok(())
        })?;
        self.poller.poll_soon(&trust_domain);
        Ok(())
    }

    /// The bundle stays: ending the relationship ends the polling, not the trust.
    fn delete(&self, name: &str) -> Result<(), Refusal> {
        let trust_domain = trust_domain(name).map_err(|cause| {
            Refusal::because(Code::InvalidArgument, "failed to parse trust domain", cause)
        })?;
        self.shared
            .change(|state, _| state.relationships.remove(&trust_domain))
            .map(drop)
            .ok_or_else(|| Refusal::new(Code::NotFound, "federation relationship not found"))
    }
}

const ALL: types::FederationRelationshipMask = types::FederationRelationshipMask {
    bundle_endpoint_url: true,
    bundle_endpoint_profile: true,
    trust_domain_bundle: true,
};

#[tonic::async_trait]
impl TrustDomain for ServerApi {
    async fn list_federation_relationships(
        &self,
        request: Request<api::ListFederationRelationshipsRequest>,
    ) -> Result<Response<api::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let mask = request.output_mask.unwrap_or(ALL);
        let state = self.shared.lock();
        let (found, next_page_token) =
            page(&state.relationships, |_| true, request.page_size, &request.page_token);
        let masked = |relationship: &Relationship| {
            let mut proto = relationship_to_proto(relationship, None);
            if !mask.bundle_endpoint_url {
                proto.bundle_endpoint_url.clear();
            }
            if !mask.bundle_endpoint_profile {
                proto.bundle_endpoint_profile = None;
            }
            if mask.trust_domain_bundle {
                proto.trust_domain_bundle =
                    state.bundles.get(&relationship.trust_domain).map(|b| bundle_to_proto(b));
            }
            proto
        };
        let federation_relationships = found.into_iter().map(masked).collect();
        Ok(Response::new(api::ListFederationRelationshipsResponse {
            federation_relationships,
            next_page_token,
        }))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<api::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<api::BatchCreateFederationRelationshipResponse>, Status> {
        type Item = api::batch_create_federation_relationship_response::Result;
        let items = request.into_inner().federation_relationships;
        let results = items.iter().map(|item| Item { status: item_status(self.create(item)) }).collect();
        Ok(Response::new(api::BatchCreateFederationRelationshipResponse { results }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<api::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<api::BatchUpdateFederationRelationshipResponse>, Status> {
        type Item = api::batch_update_federation_relationship_response::Result;
        let request = request.into_inner();
        let mask = request.input_mask.unwrap_or(ALL);
        let items = request.federation_relationships;
        let results =
            items.iter().map(|item| Item { status: item_status(self.update(item, mask)) }).collect();
        Ok(Response::new(api::BatchUpdateFederationRelationshipResponse { results }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<api::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<api::BatchDeleteFederationRelationshipResponse>, Status> {
        type Item = api::batch_delete_federation_relationship_response::Result;
        let names = request.into_inner().trust_domains;
        let results = names
            .into_iter()
            .map(|name| Item { status: item_status(self.delete(&name)), trust_domain: name })
            .collect();
        Ok(Response::new(api::BatchDeleteFederationRelationshipResponse { results }))
    }

    async fn refresh_bundle(
        &self,
        request: Request<api::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let trust_domain = trust_domain(&request.into_inner().trust_domain).map_err(|cause| {
            Refusal::because(Code::InvalidArgument, "failed to parse trust domain", cause)
        })?;
        match self.poller.refresh(&trust_domain).await {
            None => Err(Status::not_found(format!(
                "no relationship with trust domain {:?}",
                trust_domain.as_str()
            ))),
            Some(Err(cause)) => {
                Err(Refusal::because(Code::Internal, "failed to refresh bundle", cause).into())
            }
            Some(Ok(())) => Ok(Response::new(())),
        }
    }
}
