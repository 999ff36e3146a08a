//! The names that are answered, and which others are ours to deny.
//!
//! Ours are the names `{name}.{namespace}.{trustDomain}` of every peer of which anything may be imported, and what lies below
//! them, whether or not there is such a service: whoever asked elsewhere for one that is not admitted could be led to anyone,
//! in plaintext. Each `{namespace}.{trustDomain}` is a zone of its own. Of a local name exactly the name is ours, and what lies
//! below. All else of a trust domain (its gateways, its bundle endpoint) is somebody else's to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::TrustDomain;

/// A name with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whose service it is.
    pub trust_domain: TrustDomain,
    /// At most one of each IP family; never empty.
    pub addresses: Vec<IpAddr>,
    /// The ports as clients call them, in the order of their numbers: all TCP.
    pub ports: Vec<NamedPort>,
    /// Whether it is a local name: what is around it is not ours.
    pub is_local: bool,
}

/// A port of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub number: u16,
    /// A DNS label; the SRV name is `_{name}._tcp.{host}`.
    pub name: String,
}

/// What there is of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    /// Nothing of it is ours: it is our own, or nothing is imported of it.
    Theirs,
    /// A peer's, with the namespaces of its services that are answered.
    Imported(BTreeSet<String>),
}

/// Everything that is answered. Names are in lower case, without the dot at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    pub(super) hosts: BTreeMap<Arc<str>, Arc<Host>>,
    pub(super) domains: BTreeMap<String, Domain>,
    /// Names within what would be ours that a peer uses for something else: its gateways, its agent, its bundle endpoint.
    pub(super) elsewhere: BTreeSet<String>,
}

/// What there is of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'z> {
    /// It is none of ours.
    Elsewhere,
    /// It is ours; the zone that it lies in is its last so many labels.
    Ours { apex: usize, what: What<'z> },
}

/// What there is of a name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'z> {
    Host(&'z Host),
    /// A name `_{port}._tcp.{host}`; the host is its last so many labels.
    Port {
        host: &'z Host,
        labels: usize,
        port: &'z NamedPort,
    },
    /// The name is there, with nothing at it.
    Empty,
    /// There is no such name.
    Nothing,
}

impl Zone {
    /// What there is of a name, given by its labels in lower case, without the root.
    #[must_use]
    pub fn find(&self, labels: &[String]) -> Found<'_> {
        let name = labels.join(".");
        // The ends of the name, the longest first, each with how many labels it leaves out.
        let starts = labels.iter().scan(0, |start, label| {
            let at = *start;
            *start += label.len() + 1;
            Some(at)
        });
        let ends: Vec<&str> = starts.filter_map(|at| name.get(at..)).collect();
        for (below, end) in ends.iter().enumerate() {
            if let Some(host) = self.hosts.get(*end) {
                let of_host = labels.len() - below;
                let apex = if host.is_local { of_host } else { of_host - 1 };
                return Found::Ours {
                    apex,
                    what: within(host, of_host, labels.get(..below).unwrap_or_default()),
                };
            }
        }
        let domain = ends.iter().enumerate().find_map(|(below, end)| Some((below, self.domains.get(*end)?)));
        let Some((below, Domain::Imported(namespaces))) = domain else { return Found::Elsewhere };
        if self.elsewhere.contains(&name) {
            return Found::Elsewhere;
        }
        let apex = labels.len() - below + 1;
        match (below, labels.first()) {
            (0, _) | (_, None) => Found::Elsewhere,
            (1, Some(namespace)) if namespaces.contains(namespace) => Found::Ours { apex, what: What::Empty },
            (1, _) => Found::Elsewhere,
            _ => Found::Ours { apex, what: What::Nothing },
        }
    }

    /// One with these hosts, of one namespace of one peer.
    #[cfg(test)]
    pub(crate) fn of(
        hosts: impl IntoIterator<Item = (&'static str, Arc<Host>)>,
        trust_domain: &str,
        namespace: &str,
    ) -> Self {
        let domain = Domain::Imported([namespace.to_owned()].into());
        Self {
            hosts: hosts.into_iter().map(|(name, host)| (name.into(), host)).collect(),
            domains: [(trust_domain.to_owned(), domain)].into(),
            elsewhere: BTreeSet::new(),
        }
    }

    /// How many names of each trust domain are answered.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&TrustDomain, usize> {
        let mut counts = BTreeMap::new();
        for host in self.hosts.values() {
            *counts.entry(&host.trust_domain).or_default() += 1;
        }
        counts
    }

    /// The names that are answered, in order.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.hosts.iter().map(|(name, host)| (&**name, &**host))
    }
}

/// What there is of a name whose last `labels` labels are the host's, and whose others are `below`.
fn within<'z>(host: &'z Host, labels: usize, below: &[String]) -> What<'z> {
    match below {
        [] => What::Host(host),
        [transport] if transport == "_tcp" => What::Empty,
        [port, transport] if transport == "_tcp" => {
            let mut ports = host.ports.iter();
            let named = ports.find(|named| port.strip_prefix('_') == Some(&named.name));
            named.map_or(What::Nothing, |port| What::Port { host, labels, port })
        }
        _ => What::Nothing,
    }
}
