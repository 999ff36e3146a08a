//! The DNS server of an agent on a real API server, asked by a client that is not ours (dnspython).

use super::services::{HOST, exported};
use super::{
    Agents, IMPORTED, READY, SERVICE, SERVICE_ENTRY, SOON, both_ready, delete, found, gone, make_peers, quick,
};
use crate::agent::{Agent, AgentOptions};
use crate::ask::Client;
use crate::pair::with_pair;
use crate::ports;
use crate::world::AGENT_NAMESPACE;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const AGENT: Option<&str> = Some(AGENT_NAMESPACE);

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
