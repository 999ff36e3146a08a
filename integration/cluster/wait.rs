//! Waiting for a condition, with a deadline.

use anyhow::{Context, Result};
use std::future::Future;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(100);
/// Between two looks at what takes long, or is not to change: each costs the programs that others wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Calls `look` until it succeeds; what it then returns. After `within`, an error with `what` and what the last look
/// said. A look that does not come back counts as one that fails.
pub(crate) async fn eventually<T, F, L>(what: &str, within: Duration, mut look: L) -> Result<T>
where
    L: FnMut() -> F,
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let deadline = start + within;
    let mut before = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
        let last = match tokio::time::timeout(left, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("no answer; the look before it: {before:?}"),
        };
        if Instant::now() >= deadline {
            return Err(last).with_context(|| format!("not so after {within:?}: {what}"));
        }
        before = Some(format!("{last:#}"));
        tokio::time::sleep((start.elapsed() / 10).clamp(POLL, LOOK_AGAIN)).await;
    }
}

/// Holds that `look` succeeds at every look for the whole of `during`: the first failure is the error.
pub(crate) async fn always<F, L>(what: &str, during: Duration, mut look: L) -> Result<()>
where
    L: FnMut() -> F,
    F: Future<Output = Result<()>>,
{
    let start = Instant::now();
    while start.elapsed() < during {
        look().await.with_context(|| format!("not so after {:?}: {what}", start.elapsed()))?;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
