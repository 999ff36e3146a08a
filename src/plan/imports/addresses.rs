//! An address of its own for each imported host.
//!
//! A sidecar tells TCP services apart by their addresses. One that has none takes everything that leaves the workload for its
//! port, wherever it is sent (istiod listens on 0.0.0.0 then), and two such services of one port exclude each other; that
//! istiod gives addresses of its own mends it only for sidecars that capture DNS. So every host is given one here: found by a
//! hash of the host, kept in the status of the ImportedService and in the ServiceEntry, and so the same over restarts and
//! whatever else is imported.
//!
//! Without Istio it is an address of the loopback interface: each workload's own proxy listens there, and DNS answers with it,
//! so that two services of one port are told apart there as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::local;
use crate::model::object::{Kind, ObjectKey};
use crate::model::{NamespacedName, ServiceName, TrustDomain, World};

/// Most addresses of a range that are used: more than there are ever imports.
const MOST: u128 = 1 << 24;

/// The addresses of all hosts.
#[derive(Debug, Default)]
pub struct Addresses {
    by_host: BTreeMap<String, Vec<IpAddr>>,
    is_on: bool,
}

impl Addresses {
    /// Those of a host; none, where none are to be given.
    ///
    /// # Errors
    /// What to do where there are none left.
    pub fn of(&self, host: &str) -> Result<&[IpAddr], String> {
        match self.by_host.get(host) {
            Some(addresses) => Ok(addresses),
            None if !self.is_on => Ok(&[]),
            None => Err("no address is left for it in the range for imports: give the agent a larger \
                         --import-address-range"
                .to_owned()),
        }
    }
}

/// As objects have them.
#[must_use]
pub fn in_text(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// The addresses of what stands: of each host, and of each local name that no Service has. What a host has it keeps; of two
/// that want one address, the first by name has it.
#[must_use]
pub(super) fn plan(world: &World, standing: &BTreeMap<ObjectKey, (TrustDomain, ServiceName)>) -> Addresses {
    let ranges = ranges(world);
    let mut plan = Addresses { is_on: !ranges.is_empty(), ..Addresses::default() };
    if !plan.is_on {
        return plan;
    }
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (key, (td, name)) in standing {
        let entry = ObjectKey { kind: Kind::ServiceEntry, ..key.clone() };
        let mut kept = of_status(world, key);
        if kept.is_empty() {
            kept = of_entry(world, &entry);
        }
        hosts.insert(key.name.clone(), kept);
        let asks = |td| world.peers.get(td).and_then(|peer| local::asked(peer, &world.settings, name));
        let service = NamespacedName::new(name.namespace(), name.name());
        // Without Istio a local name has the address of its import, or one of its own on which Envoys listen for it.
        if !world.settings.istio && world.settings.serves_xds && asks(td).is_some() {
            let mine = hosts.entry(local::host(&world.settings, name)).or_default();
            if mine.is_empty() {
                *mine = of_local_status(world, key);
            }
        }
        let is_asked = world.settings.istio && asks(td).is_some();
        if is_asked && !world.cluster_services.contains_key(&service) {
            let entry = local::entry_key(world, name);
            hosts.entry(entry.name.clone()).or_insert_with(|| of_entry(world, &entry));
        }
    }
    let mut places: Vec<BTreeMap<String, IpAddr>> = Vec::new();
    for range in &ranges {
        places.push(in_range(range, &hosts));
    }
    for host in hosts.into_keys() {
        let addresses: Vec<IpAddr> = places.iter().filter_map(|place| place.get(&host).copied()).collect();
        if addresses.len() == ranges.len() {
            plan.by_host.insert(host, addresses);
        }
    }
    plan
}

/// One range for each family of the cluster's own Services; where they are not known, IPv4's, or what there is. Without Istio,
/// one for each family that was given, since the loopback interface has nothing to do with the cluster's Services.
fn ranges(world: &World) -> Vec<IpNet> {
    let all = &world.settings.import_ranges;
    if !world.settings.istio {
        let of = |is_v4: bool| all.iter().find(|range| range.addr().is_ipv4() == is_v4);
        return [of(true), of(false)].into_iter().flatten().copied().collect();
    }
    let api = world.cluster_services.get(&NamespacedName::new("default", "kubernetes"));
    let families: BTreeSet<bool> =
        api.iter().flat_map(|service| &service.cluster_ips).map(IpAddr::is_ipv4).collect();
    let of = |is_v4: bool| all.iter().find(|range| range.addr().is_ipv4() == is_v4).copied();
    let found: Vec<IpNet> = families.iter().rev().filter_map(|is_v4| of(*is_v4)).collect();
    if found.is_empty() { of(true).or_else(|| all.first().copied()).into_iter().collect() } else { found }
}

/// Those that stand in the status of an ImportedService.
pub(in crate::plan) fn of_status(world: &World, key: &ObjectKey) -> Vec<IpAddr> {
    world.statuses.get(key).map(|status| parsed(&status["addresses"])).unwrap_or_default()
}

/// Those of its local name that stand there, where it has some of its own.
pub(in crate::plan) fn of_local_status(world: &World, key: &ObjectKey) -> Vec<IpAddr> {
    world.statuses.get(key).map(|status| parsed(&status["localAddresses"])).unwrap_or_default()
}

fn of_entry(world: &World, key: &ObjectKey) -> Vec<IpAddr> {
    let entry = world.objects.get(key).filter(|entry| entry.is_generated_by(&world.settings.instance));
    entry.and_then(|entry| Some(parsed(&entry.spec()?["addresses"]))).unwrap_or_default()
}

fn parsed(list: &Value) -> Vec<IpAddr> {
    let all = list.as_array().into_iter().flatten().take(4);
    all.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// The place of each host in one range, as far as there is room.
fn in_range(range: &IpNet, hosts: &BTreeMap<String, Vec<IpAddr>>) -> BTreeMap<String, IpAddr> {
    let room = room(range);
    let mut placed = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (host, kept) in hosts {
        let mine = kept.iter().find(|address| offset_of(range, **address).is_some_and(|at| at < room));
        if let Some(mine) = mine.filter(|mine| taken.insert(**mine)) {
            placed.insert(host.clone(), *mine);
        }
    }
    for host in hosts.keys() {
        if placed.contains_key(host) || taken.len() as u128 >= room {
            continue;
        }
        let mut at = hash(host) % room;
        while let Some(address) = at_offset(range, at) {
            if taken.insert(address) {
                placed.insert(host.clone(), address);
                break;
            }
            at = (at + 1) % room;
        }
    }
    placed
}

/// How many addresses of a range can be given: neither its first nor its last.
fn room(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    1_u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(2).min(MOST)
}

fn hash(host: &str) -> u128 {
    Sha256::digest(host.as_bytes()).iter().take(8).fold(0, |hash, byte| (hash << 8) | u128::from(*byte))
}

fn at_offset(range: &IpNet, offset: u128) -> Option<IpAddr> {
    Some(match range {
        IpNet::V4(net) => {
            let first = u32::from(net.network());
            IpAddr::V4(Ipv4Addr::from(first.checked_add(u32::try_from(offset).ok()?)?.checked_add(1)?))
        }
        IpNet::V6(net) => {
            IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).checked_add(offset)?.checked_add(1)?))
        }
    })
}

/// The offset of an address in a range; `None` for one that is not in it, and for its first.
fn offset_of(range: &IpNet, address: IpAddr) -> Option<u128> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    range.contains(&address).then(|| number(address) - number(range.network()))?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::model::world::Settings;
    use crate::plan::fixtures::{td, world};

    fn standing(names: &[&str]) -> BTreeMap<ObjectKey, (TrustDomain, ServiceName)> {
        let of = |name: &&str| {
            let key = ObjectKey::namespaced(
                Kind::ImportedService,
                "entente-system",
                format!("{name}.shop.west.example"),
            );
            (key, (td("west.example"), ServiceName::new("shop", name).unwrap()))
        };
        names.iter().map(of).collect()
    }

    fn in_a_range(range: &str) -> World {
        let mut world = world("east.example");
        Arc::make_mut(&mut world.settings).import_ranges = vec![range.parse().unwrap()];
        world
    }

    fn address(plan: &Addresses, name: &str) -> Result<String, String> {
        Ok(in_text(plan.of(&format!("{name}.shop.west.example"))?).join(","))
    }

    #[test]
    fn each_host_has_an_address_of_its_own_and_keeps_it() {
        let mut world = in_a_range("240.241.0.0/29");
        let names = ["a", "b", "c", "d", "e", "f"];
        let full = plan(&world, &standing(&names));
        let all: BTreeSet<String> = names.iter().map(|name| address(&full, name).unwrap()).collect();
        assert_eq!(all.len(), 6, "six of a /29: {all:?}");
        assert!(all.iter().all(|one| !one.ends_with(".0") && !one.ends_with(".7")), "{all:?}");
        // Whoever comes or goes, what is written stays.
        let alone = address(&plan(&world, &standing(&["f"])), "f").unwrap();
        let key = standing(&["f"]).into_keys().next().unwrap();
        world.statuses.insert(key.clone(), Arc::new(json!({"addresses": [alone]})));
        assert_eq!(address(&plan(&world, &standing(&names)), "f").unwrap(), alone);
        let of_b = standing(&["b"]).into_keys().next().unwrap();
        world.statuses.insert(of_b, Arc::new(json!({"addresses": [alone]})));
        let both = plan(&world, &standing(&["b", "f"]));
        assert_eq!(address(&both, "b").unwrap(), alone, "of two that have one, the first");
        assert_ne!(address(&both, "f").unwrap(), alone);
        // One that is out of the range is given another, and nobody is given what there is not.
        world
            .statuses
            .insert(key, Arc::new(json!({"addresses": ["10.0.0.1", "240.241.0.7", "240.241.0.0"]})));
        assert!(address(&plan(&world, &standing(&["f"])), "f").unwrap().starts_with("240.241.0."));
        let over = plan(&world, &standing(&["a", "b", "c", "d", "e", "f", "g"]));
        assert!(address(&over, "g").unwrap_err().contains("--import-address-range"));
    }

    #[test]
    fn the_families_are_those_of_the_cluster() {
        use crate::plan::exports::resolve::testing::cluster_service;
        let mut world = world("east.example");
        let of = |world: &World| address(&plan(world, &standing(&["a"])), "a").unwrap();
        assert!(of(&world).starts_with("240.241."), "where nothing tells");
        for (ips, expected) in [
            (vec!["10.96.0.1"], vec!["240.241."]),
            (vec!["fd00::1"], vec!["fd24:241:"]),
            (vec!["fd00::1", "10.96.0.1"], vec!["240.241.", "fd24:241:"]),
        ] {
            let mut api = cluster_service("kubernetes");
            api.object = NamespacedName::new("default", "kubernetes");
            api.cluster_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            world.cluster_services.insert(api.object.clone(), Arc::new(api));
            let given = of(&world);
            let given: Vec<&str> = given.split(',').collect();
            assert_eq!(given.len(), expected.len(), "{given:?}");
            assert!(given.iter().zip(&expected).all(|(one, start)| one.starts_with(start)), "{given:?}");
        }
        Arc::make_mut(&mut world.settings).import_ranges.clear();
        assert_eq!(of(&world), "", "where none are to be given");
    }

    #[test]
    fn without_istio_the_families_are_those_that_were_given() {
        let mut world = world("east.example");
        let settings = Arc::make_mut(&mut world.settings);
        settings.istio = false;
        settings.import_ranges = Settings::loopback_ranges();
        let of = |world: &World| address(&plan(world, &standing(&["a"])), "a").unwrap();
        let given: Ipv4Addr = of(&world).parse().unwrap();
        assert!(given.is_loopback() && given.octets()[1] >= 64, "{given}: part of 127.64.0.0/10");
        Arc::make_mut(&mut world.settings).import_ranges.push("fd00::/64".parse().unwrap());
        assert_eq!(of(&world).split(',').count(), 2);
        // What was given while Istio was there is none of these.
        let key = standing(&["a"]).into_keys().next().unwrap();
        world.statuses.insert(key, Arc::new(json!({"addresses": ["240.241.0.9"]})));
        assert!(of(&world).starts_with(&given.to_string()));
    }
}
