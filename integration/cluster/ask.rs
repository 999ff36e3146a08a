//! A DNS client that is not ours (dnspython, `integration/ask.py`).

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

/// The client, which is started once: on a machine with much to do, that takes its time.
pub(crate) struct Client {
    python: tokio::process::Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Client {
    pub(crate) fn start() -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/ask.py");
        let mut python = tokio::process::Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("python3 cannot be run")?;
        let stdin = python.stdin.take().context("no stdin")?;
        let answers = BufReader::new(python.stdout.take().context("no stdout")?).lines();
        Ok(Self { python, stdin, answers })
    }

    /// What the server answers for the addresses of a name.
    pub(crate) async fn ask(&mut self, server: SocketAddr, name: &str) -> Result<Value> {
        let question = json!({"name": name, "type": "A"});
        let asked = json!({"server": server.ip(), "port": server.port(), "questions": [question]});
        self.stdin.write_all(format!("{asked}\n").as_bytes()).await?;
        let Some(line) = self.answers.next_line().await? else {
            bail!("integration/ask.py ended with {:?}; what it said is above", self.python.wait().await?);
        };
        serde_json::from_str::<Vec<Value>>(&line)?.pop().context("no answer")
    }

    /// Asks until the answer is such.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        within: Duration,
        (server, name): (SocketAddr, &str),
        is_such: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let said = self.ask(server, name).await?;
            if is_such(&said) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not so after {within:?}: {what}: {said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
