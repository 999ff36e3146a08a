//! `entente explain`: what a reason of a condition means, and what to do.

use std::io::Write as _;

use clap::Args;

use crate::api::v1alpha1::conditions::catalogue::{ALL, Described};

/// Explain a condition or a reason of one, as objects show them.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// A reason, such as `NoGateway`, or a condition, such as `Reciprocal`. None: all conditions.
    word: Option<String>,
}

/// Prints it to standard output.
pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", explain(args.word.as_deref())?)?;
    Ok(())
}

fn explain(word: Option<&str>) -> anyhow::Result<String> {
    let Some(word) = word else {
        return Ok(ALL.iter().map(|one| paragraph(&heading(one), one.about())).collect());
    };
    let is_it = |text: &str| text.eq_ignore_ascii_case(word);
    let mut text = String::new();
    for one in ALL.iter().filter(|one| is_it(one.condition.as_str())) {
        text.push_str(&paragraph(&heading(one), one.about()));
        text.extend(one.reasons().map(|(reason, meaning)| paragraph(&format!("  {reason}"), meaning)));
    }
    for one in &ALL {
        let found = one.reasons().filter(|(reason, _)| is_it(reason));
        text.extend(
            found.map(|(reason, meaning)| paragraph(&format!("{reason}, of {}", heading(one)), meaning)),
        );
    }
    anyhow::ensure!(
        !text.is_empty(),
        "{word:?} is neither a condition nor a reason of one: `entente explain` shows the conditions"
    );
    Ok(text)
}

fn heading(one: &Described) -> String {
    format!("{} ({})", one.condition, one.kind)
}

fn paragraph(heading: &str, meaning: &str) -> String {
    format!("{heading}\n    {meaning}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_explained_for_each_condition_that_has_it() {
        let text = explain(Some("notaccepted")).unwrap();
        assert!(text.contains("NotAccepted, of Exported (FederatedService, ServiceExportRule)\n"), "{text}");
        let text = explain(Some("Reciprocal")).unwrap();
        assert!(text.starts_with("Reciprocal (TrustDomainPeer)\n"), "{text}");
        assert!(text.contains("\n  PeerEnded\n"), "{text}");
        assert!(explain(None).unwrap().contains("MeshReady (TrustDomainPeer)"));
        let error = explain(Some("Nonsense")).unwrap_err().to_string();
        assert!(error.contains("neither a condition nor a reason"), "{error}");
    }
}
