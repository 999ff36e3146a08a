//! The peer's bundle endpoint, and what it serves.

use super::View;
use crate::api::v1alpha1::conditions::BundleEndpointReason as Reason;
use crate::bundle::endpoint::{FailedProbe, Fetched};
use crate::diagnose::check::{Finding, Side};
use crate::model::endpoint::{EndpointProfile, FetchProblem};
use crate::plan::alarms as planned;

const NOT_TRIED: &str = "it was not tried";

pub(super) fn dns(view: View<'_>) -> Finding {
    let url = &view.peer.endpoint.url;
    match &view.evidence.endpoint.dns {
        None => Finding::skipped(NOT_TRIED),
        Some(Ok(addresses)) => {
            let addresses: Vec<String> = addresses.iter().map(|a| a.ip().to_string()).collect();
            Finding::passed(format!("the host of {url} is {}", addresses.join(", ")))
        }
        Some(Err(cause)) => Finding::failed(
            Side::Ours,
            format!("the host of the bundle endpoint {url} does not resolve: {cause}"),
            format!("correct spec.bundleEndpoint.url of {}, or our DNS", view.object()),
        ),
    }
}

pub(super) fn tcp(view: View<'_>) -> Finding {
    let url = &view.peer.endpoint.url;
    match &view.evidence.endpoint.tcp {
        None => Finding::skipped(NOT_TRIED),
        Some(Ok(address)) => Finding::passed(format!("{address} takes connections")),
        Some(Err(failure)) if failure.is_refused => Finding::failed(
            Side::Theirs,
            format!("nobody listens at the bundle endpoint {url}: {}", failure.cause),
            format!(
                "have the operator of {} start it, or correct the port in spec.bundleEndpoint.url of {}",
                view.peer.trust_domain,
                view.object()
            ),
        ),
        Some(Err(failure)) => Finding::failed(
            Side::Between,
            format!("the bundle endpoint {url} cannot be reached: {}", failure.cause),
            format!("open the network between us and {url}: firewalls, NetworkPolicies, routes"),
        ),
    }
}

fn fetch(view: View<'_>) -> Result<&Result<Fetched, FailedProbe>, Finding> {
    view.evidence.endpoint.fetch.as_ref().ok_or_else(|| Finding::skipped(NOT_TRIED))
}

/// Where in the fetch it failed.
#[derive(PartialEq, Eq)]
enum Stage {
    Tls,
    Http,
    Document,
}

fn stage(failed: &FailedProbe) -> Stage {
    match failed.failure.problem {
        FetchProblem::EndpointCertificateUntrusted
        | FetchProblem::EndpointCertificateExpired
        | FetchProblem::WrongEndpointSpiffeId
        | FetchProblem::NoBundleToVerifyEndpoint => Stage::Tls,
        FetchProblem::EndpointUnreachable if !failed.is_authenticated => Stage::Tls,
        FetchProblem::EndpointUnreachable | FetchProblem::BadResponse | FetchProblem::BundleTooLarge => {
            Stage::Http
        }
        FetchProblem::BundleUnparseable => Stage::Document,
    }
}

pub(super) fn tls(view: View<'_>) -> Finding {
    let url = &view.peer.endpoint.url;
    match fetch(view) {
        Err(finding) => finding,
        Ok(Err(failed)) if stage(failed) == Stage::Tls => refused(view, failed),
        Ok(_) => Finding::passed(match &view.peer.endpoint.profile {
            EndpointProfile::HttpsWeb => format!("{url} proved its host name (https_web)"),
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                format!("{url} proved to be {endpoint_id} (https_spiffe)")
            }
        }),
    }
}

/// The endpoint did not prove who it is.
fn refused(view: View<'_>, failed: &FailedProbe) -> Finding {
    let profile = format!("spec.bundleEndpoint.profile of {}", view.object());
    let message = format!("the bundle endpoint {}: {}", view.peer.endpoint.url, failed.cause);
    let presented = failed.presented.as_ref();
    match (failed.failure.problem, &view.peer.endpoint.profile) {
        (FetchProblem::EndpointCertificateUntrusted, EndpointProfile::HttpsWeb) => match presented {
            Some(id) => Finding::failed(
                Side::Ours,
                format!("{message}; it presents {id}, as the profile https_spiffe does"),
                format!(
                    "where {id} is what its operator names, set {profile} to https_spiffe with that endpointSPIFFEID"
                ),
            ),
            None => {
                Finding::failed(Side::Ours, message, format!("{}; the profile is {profile}", failed.advice))
            }
        },
        (FetchProblem::EndpointCertificateUntrusted, EndpointProfile::HttpsSpiffe { endpoint_id }) => {
            match presented {
                None => Finding::failed(
                    Side::Ours,
                    message,
                    format!(
                        "where its operator serves it by the web's authorities, set {profile} to https_web"
                    ),
                ),
                Some(id) => Finding::failed(
                    if id.trust_domain() == endpoint_id.trust_domain() { Side::Theirs } else { Side::Ours },
                    format!("{message}; it presents {id}"),
                    format!(
                        "{}: spec.bootstrapBundle of {}; or have its operator mend what answers there",
                        failed.advice,
                        view.object()
                    ),
                ),
            }
        }
        (FetchProblem::WrongEndpointSpiffeId, EndpointProfile::HttpsSpiffe { endpoint_id }) => {
            Finding::failed(
                Side::Ours,
                format!("{message}, where {endpoint_id} is expected"),
                format!("ask its operator which is right, and correct endpointSPIFFEID in {profile}"),
            )
        }
        (FetchProblem::NoBundleToVerifyEndpoint, _) => {
            let remedy = format!("{}: spec.bootstrapBundle of {}", failed.advice, view.object());
            Finding::failed(Side::Ours, message, remedy)
        }
        (FetchProblem::EndpointUnreachable, _) => Finding::failed(
            Side::Theirs,
            format!("{message}: it takes the connection and does not shake hands"),
            format!("have the operator of {} look at what answers there", view.peer.trust_domain),
        ),
        _ => Finding::failed(Side::Theirs, message, failed.advice.clone()),
    }
}

pub(super) fn http(view: View<'_>) -> Finding {
    let url = &view.peer.endpoint.url;
    match fetch(view) {
        Err(finding) => finding,
        Ok(Err(failed)) if stage(failed) == Stage::Tls => Finding::skipped("it was not come to"),
        Ok(Err(failed)) if stage(failed) == Stage::Http => Finding::failed(
            Side::Theirs,
            format!("the bundle endpoint {url}: {}", failed.cause),
            format!("{}; the field is spec.bundleEndpoint.url of {}", failed.advice, view.object()),
        ),
        Ok(_) => Finding::passed(format!("{url} answered")),
    }
}

pub(super) fn document(view: View<'_>) -> Finding {
    let url = &view.peer.endpoint.url;
    match fetch(view) {
        Err(finding) => finding,
        Ok(Err(failed)) if stage(failed) != Stage::Document => Finding::skipped("it was not come to"),
        Ok(Err(failed)) => Finding::failed(
            Side::Theirs,
            format!("what {url} serves is no bundle: {}", failed.cause),
            format!("{}; the field is spec.bundleEndpoint.url of {}", failed.advice, view.object()),
        ),
        Ok(Ok(fetched)) => match &fetched.refused_by_spire {
            Some(cause) => Finding::failed(
                Side::Theirs,
                format!("SPIRE's own reader refuses the whole bundle that {url} serves: {cause}"),
                format!(
                    "have the operator of {} serve keys that SPIRE reads alone (x509-svid with one certificate, \
                     jwt-svid with kid)",
                    view.peer.trust_domain
                ),
            ),
            None => Finding::passed(format!("{url} serves a bundle that SPIRE reads too")),
        },
    }
}

pub(super) fn authorities(view: View<'_>) -> Finding {
    let Ok(Ok(fetched)) = fetch(view) else { return Finding::skipped("no bundle was fetched") };
    let bundle = &fetched.bundle;
    if bundle.is_usable_at(view.world.now) {
        return Finding::passed(format!("bundle {} of {} authorities", bundle.digest(), bundle.len()));
    }
    let what = match (bundle.len(), bundle.jwt.len()) {
        (0, 0) => "it serves an empty bundle, which revokes every SVID of it".to_owned(),
        (0, jwt) => format!("it serves {jwt} JWT authorities and no X.509 authority"),
        (x509, _) => format!("none of the {x509} X.509 authorities that it serves is valid now"),
    };
    Finding::failed(
        Side::Theirs,
        format!("the bundle endpoint {}: {what}", view.peer.endpoint.url),
        format!(
            "ask the operator of {} whether that is meant; if not, its SPIRE server must publish its X.509 authorities",
            view.peer.trust_domain
        ),
    )
}

/// What was judged above, of what is served now, is not judged again by what was served when last polled; and what SPIRE
/// holds is judged below.
const fn is_judged_elsewhere(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::AuthorityShared
            | Reason::AuthoritiesSubstituted
            | Reason::AuthorityNearExpiry
            | Reason::SequenceWentBack
            | Reason::ContentChangedUnderSequence
            | Reason::PeerDiffersFromEndpoint
    )
}

pub(super) fn alarms(view: View<'_>) -> Finding {
    if !view.world.endpoints.contains_key(&view.peer.trust_domain) {
        return Finding::skipped("the endpoint is not watched yet");
    }
    let mut alarms = planned::alarms(view.world, view.peer);
    alarms.retain(|alarm| !is_judged_elsewhere(alarm.reason));
    match alarms.first() {
        None => Finding::passed("the bundle changed as bundles do"),
        Some(worst) => Finding::failed(
            Side::Theirs,
            format!("{}: {}", worst.reason, planned::in_words(&alarms)),
            format!("ask the operator of {} before trusting it further", view.peer.trust_domain),
        ),
    }
}
