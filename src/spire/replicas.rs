//! The SPIRE servers of our trust domain. What they store is shared, and read from the first; the authorities that each
//! signs with are its own, so that every one is asked for them, and one that does not answer holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{ServerAddress, SpireError, SpireServer};
use crate::model::trust::LocalServer;

/// How often a name is resolved: replicas come and go.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long resolving may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many servers are followed at most.
const MOST: usize = 32;

/// Makes the client of a server.
pub type Connect = Arc<dyn Fn(&ServerAddress) -> Result<SpireServer, SpireError> + Send + Sync>;

/// The servers, and what is known of each. Clones see the same.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: watch::Sender<Known>,
    clients: Mutex<BTreeMap<String, SpireServer>>,
    /// Counts the times that someone asked for news at once.
    again: watch::Sender<u64>,
}

/// What is known of the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    expected: BTreeSet<String>,
    /// By address.
    pub servers: BTreeMap<String, LocalServer>,
}

impl Known {
    /// Whether every server was asked once, whatever came of it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.expected.is_empty() && self.expected.iter().all(|name| self.servers.contains_key(name))
    }
}

impl Replicas {
    /// Follows the servers at these addresses until `cancel`, each read every `interval`. A `host:port` whose name has
    /// several addresses, as that of a headless Service, stands for a server at each.
    #[must_use]
    pub fn spawn(
        addresses: Vec<ServerAddress>,
        connect: Connect,
        interval: Duration,
        cancel: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let shared = Arc::new(Shared {
            known: watch::Sender::default(),
            clients: Mutex::default(),
            again: watch::Sender::default(),
        });
        let keeper = Keeper {
            addresses,
            connect,
            interval,
            shared: Arc::clone(&shared),
            followers: JoinSet::new(),
            running: BTreeMap::new(),
            left_out: None,
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = keeper.run() => {}
            }
        });
        (Self(shared), task)
    }

    /// No servers at all.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(Arc::new(Shared {
            known: watch::Sender::default(),
            clients: Mutex::default(),
            again: watch::Sender::default(),
        }))
    }

    /// Follows what is known.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Known> {
        self.0.known.subscribe()
    }

    /// The client of a server, by its address.
    #[must_use]
    pub fn server(&self, name: &str) -> Option<SpireServer> {
        self.0.clients.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Has every server read now: something was changed.
    pub fn refresh(&self) {
        self.0.again.send_modify(|times| *times = times.wrapping_add(1));
    }
}

struct Keeper {
    addresses: Vec<ServerAddress>,
    connect: Connect,
    interval: Duration,
    shared: Arc<Shared>,
    followers: JoinSet<()>,
    running: BTreeMap<String, AbortHandle>,
    /// The first of those that are too many, and what is said of them.
    left_out: Option<(String, String)>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Keeper {
    async fn run(mut self) {
        // The last good answer for each name: a name server that is away takes no server away.
        let mut resolved: BTreeMap<ServerAddress, Vec<ServerAddress>> = BTreeMap::new();
        loop {
            for address in &self.addresses {
                match resolve(address).await {
                    Ok(found) => {
                        resolved.insert(address.clone(), found);
                    }
                    Err(error) => {
                        let known = resolved.entry(address.clone()).or_insert_with(|| vec![address.clone()]);
                        tracing::debug!(%address, %error, servers = known.len(), "the SPIRE server's name is not resolved");
                    }
                }
            }
            let mut wanted: BTreeSet<ServerAddress> = resolved.values().flatten().cloned().collect();
            let beyond = wanted.iter().nth(MOST).cloned().map(|first| wanted.split_off(&first));
            self.keep(&wanted);
            self.leave_out(&beyond.unwrap_or_default());
            tokio::time::sleep(RESOLVE).await;
        }
    }

    /// Says of the servers that are too many that nobody looks at them: in the log, and as a failure of the first.
    fn leave_out(&mut self, beyond: &BTreeSet<ServerAddress>) {
        let failure = beyond.first().map(|first| {
            let others = beyond.len() - 1;
            let failure = format!(
                "it and {others} others are left out: there are more than {MOST} SPIRE servers; nobody looks at their \
                 authorities, nor are they rotated; have agents address fewer (--spire-server)"
            );
            (first.to_string(), failure)
        });
        let said = std::mem::replace(&mut self.left_out, failure);
        if let Some((server, failure)) = self.left_out.as_ref().filter(|new| said.as_ref() != Some(new)) {
            tracing::error!(server, "{failure}");
        }
        self.shared.known.send_if_modified(|known| {
            let before = known.clone();
            known.servers.retain(|name, _| known.expected.contains(name));
            if let Some((server, failure)) = self.left_out.clone() {
                known.servers.insert(server, LocalServer { authorities: None, failure: Some(failure) });
            }
            *known != before
        });
    }

    /// Follows these servers and no others.
    fn keep(&mut self, wanted: &BTreeSet<ServerAddress>) {
        let names: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        self.running.retain(|name, follower| {
            let stays = names.contains(name);
            if !stays {
                follower.abort();
            }
            stays
        });
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).retain(|n, _| names.contains(n));
        while self.followers.try_join_next().is_some() {}
        self.shared.known.send_if_modified(|known| {
            let before = known.clone();
            let left_out = self.left_out.as_ref().map(|(name, _)| name);
            known.servers.retain(|name, _| names.contains(name) || left_out == Some(name));
            known.expected = names;
            *known != before
        });
        for address in wanted {
            let name = address.to_string();
            if self.running.contains_key(&name) {
                continue;
            }
            match (self.connect)(address) {
                Ok(server) => {
                    let mut clients = self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner);
                    clients.insert(name.clone(), server.clone());
                    drop(clients);
                    let follower = follow(name.clone(), server, Arc::clone(&self.shared), self.interval);
                    self.running.insert(name, self.followers.spawn(follower));
                }
                Err(error) => self.shared.tell(&name, Err(error)),
            }
        }
    }
}

impl Shared {
    /// Takes in what a server answered. What was read last stays beside a failure.
    fn tell(&self, name: &str, answer: Result<Option<crate::model::trust::LocalAuthorities>, SpireError>) {
        self.known.send_if_modified(|known| {
            if !known.expected.contains(name) {
                return false;
            }
            let before = known.servers.get(name).cloned();
            let mut server = before.clone().unwrap_or_default();
            match answer {
                Ok(authorities) => {
                    if server.failure.take().is_some() {
                        tracing::info!(server = name, "the SPIRE server tells its authorities again");
                    }
                    server.authorities = authorities;
                }
                Err(error) => {
                    let failure = error.to_string();
                    if server.failure.as_ref() != Some(&failure) {
                        tracing::warn!(server = name, error = %failure, "the SPIRE server does not tell its authorities");
                    }
                    server.failure = Some(failure);
                }
            }
            let changed = before.as_ref() != Some(&server);
            known.servers.insert(name.to_owned(), server);
            changed
        });
    }
}

async fn follow(name: String, server: SpireServer, shared: Arc<Shared>, interval: Duration) {
    let mut again = shared.again.subscribe();
    loop {
        again.mark_unchanged();
        shared.tell(&name, server.read_authorities().await);
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            // the sender is in `shared`, which this task holds
            _ = again.changed() => {}
        }
    }
}

/// The servers that an address stands for.
async fn resolve(address: &ServerAddress) -> std::io::Result<Vec<ServerAddress>> {
    let ServerAddress::Tcp(host_port) = address else { return Ok(vec![address.clone()]) };
    let host = host_port.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    if host.parse::<IpAddr>().is_ok() {
        return Ok(vec![address.clone()]);
    }
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host_port.as_str())).await;
    let found: BTreeSet<_> = found.map_err(|_| std::io::ErrorKind::TimedOut)??.collect();
    Ok(match found.len() {
        0 => return Err(std::io::ErrorKind::NotFound.into()),
        1 => vec![address.clone()],
        _ => found.into_iter().map(|at| ServerAddress::Tcp(at.to_string())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_stands_for_every_server_that_it_resolves_to() {
        let tcp = |text: &str| ServerAddress::Tcp(text.to_owned());
        let literal = ["10.0.0.1:8081", "[::1]:8081"];
        for text in literal {
            assert_eq!(resolve(&tcp(text)).await.unwrap(), [tcp(text)]);
        }
        let unix = ServerAddress::Unix("/run/s.sock".into());
        assert_eq!(resolve(&unix).await.unwrap(), [unix]);
        assert!(resolve(&tcp("no-such-name.invalid:8081")).await.is_err());
        // One address keeps its name, several are told apart.
        let found = resolve(&tcp("localhost:8081")).await.unwrap();
        let several =
            found.iter().all(|at| at.to_string().ends_with(":8081") && *at != tcp("localhost:8081"));
        assert!(found == [tcp("localhost:8081")] || (found.len() > 1 && several), "{found:?}");
    }

    #[tokio::test]
    async fn servers_that_are_too_many_are_told_of() {
        let addresses =
            |count: usize| (0..count).map(|n| ServerAddress::Unix(format!("/nowhere/{n:03}").into()));
        let connect: Connect = Arc::new(|address| match address {
            ServerAddress::Unix(path) => Ok(SpireServer::connect_unix(path)),
            ServerAddress::Tcp(_) => unreachable!(),
        });
        let interval = Duration::from_secs(60);
        let known = async |count| {
            let cancel = CancellationToken::new();
            let all = addresses(count).collect();
            let (replicas, task) = Replicas::spawn(all, Arc::clone(&connect), interval, cancel.clone());
            let mut known = replicas.subscribe();
            let known =
                known.wait_for(|known| known.is_settled() && known.servers.len() >= count.min(MOST + 1));
            let known = tokio::time::timeout(Duration::from_secs(20), known).await.unwrap().unwrap().clone();
            cancel.cancel();
            task.await.unwrap();
            known
        };
        assert_eq!(known(MOST).await.servers.len(), MOST);
        let known = known(MOST + 3).await;
        assert_eq!(known.servers.len(), MOST + 1);
        let failure = known.servers["unix:///nowhere/032"].failure.as_deref().unwrap();
        assert!(failure.contains("it and 2 others") && failure.contains("more than 32"), "{failure}");
    }
}
