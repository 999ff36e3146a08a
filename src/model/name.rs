//! Names of objects and of services.

use std::fmt;
use std::sync::Arc;

use super::TrustDomain;

/// A namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    pub namespace: String,
    pub name: String,
}

impl NamespacedName {
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why a name cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0:?} is not a DNS label (RFC 1123: 1 to 63 of a-z, 0-9 and '-', no '-' at either end)")]
    Label(String),
    #[error("trust domain {0} is not a legal DNS host, so services cannot be named below it: {1}")]
    TrustDomain(TrustDomain, &'static str),
    #[error("host {0:?} is longer than 253 characters")]
    TooLong(String),
}

/// Whether `text` is a DNS label as Kubernetes has it (RFC 1123).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is a DNS host name: labels of RFC 1123, the last one not all digits (so no IPv4 address).
#[must_use]
pub fn is_dns_host(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(is_dns_label)
        && !text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

/// A service by the two labels that name it in its trust domain. Always two DNS labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    // shared, since there are many copies of each
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ServiceName {
    /// # Errors
    /// [`NameError::Label`] where one of them is no DNS label.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        for label in [namespace, name] {
            if !is_dns_label(label) {
                return Err(NameError::Label(label.to_owned()));
            }
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `{name}.{namespace}.{trustDomain}`, as importers call it.
    ///
    /// # Errors
    /// Where the trust domain is no DNS host (a legal SPIFFE trust domain may hold `_`, `..` or end in digits), or the
    /// whole is too long.
    pub fn host(&self, trust_domain: &TrustDomain) -> Result<String, NameError> {
        dns_trust_domain(trust_domain)?;
        let host = format!("{}.{}.{}", self.name, self.namespace, trust_domain);
        if host.len() > 253 { Err(NameError::TooLong(host)) } else { Ok(host) }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// Refuses a trust domain below which no host name can be made.
///
/// # Errors
/// [`NameError::TrustDomain`] with the rule that it breaks.
pub fn dns_trust_domain(trust_domain: &TrustDomain) -> Result<(), NameError> {
    let fail = |rule| Err(NameError::TrustDomain(trust_domain.clone(), rule));
    let text = trust_domain.as_str();
    if text.contains('_') {
        return fail("it contains '_'");
    }
    if !text.split('.').all(is_dns_label) {
        return fail("a label is empty, longer than 63, or begins or ends with '-'");
    }
    if !is_dns_host(text) {
        return fail("its last label is all digits, or it is longer than 253");
    }
    Ok(())
}
