//! `entente rotate x509`, on embedded authorities: what it refuses, what it leaves when it is broken off, and a rotation.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;
use entente::devkit::demo::Domain;
use entente::devkit::{Authority, Fault, Settings};
use entente::model::trust::SpireAction;
use entente::spire::SpireServer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::world::{EAST, Pair, says, td, until};

fn command(domain: &Domain, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_entente"));
    command.args(["rotate", "x509", "-o", "json"]).args(args);
    command.env("ENTENTE_CONTROL", domain.control_socket());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn rotate(domain: &Domain, args: &[&str]) -> (Output, Value) {
    let mut command = command(domain, args);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let report = serde_json::from_slice(&done.stdout).unwrap_or_default();
    (done, report)
}

/// `POST` to the control socket, without the command around it; the status line and the body.
async fn post(domain: &Domain, path: &str, body: &Value) -> (String, String) {
    let mut stream = UnixStream::connect(domain.control_socket()).await.unwrap();
    let body = body.to_string();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-type: application/json");
    stream
        .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn server(domain: &Domain) -> String {
    format!("unix://{}", domain.spire().server_socket.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_held_up_broken_off_taken_up_again_and_finished() {
    let pair = Pair::serving().await;
    let west = &pair.west;
    says(west, "RotationSafe", "True", "PeersHoldAuthorities").await;
    let first = west.spire().slots().active;
    // East cannot fetch west's bundle any more.
    west.spire().set_fault(Some(Fault::Hangup));

    let mut running = command(west, &["--timeout", "1m"]).spawn().unwrap();
    let prepared = until("the next authority is prepared", async || {
        west.spire().slots().prepared.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await;
    let step = |authority: &str| json!({ "server": server(west), "authority": authority });
    until("west knows of it, and refuses to activate it", async || {
        let (status, body) = post(west, "/v1/rotation/activate", &step(prepared.as_str())).await;
        ensure!(
            status.contains("409") && body.contains(EAST) && body.contains(prepared.as_str()),
            "{status} {body}"
        );
        Ok(())
    })
    .await;
    let (status, body) = post(west, "/v1/rotation/activate", &step("00ff")).await;
    assert!(status.contains("412") && body.contains("look again"), "{status} {body}");
    let (status, body) = post(west, "/v1/rotation/activate", &step("nothing")).await;
    assert!(status.contains("400"), "{status} {body}");
    let interrupted = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(interrupted.success() && !running.wait().unwrap().success());
    let left: Value = serde_json::from_reader(running.stdout.take().unwrap()).unwrap();
    assert_eq!(left["outcome"], "interrupted");
    let note = left["notes"][0].as_str().unwrap();
    assert!(
        note.contains(prepared.as_str()) && note.contains("stays prepared") && note.contains(EAST),
        "{note}"
    );
    assert_eq!(west.spire().slots().active, first);

    west.spire().set_fault(None);
    let (done, report) = rotate(west, &["--taint", "--timeout", "1m"]).await;
    assert!(done.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(west.spire().slots().active, prepared, "what was prepared is taken");
    assert_eq!(report["servers"][server(west)]["tainted"], true);
    // Who did not hear of it asks again, and is told that it is done.
    for (path, authority) in [("activate", &prepared), ("taint", &first)] {
        let (status, body) = post(west, &format!("/v1/rotation/{path}"), &step(authority.as_str())).await;
        assert!(status.contains("200"), "{path}: {status} {body}");
    }
    // The old one is finished later, without another rotation.
    let (status, body) = post(west, "/v1/rotation/revoke", &step(first.as_str())).await;
    assert!(status.contains("409") && body.contains("it may be revoked from"), "{status} {body}");
    let (done, report) = rotate(west, &["--finish", "--revoke", "--timeout", "1m"]).await;
    assert!(done.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(west.spire().bundle().authority_ids(), [prepared.clone()].into());
    assert_eq!(west.spire().slots().active, prepared);
    let (status, body) = post(west, "/v1/rotation/revoke", &step(first.as_str())).await;
    assert!(status.contains("200"), "revoked already: {status} {body}");
    pair.confirmed().await;
    pair.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_rotation_replaced_is_finished_before_it_is_out_of_reach() {
    let pair = Pair::peers().await;
    let west = &pair.west;
    let (done, report) = rotate(west, &["--timeout", "1m"]).await;
    assert!(done.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&done.stderr));
    let earlier = west.spire().slots().old.unwrap();
    let (done, report) = rotate(west, &["--revoke", "--timeout", "2m"]).await;
    let progress = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{report:#}\n{progress}");
    assert_eq!(report["servers"][server(west)]["earlier"], earlier.as_str());
    let active = west.spire().slots().active;
    assert_eq!(west.spire().bundle().authority_ids(), [active].into(), "it was lost: {progress}");
    assert!(!progress.contains("can no longer"), "nothing is lost: {progress}");
    // One that asks for neither is told, and what for.
    let (done, _) = rotate(west, &["--timeout", "1m"]).await;
    assert!(done.status.success() && !String::from_utf8_lossy(&done.stderr).contains("can no longer"));
    let (done, _) = rotate(west, &["--timeout", "1m"]).await;
    let progress = String::from_utf8_lossy(&done.stderr);
    let lost = progress.find("can no longer taint or revoke").unwrap();
    assert!(done.status.success() && lost < progress.find("is prepared").unwrap(), "{progress}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_asked_holds_it_up_unless_ignored() {
    let pair = Pair::peers().await;
    let west = &pair.west;
    let api = SpireServer::connect_unix(&west.spire().server_socket);
    let north = Authority::new(td("north.example"), Settings::new(entente::clock::now())).unwrap();
    api.act(west.trust_domain(), &SpireAction::SetBundle(north.bundle().clone())).await.unwrap();
    until("west's agent sees it", async || {
        let (done, report) = rotate(west, &["--dry-run"]).await;
        ensure!(done.status.code() == Some(1) && report["inTheWay"] == true, "{report:#}");
        ensure!(report["state"]["unasked"]["north.example"] == "a bundle is stored", "{report:#}");
        Ok(())
    })
    .await;
    let (done, _) = rotate(west, &["--timeout", "1m"]).await;
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.code() == Some(1) && said.contains("north.example") && said.contains("--ignore"),
        "{said}"
    );
    assert_eq!(west.spire().slots().prepared, None, "SPIRE would activate it by itself");
    // Not past the command either.
    let prepared = west.spire().prepare().unwrap();
    let step = |ignore: &[&str]| json!({ "server": server(west), "authority": prepared, "ignore": ignore });
    let (status, body) = post(west, "/v1/rotation/activate", &step(&[])).await;
    assert!(status.contains("403") && body.contains("north.example"), "{status} {body}");
    let (status, body) = post(west, "/v1/rotation/activate", &step(&["North!"])).await;
    assert!(status.contains("400"), "{status} {body}");
    let (done, _) = rotate(west, &["--ignore", EAST, "--ignore", "north.example"]).await;
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && said.contains("spec.suspend"), "{said}");
    let (done, report) = rotate(west, &["--ignore", "north.example", "--timeout", "1m"]).await;
    assert!(done.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(west.spire().slots().active, prepared);
}

/// As where an upstream authority has a part in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preparing_may_take_long_outlives_its_asker_and_is_tried_twice() {
    let pair = Pair::strangers().await;
    let west = &pair.west;
    until("west's agent knows its SPIRE server", async || {
        let (done, report) = rotate(west, &["--dry-run"]).await;
        ensure!(done.status.success(), "{report:#}");
        Ok(())
    })
    .await;
    west.spire().set_preparing(Duration::ZERO, true);
    let (done, report) = rotate(west, &["--timeout", "1m"]).await;
    assert!(!done.status.success() && report["outcome"] == "failed", "{report:#}");
    assert!(report["cause"].as_str().unwrap().contains("upstream authority is away"), "{report:#}");
    assert_eq!(west.spire().preparations(), 2);

    west.spire().set_preparing(Duration::from_secs(8), false);
    let mut running = command(west, &["--timeout", "1m"]).spawn().unwrap();
    until("preparing has begun", async || {
        ensure!(west.spire().preparations() == 3);
        Ok(())
    })
    .await;
    running.kill().unwrap();
    running.wait().unwrap();
    let prepared = until("it is prepared all the same", async || {
        west.spire().slots().prepared.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await;
    let (done, report) = rotate(west, &["--timeout", "1m"]).await;
    assert!(done.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(west.spire().slots().active, prepared);
    assert_eq!(west.spire().preparations(), 3, "it was prepared again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_peers_it_waits_for_its_own_agents_alone_and_says_so() {
    let follow = Duration::from_secs(4);
    let pair = Pair::with(|config| config.timing.agent_follow_seconds = follow.as_secs()).await;
    let before = pair.west.spire().slots().active;
    until("west's agent knows its SPIRE server", async || {
        let (done, report) = rotate(&pair.west, &["--dry-run"]).await;
        ensure!(done.status.success(), "{report:#} {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    })
    .await;
    assert_eq!(pair.west.spire().slots().prepared, None, "a dry run changes nothing");
    let began = Instant::now();
    let (done, report) = rotate(&pair.west, &[]).await;
    assert!(began.elapsed() > follow, "activated before its own agents had time to follow: {report:#}");
    let progress = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{report:#}\n{progress}");
    assert!(progress.contains("there are no peers"), "{progress}");
    assert!(progress.contains("may be activated from"), "{progress}");
    assert_ne!(pair.west.spire().slots().active, before);
    let (done, _) = rotate(&pair.west, &["--server", "unix:///elsewhere.sock"]).await;
    assert_eq!(done.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&done.stderr).contains(&server(&pair.west)),
        "it names those that are there"
    );
}
