//! What the agent knows, for those who look: however often they do, it is asked for once a second at most.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::index::run::WorldHandle;
use crate::model::World;
use crate::plan::Plan;

/// How long what was seen is good enough.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer may take. Planning for very much takes no longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where it is asked for.
#[derive(Debug)]
pub struct Seen {
    worlds: WorldHandle,
    plans: watch::Receiver<Arc<Plan>>,
    last: Mutex<Option<(Instant, Arc<World>)>>,
}

impl Seen {
    #[must_use]
    pub fn new(worlds: WorldHandle, plans: watch::Receiver<Arc<Plan>>) -> Self {
        Self { worlds, plans, last: Mutex::default() }
    }

    /// The world, a second old at most, and the plan; nothing where there is no answer in time.
    pub async fn now(&self) -> Option<(Arc<World>, Arc<Plan>)> {
        let mut last = self.last.lock().await;
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, world)| Arc::clone(world));
        let world = match fresh {
            Some(world) => world,
            None => {
                let world = tokio::time::timeout(PATIENCE, self.worlds.now()).await.ok().flatten()?;
                *last = Some((Instant::now(), Arc::clone(&world)));
                world
            }
        };
        Some((world, Arc::clone(&self.plans.borrow())))
    }
}
