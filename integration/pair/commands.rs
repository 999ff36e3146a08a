//! `entente status` and `entente render`, as commands, on the directories of a pair.

use std::process::{Command, Output};

use serde_json::Value;

use crate::world::{EAST, HOST, Pair, says};

fn entente(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_entente")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_peers_and_services_and_its_exit_code_says_whether_all_is_well() {
    let mut pair = Pair::serving().await;
    says(&pair.east, "Ready", "True", "Ready").await;
    let store = format!("dir:{}", pair.east.store().display());
    let table = entente(&["status", "--store", &store]);
    let shown = text(&table.stdout);
    assert!(table.status.success(), "{shown}\n{}", text(&table.stderr));
    assert!(shown.contains("west.example") && shown.contains(HOST), "{shown}");

    let json = entente(&["status", "--store", &store, "-o", "json"]);
    let read: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(read["peers"][0]["spec"]["trustDomain"], "west.example");
    assert_eq!(read["importedServices"][0]["spec"]["host"], HOST);

    pair.west.stop_agent().await.unwrap();
    says(&pair.east, "Ready", "False", "NotConnected").await;
    let table = entente(&["status", "--store", &store]);
    assert_eq!(table.status.code(), Some(1), "{}", text(&table.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn render_prints_what_the_agent_wrote() {
    let pair = Pair::serving().await;
    for domain in [&pair.east, &pair.west] {
        let path = domain.store().display().to_string();
        let name = domain.trust_domain().to_string();
        let done = entente(&["render", &path, "--trust-domain", &name]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let printed = text(&done.stdout);
        let kind = if name == EAST { "kind: ServiceEntry" } else { "kind: AuthorizationPolicy" };
        assert!(printed.contains(kind), "{printed}");
        for (path, (written, _)) in crate::world::files(&domain.generated()) {
            let spec = written.split("\nspec:").nth(1).unwrap();
            assert!(printed.contains(spec.trim_end()), "{} is not in\n{printed}", path.display());
        }
    }
}
