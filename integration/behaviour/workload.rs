//! The Workload API.

use std::time::Duration;

use entente::model::{AuthorityId, TrustDomain};
use entente::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use entente::proto::workload::{X509BundlesRequest, X509svid, X509svidRequest, X509svidResponse};
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::api::channel;
use super::{Case, Spire};

/// A workload that listens for its SVIDs.
#[derive(Debug)]
pub(crate) struct Workload {
    client: SpiffeWorkloadApiClient<Channel>,
    stream: Option<Streaming<X509svidResponse>>,
    patience: Duration,
}

/// What it was given.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) svids: Vec<X509svid>,
    federated: Vec<(String, Vec<u8>)>,
}

impl Update {
    /// The bundle of a foreign trust domain, DER; empty where it has no authority.
    pub(crate) fn federated(&self, trust_domain: &TrustDomain) -> Option<&[u8]> {
        let name = trust_domain.id_string();
        self.federated.iter().find(|(td, _)| *td == name).map(|(_, der)| der.as_slice())
    }

    pub(crate) fn federates_with_nobody(&self) -> bool {
        self.federated.is_empty()
    }

    /// The leaf of the first SVID, DER.
    pub(crate) fn leaf(&self) -> &[u8] {
        &self.svids[0].x509_svid
    }

    /// The authority that signed the first SVID.
    pub(crate) fn signer(&self) -> AuthorityId {
        let (_, leaf) = X509Certificate::from_der(self.leaf()).unwrap();
        let id = leaf.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(a) => a.key_identifier.as_ref().map(|k| k.0.to_vec()),
            _ => None,
        });
        AuthorityId::parse(&hex::encode(id.unwrap())).unwrap()
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

impl Workload {
    pub(crate) fn open(spire: &impl Spire) -> Self {
        let client = SpiffeWorkloadApiClient::new(channel(spire.workload_socket()));
        Self { client, stream: None, patience: spire.patience() }
    }

    /// Waits for an update of which `wanted` holds.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Update) -> bool) -> Update {
        let mut last = None;
        let waiting = async {
            loop {
                let answer = match self.stream.as_mut() {
                    Some(stream) => stream.message().await,
                    None => match self.client.fetch_x509svid(with_header(X509svidRequest {})).await {
                        Ok(stream) => {
                            self.stream = Some(stream.into_inner());
                            continue;
                        }
                        Err(status) => Err(status),
                    },
                };
                match answer {
                    Ok(Some(message)) => {
                        let federated = message.federated_bundles.into_iter().collect();
                        let update = Update { svids: message.svids, federated };
                        if wanted(&update) {
                            return update;
                        }
                        last = Some(update);
                    }
                    // As the specification has it: again, after a while.
                    Ok(None) | Err(_) => {
                        self.stream = None;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        let Ok(update) = tokio::time::timeout(self.patience, waiting).await else {
            panic!("the workload waited in vain for {what}; the last it was given: {last:?}");
        };
        update
    }
}

pub(crate) async fn only_federated_trust_domains_are_delivered(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    let mut workload = Workload::open(case.spire);
    workload.until("an SVID of its own", Update::federates_with_nobody).await;
    case.relate().await;
    // The bundle is there, and nobody asked for it: who asks now is not given it.
    case.federate(&[]).await;
    Workload::open(case.spire).until("no foreign bundle", |u| u.federated(&peer).is_none()).await;
    case.federate(&[&peer]).await;
    let update = workload.until("the peer's bundle", |u| u.federated(&peer).is_some()).await;
    let authority = case.peer.bundle().authorities().next().unwrap().der().to_vec();
    assert_eq!(update.federated(&peer), Some(authority.as_slice()));
    assert_eq!(update.svids.len(), 1);

    let request = with_header(X509BundlesRequest {});
    let mut bundles = workload.client.fetch_x509_bundles(request).await.unwrap().into_inner();
    let bundles = bundles.message().await.unwrap().unwrap().bundles;
    assert_eq!(bundles.get(&peer.id_string()), Some(&authority));
    assert!(bundles.contains_key(&case.own().id_string()));

    case.federate(&[]).await;
    workload.until("no foreign bundle any more", Update::federates_with_nobody).await;
}

pub(crate) async fn a_change_of_federates_with_makes_a_new_svid(case: &Case<'_, impl Spire>) {
    let peer = case.peer_domain();
    let mut workload = Workload::open(case.spire);
    let before = workload.until("an SVID", |u| !u.svids.is_empty()).await;
    case.relate().await;
    case.federate(&[&peer]).await;
    let wanted = |u: &Update| u.federated(&peer).is_some() && u.leaf() != before.leaf();
    let after = workload.until("a new SVID", wanted).await;
    assert_eq!(after.svids[0].spiffe_id, before.svids[0].spiffe_id);
}

pub(crate) async fn the_security_header_is_wanted(case: &Case<'_, impl Spire>) {
    let mut client = SpiffeWorkloadApiClient::new(channel(case.spire.workload_socket()));
    let refused = |outcome: Result<(), tonic::Status>| outcome.unwrap_err().code();
    let svid = async {
        let mut stream = client.clone().fetch_x509svid(X509svidRequest {}).await?.into_inner();
        stream.message().await.map(drop)
    };
    assert_eq!(refused(svid.await), Code::InvalidArgument);
    let bundles = async {
        let mut stream = client.fetch_x509_bundles(X509BundlesRequest {}).await?.into_inner();
        stream.message().await.map(drop)
    };
    assert_eq!(refused(bundles.await), Code::InvalidArgument);
}
