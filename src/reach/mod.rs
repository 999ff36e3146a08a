//! Tries the gateways of peers, so that services that cannot be called are told from agents that do not talk.
//!
//! A try is a TCP connection, closed again without a byte: a TLS handshake through the gateway would show up at each server
//! as one that failed, and a gateway answers by itself. What is dialled is what the plan names, which admission let through;
//! a name's addresses are held to the same rules before they are dialled. Nothing of the outcome goes to the peer, which
//! could have us look at networks of its choice by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::model::reach::{Attempt, Tried};
use crate::model::service::{Address, GatewayAddress};
use crate::plan::Plan;
use crate::plan::admission::forbidden;

/// What came of trying, by gateway.
pub type Reached = Arc<BTreeMap<GatewayAddress, Tried>>;

/// Most tries under way at once.
const AT_ONCE: usize = 32;
/// How long a name may take to resolve, and each of its addresses to answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most addresses of one name that are tried.
const ADDRESSES: usize = 4;
/// How soon a failure of one that answered is confirmed, at most.
const CONFIRM: Duration = Duration::from_secs(3);

/// Tries what the plans name, each once in `every`, while this replica leads, or serves clients, whom it tells what is down;
/// forgets all when it does not.
#[derive(Debug)]
pub struct Trier {
    pub every: Duration,
    pub plans: watch::Receiver<Arc<Plan>>,
    pub leading: watch::Receiver<bool>,
    pub serves_clients: bool,
    pub reached: watch::Sender<Reached>,
}

/// One gateway.
#[derive(Clone, Copy, Debug)]
struct Known {
    tried: Option<Tried>,
    /// When it is tried next; `None` while it is.
    due: Option<Instant>,
}

impl Trier {
    /// Runs until `cancel`, or until there can be no more plans.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut known: BTreeMap<GatewayAddress, Known> = BTreeMap::new();
        let mut trying: JoinSet<(GatewayAddress, Attempt)> = JoinSet::new();
        loop {
            self.follow(&mut known);
            let next = begin(&mut known, &mut trying);
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(Ok((gateway, attempt))) = trying.join_next() => self.learn(&mut known, &gateway, attempt),
                changed = self.plans.changed() => if changed.is_err() { return },
                changed = self.leading.changed() => if changed.is_err() { return },
                () = until(next) => {}
            }
        }
    }

    /// Takes over what is to be tried now.
    fn follow(&mut self, known: &mut BTreeMap<GatewayAddress, Known>) {
        let plan = Arc::clone(&self.plans.borrow_and_update());
        let none = BTreeSet::new();
        let leads = *self.leading.borrow_and_update();
        let wanted = if leads || self.serves_clients { &plan.gateways } else { &none };
        let before = known.len();
        known.retain(|gateway, _| wanted.contains(gateway));
        let is_less = known.len() < before;
        for gateway in wanted {
            let anew = Known { tried: None, due: Some(Instant::now()) };
            known.entry(gateway.clone()).or_insert(anew);
        }
        if is_less {
            self.publish(known);
        }
    }

    fn learn(&self, known: &mut BTreeMap<GatewayAddress, Known>, gateway: &GatewayAddress, attempt: Attempt) {
        let Some(one) = known.get_mut(gateway) else { return };
        let tried = one.tried.map_or_else(|| Tried::first(attempt), |tried| tried.then(attempt));
        let pause = if tried.is_doubted { self.every.min(CONFIRM) } else { self.every };
        *one = Known { tried: Some(tried), due: Some(Instant::now() + pause) };
        self.publish(known);
    }

    fn publish(&self, known: &BTreeMap<GatewayAddress, Known>) {
        let tried = known.iter().filter_map(|(gateway, one)| Some((gateway.clone(), one.tried?)));
        let tried: Reached = Arc::new(tried.collect());
        self.reached.send_if_modified(|last| {
            let changed = *last != tried;
            *last = tried;
            changed
        });
    }
}

/// Begins what is due, as far as there is room; when the next is, of those that are left.
fn begin(
    known: &mut BTreeMap<GatewayAddress, Known>,
    trying: &mut JoinSet<(GatewayAddress, Attempt)>,
) -> Option<Instant> {
    let now = Instant::now();
    let mut due: Vec<(Instant, &GatewayAddress)> =
        known.iter().filter_map(|(gateway, one)| Some((one.due?, gateway))).collect();
    due.sort_unstable();
    let room = AT_ONCE.saturating_sub(trying.len());
    let ready: Vec<GatewayAddress> = due
        .iter()
        .take_while(|(at, _)| *at <= now)
        .take(room)
        .map(|(_, gateway)| (*gateway).clone())
        .collect();
    // Where there is no room, the end of a try is what is waited for.
    let next = due.get(ready.len()).map(|(at, _)| *at).filter(|_| ready.len() < room);
    for gateway in ready {
        if let Some(one) = known.get_mut(&gateway) {
            one.due = None;
        }
        trying.spawn(async move {
            let attempt = attempt(&gateway).await;
            (gateway, attempt)
        });
    }
    next
}

async fn until(at: Option<Instant>) {
    match at {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep_until(at).await,
    }
}

/// Tries a gateway once.
pub async fn attempt(gateway: &GatewayAddress) -> Attempt {
    match &gateway.address {
        Address::Ip(ip) => connect(SocketAddr::new(*ip, gateway.port)).await,
        Address::Dns(name) => {
            let found = timeout(PATIENCE, lookup_host((name.as_str(), gateway.port))).await;
            match found {
                Ok(Ok(found)) => first(found.take(ADDRESSES).collect()).await,
                Ok(Err(_)) | Err(_) => Attempt::NoAddress,
            }
        }
    }
}

/// The best of the addresses of a name.
async fn first(addresses: Vec<SocketAddr>) -> Attempt {
    if addresses.is_empty() {
        return Attempt::NoAddress;
    }
    let mut worst = Attempt::NotAdmitted;
    for address in addresses.into_iter().filter(|at| forbidden(at.ip()).is_none()) {
        match connect(address).await {
            Attempt::Answered => return Attempt::Answered,
            // Silence says less than a refusal.
            attempt if worst != Attempt::Silent => worst = attempt,
            _ => {}
        }
    }
    worst
}

async fn connect(address: SocketAddr) -> Attempt {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Attempt::Answered,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Attempt::Refused,
        Ok(Err(_)) | Err(_) => Attempt::Silent,
    }
}

#[cfg(test)]
mod tests;
