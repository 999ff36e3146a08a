//! How much each source holds at one time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::network;

/// So many places in all, and so many of them for one source. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    all: usize,
    of_one: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: BTreeMap<IpAddr, usize>,
}

impl Places {
    pub(crate) fn new(all: usize, of_one: usize) -> Self {
        Self { all, of_one, taken: Arc::default() }
    }

    /// A place, held until it is dropped; `None` where there is none, or none for this source.
    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let source = network(source);
        let mut taken = lock(&self.taken);
        let held = taken.by.get(&source).copied().unwrap_or_default();
        if taken.all >= self.all || held >= self.of_one {
            return None;
        }
        taken.all += 1;
        taken.by.insert(source, held + 1);
        Some(Place { source, taken: Arc::clone(&self.taken) })
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One place that is held.
#[derive(Debug)]
pub(crate) struct Place {
    source: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all = taken.all.saturating_sub(1);
        if let Some(held) = taken.by.get_mut(&self.source) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                taken.by.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_counted_while_they_are_held() {
        let places = Places::new(5, 3);
        let mut held: Vec<Place> = (0..9).filter_map(|_| places.take(ip("2001:db8::1"))).collect();
        assert_eq!(held.len(), 3);
        assert!(places.take(ip("2001:db8::2")).is_none(), "of the same network");
        held.extend(places.clone().take(ip("10.0.0.2")));
        held.extend(places.take(ip("10.0.0.3")));
        assert_eq!(held.len(), 5);
        assert!(places.take(ip("10.0.0.4")).is_none(), "all are taken");
        held.remove(0);
        held.extend(places.take(ip("2001:db8::2")));
        assert_eq!(held.len(), 5);
        drop(held);
        let taken = lock(&places.taken);
        assert!(taken.all == 0 && taken.by.is_empty(), "{taken:?}");
    }
}
