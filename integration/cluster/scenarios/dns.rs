//! The DNS server of an agent on a real API server, asked by a client that is not ours (dnspython).

use super::services::{HOST, exported};
use super::{
    Agents, IMPORTED, READY, SERVICE, SERVICE_ENTRY, SOON, both_ready, delete, found, make_peers, quick,
};
use crate::agent::{Agent, AgentOptions};
use crate::pair::with_pair;
use crate::ports;
use crate::wait::eventually;
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);

/// What the server answers for the addresses of a name.
async fn ask(server: SocketAddr, name: &str) -> Result<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/ask.py");
    let mut python = tokio::process::Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("python3 cannot be run")?;
    let question = json!({"name": name, "type": "A"});
    let asked = json!({"server": server.ip(), "port": server.port(), "questions": [question]});
    let mut stdin = python.stdin.take().context("no stdin")?;
    stdin.write_all(asked.to_string().as_bytes()).await?;
    drop(stdin);
    let output = python.wait_with_output().await?;
    ensure!(output.status.success(), "integration/ask.py failed; what it said is above");
    let mut said: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    said.pop().context("no answer")
}

/// What a service is imported as is answered at the address of its ServiceEntry, by the agent that leads and by one that does
/// not; once it is no longer exported, it is no name any more, within five seconds.
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
        for server in [first, second] {
            eventually("the name is answered", SOON, || async {
                let said = ask(server, &name).await?;
                ensure!(said["answers"] == json!([format!("{name} 5 IN A {given}")]), "{said}");
                Ok(())
            })
            .await?;
        }
        let status = found(&pair.east, IMPORTED, AGENT, HOST).await?.data["status"].clone();
        ensure!(status["addresses"] == json!([given]), "{status}");
        for other in ["other.shop.west.example.", "www.example.com."] {
            let said = ask(first, other).await?;
            ensure!(said["code"] == "NXDOMAIN" || said["code"] == "REFUSED", "{other}: {said}");
        }

        delete(&pair.west, SERVICE, Some("shop"), "cart").await?;
        let within = std::time::Duration::from_secs(5);
        for server in [first, second] {
            eventually("the name is gone", within, || async {
                let said = ask(server, &name).await?;
                ensure!(said["code"] == "NXDOMAIN" && said["answers"] == json!([]), "{said}");
                Ok(())
            })
            .await?;
        }
        ensure!(follower.stop().await? == 0, "{}", follower.process.log_tail());
        Ok(())
    });
}
