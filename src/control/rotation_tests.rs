use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::watch;

use super::*;
use crate::control::tests::control;
use crate::plan::fixtures::{WorldExt as _, peer, world};

#[tokio::test]
async fn a_replica_that_does_not_lead_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = control(folder.path());
    control.leading = watch::channel(false).1;
    let request = || {
        Json(StepRequest {
            server: "unix:///s".to_owned(),
            authority: "aa".to_owned(),
            ignore: BTreeSet::new(),
        })
    };
    let refused = [
        state(State(control.clone())).await.map(drop),
        prepare(State(control.clone()), request()).await.map(drop),
        activate(State(control.clone()), request()).await.map(drop),
        taint(State(control.clone()), request()).await.map(drop),
        revoke(State(control.clone()), request()).await.map(drop),
    ];
    for refused in refused {
        let problem = refused.unwrap_err();
        assert_eq!(problem.status, StatusCode::MISDIRECTED_REQUEST);
        assert!(problem.message.contains("replica one does not lead"), "{}", problem.message);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_beside_those_that_are() {
    let (handle, mut asks) = crate::index::run::WorldHandle::new();
    let folder = tempfile::tempdir().unwrap();
    let mut control = control(folder.path());
    control.worlds = handle;
    let mut known = world("west.example").with_peer(peer("east.example"));
    let mut spire = crate::model::trust::SpireState::default();
    spire.servers.insert("unix:///there.sock".to_owned(), Default::default());
    known.spire = Some(Arc::new(spire));
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            let _ = ask.send(Arc::new(known.clone()));
        }
    });
    let told = state(State(control.clone())).await.unwrap().0;
    assert_eq!(told.servers["unix:///there.sock"].active, None);
    assert_eq!(told.peers["east.example"].holds, None);
    let request = Json(StepRequest {
        server: "unix:///not.sock".to_owned(),
        authority: String::new(),
        ignore: BTreeSet::new(),
    });
    let problem = prepare(State(control), request).await.unwrap_err();
    assert_eq!(problem.status, StatusCode::NOT_FOUND);
    assert!(problem.message.contains("unix:///there.sock"), "{}", problem.message);
}
