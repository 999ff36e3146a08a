//! Notices changes of the directory, and tells watchers of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::state::{GENERATED, MANIFESTS, STATUS, View};
use crate::clock;
use crate::model::object::Kind;
use crate::model::{Object, ObjectKey};
use crate::store::{Event, Unreadable};

/// Reads the directory at first, when told of a change, and now and then, until the store is gone.
pub(super) async fn scan(shared: Weak<Shared>, stop: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let mut watcher = None;
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let timings = strong.timings;
        let root = strong.root.clone();
        if watcher.is_none() {
            watcher = observe(&root, &changed);
        }
        let scanned =
            tokio::task::spawn_blocking(move || strong.with_state(|state| state.scan(clock::now()))).await;
        let again = match scanned {
            Ok(again) => again.unwrap_or(timings.rescan).min(timings.rescan),
            Err(error) => {
                tracing::error!(%error, path = %root.display(), "reading the directory failed");
                timings.rescan
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(again) => continue,
            () = changed.notified() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(timings.debounce) => {}
        }
    }
}

/// Asks the system to tell of changes. Without that, rescans find them, later.
fn observe(root: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let told = Arc::clone(changed);
    let handler = move |event: notify::Result<notify::Event>| {
        // Our own reading is told of, too.
        if !matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            told.notify_one();
        }
    };
    let observed = notify::recommended_watcher(handler).and_then(|mut watcher| {
        // Who only reads may find one that nobody made.
        for folder in [MANIFESTS, GENERATED, STATUS].into_iter().filter(|folder| root.join(folder).exists()) {
            watcher.watch(&root.join(folder), RecursiveMode::Recursive)?;
        }
        Ok(watcher)
    });
    match observed {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(path = %root.display(), %error, "changes are only found by looking now and then");
            None
        }
    }
}

/// Sends the whole, then what differs from what was sent, until the receiver is gone. Changes that come faster than
/// they are taken are joined.
pub(super) async fn follow(shared: Arc<Shared>, kinds: Vec<Kind>, events: mpsc::Sender<Event>) {
    let mut views = shared.view.subscribe();
    // What was sent of each object, and of what cannot be read.
    let mut sent: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
    let mut told: Vec<Unreadable> = Vec::new();
    let mut is_first = true;
    loop {
        let view = views.borrow_and_update().clone();
        if let Some(view) = view {
            if view.unreadable != told {
                told.clone_from(&view.unreadable);
                if events.send(Event::Unreadable(told.clone())).await.is_err() {
                    return;
                }
            }
            let news = if std::mem::take(&mut is_first) {
                whole(&kinds, &view)
            } else {
                difference(&kinds, &sent, &view)
            };
            sent = of_kinds(&kinds, &view);
            for event in news {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            () = events.closed() => return,
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}

fn of_kinds(kinds: &[Kind], view: &View) -> BTreeMap<ObjectKey, Arc<Object>> {
    let wanted = view.objects.iter().filter(|(key, _)| kinds.contains(&key.kind));
    wanted.map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
}

fn whole(kinds: &[Kind], view: &View) -> Vec<Event> {
    let objects = |kind| {
        let of_kind = view.objects.iter().filter(|(key, _)| key.kind == kind);
        of_kind.map(|(_, object)| Object::clone(object)).collect()
    };
    kinds.iter().map(|kind| Event::Reset { kind: *kind, objects: objects(*kind) }).collect()
}

fn difference(kinds: &[Kind], sent: &BTreeMap<ObjectKey, Arc<Object>>, view: &View) -> Vec<Event> {
    let mut events = Vec::new();
    for key in sent.keys().filter(|key| !view.objects.contains_key(*key)) {
        events.push(Event::Deleted(key.clone()));
    }
    for (key, object) in view.objects.iter().filter(|(key, _)| kinds.contains(&key.kind)) {
        let is_news = sent.get(key).is_none_or(|known| !Arc::ptr_eq(known, object) && known != object);
        if is_news {
            // Made again in between: it is another.
            if sent.get(key).is_some_and(|known| known.meta.uid != object.meta.uid) {
                events.push(Event::Deleted(key.clone()));
            }
            events.push(Event::Applied(Object::clone(object)));
        }
    }
    events
}
