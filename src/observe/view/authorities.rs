//! The time line of authorities: when each is valid, what it is for, and who holds it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::words::{Tone, away, short, time};
use crate::model::{Authority, AuthorityId, Peer, World};
use crate::plan::rotation::{self, Role};

/// How many authorities of one trust domain are shown.
const MOST: usize = 24;
/// The width of a time line.
const WIDTH: i64 = 300;

const OURS: &str = "Our authorities, and the peers that hold each, by their own word";
const ITS: &str = "Its authorities, and who of us holds each";

/// One authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) short_id: String,
    pub(super) role: String,
    pub(super) role_class: &'static str,
    /// Where its bar begins and how long it is, of [`WIDTH`].
    pub(super) from: i64,
    pub(super) length: i64,
    /// In words.
    pub(super) validity: String,
    pub(super) holders: Vec<(String, Tone)>,
}

/// The authorities of one trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TimeLine {
    pub(super) caption: &'static str,
    pub(super) rows: Vec<Row>,
    pub(super) more: usize,
    /// Where now is, of [`WIDTH`].
    pub(super) now: i64,
    pub(super) begins: String,
    pub(super) ends: String,
}

/// What is told of an authority beside its validity.
type Told = (String, &'static str, Vec<(String, Tone)>);

/// Ours: by their role, and the peers that hold them by their own word.
pub(super) fn ours(world: &World) -> TimeLine {
    let Some(bundle) = rotation::own_bundle(world) else { return TimeLine::default() };
    let needed = rotation::needed(world);
    let old: BTreeMap<&AuthorityId, &str> = world
        .spire
        .iter()
        .flat_map(|spire| &spire.servers)
        .filter_map(|(name, server)| {
            Some((server.authorities.as_ref()?.old.as_ref()?.anchor(), name.as_str()))
        })
        .collect();
    timeline(OURS, world.now, bundle.authorities(), |authority| {
        let id = authority.id();
        let (role, class) = match needed.get(id) {
            Some(Role::Active { server }) => (format!("active: {server} signs with it"), "active"),
            Some(Role::Prepared { server, activates_at, .. }) => {
                let when = activates_at
                    .map_or_else(String::new, |at| format!(", by itself {}", away(world.now, at)));
                (format!("prepared by {server}{when}"), "prepared")
            }
            _ => match old.get(id) {
                Some(server) => (format!("old: {server} signed with it before"), "old"),
                None => ("published".to_owned(), "old"),
            },
        };
        let role = if authority.tainted { format!("{role}; tainted") } else { role };
        let holders =
            world.peers.values().map(|peer| (peer.trust_domain.to_string(), holds(world, peer, id)));
        (role, class, holders.collect())
    })
}

fn holds(world: &World, peer: &Peer, id: &AuthorityId) -> Tone {
    match rotation::held(world, peer) {
        None => Tone::Unknown,
        Some(held) if held.ids.contains(id) => Tone::Good,
        Some(_) => Tone::Bad,
    }
}

/// A peer's: who of us has them.
pub(super) fn of_peer(world: &World, peer: &Peer) -> TimeLine {
    let trust_domain = &peer.trust_domain;
    let stored = world.spire.as_ref().and_then(|spire| spire.bundles.get(trust_domain));
    let served = world.endpoints.get(trust_domain).and_then(|endpoint| endpoint.latest.as_ref());
    let delivered = world.identity.as_ref().and_then(|identity| identity.federated.get(trust_domain));
    let mut all: BTreeMap<[u8; 32], &Authority> = BTreeMap::new();
    for bundle in [stored, served, delivered].into_iter().flatten() {
        all.extend(bundle.authorities().map(|authority| (authority.fingerprint(), authority)));
    }
    let places = [("its endpoint", served), ("our SPIRE", stored), ("our workloads", delivered)];
    timeline(ITS, world.now, all.into_values(), |authority| {
        let (role, class) = if authority.tainted {
            ("tainted", "old")
        } else if authority.not_after() < world.now {
            ("expired", "old")
        } else if authority.not_before() > world.now {
            ("not valid yet", "prepared")
        } else {
            ("valid", "active")
        };
        let holders = places.into_iter().map(|(place, bundle)| {
            let has =
                bundle.is_some_and(|bundle| bundle.fingerprints().any(|one| *one == authority.fingerprint()));
            (place.to_owned(), if has { Tone::Good } else { Tone::Bad })
        });
        (role.to_owned(), class, holders.collect())
    })
}

fn timeline<'a>(
    caption: &'static str,
    now: Timestamp,
    authorities: impl Iterator<Item = &'a Authority>,
    tell: impl Fn(&Authority) -> Told,
) -> TimeLine {
    let mut all: Vec<&Authority> = authorities.collect();
    all.sort_by_key(|authority| (authority.not_before(), authority.id().clone()));
    let more = all.len().saturating_sub(MOST);
    // The newest are those that matter.
    let shown = all.split_off(more);
    let begins = shown.iter().map(|a| a.not_before()).chain([now]).min().unwrap_or(now);
    let ends = shown.iter().map(|a| a.not_after()).chain([now]).max().unwrap_or(now);
    let whole = ends.as_second().saturating_sub(begins.as_second()).max(1);
    let place = |at: Timestamp| {
        let from = at.as_second().saturating_sub(begins.as_second());
        i64::try_from(i128::from(from) * i128::from(WIDTH) / i128::from(whole)).unwrap_or(0).clamp(0, WIDTH)
    };
    let rows = shown.iter().map(|authority| {
        let (role, role_class, holders) = tell(authority);
        let from = place(authority.not_before());
        Row {
            id: authority.id().to_string(),
            short_id: short(authority.id().as_str(), 13),
            role,
            role_class,
            from,
            length: (place(authority.not_after()) - from).max(2),
            validity: format!("until {} ({})", time(authority.not_after()), away(now, authority.not_after())),
            holders,
        }
    });
    TimeLine { caption, rows: rows.collect(), more, now: place(now), begins: time(begins), ends: time(ends) }
}
