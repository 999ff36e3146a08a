//! How large a policy becomes, before it is written: an API server keeps no object over 1.5 MiB (etcd's own limit), and an
//! AuthorizationPolicy has 512 rules at most. What does not fit is not accepted, so that the policy of the others still is.

use std::collections::{BTreeMap, BTreeSet};

use crate::istio::authorization_policy::MAX_RULES;
use crate::model::Service;

/// Most bytes of one policy, as JSON.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// What a rule takes without its principals and ports, our own trust domain (255 bytes at most) included.
const RULE: usize = 512;
/// What a port takes: in its own rule, and in the one that shuts all others.
const PORT: usize = 16;
/// What surrounds a principal in a list.
const AROUND: usize = 3;

/// Why a service does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLarge {
    Rules(usize),
    Bytes(usize),
}

type Clients<'a> = BTreeSet<&'a str>;
/// The clients of each port that changed, as they were.
pub(super) type Before<'a> = Vec<(u16, Option<Clients<'a>>)>;

/// The rules of the policy of one selector: ports with the same clients share one.
#[derive(Debug, Default)]
pub(super) struct Rules<'a> {
    by_port: BTreeMap<u16, Clients<'a>>,
    /// How many ports have these clients.
    alike: BTreeMap<Clients<'a>, usize>,
    bytes: usize,
}

impl<'a> Rules<'a> {
    /// Adds the ports and clients of a service; or leaves all as it was. Answers with what `undo` takes.
    ///
    /// # Errors
    /// [`TooLarge`] where the policy would be.
    pub(super) fn add(&mut self, service: &'a Service) -> Result<Before<'a>, TooLarge> {
        let mut wanted: BTreeMap<u16, Clients<'a>> = BTreeMap::new();
        for port in &service.ports {
            let clients = wanted
                .entry(port.target_port)
                .or_insert_with(|| self.by_port.get(&port.target_port).cloned().unwrap_or_default());
            clients.extend(service.clients_of(port).iter().map(|client| client.principal()));
        }
        let before =
            wanted.into_iter().map(|(port, clients)| (port, self.put(port, Some(clients)))).collect();
        // One rule is that of all other ports.
        let problem = if self.alike.len() >= MAX_RULES {
            TooLarge::Rules(self.alike.len())
        } else if self.bytes > MOST_BYTES {
            TooLarge::Bytes(self.bytes)
        } else {
            return Ok(before);
        };
        self.undo(before);
        Err(problem)
    }

    /// Takes back what was added last.
    pub(super) fn undo(&mut self, before: Before<'a>) {
        for (port, clients) in before {
            self.put(port, clients);
        }
    }

    fn put(&mut self, port: u16, clients: Option<Clients<'a>>) -> Option<Clients<'a>> {
        let before = self.by_port.remove(&port);
        if let Some(before) = &before {
            self.bytes -= PORT;
            if let Some(count) = self.alike.get_mut(before) {
                *count -= 1;
                if *count == 0 {
                    self.alike.remove(before);
                    self.bytes -= bytes_of(before);
                }
            }
        }
        if let Some(clients) = clients {
            self.bytes += PORT;
            match self.alike.get_mut(&clients) {
                Some(count) => *count += 1,
                None => {
                    self.bytes += bytes_of(&clients);
                    self.alike.insert(clients.clone(), 1);
                }
            }
            self.by_port.insert(port, clients);
        }
        before
    }
}

fn bytes_of(clients: &Clients<'_>) -> usize {
    RULE + clients.iter().map(|client| client.len() + AROUND).sum::<usize>()
}

/// The principals of a policy with one rule for all.
#[derive(Debug, Default)]
pub(super) struct Principals<'a> {
    all: BTreeSet<&'a str>,
    bytes: usize,
}

impl<'a> Principals<'a> {
    /// Adds the clients of a service; or leaves all as it was.
    ///
    /// # Errors
    /// How large the policy would be.
    pub(super) fn add(&mut self, service: &'a Service) -> Result<(), usize> {
        let clients = service.ports.iter().flat_map(|port| service.clients_of(port));
        let new: BTreeSet<&str> =
            clients.map(|client| client.principal()).filter(|client| !self.all.contains(client)).collect();
        let bytes = self.bytes + new.iter().map(|client| client.len() + AROUND).sum::<usize>();
        if bytes > MOST_BYTES - RULE {
            return Err(bytes);
        }
        self.all.extend(new);
        self.bytes = bytes;
        Ok(())
    }
}
