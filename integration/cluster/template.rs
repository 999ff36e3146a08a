//! Fills in the `${NAME}` of the files in `spire/`.

use anyhow::{Context, Result, bail};
use std::path::Path;

/// The text of `spire/<file>` with every `${NAME}` replaced. A name that stays is an error.
pub(crate) fn fill(file: &str, values: &[(&str, &str)]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("spire").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let filled = values.iter().fold(text, |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
    let left: Vec<&str> =
        filled.lines().filter(|line| line.contains("${") && !line.trim_start().starts_with('#')).collect();
    if !left.is_empty() {
        bail!("spire/{file}: no value for what is left in {left:?}");
    }
    Ok(filled)
}
