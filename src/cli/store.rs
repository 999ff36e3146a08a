//! Where a command finds objects: the flags that every such command has, and reading what they name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::mpsc;

use super::exit::NotAsked;
use super::output::noticed;
use crate::causes::chain;
use crate::config::StoreArg;
use crate::model::object::Kind;
use crate::model::{Object, ObjectKey};
use crate::store::{
    DirectoryStore, DirectoryTimings, Event, KubernetesStore, Store, StoreError, Unreadable, directory,
};

/// How long a store is given to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(8);

/// The heading of these flags in the help.
pub(super) const WHICH: &str = "Which cluster, agent or directory";

/// Which cluster, as kubectl's own flags have it.
#[derive(Args, Clone, Debug)]
pub(super) struct ClusterFlags {
    /// The kubeconfig; by default what KUBECONFIG names, else `~/.kube/config`, else the cluster that this runs in. Given, it counts
    /// more than ENTENTE_STORE and ENTENTE_CONTROL.
    #[arg(long, value_name = "FILE", help_heading = WHICH)]
    pub(super) kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig; by default its current one. Given, it counts more than ENTENTE_STORE and ENTENTE_CONTROL.
    #[arg(long, value_name = "NAME", help_heading = WHICH)]
    pub(super) context: Option<String>,

    /// The agent's namespace.
    #[arg(short, long, env = "ENTENTE_NAMESPACE", default_value = "entente-system", help_heading = WHICH)]
    pub(super) namespace: String,

    /// What the agent marks as its own, as its own option says.
    #[arg(long, env = "ENTENTE_INSTANCE", default_value = "entente", help_heading = WHICH)]
    pub(super) instance: String,
}

impl ClusterFlags {
    /// Whether a cluster is named on the command line.
    pub(super) const fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// A client of the cluster; nothing is asked yet.
    ///
    /// # Errors
    /// [`NotAsked`] where no cluster is named anywhere, or what is named is not there.
    pub(super) async fn client(&self) -> anyhow::Result<kube::Client> {
        Ok(self.connect().await?.0)
    }

    /// As [`Self::client`], with where the API server is.
    async fn connect(&self) -> anyhow::Result<(kube::Client, String)> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Some(Kubeconfig::read_from(path).map_err(|error| {
                NotAsked(format!("the kubeconfig {} cannot be used: {}", path.display(), chain(&error)))
            })?),
            None if self.context.is_some() => Some(Kubeconfig::read().map_err(|error| no_cluster(&error))?),
            None => None,
        };
        let mut config = match kubeconfig {
            Some(kubeconfig) => {
                let contexts: Vec<String> = kubeconfig.contexts.iter().map(|c| c.name.clone()).collect();
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| {
                    NotAsked(format!("{}; the contexts there are: {}", chain(&error), contexts.join(", ")))
                })?
            }
            // Of its two causes, that there is no kubeconfig is what an operator can mend.
            None => kube::Config::infer().await.map_err(|error| match Kubeconfig::read() {
                Err(cause) => no_cluster(&cause),
                Ok(_) => no_cluster(&error),
            })?,
        };
        config.connect_timeout = Some(CONNECT);
        let server = config.cluster_url.to_string();
        let client = kube::Client::try_from(config);
        let client =
            client.with_context(|| format!("the client of the API server at {server} cannot be made"));
        Ok((client?, server))
    }
}

/// The flags of [`ClusterFlags`] and the agent's socket by their ids, which [`before_the_command`] repeats.
const WHOM: [&str; 5] = ["kubeconfig", "context", "namespace", "instance", CONTROL];
const CONTROL: &str = "control";

/// Takes the flags that say whom to ask before the command too, where users of kubectl type them. Only commands that have them say
/// so in their help; they have no defaults here, so what is not given is left to the command's own.
pub(super) fn before_the_command(command: Command) -> Command {
    let texts = ["context", "namespace", "instance"];
    let flag = |id: &'static str| Arg::new(id).long(id).global(true).hide(true).num_args(1);
    let paths = ["kubeconfig", CONTROL];
    let command = command.args(paths.map(|id| flag(id).value_parser(clap::value_parser!(PathBuf))));
    command.args(texts.map(|id| {
        let flag = flag(id).value_parser(clap::value_parser!(String));
        if id == "namespace" { flag.short('n') } else { flag }
    }))
}

/// Refuses a flag of a cluster or an agent that was given to a command that asks none, or beside one that names something else to
/// ask; and an argument before a command within another (`invite --ttl 1h list`) that would not get there.
///
/// # Errors
/// That of an argument that is not expected, or of two that conflict.
pub(super) fn refuse_unused(root: &Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let (mut command, mut matches) = (root, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(next) = command.find_subcommand(name) else { break };
        refuse_before(command, matches, name)?;
        (command, matches) = (next, inner);
    }
    // A flag that the command defines itself is shown in its help.
    let is_own = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id && !arg.is_hide_set());
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let Some(unused) = WHOM.into_iter().find(|id| given(id) && !is_own(id)) else {
        return refuse_two(command, matches);
    };
    let whom = if unused == CONTROL { "agent" } else { "cluster" };
    let message = format!("unexpected argument '--{unused}': `{}` asks no {whom}\n", command.get_name());
    Err(clap::Error::raw(ErrorKind::UnknownArgument, message).with_cmd(command))
}

/// Refuses an argument of a command that was given before one within it, which goes without: only what is global, and who is
/// asked, is passed on.
fn refuse_before(command: &Command, matches: &ArgMatches, name: &str) -> Result<(), clap::Error> {
    let is_lost = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        !arg.is_global_set()
            && !WHOM.contains(&id)
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let Some(lost) = command.get_arguments().find(is_lost) else { return Ok(()) };
    let message = format!("the subcommand '{name}' cannot be used with '{lost}' before it\n");
    Err(clap::Error::raw(ErrorKind::ArgumentConflict, message).with_cmd(command))
}

/// Refuses a cluster and a socket, or a directory, that were both named on the command line.
fn refuse_two(command: &Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let given = |id: &str| {
        command.get_arguments().any(|arg| arg.get_id() == id)
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let is_directory = given("store")
        && matches.get_one::<StoreArg>("store").is_some_and(|store| *store != StoreArg::Kubernetes);
    let cluster = ["context", "kubeconfig"].into_iter().find(|id| given(id));
    let other = if is_directory { Some("store dir:PATH") } else { given(CONTROL).then_some(CONTROL) };
    let (Some(cluster), Some(other)) = (cluster, other) else { return Ok(()) };
    let message =
        format!("the argument '--{cluster}' cannot be used with '--{other}': each says whom to ask\n");
    Err(clap::Error::raw(ErrorKind::ArgumentConflict, message).with_cmd(command))
}

fn no_cluster(error: &dyn std::error::Error) -> NotAsked {
    NotAsked(format!(
        "no cluster is found: {}; set KUBECONFIG, or give --kubeconfig (without Kubernetes: --store dir:PATH)",
        chain(error)
    ))
}

/// Where objects are.
#[derive(Args, Clone, Debug)]
pub(super) struct StoreFlags {
    /// Where objects are: `kubernetes` (by kubeconfig, as kubectl finds it), or `dir:PATH`.
    #[arg(long, env = "ENTENTE_STORE", default_value = "kubernetes", help_heading = WHICH)]
    store: StoreArg,

    #[command(flatten)]
    pub(super) cluster: ClusterFlags,
}

/// Objects by kind and name.
pub(super) type Objects = BTreeMap<ObjectKey, Object>;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Read {
    pub(super) objects: Objects,
    /// Manifests of a directory that are not used, with the reason.
    pub(super) unreadable: Vec<Unreadable>,
}

impl StoreFlags {
    /// Where they are. A cluster that is named on the command line counts more than the environment; beside a flag it was refused.
    pub(super) const fn store(&self) -> &StoreArg {
        if self.cluster.is_named() { &StoreArg::Kubernetes } else { &self.store }
    }

    /// Opens it; nothing is read yet.
    ///
    /// # Errors
    /// [`NotAsked`] where there is no cluster.
    pub(super) async fn open(&self) -> anyhow::Result<Store> {
        Ok(self.open_at().await?.0)
    }

    /// As [`Self::open`], with where that is.
    async fn open_at(&self) -> anyhow::Result<(Store, String)> {
        Ok(match self.store() {
            StoreArg::Kubernetes => {
                let (client, server) = self.cluster.connect().await?;
                let ClusterFlags { namespace, instance, .. } = &self.cluster;
                let store = KubernetesStore::new(client, namespace, instance);
                (Store::Kubernetes(store), format!("the API server at {server}"))
            }
            StoreArg::Directory(path) => {
                let is_folder = std::fs::metadata(path).is_ok_and(|there| there.is_dir());
                if !is_folder {
                    return Err(NotAsked(format!("{} is no folder that can be read", path.display())).into());
                }
                let store = DirectoryStore::open_read_only(path, DirectoryTimings::default());
                (Store::Directory(store), path.display().to_string())
            }
        })
    }

    /// Reads every object of these kinds, as they are now.
    ///
    /// # Errors
    /// [`NotAsked`] where the store does not answer, does not serve one of them, or does not let us.
    pub(super) async fn read(&self, kinds: &[Kind]) -> anyhow::Result<Read> {
        let (store, at) = self.open_at().await?;
        let reading = tokio::time::timeout(PATIENCE, read(&store, kinds, &at));
        let read = noticed(|| format!("waiting for {at}"), reading).await;
        let read =
            read.map_err(|_| NotAsked(format!("{at} gave no answer within {} s", PATIENCE.as_secs())))??;
        if let StoreArg::Directory(root) = self.store() {
            denied(root, &read.unreadable, is_denied)?;
        }
        Ok(read)
    }
}

/// Whether we may not open this.
fn is_denied(path: &Path) -> bool {
    let opened = std::fs::File::open(path);
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Without the agent's records nothing is known of how things are.
fn denied(root: &Path, unreadable: &[Unreadable], is_denied: impl Fn(&Path) -> bool) -> Result<(), NotAsked> {
    let record = |unread: &&Unreadable| directory::is_record(root, &unread.path) && is_denied(&unread.path);
    unreadable.iter().find(record).map_or(Ok(()), |unread| {
        Err(NotAsked(format!(
            "{}: {}: what the agent knows of each object is for its own user; run this as that one, as by `sudo -u entente`",
            unread.path.display(),
            unread.message
        )))
    })
}

async fn read(store: &Store, kinds: &[Kind], at: &str) -> anyhow::Result<Read> {
    if let Store::Kubernetes(cluster) = store {
        let lists = futures::future::join_all(kinds.iter().map(|kind| cluster.list(*kind))).await;
        let mut read = Read::default();
        for list in lists {
            let list = list.map_err(|error| unread(&error, at))?;
            read.objects.extend(list.into_iter().map(|object| (object.key.clone(), object)));
        }
        return Ok(read);
    }
    let mut state = Following::new(store, kinds);
    while !state.is_whole() {
        state.next().await?;
    }
    Ok(state.read)
}

fn unread(error: &StoreError, at: &str) -> NotAsked {
    NotAsked(match error {
        StoreError::Absent { kind } => format!(
            "{at} does not know the kind {kind}: is this the cluster that you mean? Entente's own kinds are \
             installed by `entente crds | kubectl apply --server-side -f -`"
        ),
        StoreError::Forbidden { verb, object, message } => {
            format!("you may not {verb} {object}: {message}; ask for a ClusterRole that grants it")
        }
        other => format!("{at}: {other}"),
    })
}

/// A store that is followed.
#[derive(Debug)]
pub(super) struct Following {
    events: mpsc::Receiver<Event>,
    missing: BTreeSet<Kind>,
    pub(super) read: Read,
}

impl Following {
    /// Begins; nothing is read yet.
    pub(super) fn new(store: &Store, kinds: &[Kind]) -> Self {
        Self { events: store.watch(kinds), missing: kinds.iter().copied().collect(), read: Read::default() }
    }

    /// Whether every kind has been read.
    pub(super) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    /// Waits for the next change, and takes what has come with it. It can be dropped without loss.
    ///
    /// # Errors
    /// Where the store ended, or does not serve one of the kinds.
    pub(super) async fn next(&mut self) -> anyhow::Result<()> {
        let mut event = Some(self.events.recv().await.context("the store ended")?);
        while let Some(now) = event {
            self.take(now)?;
            event = self.events.try_recv().ok();
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Reset { kind, objects } => {
                self.missing.remove(&kind);
                self.read.objects.retain(|key, _| key.kind != kind);
                self.read.objects.extend(objects.into_iter().map(|object| (object.key.clone(), object)));
            }
            Event::Applied(object) => {
                self.read.objects.insert(object.key.clone(), object);
            }
            Event::Deleted(key) => {
                self.read.objects.remove(&key);
            }
            Event::Unreadable(unreadable) => self.read.unreadable = unreadable,
            Event::Absent(kind) => return Err(unread(&StoreError::Absent { kind }, "the API server").into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(kubeconfig: Option<PathBuf>, context: Option<&str>) -> ClusterFlags {
        ClusterFlags {
            kubeconfig,
            context: context.map(str::to_owned),
            namespace: "entente-system".to_owned(),
            instance: "entente".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_context_that_is_not_there_is_answered_with_those_that_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "east", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        let error = flags(Some(path.clone()), Some("west")).client().await.map(drop).unwrap_err();
        assert!(error.is::<NotAsked>(), "{error:#}");
        assert!(error.to_string().contains("west") && error.to_string().contains("east"), "{error:#}");
        assert!(flags(Some(path), Some("east")).client().await.is_ok());
        let gone = flags(Some(folder.path().join("none")), None).client().await.map(drop).unwrap_err();
        assert!(gone.is::<NotAsked>() && gone.to_string().contains("none"), "{gone:#}");
    }

    #[test]
    fn a_cluster_on_the_command_line_counts_more_than_a_directory_of_the_environment() {
        let store = StoreArg::Directory("/etc/entente".into());
        let at = |cluster| StoreFlags { store: store.clone(), cluster };
        assert_eq!(*at(flags(None, Some("east"))).store(), StoreArg::Kubernetes);
        assert_eq!(*at(flags(None, None)).store(), store);
    }

    #[test]
    fn records_of_another_user_are_not_taken_for_none() {
        let unread = |path: &str| Unreadable {
            path: path.into(),
            message: "Permission denied (os error 13)".to_owned(),
            key: None,
        };
        let root = Path::new("/etc/entente");
        let all = [unread("/etc/entente/manifests/west.yaml"), unread("/etc/entente/status")];
        let error = denied(root, &all, |_| true).unwrap_err().to_string();
        assert!(error.starts_with("/etc/entente/status: Permission denied"), "{error}");
        // One that is broken, or a manifest, is told of with the rest.
        assert!(denied(root, &all, |_| false).is_ok() && denied(root, &all[..1], |_| true).is_ok());
    }

    #[tokio::test]
    async fn an_api_server_that_is_not_there_is_said_to_be_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "east",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "east", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        let store = StoreFlags { store: StoreArg::Kubernetes, cluster: flags(Some(path), None) };
        let error = store.read(&[Kind::TrustDomainPeer]).await.unwrap_err();
        assert!(error.is::<NotAsked>(), "{error:#}");
        assert!(
            error.to_string().contains("127.0.0.1:1") && error.to_string().contains("refused"),
            "{error:#}"
        );
    }
}
