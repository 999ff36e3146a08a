//! The Workload API on a Unix socket (SPIFFE Workload API and Workload Endpoint). A socket stands for one caller: it is
//! served for the selectors that attestation would have found.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::state::{Selector, Shared, Update};
use crate::clock;
use crate::model::Bundle;
use crate::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::proto::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};

/// The metadata that every call must carry (Workload Endpoint, section 4): it keeps out what a browser or a proxy
/// could be tricked to send.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// The Workload API for one caller.
#[derive(Clone, Debug)]
pub(super) struct WorkloadApi {
    shared: Arc<Shared>,
    selectors: Arc<BTreeSet<Selector>>,
    stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkloadApi {
    pub(super) fn new(shared: Arc<Shared>, selectors: BTreeSet<Selector>, stop: CancellationToken) -> Self {
        Self { shared, selectors: Arc::new(selectors), stop }
    }

    /// The full state now, and again with each change of it. Ends when the caller has no identity any more.
    fn answers<T>(&self, compose: fn(Update) -> T) -> Answers<T>
    where
        T: PartialEq + Clone + Send + 'static,
    {
        let caller =
            Caller { api: self.clone(), changes: self.shared.subscribe(), last: None::<T>, ended: false };
        Box::pin(futures::stream::unfold(caller, move |mut caller| async move {
            let answer = caller.next(compose).await?;
            Some((answer, caller))
        }))
    }
}

/// One open stream.
struct Caller<T> {
    api: WorkloadApi,
    changes: watch::Receiver<u64>,
    last: Option<T>,
    ended: bool,
}

impl<T: PartialEq + Clone> Caller<T> {
    async fn next(&mut self, compose: fn(Update) -> T) -> Option<Result<T, Status>> {
        while !self.ended && !self.api.stop.is_cancelled() {
            self.changes.mark_unchanged();
            let update = self.api.shared.lock().update_for(&self.api.selectors, clock::now());
            match update {
                Ok(Some(update)) => {
                    let answer = compose(update);
                    if self.last.as_ref() != Some(&answer) {
                        self.last = Some(answer.clone());
                        return Some(Ok(answer));
                    }
                }
                Ok(None) => {
                    self.ended = true;
                    return Some(Err(Status::permission_denied("no identity issued")));
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(Status::unavailable(error.to_string())));
                }
            }
            tokio::select! {
                () = self.api.stop.cancelled() => {}
                changed = self.changes.changed() => self.ended = changed.is_err(),
            }
        }
        None
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        check_header(&request)?;
        Ok(Response::new(self.answers(svid_response)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        check_header(&request)?;
        Ok(Response::new(self.answers(bundles_response)))
    }
}

fn check_header<T>(request: &Request<T>) -> Result<(), Status> {
    let mut values = request.metadata().get_all(SECURITY_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

fn svid_response(update: Update) -> X509svidResponse {
    let bundle = concatenated(&update.own);
    let svid = |(svid, hint): (Arc<super::Svid>, String)| X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: svid.certificate.clone(),
        x509_svid_key: svid.key.clone(),
        bundle: bundle.clone(),
        hint,
    };
    X509svidResponse {
        svids: update.svids.into_iter().map(svid).collect(),
        federated_bundles: update.federated.values().map(|b| named(b)).collect(),
    }
}

fn bundles_response(update: Update) -> X509BundlesResponse {
    let bundles: HashMap<_, _> =
        update.federated.values().chain([&update.own]).map(|bundle| named(bundle)).collect();
    X509BundlesResponse { bundles }
}

/// By trust domain ID, as the specification has it. An empty bundle is delivered, empty.
fn named(bundle: &Bundle) -> (String, Vec<u8>) {
    (bundle.trust_domain().id_string(), concatenated(bundle))
}

fn concatenated(bundle: &Bundle) -> Vec<u8> {
    bundle.authorities().flat_map(|a| a.der()).copied().collect()
}
