//! What the API server's refusals mean. The shapes were seen on kube-apiserver 1.36.

use kube::core::Status;

use super::REQUEST_TIMEOUT;
use crate::causes::chain;
use crate::model::ObjectKey;
use crate::store::StoreError;

/// The error of a request for this object.
pub(super) fn of_object(verb: &'static str, key: &ObjectKey, error: &kube::Error) -> StoreError {
    if let kube::Error::Api(status) = error
        && is_unserved(status)
    {
        return StoreError::Absent { kind: key.kind };
    }
    of_request(verb, key.to_string(), error)
}

/// The error of a request for an object of no [`crate::model::object::Kind`].
pub(super) fn of_request(verb: &'static str, object: String, error: &kube::Error) -> StoreError {
    let kube::Error::Api(status) = error else {
        return StoreError::Other { verb, object, message: chain(error) };
    };
    let message = status.message.clone();
    match status.code {
        404 => StoreError::NotFound { object, message },
        409 if status.reason == "AlreadyExists" => StoreError::AlreadyExists { object },
        409 => StoreError::Conflict { object, message },
        401 | 403 => StoreError::Forbidden { verb, object, message },
        422 if is_other_uid(status) => StoreError::Conflict { object, message },
        // A test of a JSON patch that failed is told from a refused content by having no cause.
        422 if verb == "patch" && causes(status) == 0 => StoreError::Conflict { object, message },
        400 | 413 | 415 | 422 => StoreError::Invalid { object, message },
        // A value of another type than the schema's, in an apply.
        500 if message.starts_with("failed to create typed patch object") => {
            StoreError::Invalid { object, message }
        }
        code => StoreError::Other { verb, object, message: format!("{message} (HTTP {code})") },
    }
}

pub(super) fn timed_out(verb: &'static str, object: String) -> StoreError {
    let message = format!("no answer from the API server within {} s", REQUEST_TIMEOUT.as_secs());
    StoreError::Other { verb, object, message }
}

/// Whether the resource is unknown to the API server, rather than one object of it: that is answered without a name.
pub(super) fn is_unserved(status: &Status) -> bool {
    status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn is_other_uid(status: &Status) -> bool {
    status.details.as_ref().is_some_and(|d| d.causes.iter().any(|cause| cause.field == "metadata.uid"))
}

fn causes(status: &Status) -> usize {
    status.details.as_ref().map_or(0, |details| details.causes.len())
}
