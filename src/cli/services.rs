//! `entente services`: what is exported and imported, and what became of each, from the store alone.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::exit;
use super::object::{self, KINDS, all_well, as_value, count, list, of_kind, text, truth};
use super::output::{ListFormat, Screen, Tone};
use super::store::{Read, StoreFlags};
use super::table::{Cell, Column, Table};
use crate::model::Object;
use crate::model::object::Kind;

/// List the services that are exported and imported.
///
/// Of an export it shows which trust domain has imported it, by its own word, or why not.
///
/// Exit code 1 where one is not accepted or admitted, or something is wrong with it otherwise, as is explained below the tables.
#[derive(Args, Debug)]
pub(super) struct ServicesArgs {
    /// Only services whose host, or `namespace/name`, contains one of these.
    #[arg(value_name = "TEXT")]
    names: Vec<String>,

    /// Only services shared with this trust domain.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    peer: Option<String>,

    #[command(flatten)]
    at: StoreFlags,

    /// The format of what is printed.
    #[arg(short, long, default_value = "table")]
    output: ListFormat,
}

/// Prints them.
pub(super) async fn run(args: &ServicesArgs, screen: Screen) -> anyhow::Result<ExitCode> {
    let mut read = args.at.read(&KINDS).await?;
    check_names(&read, args)?;
    read.objects.retain(|key, object| key.kind != Kind::TrustDomainPeer && is_wanted(object, args));
    if !args.output.print_value(&value(&read))? {
        let screen = if args.output == ListFormat::Wide { Screen { width: None, ..screen } } else { screen };
        let mut out = std::io::stdout().lock();
        let tables = tables(&read, screen);
        if tables.is_empty() {
            writeln!(
                out,
                "No service: a FederatedService or a ServiceExportRule exports one, spec.imports of a TrustDomainPeer admits one."
            )?;
        }
        let unwell = super::status::unwell(&read, screen);
        let gap = if unwell.is_empty() { "" } else { "\n" };
        write!(out, "{tables}{gap}{unwell}")?;
    }
    Ok(exit::of_health(all_well(&read)))
}

/// Refuses what would list nothing, since nothing has that name.
fn check_names(read: &Read, args: &ServicesArgs) -> anyhow::Result<()> {
    let services = || read.objects.values().filter(|object| object.key.kind != Kind::TrustDomainPeer);
    let store = args.at.store();
    if let Some(name) = args.names.iter().find(|name| !services().any(|service| is_named(service, name))) {
        anyhow::bail!(
            "{store}: the name or host of no service contains {name:?}; `entente services` lists them"
        );
    }
    // One with whom nothing is shared yet is known all the same.
    if let Some(peer) =
        args.peer.as_deref().filter(|peer| !read.objects.values().any(|it| is_shared(it, peer)))
    {
        anyhow::bail!(
            "{store}: no TrustDomainPeer and no service is of {peer}; `entente peers` lists the peers"
        );
    }
    Ok(())
}

fn is_wanted(object: &Object, args: &ServicesArgs) -> bool {
    (args.names.is_empty() || args.names.iter().any(|name| is_named(object, name)))
        && args.peer.as_deref().is_none_or(|peer| is_shared(object, peer))
}

fn is_named(object: &Object, wanted: &str) -> bool {
    let host = [text(object.spec(), "/host"), text(object.status(), "/host")];
    object::name(object).contains(wanted) || host.iter().any(|host| host.contains(wanted))
}

fn is_shared(object: &Object, peer: &str) -> bool {
    object::trust_domain(object) == peer
        || list(object.spec(), "/exportedTrustDomains").iter().any(|to| to.as_str() == Some(peer))
}

/// The services, for scripts.
fn value(read: &Read) -> Value {
    let mut value = as_value(read);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("peers");
    }
    value
}

/// The tables that have rows.
pub(super) fn tables(read: &Read, screen: Screen) -> String {
    let tables = [exports(read), rules(read), imports(read)];
    let texts: Vec<String> =
        tables.iter().filter(|table| !table.is_empty()).map(|table| table.render(screen)).collect();
    texts.join("\n")
}

/// All of them in a line.
pub(super) fn summary(read: &Read) -> String {
    let of = |kind: Kind, condition: &str| {
        let all = of_kind(&read.objects, kind).count();
        let so = of_kind(&read.objects, kind).filter(|object| truth(object, condition) == "True").count();
        if so == all { all.to_string() } else { format!("{so} of {all}") }
    };
    let by_rule: usize = of_kind(&read.objects, Kind::ServiceExportRule)
        .map(|rule| count(rule.status(), "/services/exported"))
        .sum();
    let rules = if by_rule == 0 { String::new() } else { format!(" and {by_rule} by rule") };
    let (exported, imported) =
        (of(Kind::FederatedService, "Exported"), of(Kind::ImportedService, "Admitted"));
    if exported == "0" && imported == "0" && by_rule == 0 {
        return "Services: none yet.\n".to_owned();
    }
    format!("Services: {exported} exported{rules}, {imported} imported (`entente services` lists them).\n")
}

fn exports(read: &Read) -> Table {
    let mut table = Table::new([
        Column::kept("EXPORTED SERVICE"),
        Column::kept("EXPORTED"),
        Column::kept("IMPORTED"),
        Column::spare("TO"),
        Column::spare("PORTS"),
        Column::spare("TLS"),
        Column::spare("HOST"),
    ]);
    for service in of_kind(&read.objects, Kind::FederatedService) {
        let mut exported = truth(service, "Exported");
        if exported.is_empty() {
            exported = truth(service, "Accepted");
        }
        table.row([
            Cell::toned(Tone::Title, object::name(service)),
            Cell::truth(exported),
            imported(service),
            Cell::new(outcomes(service)),
            Cell::new(ports(service)),
            Cell::new(text(service.spec(), "/tlsMode")),
            Cell::new(text(service.status(), "/host")),
        ]);
    }
    table
}

/// By how many of those that it goes to.
fn imported(service: &Object) -> Cell {
    let share = text(service.status(), "/imported");
    let is_all = share.split_once('/').is_some_and(|(some, all)| some == all);
    Cell::toned(if is_all { Tone::Good } else { Tone::Doubtful }, share)
}

/// Whom it goes to, with what is not well there.
fn outcomes(service: &Object) -> String {
    let told = list(service.status(), "/exportedTo");
    let of = |to: &Value| {
        let name = text(Some(to), "");
        let outcome = told.iter().find(|told| text(Some(told), "/trustDomain") == name);
        match (text(outcome, "/outcome"), text(outcome, "/reason")) {
            ("Imported" | "", _) => name.to_owned(),
            (other, "") => format!("{name} ({})", other.to_lowercase()),
            (other, reason) => format!("{name} ({}: {reason})", other.to_lowercase()),
        }
    };
    list(service.spec(), "/exportedTrustDomains").iter().map(of).collect::<Vec<_>>().join(", ")
}

fn ports(service: &Object) -> String {
    let port = |port: &Value| port.get("port").and_then(Value::as_u64).map(|number| number.to_string());
    list(service.spec(), "/ports").iter().filter_map(port).collect::<Vec<_>>().join(",")
}

fn rules(read: &Read) -> Table {
    let mut table = Table::new([
        Column::kept("EXPORT RULE"),
        Column::kept("ACCEPTED"),
        Column::kept("EXPORTED"),
        Column::kept("IMPORTED"),
        Column::kept("SKIPPED"),
        Column::spare("TO"),
        Column::spare("TLS"),
    ]);
    for rule in of_kind(&read.objects, Kind::ServiceExportRule) {
        let services = |what: &str| count(rule.status(), &format!("/services/{what}"));
        let skipped = services("skipped");
        table.row([
            Cell::toned(Tone::Title, &rule.key.name),
            Cell::truth(truth(rule, "Accepted")),
            Cell::count(services("exported")),
            Cell::count(services("imported")),
            if skipped == 0 { Cell::count(0) } else { Cell::toned(Tone::Doubtful, skipped.to_string()) },
            Cell::new(outcomes(rule)),
            Cell::new(text(rule.spec(), "/tlsMode")),
        ]);
    }
    table
}

fn imports(read: &Read) -> Table {
    let mut table = Table::new([
        Column::kept("IMPORTED SERVICE"),
        Column::kept("FROM"),
        Column::kept("ADMITTED"),
        Column::kept("GENERATED"),
        Column::spare("PORTS"),
        Column::spare("TLS"),
        Column::spare("LOCAL NAME"),
    ]);
    for import in of_kind(&read.objects, Kind::ImportedService) {
        table.row([
            Cell::toned(Tone::Title, text(import.spec(), "/host")),
            Cell::new(object::trust_domain(import)),
            Cell::truth(truth(import, "Admitted")),
            Cell::truth(truth(import, "Generated")),
            Cell::new(ports(import)),
            Cell::new(text(import.spec(), "/tlsMode")),
            Cell::new(text(import.status(), "/localHost")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::object::testing::{healthy, ill};

    const SCREEN: Screen = Screen { is_terminal: false, color: false, width: None };

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        services: ServicesArgs,
    }

    #[test]
    fn a_name_that_nothing_has_is_refused() {
        let check = |line: &str| {
            let args = <Command as clap::Parser>::parse_from(line.split(' ')).services;
            check_names(&healthy(), &args).map_err(|error| error.to_string())
        };
        for good in ["services", "services shop/cart", "services bank.west", "services --peer north.example"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("services shop/cart shop/crat", "\"shop/crat\""),
            ("services --peer nroth.example", "of nroth.example"),
        ] {
            assert!(check(bad).is_err_and(|error| error.contains(why)), "{bad}");
        }
        assert_eq!(value(&healthy()).get("peers"), None);
    }

    #[test]
    fn what_is_exported_and_imported() {
        insta::assert_snapshot!("services_healthy", tables(&healthy(), SCREEN));
        insta::assert_snapshot!("services_ill", tables(&ill(), SCREEN));
        insta::assert_snapshot!("services_narrow", tables(&ill(), Screen { width: Some(60), ..SCREEN }));
        assert_eq!(tables(&Read::default(), SCREEN), "");
    }
}
