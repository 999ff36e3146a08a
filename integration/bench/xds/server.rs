//! A server in a process of its own, and what it has used.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::ours;

pub struct Server {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// The socket of each client.
    sockets: Vec<PathBuf>,
}

/// What a process has used so far.
pub struct Usage {
    /// Of all of its threads.
    pub cpu: Duration,
    /// Bytes of memory now, and at most.
    pub memory: u64,
    pub most: u64,
}

impl Server {
    /// This program again, which serves each client by a socket of its own.
    pub async fn ours(folder: &Path, clusters: usize, clients: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(folder).arg(clusters.to_string()).arg(clients.to_string());
        let sockets = (0..clients).map(|number| ours::socket(folder, number)).collect();
        Self::start(command, sockets).await
    }

    /// go-control-plane, with the clusters that ours serves.
    pub async fn theirs(program: &Path, folder: &Path, clusters: usize, clients: usize) -> Result<Self> {
        let file = folder.join("clusters");
        std::fs::write(&file, ours::clusters(clusters)?)?;
        let socket = folder.join("go.sock");
        let mut command = Command::new(program);
        command.arg(&socket).arg(&file);
        Self::start(command, vec![socket; clients]).await
    }

    async fn start(mut command: Command, sockets: Vec<PathBuf>) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let mut server = Self { child, input, output, sockets };
        server.says("ready").await?;
        Ok(server)
    }

    async fn says(&mut self, wanted: &str) -> Result<()> {
        let line = self.output.next_line().await?.context("the server ended")?;
        ensure!(line == wanted, "the server said {line}");
        Ok(())
    }

    pub fn socket(&self, client: usize) -> &Path {
        &self.sockets[client]
    }

    /// Has one cluster changed; since when.
    pub async fn change(&mut self, number: usize) -> Result<Instant> {
        let told = Instant::now();
        // Timeouts of as many digits each.
        self.input.write_all(format!("{}\n", 1_000 + number).as_bytes()).await?;
        self.says("changed").await?;
        Ok(told)
    }

    pub fn usage(&self) -> Result<Usage> {
        let process = format!("/proc/{}", self.child.id().context("it has ended")?);
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("{process}/task"))? {
            let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += stat.split(' ').next().context("no time")?.parse::<u64>()?;
        }
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let of = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>()? * 1024)
        };
        Ok(Usage { cpu: Duration::from_nanos(nanoseconds), memory: of("VmRSS")?, most: of("VmHWM")? })
    }
}
