//! The reference of the command line, `docs/reference/cli.md`: written from its definition.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// The whole page.
fn page() -> String {
    let mut root = super::command(false);
    root.build();
    let mut text = String::from(
        "# Command line\n\nGenerated from the program's own help; `UPDATE_GOLDEN=1 cargo test --lib cli::reference` writes it anew.\n\n",
    );
    let about = root.get_long_about().or(root.get_about()).map(ToString::to_string).unwrap_or_default();
    text.push_str(&format!("{about}\n\n"));
    text.push_str("| command | what it does |\n|---|---|\n");
    for command in shown(&root) {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "| [`entente {name}`](#entente-{name}) | {about} |");
    }
    text.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for line in super::exit::MEANING.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap_or_default();
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text.push_str("\n## Options of every command\n\n");
    options(&mut text, root.get_arguments().filter(|arg| arg.is_global_set()));
    for command in shown(&root) {
        section(&mut text, command, "entente", 2);
    }
    text
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn section(text: &mut String, command: &Command, path: &str, level: usize) {
    let path = format!("{path} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n{} {path}\n\n{}\n", "#".repeat(level), about.trim_end());
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let _ = write!(text, "\n```\n{usage}\n```\n\n");
    options(text, command.get_arguments().filter(|arg| !arg.is_global_set()));
    for sub in shown(command) {
        section(text, sub, &path, level + 1);
    }
}

fn options<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let wanted = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let mut arguments: Vec<&Arg> = arguments.filter(wanted).collect();
    arguments.sort_by_key(|arg| !arg.is_positional());
    if arguments.is_empty() {
        return;
    }
    text.push_str("| argument | default | environment | meaning |\n|---|---|---|---|\n");
    for arg in arguments {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            name(arg),
            default(arg),
            environment(arg),
            meaning(arg)
        );
    }
}

fn name(arg: &Arg) -> String {
    let takes = arg.get_action().takes_values();
    let value = arg
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    let value = if value.is_empty() { arg.get_id().to_string().to_uppercase() } else { value };
    match (arg.get_short(), arg.get_long()) {
        (None, None) => value,
        (short, long) => {
            let short = short.map(|short| format!("-{short}"));
            let long = long.map(|long| format!("--{long}"));
            let flags: Vec<String> = short.into_iter().chain(long).collect();
            let value = if takes { format!(" {value}") } else { String::new() };
            format!("{}{value}", flags.join(", "))
        }
    }
}

fn default(arg: &Arg) -> String {
    let values: Vec<String> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|_| arg.get_action().takes_values())
        .filter(|value| !value.is_empty())
        .collect();
    if values.is_empty() { String::new() } else { format!("`{}`", values.join(",")) }
}

fn environment(arg: &Arg) -> String {
    arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default()
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut words = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let values = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() && !arg.is_hide_possible_values_set() {
        let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
        let end = words.trim_end_matches('.').to_owned();
        words = format!("{end}: one of {}", values.join(", "));
    }
    words
}

/// `docs/reference/cli.md` is what is published. Run with `UPDATE_GOLDEN=1` to write it anew, and read the difference.
#[test]
fn the_reference_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
    let page = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == page, "{} differs from the help: run again with UPDATE_GOLDEN=1", path.display());
}

#[test]
fn every_command_and_option_says_what_it_is() {
    super::command(false).debug_assert();
    let mut root = super::command(false);
    root.build();
    let mut silent = Vec::new();
    let mut waiting = vec![("entente".to_owned(), &root)];
    while let Some((path, command)) = waiting.pop() {
        if command.get_about().is_none() {
            silent.push(path.clone());
        }
        let unsaid = command.get_arguments().filter(|arg| arg.get_help().is_none() && !arg.is_hide_set());
        silent.extend(unsaid.map(|arg| format!("{path} {}", name(arg))));
        waiting.extend(shown(command).map(|sub| (format!("{path} {}", sub.get_name()), sub)));
    }
    assert_eq!(silent, Vec::<String>::new(), "without a word of help");
}

#[test]
fn as_a_plugin_it_speaks_of_kubectl() {
    let help = super::command(true).render_help().to_string();
    assert!(help.contains("kubectl entente"), "{help}");
    let of_status =
        super::command(true).try_get_matches_from(["kubectl-entente", "status", "--help"]).unwrap_err();
    assert!(of_status.to_string().contains("Usage: kubectl entente status"), "{of_status}");
}
