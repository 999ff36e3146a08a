//! What each peer is offered, no more than it takes: a larger catalogue would end the exchange with it, trust included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::v1alpha1::conditions::ExportedReason;
use crate::federation::catalogue::{MAX_BYTES, MAX_SERVICES};
use crate::model::service::RemoteService;
use crate::model::session::Offers;
use crate::model::world::Settings;
use crate::model::{NamespacedName, Service, TrustDomain};
use crate::plan::memo::Memo;

use super::{ExportProblem, Exports, exported};

/// Bytes for services: what is left beside as many names that are only held, each under 144 bytes.
const ROOM: usize = MAX_BYTES - MAX_SERVICES * 144;

/// What is to be offered to one peer.
struct Offer<'a> {
    exported: &'a Service,
    service: Arc<RemoteService>,
    bytes: usize,
}

/// What each peer is offered: with the clients that are in its own trust domain. Peers that are offered nothing have no
/// entry. Of more than a peer takes the older services are offered; the reports of the others say so.
#[must_use]
pub fn catalogues(
    exports: &mut Exports,
    settings: &Settings,
    memo: &mut Memo,
) -> BTreeMap<TrustDomain, Offers> {
    let mut all: BTreeMap<TrustDomain, Vec<Offer<'_>>> = BTreeMap::new();
    for export in exports.exported.values() {
        for (peer, service, bytes) in &exported(settings, export, memo).offered {
            let offer = Offer { exported: &export.service, service: Arc::clone(service), bytes: *bytes };
            if let Some(offers) = all.get_mut(peer) {
                offers.push(offer);
            } else {
                all.insert(peer.clone(), vec![offer]);
            }
        }
    }
    let mut left_out: Vec<(NamespacedName, TrustDomain)> = Vec::new();
    let mut catalogues = BTreeMap::new();
    for (peer, mut offers) in all {
        let out = without_room(&offers, MAX_SERVICES, ROOM);
        if !out.is_empty() {
            offers.retain(|offer| !out.contains(&offer.exported.object));
            left_out.extend(out.into_iter().map(|object| (object, peer.clone())));
        }
        let offers = offers.into_iter().map(|offer| (offer.service.name.clone(), offer.service));
        catalogues.insert(peer, offers.collect());
    }
    for (object, peer) in left_out {
        let Some(report) = exports.reports.get_mut(&object).map(Arc::make_mut) else { continue };
        let message = format!(
            "{object}: more is exported to {peer} than a peer takes, {MAX_SERVICES} services and {} MiB; the older ones are \
             offered to it: export fewer to it, or with fewer clients",
            ROOM >> 20
        );
        report.to.insert(peer, Err(ExportProblem::new(ExportedReason::CatalogueFull, message)));
        if report.to.values().all(Result::is_err) {
            report.exported = report.to.values().next().cloned().unwrap_or(Ok(()));
        }
    }
    catalogues
}

/// The objects whose services do not fit beside older ones.
fn without_room(offers: &[Offer<'_>], most: usize, most_bytes: usize) -> BTreeSet<NamespacedName> {
    let bytes: usize = offers.iter().map(|offer| offer.bytes).sum();
    if offers.len() <= most && bytes <= most_bytes {
        return BTreeSet::new();
    }
    let mut by_age: Vec<&Offer<'_>> = offers.iter().collect();
    by_age.sort_by_key(|offer| {
        let Service { created, uid, object, .. } = offer.exported;
        (created.is_none(), *created, uid, object)
    });
    let (mut count, mut bytes) = (0, 0);
    let mut out = BTreeSet::new();
    for offer in by_age {
        if count < most && bytes + offer.bytes <= most_bytes {
            count += 1;
            bytes += offer.bytes;
        } else {
            out.insert(offer.exported.object.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;
    use crate::plan::exports::testing::with_policies;
    use crate::plan::fixtures::{WorldExt, at, client, peer, remote_cart, service, td, world};

    #[test]
    fn the_oldest_stay_and_what_is_small_fits_beside_them() {
        let services = ["a", "b", "c", "d"].map(|name| {
            let mut service = service("shop", name, "east.example");
            service.created = Some(at(if name == "a" { 0 } else { -50 }));
            service
        });
        let out = |sizes: [usize; 4], most, most_bytes| {
            let offer = |(exported, bytes)| Offer { exported, service: Arc::new(remote_cart()), bytes };
            let offers: Vec<Offer<'_>> = services.iter().zip(sizes).map(offer).collect();
            let out = without_room(&offers, most, most_bytes);
            out.into_iter().map(|object| object.name).collect::<Vec<_>>()
        };
        assert_eq!(out([1, 1, 1, 1], 4, 4), [] as [&str; 0]);
        assert_eq!(out([1, 1, 1, 1], 3, 4), ["a"], "the youngest");
        assert_eq!(out([1, 1, 1, 1], 4, 2), ["a", "d"]);
        assert_eq!(out([1, 2, 9, 1], 4, 4), ["c"], "one that is too large harms only itself");
    }

    #[test]
    fn a_catalogue_is_never_larger_than_a_peer_takes() {
        // Forty services of some 450 KiB each.
        let long = "x".repeat(1_800);
        let all = (0..40).map(|number| {
            let mut service = service("shop", &format!("service-{number:02}"), "east.example");
            service.created = Some(at(-number));
            let clients = (0..250).map(|n| client(&format!("spiffe://east.example/{long}/{n}")));
            service.clients = clients.collect();
            service
        });
        let world = all.fold(world("west.example").with_peer(peer("east.example")), WorldExt::with_service);
        let world = with_policies(world);
        let mut exports = crate::plan::exports::exports(&world);
        let offered = catalogues(&mut exports, &Settings::standard(), &mut Memo::default());
        let offered = &offered[&td("east.example")];
        let bytes: usize = offered.values().map(|s| crate::federation::catalogue::size(s)).sum();
        assert!(bytes <= ROOM && offered.len() > 20, "{} services of {bytes} bytes", offered.len());
        for (object, report) in &exports.reports {
            let is_offered = offered.contains_key(&ServiceName::new("shop", &object.name).unwrap());
            let problem = report.to[&td("east.example")].as_ref().err();
            assert_eq!(problem.map(|p| p.reason.as_str()), (!is_offered).then_some("CatalogueFull"));
            assert_eq!(report.exported.is_ok(), is_offered);
        }
        let first = ServiceName::new("shop", "service-00").unwrap();
        assert!(!offered.contains_key(&first), "the youngest is not");
    }
}
