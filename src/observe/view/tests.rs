//! The page of federations that are well, ill and changing; and of a peer that means ill.

use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::json;

use super::federations::{self, Federation};
use super::page::{self, Known};
use crate::model::export::ExportRule;
use crate::model::object::{Kind, ObjectKey};
use crate::model::peer::LabelSelector;
use crate::model::service::TlsMode;
use crate::plan::fixtures::td;

pub(super) fn html(federation: &Federation) -> String {
    let Federation { world, plan, events } = federation;
    page::html(Known { world, plan, leads: true, ready: true, events }).unwrap()
}

/// What a reader gets: the text, without what the version changes.
fn snapshot(federation: &Federation) -> String {
    html(federation).replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn a_healthy_federation() {
    insta::assert_snapshot!(snapshot(&federations::healthy()));
}

#[test]
fn a_degraded_federation_says_who_is_to_be_looked_at() {
    let html = html(&federations::degraded());
    assert!(
        html.contains("1 of 3 peers are ready. Look at north.example, partners.south.example."),
        "{html}"
    );
    assert!(html.contains("✗ it holds ours: PeerHoldsStale"), "{html}");
    assert!(html.contains("? it holds ours: PeerUnreachable"), "{html}");
    assert!(html.contains("Refused: ForeignServerId"), "{html}");
    assert!(html.contains("no pattern of imports.services matches shop/cart"), "{html}");
}

/// A rule's status names no service and no peer that took one.
#[test]
fn a_rule_is_shown_with_how_many_services_it_exports() {
    let mut federation = federations::healthy();
    let rule = ExportRule {
        name: "shop".to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
        created: None,
        deletion: None,
        services: LabelSelector::default(),
        namespaces: LabelSelector::default(),
        tls_mode: TlsMode::IstioMtls,
        exported_to: ["west.example", "north.example"].map(td).into(),
        clients: Default::default(),
    };
    federation.world.rules.insert("shop".to_owned(), Arc::new(rule));
    let key = ObjectKey::cluster(Kind::ServiceExportRule, "shop");
    let row = |federation: &Federation| {
        let html = html(federation);
        let begins = html.find("ServiceExportRule shop</th>").unwrap();
        let row = &html[begins..];
        row[..row.find("</tr>").unwrap()].to_owned()
    };
    for (status, reason, class) in [
        ("True", "Exported", "good"),
        ("False", "RefusedByPeer", "bad"),
        ("Unknown", "AwaitingAcknowledgement", "unknown"),
    ] {
        let exported = json!({"type": "Exported", "status": status, "reason": reason, "message": "as it is"});
        let status = json!({
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}, exported],
            "services": {"exported": 300, "imported": 299, "skipped": 2},
        });
        federation.world.statuses.insert(key.clone(), Arc::new(status));
        let row = row(&federation);
        for said in [
            "north.example, west.example",
            class,
            reason,
            "300 exported, 299 of them imported wherever they go, 2 skipped: as it is",
        ] {
            assert!(row.contains(said), "{said}: {row}");
        }
    }
}

/// Whoever is left out for want of room, it is none that is to be looked at.
#[test]
fn of_many_peers_the_one_that_is_ill_is_told_of_and_shown() {
    let html = html(&federations::many());
    assert!(html.contains("100 of 101 peers are ready. Look at z.example."), "{html}");
    assert!(html.contains("NotConnected: no answer"), "{html}");
    assert!(html.contains("And 1 more."), "{html}");
}

#[test]
fn a_rotation_shows_who_holds_what() {
    let html = html(&federations::rotating());
    let row = |id: &str| {
        let begins = html.find(&format!("title=\"{}\"", id.repeat(20))).unwrap();
        let row = &html[begins..];
        row[..row.find("</tr>").unwrap()].to_owned()
    };
    let (active, prepared, old) = (row("aa"), row("bb"), row("99"));
    assert!(active.contains("active: spire-server:8081 signs with it"), "{active}");
    assert!(prepared.contains("prepared by spire-server:8081, by itself in "), "{prepared}");
    assert!(old.contains("old: spire-server:8081 signed with it before"), "{old}");
    let holder = |row: &str, peer: &str| {
        let end = row.find(&format!(" {peer}<span")).unwrap();
        row[row[..end].rfind("<li class=").unwrap()..end].to_owned()
    };
    assert!(holder(&prepared, "west.example").contains("good"), "{prepared}");
    assert!(holder(&prepared, "north.example").contains("bad"), "{prepared}");
    assert!(holder(&active, "north.example").contains("good"), "{active}");
}

/// What a peer says is text, wherever it stands.
#[test]
fn a_peers_words_are_never_markup() {
    let html = html(&federations::hostile());
    let lower = html.to_lowercase();
    for markup in ["<script", "<img", "onerror=alert", "\" onmouseover"] {
        let escaped = lower.matches(markup).count();
        let inside = lower.matches("onerror=alert").count();
        assert!(escaped == 0 || (markup == "onerror=alert" && inside > 0), "{markup}: {html}");
    }
    assert!(lower.contains("&#60;script&#62;"), "{html}");
    // Every tag is one of ours.
    for tag in html.split('<').skip(1) {
        let name: String =
            tag.trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        assert!(name != "script" && name != "img" && name != "iframe", "{tag}");
    }
}

#[test]
fn the_page_is_one_that_can_be_heard() {
    for federation in [federations::healthy(), federations::degraded(), federations::rotating()] {
        let html = html(&federation);
        assert_eq!(html.matches("<h1>").count(), 1);
        assert_eq!(html.matches("<table").count(), html.matches("<caption>").count());
        assert_eq!(html.matches("<main").count(), 1);
        // No style of its own, which the policy would refuse, and nothing from elsewhere.
        for refused in [" style=", "<style", "<script", "src=", "http://", "url(http"] {
            assert!(!html.contains(refused), "{refused}");
        }
        let ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let distinct: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), distinct.len(), "{ids:?}");
        for link in html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(distinct.contains(link), "{link}");
        }
    }
}

#[test]
fn equal_knowledge_is_an_equal_page_and_time_moves_it() {
    let mut federation = federations::healthy();
    assert_eq!(html(&federation), html(&federations::healthy()));
    let before = html(&federation);
    federations::later(&mut federation, SignedDuration::from_hours(3));
    assert_ne!(before, html(&federation));
}

#[tokio::test]
async fn it_is_served_under_a_strict_policy() {
    let Federation { world, plan, events } = federations::hostile();
    let known = Known { world: &world, plan: &plan, leads: true, ready: true, events: &events };
    for response in [super::page(Some(known)), super::page(None), super::style()] {
        let headers = response.headers();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert!(headers.contains_key("content-type"));
    }
    assert_eq!(super::page(None).status(), 503);
}
