//! The DNS server of an agent on a real API server, asked by a client that is not ours (dnspython).

use super::services::{HOST, exported};
use super::{
    Agents, IMPORTED, READY, SERVICE, SERVICE_ENTRY, SOON, both_ready, delete, found, gone, make_peers, quick,
};
use crate::agent::{Agent, AgentOptions};
use crate::pair::with_pair;
use crate::ports;
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);

/// The client, which is started once: on a machine with much to do, that takes its time.
struct Client {
    python: tokio::process::Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start() -> Result<Self> {
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
    async fn ask(&mut self, server: SocketAddr, name: &str) -> Result<Value> {
        let question = json!({"name": name, "type": "A"});
        let asked = json!({"server": server.ip(), "port": server.port(), "questions": [question]});
        self.stdin.write_all(format!("{asked}\n").as_bytes()).await?;
        let Some(line) = self.answers.next_line().await? else {
            bail!("integration/ask.py ended with {:?}; what it said is above", self.python.wait().await?);
        };
        serde_json::from_str::<Vec<Value>>(&line)?.pop().context("no answer")
    }

    /// Asks until the answer is such.
    async fn until(
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

/// What a service is imported as is answered at the address of its ServiceEntry, by the agent that leads and by one that does
/// not; within five seconds of
/// its import's end it is no name any more.
#[test]
fn an_import_is_answered_until_it_is_gone() {
    with_pair(async |pair| {
        let (first, second) = (ports::free()?, ports::free()?);
        let answering = |name: &str, dns: SocketAddr| {
            let mut options = AgentOptions { name: name.to_owned(), ..quick() };
            options.args.push(format!("--dns-listen={dns}"));
            options
        };
        let east = Agent::start(&pair.east, answering("agent", first))?;
        let mut agents = Agents { east, west: Agent::start(&pair.west, quick())? };
        tokio::try_join!(agents.east.ready(READY), agents.west.ready(READY))?;
        make_peers(pair).await?;
        both_ready(pair).await?;
        exported(&pair.east, &pair.west).await?;
        let follower = AgentOptions {
            listen: Some(ports::free()?),
            admin_listen: Some(ports::free()?),
            env: vec![("ENTENTE_REPLICA".to_owned(), "second".to_owned())],
            ..answering("second", second)
        };
        let mut follower = Agent::start(&pair.east, follower)?;
        follower.ready(READY).await?;
        let name = format!("{HOST}.");
        let entry = found(&pair.east, SERVICE_ENTRY, AGENT, HOST).await?;
        let given = entry.data["spec"]["addresses"][0].as_str().context("no address")?.to_owned();
        let mut client = Client::start()?;
        let record = json!([format!("{name} 5 IN A {given}")]);
        for server in [first, second] {
            let is_answered = |said: &Value| said["answers"] == record;
            client.until("the name is answered", SOON, (server, &name), is_answered).await?;
        }
        let status = found(&pair.east, IMPORTED, AGENT, HOST).await?.data["status"].clone();
        ensure!(status["addresses"] == json!([given]), "{status}");
        for other in ["other.shop.west.example.", "www.example.com."] {
            let said = client.ask(first, other).await?;
            ensure!(said["code"] == "NXDOMAIN" || said["code"] == "REFUSED", "{other}: {said}");
        }

        delete(&pair.west, SERVICE, Some("shop"), "cart").await?;
        gone(&pair.east, IMPORTED, AGENT, HOST).await?;
        for server in [first, second] {
            let is_gone = |said: &Value| said["code"] == "NXDOMAIN" && said["answers"] == json!([]);
            client.until("the name is gone", Duration::from_secs(5), (server, &name), is_gone).await?;
        }
        ensure!(follower.stop().await? == 0, "{}", follower.process.log_tail());
        Ok(())
    });
}
