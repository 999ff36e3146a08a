//! `make bench`, part four: what clients of xDS cost, beside go-control-plane (its snapshot cache and server, all clients on one
//! snapshot) in the same run, each in a process of its own: bytes on the wire, CPU of the server, the time until the last client
//! has a change, and memory. Both serve the same bytes over Unix sockets without TLS, to the same clients, on the same machine;
//! ours serves each client under a SPIFFE ID of its own, and the change goes through planning.
//!
//! `cargo bench --bench xds -- [CLUSTERS [CLIENTS [CLIENTS_OF_ALL]]]`: clusters, clients of the incremental variant, and of the
//! state of the world. Of the latter there are fewer by default: go-control-plane keeps a whole answer for each client that is
//! reading one, ten megabytes for each.

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

#[path = "xds/client.rs"]
mod client;
#[path = "xds/ours.rs"]
mod ours;
#[path = "xds/server.rs"]
mod server;
#[path = "../cluster/tools.rs"]
mod tools;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use client::{Client, Variant};
use server::Server;
use tools::Tools;

const CLUSTERS: usize = 10_000;
const CLIENTS: usize = 1_000;
const CLIENTS_OF_ALL: usize = 100;
/// How many clients come at one time.
const AT_ONCE: usize = 16;
const CHANGES: usize = 5;
/// How long the slower of the two may take for anything.
const LONG: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, folder, clusters, clients] = arguments.as_slice()
        && first == "serve"
    {
        return ours::serve(folder.as_ref(), clusters.parse()?, clients.parse()?);
    }
    // `cargo bench` adds flags of its own.
    let sizes = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .map(|argument| argument.parse().with_context(|| format!("{argument} is no number")))
        .collect::<Result<Vec<usize>>>()?;
    let size = |at: usize, or: usize| sizes.get(at).copied().unwrap_or(or);
    let (clusters, clients) = (size(0, CLUSTERS), size(1, CLIENTS));
    let of_all = size(2, CLIENTS_OF_ALL.min(clients));
    tokio::runtime::Runtime::new()?.block_on(async {
        for (variant, clients) in [(Variant::Incremental, clients), (Variant::StateOfTheWorld, of_all)] {
            if clients == 0 {
                continue;
            }
            let folder = tempfile::tempdir()?;
            println!("{clusters} clusters, {clients} clients, {variant}:");
            let ours =
                measured(Server::ours(folder.path(), clusters, clients).await?, variant, clusters, clients)
                    .await?;
            println!("  ours:             {ours}");
            let program = Tools::get()?.program("control-plane")?;
            let theirs = Server::theirs(&program, folder.path(), clusters, clients).await?;
            let theirs = measured(theirs, variant, clusters, clients).await?;
            println!("  go-control-plane: {theirs}");
            println!("  go-control-plane / ours: {}", theirs.beside(&ours));
        }
        Ok(())
    })
}

/// What serving cost.
struct Figures {
    come: Step,
    /// The mean of all changes, but the median of the times.
    change: Step,
    /// Memory of the server before there was a client, with all of them at rest, and the most at any time, in bytes.
    memory: [u64; 3],
}

/// What one step took, for all clients.
#[derive(Clone, Copy)]
struct Step {
    bytes: u64,
    cpu: Duration,
    last: Duration,
}

async fn measured(mut server: Server, variant: Variant, clusters: usize, clients: usize) -> Result<Figures> {
    let empty = server.usage()?;
    let begin = Instant::now();
    let mut all: Vec<Client> = Vec::with_capacity(clients);
    let mut numbers = 0..clients;
    loop {
        let some: Vec<usize> = numbers.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            break;
        }
        let coming =
            some.into_iter().map(|number| Client::come(server.socket(number), number, variant, clusters));
        all.extend(tokio::time::timeout(LONG, futures::future::try_join_all(coming)).await??);
    }
    let come = begin.elapsed();
    let read = |all: &[Client]| all.iter().map(Client::bytes).sum::<u64>();
    // ACKs are taken in.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (settled, got) = (server.usage()?, read(&all));
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let wanted = number + 1;
        let told = server.change(number).await?;
        let have = all.iter_mut().map(|client| client.has(wanted));
        tokio::time::timeout(LONG, futures::future::try_join_all(have)).await??;
        times.push(told.elapsed());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (end, got_all) = (server.usage()?, read(&all));
    // They go before their server does.
    drop(all);
    times.sort();
    let mean = u32::try_from(CHANGES)?;
    Ok(Figures {
        come: Step { bytes: got, cpu: settled.cpu - empty.cpu, last: come },
        change: Step {
            bytes: (got_all - got) / u64::from(mean),
            cpu: (end.cpu - settled.cpu) / mean,
            last: times[CHANGES / 2],
        },
        memory: [empty.memory, settled.memory, end.most],
    })
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let step = |step: &Step| {
            let megabytes = step.bytes as f64 / 1e6;
            format!(
                "{megabytes:.2} MB, CPU {:.2} s, last after {:.3} s",
                step.cpu.as_secs_f64(),
                step.last.as_secs_f64()
            )
        };
        let [empty, settled, most] = self.memory.map(|bytes| bytes as f64 / f64::from(1 << 20));
        write!(
            f,
            "all come: {}; one change: {}; memory: {empty:.0} MiB without clients, {settled:.0} with, {most:.0} at most",
            step(&self.come),
            step(&self.change)
        )
    }
}

impl Figures {
    fn beside(&self, other: &Self) -> String {
        let of = |one: f64, other: f64| format!("{:.2}", one / other.max(f64::EPSILON));
        let step = |one: &Step, other: &Step| {
            format!(
                "bytes {}, CPU {}, time {}",
                of(one.bytes as f64, other.bytes as f64),
                of(one.cpu.as_secs_f64(), other.cpu.as_secs_f64()),
                of(one.last.as_secs_f64(), other.last.as_secs_f64())
            )
        };
        let memory: Vec<String> = self
            .memory
            .iter()
            .zip(&other.memory)
            .map(|(one, other)| of(*one as f64, *other as f64))
            .collect();
        format!(
            "all come: {}; one change: {}; memory {}",
            step(&self.come, &other.come),
            step(&self.change, &other.change),
            memory.join(", ")
        )
    }
}
