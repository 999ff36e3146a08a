//! `Bundle`: our own bundle and the federated ones.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::{Refusal, ServerApi, item_status, page, trust_domain, whole_bundle};
use crate::proto::spire::server::bundle::v1 as api;
use crate::proto::spire::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use crate::proto::spire::server::bundle::v1::bundle_server::Bundle;
use crate::proto::spire::types;
use crate::spire::bundle_to_proto;

impl ServerApi {
    fn set_bundle(&self, proto: &types::Bundle) -> Result<(), Refusal> {
        let bundle = trust_domain(&proto.trust_domain).map_err(invalid_name).and_then(|td| {
            if td == *self.shared.trust_domain() {
                let words = "setting a federated bundle for the server's own trust domain is not allowed";
                return Err(Refusal::new(Code::InvalidArgument, words));
            }
            whole_bundle(proto)
                .map_err(|cause| Refusal::because(Code::InvalidArgument, "failed to convert bundle", cause))
        })?;
        self.shared.change(|state, _| {
            state.bundles.insert(bundle.trust_domain().clone(), Arc::new(bundle));
        });
        Ok(())
    }

    fn delete_bundle(&self, name: &str, mode: Mode) -> Result<(), Refusal> {
        let trust_domain = trust_domain(name).map_err(invalid_name)?;
        if trust_domain == *self.shared.trust_domain() {
            let words = "removing the bundle for the server trust domain is not allowed";
            return Err(Refusal::new(Code::InvalidArgument, words));
        }
        self.shared.change(|state, _| {
            if !state.bundles.contains_key(&trust_domain) {
                return Err(Refusal::new(Code::NotFound, "bundle not found"));
            }
            let federating = state.entries.values().filter(|e| e.federates_with.contains(&trust_domain)).count();
            match mode {
                Mode::Restrict if federating > 0 => {
                    return Err(Refusal::because(
                        Code::FailedPrecondition,
                        "failed to delete federated bundle",
                        format!("datastore-sql: cannot delete bundle; federated with {federating} registration entries"),
                    ));
                }
                Mode::Restrict => {}
                Mode::Delete => state.entries.retain(|_, e| !e.federates_with.contains(&trust_domain)),
                Mode::Dissociate => {
                    let revision = state.number();
                    for entry in state.entries.values_mut() {
                        if entry.federates_with.remove(&trust_domain) {
                            entry.revision = revision;
                        }
                    }
                }
            }
            state.forget_svids_of_gone_entries();
            state.bundles.remove(&trust_domain);
            Ok(())
        })
    }
}

fn invalid_name(cause: String) -> Refusal {
    Refusal::because(Code::InvalidArgument, "trust domain argument is not valid", cause)
}

#[tonic::async_trait]
impl Bundle for ServerApi {
    async fn get_bundle(&self, _: Request<api::GetBundleRequest>) -> Result<Response<types::Bundle>, Status> {
        Ok(Response::new(bundle_to_proto(self.shared.lock().authority.bundle())))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<api::ListFederatedBundlesRequest>,
    ) -> Result<Response<api::ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        let state = self.shared.lock();
        let (found, next_page_token) = page(&state.bundles, |_| true, request.page_size, &request.page_token);
        let bundles = found.into_iter().map(|b| bundle_to_proto(b)).collect();
        Ok(Response::new(api::ListFederatedBundlesResponse { bundles, next_page_token }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<api::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<api::BatchSetFederatedBundleResponse>, Status> {
        type Item = api::batch_set_federated_bundle_response::Result;
        let bundles = request.into_inner().bundle;
        let results = bundles.iter().map(|b| Item { status: item_status(self.set_bundle(b)) }).collect();
        Ok(Response::new(api::BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<api::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<api::BatchDeleteFederatedBundleResponse>, Status> {
        type Item = api::batch_delete_federated_bundle_response::Result;
        let request = request.into_inner();
        let mode = Mode::try_from(request.mode)
            .map_err(|_| Status::invalid_argument(format!("unhandled delete mode \"{}\"", request.mode)))?;
        let results = request
            .trust_domains
            .into_iter()
            .map(|name| Item { status: item_status(self.delete_bundle(&name, mode)), trust_domain: name })
            .collect();
        Ok(Response::new(api::BatchDeleteFederatedBundleResponse { results }))
    }
}
