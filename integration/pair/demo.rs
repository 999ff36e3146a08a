//! The demo, from beginning to end.

use entente::devkit::demo::{Options, run};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_is_seen_to_be_so_and_leaves_its_files_where_it_was_told() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { once: true, dir: Some(root.path().join("demo")) };
    let mut told = Vec::new();
    run(&options, &mut told, CancellationToken::new()).await.unwrap();
    let told = String::from_utf8(told).unwrap();
    for expected in [
        "NEVER FOR PRODUCTION",
        "this table stands for DNS",
        "east.example  Reciprocal            True    Confirmed",
        "west.example  Reciprocal            True    Confirmed",
        "hello spiffe://east.example/ns/web/sa/frontend, this is spiffe://west.example/ns/shop/sa/cart",
        "refuses spiffe://east.example/ns/web/sa/batch",
        "calls meanwhile, none failed",
        "PeerEnded",
        "All of it was seen to be so",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in\n{told}");
    }
    assert!(root.path().join("demo/east/manifests/west.example.yaml").exists());
    let again = run(&options, &mut Vec::new(), CancellationToken::new()).await;
    assert!(again.unwrap_err().to_string().contains("is not empty"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_stays_up_until_it_is_stopped() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { once: false, dir: Some(root.path().join("demo")) };
    let (stop, mut told) = (CancellationToken::new(), Vec::new());
    let stopping = async {
        let ready = root.path().join("demo/east/generated/serviceentries");
        crate::world::until("the service is imported", async || Ok(std::fs::metadata(&ready)?)).await;
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(run(&options, &mut told, stop.clone()), stopping);
    ran.unwrap();
}
