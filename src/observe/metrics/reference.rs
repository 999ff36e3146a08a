//! docs/reference/metrics.md, from the descriptions.

use std::fmt::Write as _;
use std::path::Path;

use super::described::ALL;

const HEAD: &str = "\
<!-- Generated from src/observe/metrics/described.rs: UPDATE_GOLDEN=1 cargo test --lib observe:: -->
# Metrics

The admin listener (`--admin-listen`) serves them at `/metrics`, as OpenMetrics. What is said of a peer by its conditions is the
same on every replica; what only the leader knows, it alone tells. To add up over replicas, take the maximum:
`max without (instance, pod) (entente_peer_condition{type=\"Ready\",status=\"True\"})`.

A trust domain, a SPIRE server, a kind and a reason are all that labels hold: there is no series for a service, a pod or a
SPIFFE ID, and nothing that a peer says is a label. Alert rules on them are in `charts/entente/files/alerts.yaml`, and
[what to do when one fires](../runbooks.md) in the runbooks.

| metric | type | labels | what it is |
|---|---|---|---|
";

fn markdown() -> String {
    let mut text = HEAD.to_owned();
    for metric in ALL {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let help = metric.help.trim().replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {help} |",
            metric.name,
            metric.sort.as_str(),
            labels.join(", ")
        );
    }
    text
}

#[test]
fn the_reference_is_what_is_described() {
    crate::observe::testing::golden(Path::new("docs/reference/metrics.md"), &markdown());
}
