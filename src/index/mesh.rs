//! Follows what is known of our own mesh: its configuration, its istiods, and how SPIRE's agents name bundles to its
//! proxies. None of it has to be there, or to be readable: what keeps it from being read is said.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::parse;
use crate::model::Object;
use crate::model::mesh::{Mesh, Seen};
use crate::model::object::Kind;
use crate::model::world::Settings;
use crate::store::{Selected, Selection, Store};

/// The ConfigMap of SPIRE's agents, in whatever namespace they are: so SPIRE's own examples and its Helm chart name it.
const SPIRE_AGENT: &str = "spire-agent";
/// The revision's label of istiods without one.
const NO_REVISION: &str = "default";

/// Follows the mesh of the store's cluster until `cancel`; where there is no cluster, or no Istio in it, there is nothing to
/// follow.
pub async fn follow(
    store: Store,
    settings: Arc<Settings>,
    found: watch::Sender<Option<Arc<Mesh>>>,
    cancel: CancellationToken,
) {
    if !settings.istio {
        cancel.cancelled().await;
        return;
    }
    let selections =
        [mesh_config(&settings), istiods(&settings), spire_agents()].map(|one| store.select(one));
    let [Some(mut configs), Some(mut istiods), Some(mut agents)] = selections else {
        cancel.cancelled().await;
        return;
    };
    let mut mesh = Mesh::default();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(known) = configs.recv() => {
                let selected = latest(&mut configs, known);
                mesh.config = one_config(selected, &mesh_config(&settings));
            }
            Some(known) = istiods.recv() => {
                let selected = latest(&mut istiods, known);
                mesh.control_planes =
                    all(selected, "deployments", |objects| objects.iter().map(parse::mesh::control_plane).collect());
            }
            Some(known) = agents.recv() => {
                let selected = latest(&mut agents, known);
                mesh.spire_agents =
                    all(selected, "configmaps", |objects| objects.iter().filter_map(parse::mesh::sds_names).collect());
            }
            else => return,
        }
        let now = Some(Arc::new(mesh.clone()));
        found.send_if_modified(|last| {
            let changed = *last != now;
            *last = now;
            changed
        });
    }
}

/// Which ConfigMap has the mesh configuration, as istiod itself finds it.
fn mesh_config(settings: &Settings) -> Selection {
    let name = match settings.istio_revision.as_str() {
        "" | NO_REVISION => "istio".to_owned(),
        revision => format!("istio-{revision}"),
    };
    Selection {
        kind: Kind::ConfigMap,
        namespace: Some(settings.istio_namespace.clone()),
        name: Some(name),
        labels: String::new(),
    }
}

fn istiods(settings: &Settings) -> Selection {
    let revision = Some(settings.istio_revision.as_str()).filter(|revision| !revision.is_empty());
    Selection {
        kind: Kind::Deployment,
        namespace: Some(settings.istio_namespace.clone()),
        name: None,
        labels: format!("app=istiod,istio.io/rev={}", revision.unwrap_or(NO_REVISION)),
    }
}

fn spire_agents() -> Selection {
    Selection {
        kind: Kind::ConfigMap,
        namespace: None,
        name: Some(SPIRE_AGENT.to_owned()),
        labels: String::new(),
    }
}

/// The last word: those before it are past.
fn latest(more: &mut mpsc::Receiver<Selected>, mut known: Selected) -> Selected {
    while let Ok(later) = more.try_recv() {
        known = later;
    }
    known
}

fn one_config(selected: Selected, from: &Selection) -> Seen<crate::model::mesh::MeshConfig> {
    match selected {
        Selected::Objects(objects) => match objects.first().map(parse::mesh::config) {
            None => Seen::Absent,
            Some(Ok(config)) => Seen::There(config),
            Some(Err(problem)) => Seen::Unreadable(problem),
        },
        Selected::Refused(cause) => Seen::Unreadable(format!(
            "ConfigMap {}/{} cannot be read ({cause}): let the agent get, list and watch configmaps there",
            from.namespace.as_deref().unwrap_or_default(),
            from.name.as_deref().unwrap_or_default(),
        )),
    }
}

fn all<T>(selected: Selected, plural: &str, read: impl FnOnce(&[Object]) -> Vec<T>) -> Seen<Vec<T>> {
    match selected {
        Selected::Objects(objects) => match read(&objects) {
            read if read.is_empty() => Seen::Absent,
            read => Seen::There(read),
        },
        Selected::Refused(cause) => {
            Seen::Unreadable(format!("{cause}: let the agent get, list and watch {plural} there"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::world::Settings;

    #[test]
    fn the_configuration_is_that_of_the_revision() {
        for (revision, config, label) in [
            ("", "istio", "app=istiod,istio.io/rev=default"),
            ("default", "istio", "app=istiod,istio.io/rev=default"),
            ("1-30", "istio-1-30", "app=istiod,istio.io/rev=1-30"),
        ] {
            let settings = Settings { istio_revision: revision.to_owned(), ..Settings::standard() };
            assert_eq!(mesh_config(&settings).name.as_deref(), Some(config));
            assert_eq!(istiods(&settings).labels, label);
        }
    }

    #[test]
    fn what_may_not_be_read_is_not_taken_for_absent() {
        let refused = || Selected::Refused("configmaps is forbidden".to_owned());
        let Seen::Unreadable(why) = one_config(refused(), &mesh_config(&Settings::standard())) else {
            panic!("it is readable")
        };
        assert!(why.contains("istio-system/istio") && why.contains("forbidden"), "{why}");
        assert!(matches!(all::<()>(refused(), "deployments", |_| Vec::new()), Seen::Unreadable(_)));
        assert_eq!(all::<()>(Selected::Objects(Vec::new()), "deployments", |_| Vec::new()), Seen::Absent);
    }
}
