//! `entente completions`: what a shell needs to complete this command line.

use std::io::Write as _;

use clap::Args;
use clap_complete::Shell;

/// How each shell takes what is printed. Not a docstring: an indented block of one is compiled as Rust.
const LONG: &str = r#"Print the completions for a shell.

    source <(entente completions bash)
    entente completions zsh > "${fpath[1]}/_entente"
    entente completions fish > ~/.config/fish/completions/entente.fish"#;

/// Print the completions for a shell.
#[derive(Args, Debug)]
#[command(long_about = LONG)]
pub(super) struct CompletionsArgs {
    /// Whose completions.
    shell: Shell,
}

/// Prints them.
pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(false), "entente", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut crate::cli::command(false), "entente", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in ["status", "peers", "services", "diagnose", "rotate", "completions"] {
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }
}
