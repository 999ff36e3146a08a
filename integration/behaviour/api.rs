//! SPIRE's API without the agent's client around it, to see what SPIRE itself says.

use std::path::Path;

use entente::proto::spire::server::bundle::v1::bundle_client::BundleClient;
use entente::proto::spire::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use entente::proto::spire::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use entente::proto::spire::server::{bundle, trustdomain};
use entente::proto::spire::types;
use entente::proto::spire::types::federation_relationship::BundleEndpointProfile;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

pub(crate) type DeleteMode = bundle::v1::batch_delete_federated_bundle_request::Mode;

#[derive(Clone, Debug)]
pub(crate) struct Api {
    channel: Channel,
}

/// A channel to a Unix socket.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://socket.invalid").connect_with_connector_lazy(connector)
}

fn outcome(status: Option<types::Status>) -> (Code, String) {
    let status = status.unwrap();
    (Code::from_i32(status.code), status.message)
}

impl Api {
    pub(crate) fn connect(socket: &Path) -> Self {
        Self { channel: channel(socket) }
    }

    pub(crate) fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.channel.clone())
    }

    pub(crate) async fn create_relationship(&self, trust_domain: &str, url: &str) -> (Code, String) {
        let profile = BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {});
        let relationship = types::FederationRelationship {
            trust_domain: trust_domain.to_owned(),
            bundle_endpoint_url: url.to_owned(),
            bundle_endpoint_profile: Some(profile),
            trust_domain_bundle: None,
        };
        let request = trustdomain::v1::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
        };
        let mut client = TrustDomainClient::new(self.channel.clone());
        let answer = client.batch_create_federation_relationship(request).await.unwrap().into_inner();
        outcome(answer.results.into_iter().next().unwrap().status)
    }

    pub(crate) async fn delete_relationship(&self, trust_domain: &str) -> (Code, String) {
        let trust_domains = vec![trust_domain.to_owned()];
        let request = trustdomain::v1::BatchDeleteFederationRelationshipRequest { trust_domains };
        let mut client = TrustDomainClient::new(self.channel.clone());
        let answer = client.batch_delete_federation_relationship(request).await.unwrap().into_inner();
        outcome(answer.results.into_iter().next().unwrap().status)
    }

    pub(crate) async fn set_bundle(&self, bundle: types::Bundle) -> (Code, String) {
        let request = bundle::v1::BatchSetFederatedBundleRequest { bundle: vec![bundle] };
        let mut client = BundleClient::new(self.channel.clone());
        let answer = client.batch_set_federated_bundle(request).await.unwrap().into_inner();
        outcome(answer.results.into_iter().next().unwrap().status)
    }

    pub(crate) async fn delete_bundle(&self, trust_domain: &str, mode: DeleteMode) -> (Code, String) {
        let request = bundle::v1::BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain.to_owned()],
            mode: mode.into(),
        };
        let mut client = BundleClient::new(self.channel.clone());
        let answer = client.batch_delete_federated_bundle(request).await.unwrap().into_inner();
        outcome(answer.results.into_iter().next().unwrap().status)
    }
}
