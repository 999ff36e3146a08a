//! The examples are rendered, so that they are never wrong for long.

use std::path::{Path, PathBuf};
use std::process::Command;

fn render(folder: &str, trust_domain: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(folder);
    let done = Command::new(env!("CARGO_BIN_EXE_entente"))
        .args(["render", &path.display().to_string(), "--trust-domain", trust_domain])
        .output()
        .unwrap();
    assert!(done.status.success(), "{folder}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn kinds(printed: &str) -> Vec<&str> {
    let mut kinds: Vec<&str> = printed.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn two_domains_directory_renders() {
    let west = render("two-domains-directory/west", "west.example");
    let expected = ["AuthorizationPolicy", "ClusterFederatedTrustDomain", "Gateway", "ServiceEntry"];
    assert_eq!(kinds(&west), expected);
    assert!(west.contains("east.example/ns/web/sa/frontend"), "{west}");
    // Nothing is imported before the peer's agent has spoken.
    let east = render("two-domains-directory/east", "east.example");
    assert_eq!(kinds(&east), ["ClusterFederatedTrustDomain"]);
}

#[test]
fn gitops_render_is_what_its_readme_shows() {
    let printed = render("gitops-render", "west.example");
    let kept: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops-render/rendered.yaml");
    assert_eq!(printed, std::fs::read_to_string(kept).unwrap());
}
