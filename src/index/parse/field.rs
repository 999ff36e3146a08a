//! Values of single fields, by the rules of the specifications that they come from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::api::v1alpha1::conditions::PeerAcceptedReason;
use crate::api::v1alpha1::limits;
use crate::model::name::{is_dns_host, is_dns_label};
use crate::model::service::{Address, ClientPattern};
use crate::model::{SpiffeId, TrustDomain};

/// Most characters of a value that are shown in a message.
const MAX_SHOWN: usize = 100;

/// What is wrong with an object: one field, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason in the condition.
    pub reason: &'static str,
    pub message: String,
}

impl Problem {
    /// A rule that is not about the value alone.
    #[must_use]
    pub fn new(field: impl AsRef<str>, rule: impl AsRef<str>) -> Self {
        let message = format!("{}: {}", field.as_ref(), rule.as_ref());
        Self { reason: PeerAcceptedReason::Invalid.as_str(), message }
    }

    /// A rule that this value breaks.
    #[must_use]
    pub fn of(field: &str, value: &str, rule: impl AsRef<str>) -> Self {
        Self::new(field, format!("{:?}: {}", cut(value, MAX_SHOWN), rule.as_ref()))
    }

    /// The same problem under another reason than `Invalid`.
    #[must_use]
    pub fn because(mut self, reason: &'static str) -> Self {
        self.reason = reason;
        self
    }
}

/// At most `max` characters of a text, with an ellipsis where there were more.
#[must_use]
pub fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Refuses a list of more than `max` items.
///
/// # Errors
/// A [`Problem`] with both numbers.
pub fn at_most(field: &str, len: usize, max: usize) -> Result<(), Problem> {
    if len > max {
        return Err(Problem::new(field, format!("it has {len} items, and may have {max}: leave some out")));
    }
    Ok(())
}

/// Refuses an empty list, and one of more than `max` items.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn some_of(field: &str, len: usize, max: usize) -> Result<(), Problem> {
    if len == 0 {
        return Err(Problem::new(field, "it is empty: give at least one"));
    }
    at_most(field, len, max)
}

/// A trust domain name, in the lower case that SPIRE knows alone.
///
/// # Errors
/// A [`Problem`] with the rule of SPIFFE-ID 2.1.
pub fn trust_domain(field: &str, text: &str) -> Result<TrustDomain, Problem> {
    let rule =
        "a trust domain name is 1 to 255 of a-z, 0-9, '.', '-' and '_', without spiffe:// (SPIFFE-ID 2.1)";
    let name = TrustDomain::new(text).map_err(|_| Problem::of(field, text, rule))?;
    if name.as_str() == text {
        return Ok(name);
    }
    let rule = if text.contains("://") { rule } else { "a trust domain name is lower case (SPIFFE-ID 2.1)" };
    Err(Problem::of(field, text, format!("{rule}: write {:?}", name.as_str())))
}

/// A SPIFFE ID with a path, as an SVID must have one (X509-SVID 2).
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn spiffe_id(field: &str, text: &str) -> Result<SpiffeId, Problem> {
    let id = SpiffeId::new(text).map_err(|cause| {
        Problem::of(field, text, format!("not a SPIFFE ID, spiffe://<trust domain>/<path>: {cause}"))
    })?;
    if text.len() > limits::SPIFFE_ID {
        return Err(Problem::of(field, text, "a SPIFFE ID is at most 2,048 bytes (SPIFFE-ID 2.3)"));
    }
    if id.to_string() != text {
        let rule =
            format!("scheme and trust domain of a SPIFFE ID are lower case (SPIFFE-ID 2.1): write {id}");
        return Err(Problem::of(field, text, rule));
    }
    if id.path().is_empty() {
        let rule = "it has no path, and the SPIFFE ID of a workload has one (X509-SVID 2): add it";
        return Err(Problem::of(field, text, rule));
    }
    Ok(id)
}

/// A SPIFFE ID in `within`, which is `whose` trust domain.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn spiffe_id_in(field: &str, text: &str, within: &TrustDomain, whose: &str) -> Result<SpiffeId, Problem> {
    let id = spiffe_id(field, text)?;
    if id.is_member_of(within) {
        return Ok(id);
    }
    let rule = format!("it must lie in {whose}, {within}: give one that begins with spiffe://{within}/");
    Err(Problem::of(field, text, rule))
}

/// A SPIFFE ID with a path, or a prefix of some with a trailing `/*`.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn client_pattern(field: &str, text: &str) -> Result<ClientPattern, Problem> {
    if text.len() > limits::SPIFFE_ID {
        return Err(Problem::of(field, text, "a SPIFFE ID is at most 2,048 bytes (SPIFFE-ID 2.3)"));
    }
    let pattern = ClientPattern::parse(text).map_err(|error| Problem::new(field, error.to_string()))?;
    if pattern.as_str() == text {
        return Ok(pattern);
    }
    let rule = format!("scheme and trust domain are lower case (SPIFFE-ID 2.1): write {pattern}");
    Err(Problem::of(field, text, rule))
}

/// Refuses what is no DNS label.
///
/// # Errors
/// A [`Problem`] with the rule of RFC 1123.
pub fn dns_label(field: &str, text: &str) -> Result<(), Problem> {
    let rule = "a DNS label is 1 to 63 of a-z, 0-9 and '-', with no '-' at either end (RFC 1123)";
    if is_dns_label(text) { Ok(()) } else { Err(Problem::of(field, text, rule)) }
}

/// Refuses what cannot name an object: labels as of [`dns_label`] with dots between them, at most 253 characters.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn dns_subdomain(field: &str, text: &str) -> Result<(), Problem> {
    if is_subdomain(text) {
        return Ok(());
    }
    let rule = "a name is at most 253 of a-z, 0-9, '-' and '.', beginning and ending each part between dots with a \
                letter or digit (RFC 1123)";
    Err(Problem::of(field, text, rule))
}

/// Whether `text` is a DNS subdomain, of which Kubernetes does not bound the labels.
pub(super) fn is_subdomain(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part = |part: &str| {
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(legal)
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// A port number.
///
/// # Errors
/// A [`Problem`] where it is not 1 to 65535.
pub fn port(field: &str, number: i32) -> Result<u16, Problem> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Problem::new(field, format!("{number}: a port is a number from 1 to 65535"))),
    }
}

/// A number of things, 1 to `max`.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn count(field: &str, number: i32, max: i32) -> Result<usize, Problem> {
    match usize::try_from(number) {
        Ok(count) if count > 0 && number <= max => Ok(count),
        _ => Err(Problem::new(field, format!("{number}: it must be from 1 to {max}"))),
    }
}

/// `host:port` to dial: an IPv4 address, an IPv6 address in brackets, or a DNS name.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn host_port(field: &str, text: &str) -> Result<String, Problem> {
    let fail = |rule: &str| Err(Problem::of(field, text, rule));
    let Some((host, port)) = text.rsplit_once(':') else {
        return fail("an address is host:port: add the port");
    };
    let is_port = (1..=5).contains(&port.len())
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    if !is_port {
        return fail("the port of an address is a number from 1 to 65535");
    }
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<std::net::Ipv4Addr>().is_ok() || is_dns_host(host),
    };
    if !is_host {
        return fail(
            "the host of an address is an IPv4 address, an IPv6 address in brackets, or a lower-case DNS name",
        );
    }
    Ok(text.to_owned())
}

/// The address of a gateway, given either as an IP address or as a DNS name of at least two labels.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn address(field: &str, text: &str) -> Result<Address, Problem> {
    let rule = "neither an IP address nor a lower-case DNS name of at least two labels";
    Address::parse(text).ok_or_else(|| Problem::of(field, text, rule))
}

/// An IP address.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn ip(field: &str, text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| Problem::of(field, text, "not an IP address; a DNS name goes into hostname"))
}

/// A network, with the bits of the host cleared.
///
/// # Errors
/// A [`Problem`] with the rule.
pub fn cidr(field: &str, text: &str) -> Result<IpNet, Problem> {
    let network: IpNet = text
        .parse()
        .map_err(|_| Problem::of(field, text, "not a CIDR: write address/prefix length, as 192.0.2.0/24"))?;
    Ok(network.trunc())
}

/// The values of a list, each by `parse`, which is given the name of its field.
///
/// # Errors
/// The [`Problem`] of the first that is none.
pub fn each<T>(
    field: &str,
    texts: &[String],
    parse: impl Fn(&str, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    texts.iter().enumerate().map(|(i, text)| parse(&format!("{field}[{i}]"), text)).collect()
}

/// As [`each`], into a set.
///
/// # Errors
/// The [`Problem`] of the first that is none.
pub fn set<T: Ord>(
    field: &str,
    texts: &[String],
    parse: impl Fn(&str, &str) -> Result<T, Problem>,
) -> Result<BTreeSet<T>, Problem> {
    each(field, texts, parse).map(BTreeSet::from_iter)
}
