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
    for folder in ["model", "plan", "diagnose/judge"] {
        rust_files(&source.join(folder), &mut files);
    }
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
