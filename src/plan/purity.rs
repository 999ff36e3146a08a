//! Holds `model/`, `plan/` and what judges a diagnosis to being pure: no client, no runtime, no clock, no environment, no chance.

use std::fs;
use std::path::{Path, PathBuf};

/// What must not be named, each as it would stand in a path, a use or a call.
const FORBIDDEN: [&str; 14] = [
    "kube::",
    "k8s_openapi",
    "tonic",
    "tokio",
    "reqwest",
    "hyper",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "SystemTime",
    "Instant",
    "rand::",
    "clock::",
    "Timestamp::now",
];

/// Pure as well, since what is held to it calls them.
const NEIGHBOURS: [&str; 5] = [
    "bundle/document.rs",
    "bundle/jwk.rs",
    "federation/catalogue.rs",
    "federation/convert.rs",
    "identity/verify.rs",
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The words of a line of code that are forbidden; what is behind `//` is no code.
fn named(line: &str) -> Vec<&'static str> {
    let code = line.split("//").next().unwrap_or_default();
    FORBIDDEN.into_iter().filter(|word| stands_alone(code, word)).collect()
}

/// Whether the word is there, and not only as the end of a longer one.
fn stands_alone(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

#[test]
fn model_and_plan_are_pure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for folder in ["model", "plan", "diagnose/judge", "istio"] {
        rust_files(&source.join(folder), &mut files);
    }
    files.extend(NEIGHBOURS.map(|file| source.join(file)));
    files.retain(|path| !path.ends_with("plan/purity.rs"));
    files.sort();
    assert!(files.len() > 15, "the folders were not found: {files:?}");
    let mut named_there = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in named(line) {
                named_there.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert!(named_there.is_empty(), "model/ and plan/ must stay pure:\n{}", named_there.join("\n"));
}

/// A neighbour that is not held to it could do what may not be done here.
#[test]
fn the_plan_calls_nothing_that_may_not_be_pure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for folder in ["model", "plan"] {
        rust_files(&source.join(folder), &mut files);
    }
    let is_test = |path: &Path| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        name.ends_with("tests") || name.ends_with("testing") || name == "fixtures"
    };
    files.retain(|path| !is_test(path) && !path.to_string_lossy().contains("/tests/"));
    let is_pure = |used: &str| {
        let (root, module) = used.split_once("::").unwrap_or((used, ""));
        let file = format!("{root}/{}.rs", module.split("::").next().unwrap_or_default());
        ["api", "model", "plan", "proto", "istio"].contains(&root) || NEIGHBOURS.contains(&file.as_str())
    };
    let mut others = Vec::new();
    for path in files {
        // What is below the tests of a file is for them.
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let uses = line.split("//").next().unwrap_or_default().split("crate::").skip(1);
            let path_of = |rest: &str| -> String {
                rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect()
            };
            others.extend(
                uses.map(path_of)
                    .filter(|used| !is_pure(used))
                    .map(|used| format!("{}:{}: {used}", path.display(), number + 1)),
            );
        }
    }
    assert!(others.is_empty(), "not known to be pure:\n{}", others.join("\n"));
}

#[test]
fn the_words_are_found() {
    for line in
        ["use kube::Client;", "    std::env::var(\"X\")", "let t = Timestamp::now();", "rand::random()"]
    {
        assert!(!named(line).is_empty(), "{line}");
    }
    for line in ["// no tokio here", "let operand::X = y;", "use std::net::IpAddr;"] {
        assert!(named(line).is_empty(), "{line}");
    }
}
