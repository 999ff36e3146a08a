//! Network namespaces, each with one address, joined by a switch in one more of them. They have no way out, nothing of
//! the machine's own network is touched, and they are gone with the processes that hold them.

use crate::process::{Process, Spec};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PREFIX: u8 = 16;
const HELD_DEADLINE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// The switch; see the module.
pub(crate) struct Network {
    holder: Process,
    dir: PathBuf,
    members: u32,
    /// In place of `/etc/resolv.conf`, for who joins from now on.
    resolution: Option<PathBuf>,
}

/// One namespace of a [`Network`]. Dropped, it is gone once nothing runs in it.
pub(crate) struct Member {
    holder: Process,
    address: Ipv4Addr,
    resolution: Option<PathBuf>,
}

/// Runs a program with a file of its own in place of `/etc/resolv.conf`.
const RESOLVING: &str = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";

/// See [`Member::redirect`].
const REDIRECT: &str = include_str!("redirect.py");
/// What a client sets on a connection that is to be redirected: a proxy's own are not.
pub(crate) const MARK: u32 = 7;

impl Network {
    /// Needs the right to make namespaces: root, or a kernel that gives every user that right.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let user: &[&str] =
            if std::fs::metadata("/proc/self")?.uid() == 0 { &[] } else { &["--user", "--map-root-user"] };
        let command = [user, &["--net", "sleep", "infinity"]].concat();
        let holder = hold(dir, "switch", "unshare", &command)?;
        for command in ["link set lo up", "link add br0 type bridge", "link set br0 up"] {
            ip(&holder, command)?;
        }
        Ok(Self { holder, dir: dir.to_owned(), members: 0, resolution: None })
    }

    /// Has the programs of all that join from now on ask for names at this address: the machine's own resolvers cannot be
    /// reached from inside.
    pub(crate) fn resolve_at(&mut self, address: Ipv4Addr) -> Result<()> {
        let file = self.dir.join("resolv.conf");
        std::fs::write(&file, format!("nameserver {address}\n"))?;
        self.resolution = Some(file);
        Ok(())
    }

    /// A namespace with this address on `eth0`, which reaches all the others.
    pub(crate) fn join(&mut self, address: Ipv4Addr) -> Result<Member> {
        self.members += 1;
        let port = format!("v{}", self.members);
        let user = user_namespace_of(self.pid()?)?;
        let args = [user, strings(&["unshare", "--net", "sleep", "infinity"])].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let holder = hold(&self.dir, &port, "nsenter", &args)?;
        let pid = holder.pid().context("a namespace has ended")?;
        // One address has one MAC, also in the namespace after: others remember it.
        let [a, b, c, d] = address.octets();
        let mac = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        ip(&self.holder, &format!("link add {port} type veth peer name eth0 address {mac} netns {pid}"))?;
        ip(&self.holder, &format!("link set {port} master br0 up"))?;
        ip(&holder, "link set lo up")?;
        ip(&holder, &format!("address add {address}/{PREFIX} dev eth0"))?;
        ip(&holder, "link set eth0 up")?;
        Ok(Member { holder, address, resolution: self.resolution.clone() })
    }

    fn pid(&self) -> Result<u32> {
        self.holder.pid().context("the switch has ended")
    }
}

impl Member {
    pub(crate) const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Has connections that are marked with [`MARK`] come to this port in place of where they go, wherever that is.
    pub(crate) fn redirect(&self, port: u16) -> Result<()> {
        ip(&self.holder, "route add default dev eth0")?;
        let args = ["-c", REDIRECT, &MARK.to_string(), &port.to_string()].map(str::to_owned);
        let (program, args) = self.inside(&which("python3")?, &args)?;
        let output = Command::new(program).args(args).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Has all addresses of a range be those of this namespace, so that what is bound to one of them is called there.
    pub(crate) fn own(&self, range: &str) -> Result<()> {
        ip(&self.holder, &format!("route add local {range} dev lo"))
    }

    /// The program and arguments by which a program runs inside.
    pub(crate) fn inside(&self, program: &Path, args: &[String]) -> Result<(PathBuf, Vec<OsString>)> {
        let mut all = entering(self.holder.pid().context("the namespace has ended")?)?;
        if let Some(file) = &self.resolution {
            all.extend(strings(&["unshare", "--mount", "sh", "-c", RESOLVING, "sh"]));
            all.push(file.display().to_string());
        }
        all.push(program.display().to_string());
        all.extend_from_slice(args);
        Ok((which("nsenter")?, all.into_iter().map(OsString::from).collect()))
    }
}

/// A process that does nothing but hold a namespace. What `unshare` and `nsenter` become has their process ID.
fn hold(dir: &Path, name: &str, program: &str, args: &[&str]) -> Result<Process> {
    let mut process = Process::new(Spec {
        name: format!("network namespace {name}"),
        program: which(program)?,
        args: args.iter().map(OsString::from).collect(),
        env: Vec::new(),
        dir: dir.to_owned(),
        log: dir.join(format!("namespace-{name}.log")),
    });
    process.start()?;
    let pid = process.pid().context("it has no process ID")?;
    let deadline = Instant::now() + HELD_DEADLINE;
    // The process is there before the namespace is; it becomes `sleep` after.
    while !std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep") {
        ensure!(process.is_running(), "a network namespace cannot be made: {}", process.log_tail());
        ensure!(Instant::now() < deadline, "{} is not there: {}", process.name(), process.log_tail());
        std::thread::sleep(LOOK);
    }
    Ok(process)
}

/// The arguments of nsenter by which one gets the rights over the namespaces of a process; none where root made them.
fn user_namespace_of(pid: u32) -> Result<Vec<String>> {
    let same =
        std::fs::read_link(format!("/proc/{pid}/ns/user"))? == std::fs::read_link("/proc/self/ns/user")?;
    if same {
        return Ok(Vec::new());
    }
    Ok(vec![format!("--user=/proc/{pid}/ns/user"), "--preserve-credentials".to_owned()])
}

fn entering(pid: u32) -> Result<Vec<String>> {
    let mut args = user_namespace_of(pid)?;
    args.push(format!("--net=/proc/{pid}/ns/net"));
    Ok(args)
}

fn ip(holder: &Process, command: &str) -> Result<()> {
    let pid = holder.pid().context("the namespace has ended")?;
    let output = Command::new("nsenter")
        .args(entering(pid)?)
        .arg("ip")
        .args(command.split(' '))
        .output()
        .context("running nsenter and ip: install util-linux and iproute2")?;
    ensure!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A program on PATH.
pub(crate) fn which(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not on PATH"))
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
