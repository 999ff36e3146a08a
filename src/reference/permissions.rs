//! The permissions in SECURITY.md are those of the chart, each with what it is for.

use std::collections::BTreeSet;

use super::read;

/// Group, resource and verbs, as both files have them; `limit` is what `resourceNames` narrow them to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    scope: String,
    group: String,
    resource: String,
    verbs: BTreeSet<String>,
}

fn list(text: &str) -> Vec<String> {
    let text = text.trim().trim_start_matches('[').trim_end_matches(']');
    text.split(',').map(|one| one.trim().trim_matches('"').to_owned()).collect()
}

/// The rules of the agent's own roles: those before the first role of people. Each is `apiGroups`, `resources`, perhaps
/// `resourceNames`, `verbs`.
fn of_the_chart() -> BTreeSet<Right> {
    let template = read("charts/entente/templates/rbac.yaml");
    let (agent, people) = template.split_once("# For people:").unwrap();
    assert!(people.contains("aggregate-to-edit"));
    let mut rights = BTreeSet::new();
    let mut scope = "";
    let (mut groups, mut resources) = (Vec::new(), Vec::new());
    for line in agent.lines().map(str::trim) {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("kind", "ClusterRole") => scope = "cluster",
            ("kind", "Role") => scope = "own namespace",
            ("namespace", "{{ .Values.istio.namespace }}") if scope == "own namespace" => {
                scope = "Istio's namespace"
            }
            ("- apiGroups", text) => groups = list(text),
            ("resources", text) => resources = list(text),
            ("verbs", text) => {
                for (group, resource) in
                    groups.iter().flat_map(|group| resources.iter().map(move |it| (group, it)))
                {
                    rights.insert(Right {
                        scope: scope.to_owned(),
                        group: group.clone(),
                        resource: resource.clone(),
                        verbs: list(text).into_iter().collect(),
                    });
                }
            }
            _ => {}
        }
    }
    rights
}

/// The rows of the table under `## What each permission is for`.
fn of_the_page() -> BTreeSet<Right> {
    let page = read("SECURITY.md");
    let (_, rest) = page.split_once("## What each permission is for").unwrap();
    let section = rest.split_once("\n## ").map_or(rest, |(section, _)| section);
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut rights = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [scope, group, resources, verbs, why] = cells.as_slice() else { panic!("five cells: {row}") };
        assert!(why.len() > 10, "no purpose is given: {row}");
        for resource in list(resources) {
            let right = Right {
                scope: (*scope).to_owned(),
                group: if *group == "core" { String::new() } else { (*group).to_owned() },
                resource: resource.split(' ').next().unwrap_or_default().to_owned(),
                verbs: list(verbs).into_iter().collect(),
            };
            assert!(rights.insert(right), "twice: {row}");
        }
    }
    rights
}

#[test]
fn each_permission_of_the_chart_is_explained() {
    let (chart, page) = (of_the_chart(), of_the_page());
    assert!(chart.len() > 25, "{}", chart.len());
    let unexplained: Vec<_> = chart.difference(&page).collect();
    let untrue: Vec<_> = page.difference(&chart).collect();
    assert!(
        unexplained.is_empty() && untrue.is_empty(),
        "SECURITY.md does not explain {unexplained:#?}, and the chart does not grant {untrue:#?}"
    );
}
