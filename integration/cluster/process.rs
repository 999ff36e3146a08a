//! Programs run as children of the test process, and ended with it however it ends: see `supervise.py`.

use crate::tools::Tools;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a killed program may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How often an ending program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is needed to run a program, and to run it again.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// For messages.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// The whole environment of the program but for `PATH`, `GOGC` and `GOMAXPROCS`.
    pub(crate) env: Vec<(String, String)>,
    /// Its working directory.
    pub(crate) dir: PathBuf,
    /// Where its standard output and error go, appended over restarts.
    pub(crate) log: PathBuf,
}

/// A signal that a test may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Please end.
    Term,
    /// End at once.
    Kill,
    /// Stand still: connections stay open, nothing answers.
    Stop,
    /// Go on after `Stop`.
    Continue,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

/// A program that can be started, ended and started again. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    spec: Spec,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    supervisor: Child,
    control: Option<ChildStdin>,
    pid: u32,
}

impl Running {
    /// Waits until the program is seen to have stopped, where that can be seen: it answers until the signal has reached it.
    fn stands_still(&self) {
        let deadline = Instant::now() + KILL_DEADLINE;
        while Instant::now() < deadline {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            // The state comes after the name, which is in parentheses.
            if status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T')) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Process {
    /// A program that does not run yet.
    pub(crate) const fn new(spec: Spec) -> Self {
        Self { spec, running: None }
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Replaces the arguments, for the next start.
    pub(crate) fn set_args(&mut self, args: Vec<OsString>) {
        self.spec.args = args;
    }

    /// Starts the program; returns before it is ready. Nothing is done if it runs already.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let spec = &self.spec;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/cluster/supervise.py");
        let mut supervisor = Command::new(Tools::get()?.program("python3")?)
            // Nothing beyond the standard library, which is found at once so.
            .args(["-I", "-S"])
            .arg(script)
            .arg(&spec.log)
            .arg(&spec.program)
            .args(&spec.args)
            .current_dir(&spec.dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Go collects garbage a fourth as often: memory is at hand, the processor is what tests share.
            .env("GOGC", "400")
            // One thread for each program in Go: their threads that look for work cost more than what they find.
            .env("GOMAXPROCS", "1")
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting Python to supervise {}", spec.name))?;
        let control = supervisor.stdin.take();
        let mut line = String::new();
        let output = supervisor.stdout.take().context("the supervisor has no standard output")?;
        BufReader::new(output).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .with_context(|| format!("{} did not start: {}", spec.name, spec.program.display()))?;
        self.running = Some(Running { supervisor, control, pid });
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.exit_code().is_none() && self.running.is_some()
    }

    /// The process ID of the program, for what is read from `/proc`.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// The exit code of a program that has ended by itself or by a signal (128 and its number).
    fn exit_code(&mut self) -> Option<i32> {
        let status = self.running.as_mut()?.supervisor.try_wait().ok()??;
        Some(status.code().unwrap_or(-1))
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        let name = self.spec.name.clone();
        let running = self.running.as_mut().with_context(|| format!("{name} does not run"))?;
        let control = running.control.as_mut().with_context(|| format!("{name} is being ended"))?;
        writeln!(control, "{}", signal.name())?;
        control.flush().with_context(|| format!("signalling {name}"))?;
        if signal == Signal::Stop {
            running.stands_still();
        }
        Ok(())
    }

    /// Asks the program to end; its exit code. An error if it has not ended in `within`: it is killed then.
    pub(crate) async fn stop(&mut self, within: Duration) -> Result<i32> {
        if !self.is_running() {
            bail!("{} does not run: {}", self.spec.name, self.log_tail());
        }
        self.signal(Signal::Term)?;
        match self.ended(within).await {
            Some(code) => Ok(code),
            None => {
                self.kill().await?;
                bail!("{} did not end within {within:?} of SIGTERM: {}", self.spec.name, self.log_tail())
            }
        }
    }

    /// Kills the program and waits until it is gone. Nothing is done if it does not run.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if !self.is_running() {
            self.running = None;
            return Ok(());
        }
        self.signal(Signal::Kill)?;
        match self.ended(KILL_DEADLINE).await {
            Some(_) => Ok(()),
            None => bail!("{} is still there {KILL_DEADLINE:?} after SIGKILL", self.spec.name),
        }
    }

    /// Waits until the program has ended by itself; its exit code, or None if it still runs after `within`.
    pub(crate) async fn ended(&mut self, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(code) = self.exit_code() {
                self.running = None;
                return Some(code);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// All that the program has written, over all its starts.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.spec.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the log, for messages.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        format!("last lines of {}:\n{tail}", self.spec.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.control.take());
            let deadline = Instant::now() + KILL_DEADLINE;
            while Instant::now() < deadline && matches!(running.supervisor.try_wait(), Ok(None)) {
                std::thread::sleep(LOOK);
            }
        }
    }
}
