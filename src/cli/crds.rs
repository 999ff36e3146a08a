//! `entente crds`: prints the CustomResourceDefinitions, for `kubectl apply --server-side -f -`.

use std::io::Write;

use crate::api::v1alpha1;

/// Every CustomResourceDefinition of Entente as one YAML stream, the same bytes every time.
///
/// # Errors
/// Where a definition cannot be written as YAML, which would be a defect of this program.
pub(crate) fn yaml() -> anyhow::Result<String> {
    let mut out = String::new();
    for crd in v1alpha1::crds() {
        // By way of a JSON value, whose maps are sorted.
        let value = serde_json::to_value(&crd)?;
        out.push_str("---\n");
        out.push_str(&serde_saphyr::to_string(&value)?);
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    Ok(out)
}

/// Prints them to standard output.
///
/// # Errors
/// Where standard output is closed.
pub(crate) fn run() -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(yaml()?.as_bytes())?;
    Ok(())
}
