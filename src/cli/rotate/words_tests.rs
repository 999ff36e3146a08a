use std::collections::BTreeSet;

use clap::Parser as _;
use jiff::Timestamp;

use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: X509Args,
}

fn args(text: &str) -> X509Args {
    Cli::try_parse_from(std::iter::once("x509").chain(text.split_whitespace())).unwrap().args
}

fn authority(id: &str) -> AuthorityState {
    AuthorityState {
        id: id.to_owned(),
        expires_at: Timestamp::from_second(7_200).unwrap(),
        upstream: None,
        published: true,
        tainted: false,
        revocable_at: None,
        lacking: BTreeMap::new(),
    }
}

fn state() -> RotationState {
    let server = ServerState {
        failure: None,
        active: Some(authority("aa")),
        prepared: None,
        old: Some(authority("0d")),
        activates_at: None,
    };
    let holds = PeerState { exempt: None, holds: Some(BTreeSet::from(["aa".to_owned()])), by_receipt: true };
    RotationState {
        trust_domain: "west.example".to_owned(),
        servers: BTreeMap::from([("unix:///s".to_owned(), server)]),
        of_no_server: BTreeSet::new(),
        peers: BTreeMap::from([("east.example".to_owned(), holds)]),
        unasked: BTreeMap::new(),
    }
}

fn text(args: &X509Args, state: &RotationState) -> (String, bool) {
    let (lines, in_the_way) = plan(args, state).unwrap();
    (lines.join("\n"), in_the_way)
}

#[test]
fn a_plan_says_what_would_be_done_and_what_is_in_the_way() {
    let mut state = state();
    let (said, in_the_way) = text(&args("--revoke"), &state);
    assert!(!in_the_way, "{said}");
    for part in [
        "active aa until 1970-01-01T02:00:00Z",
        "would prepare a new authority",
        "would first taint and revoke 0d",
        "would then taint and revoke aa",
        "peer east.example: gave a receipt for aa",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    assert!(!said.contains("can no longer"), "{said}");
    // Who asks for neither is told what is lost by it, and how not to lose it.
    let (said, in_the_way) = text(&args(""), &state);
    assert!(!in_the_way && said.contains("SPIRE can no longer taint or revoke 0d"), "{said}");
    assert!(said.contains("entente rotate x509 --finish --revoke"), "{said}");
    let (said, _) = text(&args("--finish --taint"), &state);
    assert!(said.contains("would then taint 0d") && !said.contains("prepare"), "{said}");

    state.peers.get_mut("east.example").unwrap().holds = None;
    let (said, in_the_way) = text(&args(""), &state);
    assert!(in_the_way && said.contains("has not said what it holds"), "{said}");
    state.peers.get_mut("east.example").unwrap().exempt = Some("it is suspended".to_owned());
    assert!(!text(&args(""), &state).1);
    state.peers.clear();
    assert!(text(&args(""), &state).0.contains("there are no TrustDomainPeers"));

    let server = state.servers.get_mut("unix:///s").unwrap();
    server.active.as_mut().unwrap().upstream = Some("ff".to_owned());
    let (said, in_the_way) = text(&args("--taint"), &state);
    assert!(in_the_way && said.contains("at its upstream authority ff"), "{said}");
    assert!(!text(&args(""), &state).1);
    state.servers.get_mut("unix:///s").unwrap().failure = Some("gave no answer".to_owned());
    let (said, in_the_way) = text(&args(""), &state);
    assert!(in_the_way && said.contains("would be left out: gave no answer"), "{said}");
    assert!(plan(&args("--server unix:///other"), &state).unwrap_err().to_string().contains("unix:///s"));
    state.of_no_server.insert("cc".to_owned());
    assert!(text(&args(""), &state).0.contains("of no SPIRE server that is addressed: cc"));
}

#[test]
fn what_is_left_names_the_authority_the_time_and_who_lacks_it() {
    let mut state = state();
    let server = state.servers.get_mut("unix:///s").unwrap();
    let mut prepared = authority("bb");
    prepared.lacking.insert("east.example".to_owned(), "it does not hold bb".to_owned());
    (server.prepared, server.old) = (Some(prepared), None);
    server.activates_at = Some(Timestamp::from_second(3_600).unwrap());
    let mut report = ServerReport {
        authority: Some("bb".to_owned()),
        replaced: Some("aa".to_owned()),
        ..ServerReport::default()
    };
    let said = |report: &ServerReport, state: &RotationState| {
        left(&args("--revoke"), &BTreeMap::from([("unix:///s".to_owned(), report.clone())]), state).join("\n")
    };
    let words = said(&report, &state);
    for part in
        ["bb stays prepared", "by itself at 1970-01-01T01:00:00Z", "run this again", "east.example (it does"]
    {
        assert!(words.contains(part), "{part} is not in: {words}");
    }
    let server = state.servers.get_mut("unix:///s").unwrap();
    (server.active, server.prepared, server.old) = (Some(authority("bb")), None, Some(authority("aa")));
    // Its activation may not have been heard of.
    assert!(said(&report, &state).contains("authority bb signs"), "{}", said(&report, &state));
    report.activated = true;
    let words = said(&report, &state);
    assert!(words.contains("entente rotate x509 --finish --revoke"), "{words}");
    assert!(words.contains("bb signs") && words.contains("aa signs no more"), "{words}");
    report.tainted = true;
    assert!(said(&report, &state).contains("to end it: entente rotate x509 --finish --revoke"));
    report.revoked = true;
    assert!(said(&report, &state).contains("aa is revoked"));
    report.left_out = Some("it is silent".to_owned());
    assert!(said(&report, &state).contains("left as it is: it is silent"));
}

#[test]
fn who_cannot_be_asked_is_in_the_way_unless_ignored() {
    let mut state = state();
    state.unasked.insert("north.example".to_owned(), "a bundle is stored".to_owned());
    let (said, in_the_way) = text(&args(""), &state);
    assert!(in_the_way && said.contains("north.example (a bundle is stored)"), "{said}");
    assert!(said.contains("--ignore TRUST_DOMAIN"), "{said}");
    let (said, in_the_way) = text(&args("--ignore north.example"), &state);
    assert!(!in_the_way && said.contains("north.example (a bundle is stored, ignored)"), "{said}");
    let refused =
        plan(&args("--ignore north.example --ignore east.example"), &state).unwrap_err().to_string();
    assert!(refused.contains("spec.suspend"), "{refused}");
}

#[test]
fn what_was_begun_and_not_heard_of_is_told() {
    let mut state = state();
    let mut report =
        ServerReport { replaced: Some("aa".to_owned()), preparing: true, ..ServerReport::default() };
    let said = |report: &ServerReport, state: &RotationState, flags: &str| {
        left(&args(flags), &BTreeMap::from([("unix:///s".to_owned(), report.clone())]), state).join("\n")
    };
    assert!(said(&report, &state, "").contains("may still do so"));
    report.earlier = Some("0d".to_owned());
    let words = said(&report, &state, "--taint");
    assert!(words.contains("0d, of an earlier") && words.contains("--finish --taint"), "{words}");
    let server = state.servers.get_mut("unix:///s").unwrap();
    (server.prepared, server.old) = (Some(authority("bb")), None);
    let words = said(&report, &state, "");
    assert!(words.contains("authority bb stays prepared"), "{words}");
}
