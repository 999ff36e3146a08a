//! The image, as far as its steps go without a container engine: what it is built from is whole, and the program needs nothing that
//! its last stage lacks.

use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// What is copied into the stage that builds, and where to in it.
fn copies(dockerfile: &str) -> Vec<(PathBuf, PathBuf)> {
    let lines = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    let mut copies = Vec::new();
    for line in lines.filter(|line| !line.starts_with("--from")) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let to = words.pop().unwrap();
        for from in words {
            let target = if to == "./" { Path::new(from) } else { Path::new(to) };
            copies.push((repository().join(from), target.to_owned()));
        }
    }
    copies
}

/// In a folder with only what the Dockerfile copies, the package is there with each of its targets, and the lock file holds.
#[test]
fn what_the_image_is_built_from_is_whole() {
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    assert!(dockerfile.contains("cargo build --release --locked --bin entente"), "{dockerfile}");
    let context = tempfile::tempdir().unwrap();
    for (from, to) in copies(&dockerfile) {
        copy(&from, &context.path().join(to));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // What other platforms need was never fetched.
    let versions = Command::new("rustc").arg("-vV").output().unwrap();
    let versions = String::from_utf8(versions.stdout).unwrap();
    let host = versions.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let done = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--filter-platform", host, "--format-version", "1"])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours = packages.iter().find(|package| package["name"] == "entente").unwrap();
    let mut bins = 0;
    for target in ours["targets"].as_array().unwrap() {
        let path = Path::new(target["src_path"].as_str().unwrap());
        assert!(path.exists() && path.starts_with(context.path().canonicalize().unwrap()), "{target}");
        bins += usize::from(target["kind"][0] == "bin" && target["name"] == "entente");
    }
    assert_eq!(bins, 1);
}

/// The last stage has the C library and what GCC's own code needs (`distroless/cc`), and no more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_program_needs_nothing_that_the_image_lacks() {
    let has = [
        "linux-vdso",
        "ld-linux",
        "libc.so",
        "libm.so",
        "libgcc_s.so",
        "libpthread.so",
        "libdl.so",
        "librt.so",
    ];
    let Ok(done) = Command::new("ldd").arg(env!("CARGO_BIN_EXE_entente")).output() else {
        println!("there is no ldd here");
        return;
    };
    let printed = String::from_utf8(done.stdout).unwrap();
    let needs: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(needs.iter().any(|library| library.starts_with("libc.so")), "{printed}");
    let lacks: Vec<_> = needs.iter().filter(|one| !has.iter().any(|there| one.contains(there))).collect();
    assert!(lacks.is_empty(), "the image has no {lacks:?}");
}
