//! Pairs of trust domains that scenarios share: bringing one up is paid once for each that is used at a time, as long as nothing fails.

use crate::turn::{Of, Turn, conclude};
use crate::world::{Domain, Options};
use anyhow::Result;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::runtime::Runtime;

/// `east.example` and `west.example`.
pub(crate) struct Pair {
    pub(crate) east: Domain,
    pub(crate) west: Domain,
}

impl Pair {
    /// Brings up both at the same time.
    pub(crate) async fn start(east: Options, west: Options) -> Result<Self> {
        let east = Domain::start("east.example", east);
        let west = Domain::start("west.example", west);
        let (east, west) = tokio::join!(east, west);
        Ok(Self { east: east?, west: west? })
    }

    /// See [`Domain::reset`].
    pub(crate) async fn reset(&self) -> Result<()> {
        tokio::try_join!(self.east.reset(), self.west.reset())?;
        Ok(())
    }

    /// See [`Domain::keep`].
    pub(crate) fn keep(&self) {
        self.east.keep();
        self.west.keep();
    }
}

/// One runtime for all tests of the process: clients and connections of the shared domains live as long as it.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those that no scenario uses just now.
static SHARED: Mutex<Vec<Pair>> = Mutex::new(Vec::new());

/// Runs a scenario on a shared pair, which it finds as it stood at first, however the one before left it. A scenario
/// must drop its agents before it ends. If it fails, the domains' logs are kept, and the next one gets new domains.
pub(crate) fn with_pair(scenario: impl AsyncFnOnce(&mut Pair) -> Result<()>) {
    with_set_pair(Options::default(), Options::default(), scenario);
}

/// As [`with_pair`], with SPIRE's times set as the scenario needs them.
pub(crate) fn with_set_pair(
    east: Options,
    west: Options,
    scenario: impl AsyncFnOnce(&mut Pair) -> Result<()>,
) {
    with(Of::Shared, east, west, scenario);
}

/// As [`with_set_pair`], for a scenario that leaves a pair as nobody can use it again.
pub(crate) fn with_spent_pair(
    east: Options,
    west: Options,
    scenario: impl AsyncFnOnce(&mut Pair) -> Result<()>,
) {
    with(Of::Spent, east, west, scenario);
}

/// Runs a scenario on a pair of its own, set as it needs from the start.
pub(crate) fn with_own_pair(
    east: Options,
    west: Options,
    scenario: impl AsyncFnOnce(&mut Pair) -> Result<()>,
) {
    with(Of::Own, east, west, scenario);
}

fn with(of: Of, east: Options, west: Options, scenario: impl AsyncFnOnce(&mut Pair) -> Result<()>) {
    let _turn = Turn::of_pair(of);
    let before = if of == Of::Own { None } else { locked(&SHARED).pop() };
    let done = runtime().block_on(async {
        let mut pair = reused(before, east, west).await?;
        let done = scenario(&mut pair).await;
        match &done {
            Ok(()) if of == Of::Shared => locked(&SHARED).push(pair),
            Ok(()) => {}
            Err(_) => pair.keep(),
        }
        done
    });
    conclude(done);
}

/// The pair of a scenario before, brought back to how it stood at first, and set; a new one if there is none, or if that
/// cannot be done (a program of it may be left ended).
async fn reused(pair: Option<Pair>, east: Options, west: Options) -> Result<Pair> {
    if let Some(mut pair) = pair {
        match again(&mut pair, &east, &west).await {
            Ok(()) => return Ok(pair),
            Err(error) => eprintln!("bringing up new domains, the last ones cannot be used again: {error:#}"),
        }
    }
    Pair::start(east, west).await
}

async fn again(pair: &mut Pair, east: &Options, west: &Options) -> Result<()> {
    let usual = Options::default();
    tokio::try_join!(pair.east.set(&usual), pair.west.set(&usual))?;
    pair.reset().await?;
    tokio::try_join!(pair.east.set(east), pair.west.set(west))?;
    Ok(())
}
