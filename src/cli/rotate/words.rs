//! What a rotation would do, and how it leaves things, in words.

use std::collections::BTreeMap;

use super::X509Args;
use super::report::ServerReport;
use crate::control::rotation::{AuthorityState, PeerState, RotationState, ServerState};

/// The servers that are meant.
///
/// # Errors
/// Where one that was named is not there, or none is.
pub(super) fn targets<'a>(
    args: &X509Args,
    state: &'a RotationState,
) -> anyhow::Result<BTreeMap<&'a str, &'a ServerState>> {
    let known: Vec<&str> = state.servers.keys().map(String::as_str).collect();
    for name in &args.servers {
        anyhow::ensure!(
            known.contains(&name.as_str()),
            "there is no SPIRE server {name}; there is {}",
            known.join(", ")
        );
    }
    anyhow::ensure!(!known.is_empty(), "the agent knows no SPIRE server: look at its --spire-server");
    let meant = |name: &str| args.servers.is_empty() || args.servers.iter().any(|one| one == name);
    Ok(state.servers.iter().map(|(name, server)| (name.as_str(), server)).filter(|(n, _)| meant(n)).collect())
}

/// Why a server cannot be rotated now.
pub(super) fn out_of_reach(server: &ServerState) -> Option<String> {
    match (&server.failure, &server.active) {
        (Some(failure), _) => Some(failure.clone()),
        (None, None) => Some(
            "it does not tell its authorities: it is older than SPIRE 1.11, or its policy denies it"
                .to_owned(),
        ),
        (None, Some(_)) => None,
    }
}

/// What a rotation would do, line by line, and whether something is in its way as things are.
///
/// # Errors
/// Where a server that was named is not there.
pub(super) fn plan(args: &X509Args, state: &RotationState) -> anyhow::Result<(Vec<String>, bool)> {
    let mut lines = vec![format!("trust domain {}", state.trust_domain)];
    let mut in_the_way = false;
    for (name, server) in targets(args, state)? {
        lines.push(format!("SPIRE server {name}"));
        if let Some(why) = out_of_reach(server) {
            in_the_way = true;
            lines.push(format!("  would be left out: {why}"));
            continue;
        }
        lines.extend(slots(server).into_iter().map(|line| format!("  {line}")));
        let steps = steps(args, server);
        in_the_way |= steps.iter().any(|(_, refused)| *refused);
        lines.extend(steps.into_iter().map(|(step, _)| format!("  {step}")));
    }
    lines.extend(of_no_server(state));
    if let Some((words, refused)) = unasked(args, state)? {
        in_the_way |= refused;
        lines.push(words);
    }
    lines.extend(peers(state));
    let silent = state.peers.values().any(|peer| peer.exempt.is_none() && peer.holds.is_none());
    Ok((lines, in_the_way || silent))
}

/// What is in our bundle and of no server that is addressed, where there is such.
pub(super) fn of_no_server(state: &RotationState) -> Option<String> {
    let ids: Vec<&str> = state.of_no_server.iter().map(String::as_str).collect();
    (!ids.is_empty()).then(|| {
        format!(
            "in our bundle, valid, and of no SPIRE server that is addressed: {}; of an earlier rotation, or of a SPIRE \
             server that --spire-server of the agent does not name, which is then not rotated",
            ids.join(", ")
        )
    })
}

/// What is said where nobody has to be asked.
pub(super) const NO_PEERS: &str = "there are no TrustDomainPeers to wait for; whom the SPIRE server federates with by its own \
                                   configuration (federates_with) is not seen here before it has fetched a bundle";

/// Whom SPIRE federates with though nobody there can be asked, where there is such; and whether that is in the way.
///
/// # Errors
/// Where one is to be ignored that can be asked.
pub(super) fn unasked(args: &X509Args, state: &RotationState) -> anyhow::Result<Option<(String, bool)>> {
    let ignored = |name: &str| args.ignore.iter().any(|one| one.as_str() == name);
    if let Some(peer) = state.peers.keys().find(|name| ignored(name)) {
        anyhow::bail!(
            "there is a TrustDomainPeer of {peer}, which is asked: where it is to have no say, suspend it (spec.suspend), \
             instead of --ignore"
        );
    }
    let say = |(name, what): (&String, &String)| {
        let ignored = if ignored(name) { ", ignored" } else { "" };
        format!("{name} ({what}{ignored})")
    };
    let names: Vec<String> = state.unasked.iter().map(say).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let names = names.join(", ");
    Ok(Some(if state.unasked.keys().all(|name| ignored(name)) {
        (format!("without a TrustDomainPeer, so that nobody there is asked what they hold: {names}"), false)
    } else {
        let words = format!(
            "SPIRE federates with {names}, of which there is no TrustDomainPeer: nobody there can be asked whether they hold \
             the next authority, and would refuse our workloads without it; make a TrustDomainPeer, or give --ignore \
             TRUST_DOMAIN for each that is to have no say"
        );
        (words, true)
    }))
}

fn slots(server: &ServerState) -> Vec<String> {
    let slot = |name: &str, authority: &Option<AuthorityState>| {
        let authority = authority.as_ref()?;
        let upstream =
            authority.upstream.as_ref().map(|id| format!(", signed by the upstream authority {id}"));
        let state = match (name, authority.published, authority.tainted) {
            (_, true, true) => ", tainted",
            ("old", false, _) if authority.upstream.is_none() => ", revoked or expired",
            _ => "",
        };
        let upstream = upstream.unwrap_or_default();
        Some(format!("{name} {} until {}{state}{upstream}", authority.id, authority.expires_at))
    };
    let mut lines: Vec<String> =
        [slot("active", &server.active), slot("prepared", &server.prepared), slot("old", &server.old)]
            .into_iter()
            .flatten()
            .collect();
    if let Some(at) = server.activates_at {
        lines.push(format!("SPIRE activates what is prepared by itself at {at}"));
    }
    lines
}

/// What would be done at a server; and for each step whether it would be refused.
fn steps(args: &X509Args, server: &ServerState) -> Vec<(String, bool)> {
    let mut steps = Vec::new();
    if !args.finish {
        let first = to_finish(args, server);
        if let Some(id) = &first {
            steps.push((
                format!("would first {} {id}, which an earlier rotation replaced", ends(args)),
                false,
            ));
        }
        steps.push(match &server.prepared {
            Some(prepared) => {
                (format!("would take {}, which is prepared, and activate it", prepared.id), false)
            }
            None => ("would prepare a new authority, and activate it".to_owned(), false),
        });
        let revoked = args.revoke.then_some(first).flatten();
        let lost_ones = unfinished(server).filter(|old| revoked.as_ref() != Some(&old.id));
        steps.extend(lost_ones.map(|old| (lost(&old), false)));
    }
    if args.taint || args.revoke {
        let replaced = if args.finish { &server.old } else { &server.active };
        let what = ends(args);
        steps.push(match replaced {
            Some(AuthorityState { id, upstream: Some(upstream), .. }) => {
                (format!("could not {what} {id}: that is done at its upstream authority {upstream}"), true)
            }
            Some(authority) => (format!("would then {what} {}", authority.id), false),
            None => (format!("has nothing to {what}"), false),
        });
    }
    steps
}

fn ends(args: &X509Args) -> &'static str {
    if args.revoke { "taint and revoke" } else { "taint" }
}

/// An old authority that preparing another puts out of SPIRE's reach, though it is valid still.
pub(super) fn unfinished(server: &ServerState) -> Option<AuthorityState> {
    let old = server.old.as_ref().filter(|old| old.published && server.prepared.is_none())?;
    Some(old.clone())
}

/// What becomes of it.
pub(super) fn lost(old: &AuthorityState) -> String {
    let what = if old.tainted { "revoke" } else { "taint or revoke" };
    format!(
        "with the next authority SPIRE can no longer {what} {}, which an earlier rotation replaced: it stays valid until {}; \
         to finish it before: entente rotate x509 --finish --revoke",
        old.id, old.expires_at
    )
}

/// The old authority of an earlier rotation that is not finished as it is asked for now.
pub(super) fn to_finish(args: &X509Args, server: &ServerState) -> Option<String> {
    let old = unfinished(server)?;
    let wanted = args.revoke || (args.taint && !old.tainted);
    wanted.then_some(old.id)
}

fn peers(state: &RotationState) -> Vec<String> {
    if state.peers.is_empty() {
        return vec![NO_PEERS.to_owned()];
    }
    let line = |(name, peer): (&String, &PeerState)| match peer {
        PeerState { exempt: Some(why), .. } => format!("peer {name}: has no say, since {why}"),
        PeerState { holds: None, .. } => {
            format!("peer {name}: has not said what it holds of ours; it would be waited for")
        }
        PeerState { holds: Some(ids), by_receipt, .. } => {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let word = if *by_receipt { "gave a receipt for" } else { "holds" };
            format!("peer {name}: {word} {}", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") })
        }
    };
    state.peers.iter().map(line).collect()
}

/// How things are left at each server that something was done at.
pub(super) fn left(
    args: &X509Args,
    servers: &BTreeMap<String, ServerReport>,
    state: &RotationState,
) -> Vec<String> {
    let line = |(name, report): (&String, &ServerReport)| {
        let now = state.servers.get(name);
        if let Some(why) = &report.left_out {
            return format!("SPIRE server {name} was left as it is: {why}");
        }
        let mut line = format!("SPIRE server {name}: {}", signing(report, now));
        let gone_on = has_activated(report, now) || report.tainted;
        if let Some(replaced) = report.replaced.as_ref().filter(|_| gone_on) {
            line.push_str(&format!("; {}", fate(args, replaced, report, now)));
        }
        let earlier =
            now.and_then(|now| to_finish(args, now)).filter(|id| report.earlier.as_ref() == Some(id));
        if let Some(earlier) = earlier {
            line.push_str(&format!(
                "; {earlier}, of an earlier rotation, is not finished: {}",
                command(args)
            ));
        }
        line
    };
    servers.iter().map(line).collect()
}

/// The command that goes on where only the old authority is left.
fn command(args: &X509Args) -> String {
    format!("entente rotate x509 --finish {}", if args.revoke { "--revoke" } else { "--taint" })
}

/// Whether the server signs with what it was to, also where nobody heard that.
fn has_activated(report: &ServerReport, now: Option<&ServerState>) -> bool {
    let active = now.and_then(|server| server.active.as_ref()).map(|active| &active.id);
    report.activated || (report.authority.is_some() && report.authority.as_ref() == active)
}

fn signing(report: &ServerReport, now: Option<&ServerState>) -> String {
    // What was being prepared when it broke off.
    let taken = now.and_then(|server| server.prepared.as_ref()).filter(|_| report.preparing);
    let Some(authority) = report.authority.as_ref().or(taken.map(|prepared| &prepared.id)) else {
        let signs = match now.and_then(|server| server.active.as_ref()) {
            Some(active) => format!("{} signs", active.id),
            None => "nothing was begun".to_owned(),
        };
        let preparing = "; it was asked to prepare another, and may still do so: look with --dry-run";
        return if report.preparing { signs + preparing } else { signs };
    };
    if has_activated(report, now) {
        return format!("authority {authority} signs");
    }
    let prepared = now.and_then(|server| server.prepared.as_ref()).filter(|p| p.id == *authority);
    let Some(prepared) = prepared else {
        return format!(
            "authority {authority} was prepared; what became of it is not known, look with --dry-run"
        );
    };
    let at = now.and_then(|server| server.activates_at);
    let at = at.map_or("before the active one expires".to_owned(), |at| format!("at {at}"));
    let lacking: Vec<String> = prepared.lacking.iter().map(|(peer, why)| format!("{peer} ({why})")).collect();
    let lacking = if lacking.is_empty() { "none".to_owned() } else { lacking.join(", ") };
    format!(
        "authority {authority} stays prepared, and does not sign; SPIRE activates it by itself {at}; run this again to \
         go on; peers that lack it: {lacking}"
    )
}

fn fate(args: &X509Args, replaced: &str, report: &ServerReport, now: Option<&ServerState>) -> String {
    let old = now.and_then(|server| server.old.as_ref()).filter(|old| old.id == replaced);
    match (report.revoked, report.tainted) {
        (true, _) => format!("{replaced} is revoked"),
        (false, true) => {
            format!(
                "{replaced} is tainted: what it signed is replaced, and accepted until then; to end it: entente rotate x509 \
                 --finish --revoke"
            )
        }
        (false, false) => {
            let until = old.map(|old| format!(" until {}", old.expires_at)).unwrap_or_default();
            let mut words = format!("{replaced} signs no more, what it signed stays valid{until}");
            if (args.taint || args.revoke) && old.is_none_or(|old| old.published) {
                words.push_str(&format!("; to finish it, before the next rotation: {}", command(args)));
            }
            words
        }
    }
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
