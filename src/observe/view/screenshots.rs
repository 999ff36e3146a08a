//! The page as a browser shows it. Where none is found (chromium on PATH, or the program that `ENTENTE_BROWSER` names),
//! nothing is tried, and said so. With `UPDATE_GOLDEN` the pictures of the documentation are taken anew.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;

use super::federations::{self, Federation};
use super::page::Known;

/// A way to look.
struct Look {
    name: &'static str,
    width: u32,
    height: u32,
    dark: bool,
}

const WIDE: Look = Look { name: "", width: 1200, height: 1500, dark: false };
const DARK: Look = Look { name: "-dark", width: 1200, height: 1500, dark: true };
const NARROW: Look = Look { name: "-narrow", width: 400, height: 2200, dark: false };

fn browser() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ENTENTE_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|path| path.is_file())
}

async fn serve(federation: Federation) -> std::net::SocketAddr {
    let federation = Arc::new(federation);
    let page = async move || {
        let Federation { world, plan, events } = &*federation;
        super::page(Some(Known { world, plan, leads: true, ready: true, events }))
    };
    let router = Router::new().route("/", get(page)).route("/style.css", get(async || super::style()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn take(browser: &Path, address: std::net::SocketAddr, look: &Look, to: &Path) {
    let profile = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(browser);
    command
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .args(["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={},{}", look.width, look.height))
        .arg(format!("--screenshot={}", to.display()))
        .args(look.dark.then_some("--force-dark-mode"))
        .arg(format!("http://{address}/"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(120), command.status()).await;
    assert!(ended.expect("the browser hangs").unwrap().success());
}

/// Width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

/// A federation by its name, and how it is looked at.
type Shown = (&'static str, fn() -> Federation, &'static [Look]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_it() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no browser is found (chromium on PATH, or ENTENTE_BROWSER)");
        return;
    };
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let folder = tempfile::tempdir().unwrap();
    let folder = if update {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images")
    } else {
        folder.path().to_owned()
    };
    std::fs::create_dir_all(&folder).unwrap();
    let all: [Shown; 3] = [
        ("healthy", federations::healthy, &[WIDE]),
        ("degraded", federations::degraded, &[WIDE, DARK, NARROW]),
        ("rotating", federations::rotating, &[DARK]),
    ];
    for (name, federation, looks) in all {
        // All of them for the documentation; one shows that it can be shown.
        let looks = looks.iter().filter(|look| update || (name == "degraded" && look.dark));
        let address = serve(federation()).await;
        for look in looks {
            let to = folder.join(format!("view-{name}{}.png", look.name));
            take(&browser, address, look, &to).await;
            let png = std::fs::read(&to).unwrap();
            assert_eq!(size(&png), (look.width, look.height));
            assert!(png.len() > 20_000, "{} is as good as blank: {} bytes", to.display(), png.len());
        }
    }
}
