//! The steps of a rotation, each waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

use super::X509Args;
use super::report::{Outcome, Report, ServerReport};
use super::words;
use crate::cli::control::{ControlClient, Refusal, Unanswered};
use crate::cli::output::tell;
use crate::control::rotation::{AuthorityState, RotationState, ServerState, StepDone, StepRequest};

/// How often the agent is asked.
const LOOK: Duration = Duration::from_millis(500);
/// How many answers of the agent may not tell yet of what was just done.
const UNSEEN: u32 = 20;
/// How often a step is asked for that failed at SPIRE: preparing is not without effect each time.
const TRIES: u32 = 2;
/// How often a step is asked for that a server is not in the state for.
const LOOKS_AGAIN: u32 = 3;
/// How long the agent is given for the last look, after all is over.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// A rotation that runs.
pub(super) struct Rotation<'a> {
    args: &'a X509Args,
    client: ControlClient,
    state: RotationState,
    servers: BTreeMap<String, ServerReport>,
    /// What was said last of the progress.
    said: String,
}

impl<'a> Rotation<'a> {
    /// Nothing is done yet.
    ///
    /// # Errors
    /// Where it cannot be done as it was asked for.
    pub(super) fn new(
        args: &'a X509Args,
        client: ControlClient,
        state: RotationState,
    ) -> anyhow::Result<Self> {
        if let Some((words, true)) = words::unasked(args, &state)? {
            anyhow::bail!("{words}");
        }
        let mut servers = BTreeMap::new();
        for (name, server) in words::targets(args, &state)? {
            let replaced = if args.finish { &server.old } else { &server.active };
            let upstream = replaced.as_ref().and_then(|authority| authority.upstream.as_ref());
            if let Some(upstream) = upstream.filter(|_| args.taint || args.revoke) {
                anyhow::bail!(
                    "what the SPIRE server {name} signs with is signed by the upstream authority {upstream}: it is \
                     tainted and revoked there (spire-server upstreamauthority); rotate without --taint and --revoke"
                );
            }
            let report = ServerReport {
                replaced: replaced.as_ref().map(|authority| authority.id.clone()),
                left_out: words::out_of_reach(server),
                ..ServerReport::default()
            };
            servers.insert(name.to_owned(), report);
        }
        Ok(Self { args, client, state, servers, said: String::new() })
    }

    /// Takes every step. It can be dropped between any two: what is left is safe.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        tell(&format!("trust domain {}", self.state.trust_domain));
        for (name, report) in &self.servers {
            if let Some(why) = &report.left_out {
                tell(&format!("SPIRE server {name} is left out: {why}"));
            }
        }
        let names: Vec<String> =
            self.servers.iter().filter(|(_, s)| s.left_out.is_none()).map(|(n, _)| n.clone()).collect();
        anyhow::ensure!(!names.is_empty(), "no SPIRE server can be rotated now");
        if let Some(others) = words::of_no_server(&self.state) {
            tell(&others);
        }
        if let Some((ignored, _)) = words::unasked(self.args, &self.state)? {
            tell(&ignored);
        }
        if self.state.peers.is_empty() {
            tell(words::NO_PEERS);
        }
        if !self.args.finish {
            self.finish_earlier(&names).await?;
            for name in &names {
                self.prepare(name).await?;
            }
            self.wait_for_peers(&names).await?;
            for name in &names {
                self.activate(name).await?;
            }
        }
        self.finish(&names).await
    }

    /// Finishes what an earlier rotation replaced, as far as it is asked for: preparing another puts it out of SPIRE's
    /// reach.
    async fn finish_earlier(&mut self, names: &[String]) -> anyhow::Result<()> {
        let mut earlier = BTreeMap::new();
        for name in names {
            if let Some(id) = words::to_finish(self.args, self.server(name)?) {
                tell(&format!("SPIRE server {name}: {id}, of an earlier rotation, is finished first"));
                self.report_of(name)?.earlier = Some(id.clone());
                earlier.insert(name.clone(), id);
            }
        }
        for (name, id) in &earlier {
            self.taint(name, id).await?;
        }
        for (name, id) in earlier.iter().filter(|_| self.args.revoke) {
            self.revoke(name, id).await?;
        }
        for name in earlier.keys() {
            let mut unseen = 0;
            while unseen < UNSEEN {
                if self.seen().await? {
                    if words::to_finish(self.args, self.server(name)?).is_none() {
                        break;
                    }
                    unseen += 1;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Taints, or revokes, what was replaced, where that is asked for.
    async fn finish(&mut self, names: &[String]) -> anyhow::Result<()> {
        let mut replaced = Vec::new();
        for name in names.iter().filter(|_| self.args.taint || self.args.revoke) {
            replaced.extend(self.report_of(name)?.replaced.clone().map(|id| (name, id)));
        }
        for (name, id) in &replaced {
            self.report_of(name)?.tainted = self.taint(name, id).await?;
        }
        for (name, id) in replaced.iter().filter(|_| self.args.revoke) {
            self.report_of(name)?.revoked = self.revoke(name, id).await?;
        }
        Ok(())
    }

    /// What came of it, and how things are left.
    pub(super) async fn report(mut self, outcome: Outcome, cause: Option<String>) -> Report {
        // Where the agent does not answer, what it said last is the best that is known.
        let looked = tokio::time::timeout(LAST_LOOK, self.look()).await;
        let mut notes = words::left(self.args, &self.servers, &self.state);
        if !matches!(looked, Ok(Ok(()))) {
            notes.push("the agent does not answer any more: this is as it was last seen".to_owned());
        }
        Report { outcome, cause, servers: self.servers, notes, in_the_way: false, state: self.state }
    }

    async fn prepare(&mut self, name: &str) -> anyhow::Result<()> {
        let server = self.server(name)?;
        let taken = server.prepared.is_some();
        if let Some(lost) = words::unfinished(server) {
            tell(&format!("SPIRE server {name}: {}", words::lost(&lost)));
        }
        self.report_of(name)?.preparing = true;
        let done = self.step("prepare", name, String::new()).await?;
        self.report_of(name)?.preparing = false;
        let how = if taken { "was prepared already, and is taken" } else { "is prepared" };
        tell(&format!("SPIRE server {name}: authority {} {how}", done.authority));
        self.report_of(name)?.authority = Some(done.authority);
        Ok(())
    }

    /// Waits until every peer holds what every server has prepared.
    async fn wait_for_peers(&mut self, names: &[String]) -> anyhow::Result<()> {
        let mut unseen = 0;
        loop {
            let mut waits = Vec::new();
            let mut is_unseen = false;
            let looked = self.look().await;
            let has_looked = looked.is_ok();
            if let Err(error) = looked {
                waits.push(passing(error)?);
            }
            for name in names {
                let wanted = self.report_of(name)?.authority.clone().context("nothing was prepared")?;
                let server = self.server(name)?;
                let is = |slot: &Option<AuthorityState>| slot.as_ref().is_some_and(|a| a.id == wanted);
                match &server.prepared {
                    _ if is(&server.active) => {}
                    Some(prepared) if prepared.id == wanted => waits.extend(lacking(name, prepared)),
                    _ => {
                        is_unseen = true;
                        anyhow::ensure!(
                            unseen < UNSEEN || !has_looked,
                            "authority {wanted} is no longer prepared on the SPIRE server {name}: someone prepared \
                             another, or the server was restarted; run this again"
                        );
                        waits.push(format!("for the SPIRE server {name} to tell of authority {wanted}"));
                    }
                }
            }
            // An agent that did not answer has not told of anything.
            unseen = if is_unseen { unseen + u32::from(has_looked) } else { 0 };
            if waits.is_empty() {
                return Ok(());
            }
            self.say(&format!("waiting {}", waits.join("; ")));
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn activate(&mut self, name: &str) -> anyhow::Result<()> {
        let wanted = self.report_of(name)?.authority.clone().context("nothing was prepared")?;
        let active = self.server(name)?.active.as_ref().is_some_and(|active| active.id == wanted);
        if active {
            tell(&format!("SPIRE server {name}: SPIRE activated {wanted} by itself"));
        } else {
            self.step("activate", name, wanted.clone()).await?;
            tell(&format!("SPIRE server {name}: authority {wanted} signs from now on"));
        }
        self.report_of(name)?.activated = true;
        Ok(())
    }

    /// Taints the old authority; false where it is out of our bundle already.
    async fn taint(&mut self, name: &str, id: &str) -> anyhow::Result<bool> {
        let Some(old) = self.old(name, id).await? else { return Ok(false) };
        if !old.tainted {
            self.step("taint", name, old.id.clone()).await?;
            tell(&format!("SPIRE server {name}: {} is tainted, what it signed is replaced", old.id));
        }
        Ok(true)
    }

    /// Revokes the old authority; false where it is out of our bundle already.
    async fn revoke(&mut self, name: &str, id: &str) -> anyhow::Result<bool> {
        let Some(old) = self.old(name, id).await? else { return Ok(false) };
        self.step("revoke", name, old.id.clone()).await?;
        tell(&format!("SPIRE server {name}: {} is revoked", old.id));
        Ok(true)
    }

    /// The authority that was replaced, once the server tells of it in the slot of the old one; none where it is out of
    /// our bundle already.
    async fn old(&mut self, name: &str, replaced: &str) -> anyhow::Result<Option<AuthorityState>> {
        let mut unseen = 0;
        while unseen < UNSEEN {
            let has_looked = self.seen().await?;
            let old = self.server(name)?.old.clone().filter(|old| old.id == replaced);
            if let Some(old) = old {
                return Ok(Some(old).filter(|old| old.published));
            }
            unseen += u32::from(has_looked);
            tokio::time::sleep(LOOK).await;
        }
        anyhow::bail!(
            "the SPIRE server {name} no longer has {replaced} as its old authority: someone prepared another since; it \
             stays valid until it expires"
        )
    }

    /// Takes a step as soon as the agent allows it. Taken a second time after an answer that was lost, a step is done.
    async fn step(&mut self, step: &str, server: &str, authority: String) -> anyhow::Result<StepDone> {
        let ignore = self.args.ignore.iter().map(ToString::to_string).collect();
        let request = StepRequest { server: server.to_owned(), authority, ignore };
        let (mut changed, mut failed) = (0, 0);
        loop {
            let error = match self.client.post(&format!("/v1/rotation/{step}"), &request).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let refusal = error.downcast_ref::<Refusal>();
            let wait = if refusal.is_some_and(Refusal::is_changed) {
                changed += 1;
                if changed == LOOKS_AGAIN {
                    return Err(error.context(format!(
                        "the SPIRE server {server} is not as it was seen: look with --dry-run, and run this again"
                    )));
                }
                self.look().await.err().map(passing).transpose()?;
                format!("{error:#}")
            } else if refusal.map_or_else(|| step == "prepare" && is_lost(&error), Refusal::is_failure) {
                failed += 1;
                if failed == TRIES {
                    return Err(error);
                }
                format!("{error:#}")
            } else {
                passing(error)?
            };
            self.say(&format!("waiting to {step}: {wait}"));
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        self.state = self.client.get("/v1/rotation").await?;
        Ok(())
    }

    /// Looks; false where the agent cannot say now, which is told.
    async fn seen(&mut self) -> anyhow::Result<bool> {
        let Err(error) = self.look().await else { return Ok(true) };
        let wait = passing(error)?;
        self.say(&format!("waiting {wait}"));
        Ok(false)
    }

    fn server(&self, name: &str) -> anyhow::Result<&ServerState> {
        self.state.servers.get(name).with_context(|| {
            format!("the SPIRE server {name} is no longer addressed: its name resolves otherwise now")
        })
    }

    fn report_of(&mut self, name: &str) -> anyhow::Result<&mut ServerReport> {
        self.servers.get_mut(name).context("a server that was not asked for")
    }

    /// Tells of progress, once.
    fn say(&mut self, what: &str) {
        if self.said != what {
            tell(what);
            what.clone_into(&mut self.said);
        }
    }
}

fn lacking(server: &str, authority: &AuthorityState) -> Vec<String> {
    let wait = |(peer, why): (&String, &String)| format!("for {peer}: {why} (SPIRE server {server})");
    authority.lacking.iter().map(wait).collect()
}

/// Whether the agent may have got the request, and its answer did not come.
fn is_lost(error: &anyhow::Error) -> bool {
    error.is::<Unanswered>()
}

/// What is waited for after an answer that may be another one later; the error otherwise.
fn passing(error: anyhow::Error) -> anyhow::Result<String> {
    match error.downcast_ref::<Refusal>() {
        Some(refusal) if !refusal.may_pass() => Err(error),
        _ => Ok(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use clap::Parser as _;
    use http_body_util::Full;
    use hyper::body::{Bytes, Incoming};
    use hyper_util::rt::TokioIo;
    use serde_json::{Value, json};

    use super::*;

    const SERVER: &str = "unix:///s";

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: X509Args,
    }

    fn args(socket: &Path) -> X509Args {
        Cli::parse_from(["x509", "--control", socket.to_str().unwrap()]).args
    }

    /// An agent that answers what this says, by how often it was asked before.
    fn agent(socket: PathBuf, answer: impl Fn(usize) -> (u16, Value) + Copy + Send + Sync + 'static) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            let asked = std::sync::Arc::new(AtomicUsize::new(0));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let asked = std::sync::Arc::clone(&asked);
                let service = hyper::service::service_fn(move |_: http::Request<Incoming>| {
                    let (status, body) = answer(asked.fetch_add(1, Ordering::SeqCst));
                    let body = Full::<Bytes>::from(body.to_string());
                    std::future::ready(http::Response::builder().status(status).body(body))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    }

    fn authority(id: &str) -> Value {
        json!({ "id": id, "expiresAt": "2026-01-05T00:00:00Z", "published": true, "tainted": false, "lacking": {} })
    }

    fn state(prepared: Option<&str>, old: &str) -> Value {
        let server =
            json!({ "active": authority("aa"), "prepared": prepared.map(authority), "old": authority(old) });
        json!({ "trustDomain": "west.example", "servers": { SERVER: server }, "ofNoServer": [], "peers": {}, "unasked": {} })
    }

    fn rotation(args: &X509Args) -> Rotation<'_> {
        let before = serde_json::from_value(state(None, "0d")).unwrap();
        Rotation::new(args, args.control.client(), before).unwrap()
    }

    const AWAY: u16 = 503;

    /// As long as another replica is taking over, nothing is known of what was done.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_answer_has_not_told_that_something_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("old.sock");
        agent(socket.clone(), |asked| match asked {
            0..30 => (AWAY, json!({ "error": "not everything is read" })),
            _ => (200, state(None, "bb")),
        });
        let asking = args(&socket);
        let old = rotation(&asking).old(SERVER, "bb").await.unwrap();
        assert_eq!(old.map(|old| old.id).as_deref(), Some("bb"));

        let socket = folder.path().join("prepared.sock");
        agent(socket.clone(), |asked| match asked {
            0..30 => (AWAY, json!({ "error": "not everything is read" })),
            _ => (200, state(Some("bb"), "0d")),
        });
        let asking = args(&socket);
        let mut rotation = rotation(&asking);
        rotation.report_of(SERVER).unwrap().authority = Some("bb".to_owned());
        rotation.wait_for_peers(&[SERVER.to_owned()]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_without_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        agent(socket.clone(), |_| (200, state(None, "0d")));
        let args = args(&socket);
        let error = rotation(&args).old(SERVER, "bb").await.unwrap_err().to_string();
        assert!(error.contains("no longer has bb"), "{error}");
    }

    /// Preparing twice is not without effect; what never reached the agent had none.
    #[tokio::test(start_paused = true)]
    async fn a_step_that_nobody_heard_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let args = args(&socket);
        let mut rotation = rotation(&args);
        let later = async {
            tokio::time::sleep(LOOK * 10).await;
            agent(socket.clone(), |_| (200, json!({ "server": SERVER, "authority": "bb" })));
        };
        let (done, ()) = tokio::join!(rotation.step("prepare", SERVER, String::new()), later);
        assert_eq!(done.unwrap().authority, "bb");
    }
}
