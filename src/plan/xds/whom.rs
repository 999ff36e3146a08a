//! Whom an offer is for.

use std::collections::BTreeSet;

use crate::model::service::{ClientPattern, RemotePort, RemoteService};
use crate::model::{Peer, SpiffeId};

/// Which of our workloads an import is for, by `spec.imports.exportTo` of its TrustDomainPeer. Istio means namespaces by it; a
/// client of xDS is of the namespace that its SPIFFE ID names, by the convention `/ns/NAMESPACE/...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    Everybody,
    /// Of these namespaces; a client whose ID names none is of none.
    Namespaces(BTreeSet<String>),
}

impl Audience {
    /// `namespace` is what `.` stands for: where the ImportedServices are.
    #[must_use]
    pub(in crate::plan) fn of(peer: &Peer, namespace: &str) -> Self {
        let all = &peer.imports.export_to;
        if all.iter().any(|one| one == "*") {
            return Self::Everybody;
        }
        let named = all.iter().filter(|one| *one != "~");
        let named = named.map(|one| if one == "." { namespace.to_owned() } else { one.clone() });
        Self::Namespaces(named.collect())
    }

    /// Whether it is for this client.
    #[must_use]
    pub fn holds(&self, client: &SpiffeId) -> bool {
        match self {
            Self::Everybody => true,
            Self::Namespaces(namespaces) => {
                let mut parts = client.path().split('/').skip(1);
                parts.next() == Some("ns") && parts.next().is_some_and(|name| namespaces.contains(name))
            }
        }
    }
}

/// Clients by what exporters say of them.
pub type Clients = BTreeSet<ClientPattern>;

/// Whom an offer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Clients of the audience whom each of `each` has a pattern for, and none of `none`. `each` is never empty.
    Clients { audience: Audience, each: Vec<Clients>, none: Vec<Clients> },
    /// Everybody but clients of the audience whom any of `any` has a pattern for: they are offered something else.
    Others { audience: Audience, any: Vec<Clients> },
}

impl Whom {
    /// Those whom one exporter names.
    #[must_use]
    pub fn clients(audience: Audience, clients: Clients) -> Self {
        Self::Clients { audience, each: vec![clients], none: Vec::new() }
    }

    /// Whether it is for this client, whose ID is `text`.
    #[must_use]
    pub fn holds(&self, client: &SpiffeId, text: &str) -> bool {
        let names = |clients: &Clients| clients.iter().any(|pattern| pattern.matches_text(text));
        match self {
            Self::Clients { audience, each, none } => {
                audience.holds(client)
                    && !each.is_empty()
                    && each.iter().all(names)
                    && !none.iter().any(names)
            }
            Self::Others { audience, any } => !(audience.holds(client) && any.iter().any(names)),
        }
    }
}

/// Who may call a port, by the word of its exporter.
#[must_use]
pub(super) fn clients_of<'a>(service: &'a RemoteService, port: &'a RemotePort) -> &'a Clients {
    if port.clients.is_empty() { &service.clients } else { &port.clients }
}
