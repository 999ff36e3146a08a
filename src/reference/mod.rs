//! The reference in `docs/reference/`, generated from the code: each file is a golden one, written by its
//! test. And what other pages say of the code, held to it.

mod objects;
mod permissions;
mod protocol;
mod versions;

use std::path::Path;

/// A file of the repository.
fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Holds a file of the repository to what the code says. Run with `UPDATE_GOLDEN=1` to write it anew, and read the difference.
pub(crate) fn golden(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(there == text, "{path} differs from the code: run again with UPDATE_GOLDEN=1");
}
