//! `entente status` and `entente render`, as commands, on the directories of a pair.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::world::{EAST, HOST, PEERS, Pair, WEST, federating, says};

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
    let table = entente(&["status", "--store", &store, "-o", "wide"]);
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

/// Beside the agent: the bundles of both sides, and what a live server presents, verified by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_and_svids_are_shown_beside_the_agent() {
    let pair = Pair::peers().await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_entente"));
        command.args(arguments).env("ENTENTE_CONTROL", pair.east.control_socket());
        command.env_remove("SPIFFE_ENDPOINT_SOCKET").output().unwrap()
    };
    let store = format!("dir:{}", pair.east.store().display());
    let done = tokio::task::block_in_place(|| run(&["bundles", "--store", &store]));
    let shown = text(&done.stdout);
    assert!(done.status.success() && done.stderr.is_empty(), "{shown}{}", text(&done.stderr));
    for part in ["east.example (ours)", "active", "west.example  digest", "|"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let address = pair.west.agent_address().to_string();
    let done = tokio::task::block_in_place(|| run(&["svid", &address]));
    let shown = text(&done.stdout);
    assert!(done.status.success(), "{shown}{}", text(&done.stderr));
    assert!(shown.contains("verified by the bundle of west.example, from the agent"), "{shown}");
    let nobody = tokio::task::block_in_place(|| run(&["svid", "127.0.0.1:1"]));
    assert_eq!(nobody.status.code(), Some(3), "{}", text(&nobody.stderr));
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

/// The command asks on a terminal or wants `--yes`; it writes who ends it into the manifest, removes that once the agent has
/// read it, and follows the end. The other side is told by whom, and how.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_end_ends_a_relationship_and_says_by_whom() {
    for how in [None, Some("--now")] {
        let pair = Pair::serving().await;
        let store = format!("dir:{}", pair.east.store().display());
        let ask = ["peer", "end", WEST, "--store", &store, "--by", "alice\u{1b}@east"];
        let asked =
            Command::new(env!("CARGO_BIN_EXE_entente")).args(ask).stdin(Stdio::null()).output().unwrap();
        assert_eq!(asked.status.code(), Some(2), "{}", text(&asked.stderr));
        assert!(text(&asked.stdout).contains(HOST), "it says what stops: {}", text(&asked.stdout));
        assert!(text(&asked.stderr).contains("--yes"), "{}", text(&asked.stderr));
        assert!(!pair.east.conditions(PEERS, WEST).is_empty());

        let arguments: Vec<String> = ask.into_iter().chain(["--yes"]).chain(how).map(str::to_owned).collect();
        let run = move || entente(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let done = tokio::task::spawn_blocking(run).await.unwrap();
        let said = text(&done.stdout);
        assert!(done.status.success(), "{said}{}", text(&done.stderr));
        assert!(said.contains("has ended"), "{said}");
        assert!(pair.east.conditions(PEERS, WEST).is_empty());
        let state = pair.east.spire_state().await.unwrap();
        assert!(state.relationships.is_empty() && state.bundles.is_empty(), "{state:?}");
        assert!(federating(&pair.east, WEST).await.is_empty());
        says(&pair.west, "Reciprocal", "False", "PeerEnded").await;
        let [.., message] = pair.west.condition(PEERS, EAST, "Reciprocal").unwrap();
        let words =
            if how.is_none() { "ended by alice @east" } else { "ended at once, trust first, by alice @east" };
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_end_names_what_it_cannot_end() {
    let pair = Pair::strangers().await;
    let store = format!("dir:{}", pair.east.store().display());
    let done = entente(&["peer", "end", "north.example", "--yes", "--store", &store]);
    assert_eq!(done.status.code(), Some(1));
    assert!(
        text(&done.stderr).contains("no TrustDomainPeer describes north.example"),
        "{}",
        text(&done.stderr)
    );
}
