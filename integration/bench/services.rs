//! `make bench`, part three: what services cost, on real kube-apiservers and SPIRE, with agents as they are installed, each
//! beside what the API server alone needs for the same in the same run:
//!
//! - the first import of many services, beside bare server-side applies of the same objects at the same concurrency;
//! - one changed service until the importer's object is seen, beside one bare apply until it is seen by the same watch;
//! - agents at rest with many services and ten peers: writes, CPU and memory in a minute.
//!
//! `cargo bench --bench services -- [IMPORTED [EXPORTED]]`: how many services are imported at first (0: that part is left
//! out), and how many there are in the others (the same).

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a benchmark stops where its own parts are bad"
)]
#![allow(dead_code, reason = "the harness of the cluster ring has more than this needs")]

include!("../cluster/harness.rs");

#[path = "services/bare.rs"]
mod bare;
#[path = "services/change.rs"]
mod change;
#[path = "services/first.rs"]
mod first;
#[path = "../cluster/hostile.rs"]
mod hostile;
#[path = "services/rest.rs"]
mod rest;
#[path = "services/sides.rs"]
mod sides;

use anyhow::{Context as _, Result};

/// How many services are imported at first, and how many there are at rest.
const IMPORTED: usize = 5_000;
const EXPORTED: usize = 1_000;

fn main() -> Result<()> {
    // `cargo bench` adds flags of its own.
    let given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let sizes = given
        .map(|argument| argument.parse().with_context(|| format!("{argument} is no number of services")))
        .collect::<Result<Vec<usize>>>()?;
    let imported = sizes.first().copied().unwrap_or(IMPORTED);
    let exported = sizes.get(1).copied().unwrap_or(EXPORTED);
    tokio::runtime::Runtime::new()?.block_on(async {
        if imported > 0 {
            first::run(imported).await?;
        }
        if exported > 0 {
            let mut sides = rest::run(exported).await?;
            change::run(&mut sides, exported).await?;
        }
        Ok(())
    })
}
