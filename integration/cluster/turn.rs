//! Whose turn it is: how many scenarios run beside each other, and which first. All tests of the ring may be
//! started at once: those whose turn has not come wait here.

use anyhow::Result;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many scenarios on pairs run beside each other, and beside one on the shared three. Each waits for most of its time.
const PAIRS: usize = 6;
/// What takes longest goes first, so that nobody waits for it in the end.
const FIRST: [&str; 9] = [
    "proxies::with_the_agent",
    "one_sided::",
    "diagnose::",
    "rotation::",
    "restart::",
    "revocation::",
    "proxies::",
    "uninstall::",
    "verdict::",
];

/// On which pair a scenario runs; in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    /// One of its own. These go first, while there are no shared ones: each domain that stands costs the others time.
    Own,
    Shared,
    /// A shared one that nobody can use after. These go when the others have gone.
    Spent,
}

/// The place in the queue: by the pair, then by what takes longest, then by who came first.
type Place = (Of, usize, usize);

/// Who waits, in order, and what runs.
struct Turns {
    /// On pairs.
    waiting: BTreeSet<Place>,
    came: usize,
    running: usize,
    /// On the shared three, waiting or not.
    trios: usize,
    trio_runs: bool,
}

impl Turns {
    fn may_go(&self, own: Place) -> bool {
        self.running < PAIRS && self.waiting.first() == Some(&own)
    }
}

static TURNS: Mutex<Turns> =
    Mutex::new(Turns { waiting: BTreeSet::new(), came: 0, running: 0, trios: 0, trio_runs: false });
static CHANGED: Condvar = Condvar::new();

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The turn of a scenario. Dropped, it is another's, and it is said how long it was, whatever the test runner captures.
pub(crate) struct Turn {
    is_trio: bool,
    name: String,
    since: Instant,
}

impl Turn {
    /// Waits for the turn of a scenario on a pair, shared or its own.
    pub(crate) fn of_pair(of: Of) -> Self {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let rank = FIRST.iter().position(|first| name.contains(first)).unwrap_or(FIRST.len());
        let mut turns = turns();
        let own = (of, rank, turns.came);
        turns.came += 1;
        turns.waiting.insert(own);
        while !turns.may_go(own) {
            turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.waiting.remove(&own);
        turns.running += 1;
        // There may be room for the next one, too.
        CHANGED.notify_all();
        Self { is_trio: false, name, since: Instant::now() }
    }

    /// Waits for the turn of a scenario on the shared three.
    pub(crate) fn of_trio() -> Self {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let mut turns = turns();
        turns.trios += 1;
        while turns.trio_runs {
            turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.trio_runs = true;
        Self { is_trio: true, name, since: Instant::now() }
    }

    /// Whether nobody else waits for the shared three.
    pub(crate) fn is_last_of_trio(&self) -> bool {
        self.is_trio && turns().trios == 1
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        if self.is_trio {
            turns.trios -= 1;
            turns.trio_runs = false;
        } else {
            turns.running -= 1;
        }
        CHANGED.notify_all();
        drop(turns);
        let took = self.since.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr(), "{} took {took:.0} s", self.name);
    }
}

/// Fails the test if its scenario did, and says at once why: what a failed test printed is shown by the test runner only
/// when all others have ended.
pub(crate) fn conclude(done: Result<()>) {
    if let Err(error) = done {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "{name} failed: {error:#}");
        panic!("{error:#}");
    }
}
