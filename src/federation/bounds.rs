//! How many entries a frame may have: more than any agent sends in one of at most 1 MiB, and few enough that one takes little more
//! in memory than on the wire.

use super::catalogue::MAX_SERVICES;
use super::convert::{MAX_AUTHORITIES, MAX_CLIENTS, MAX_ENDPOINTS, MAX_GATEWAYS, MAX_PORTS, MAX_SERVER_IDS};
use crate::bounded::{Bounded, Field};
use crate::proto::federation::v1 as proto;

/// Troubles of a report: what is over [`MAX_TROUBLES`](super::convert::MAX_TROUBLES) is left out of it.
const TROUBLES: usize = 256;
/// Checks of a reply: what is over [`MAX_CHECKS`](super::diagnose::MAX_CHECKS) is left out of it.
const CHECKS: usize = 256;
/// Services of a catalogue, which is told by itself what is too much, as long as it is not far too much.
const SERVICES: usize = 2 * MAX_SERVICES;
/// The bundles of a report.
const BUNDLES: usize = 4;

static FRAME: [Field; 5] = [
    Field::one(2, &TRUST_REPORT),
    Field::one(3, &CATALOGUE),
    Field::one(4, &CATALOGUE_ACK),
    Field::one(8, &DIAGNOSE_REPLY),
    Field::one(9, &CATALOGUE_DELTA),
];
static TRUST_REPORT: [Field; 5] = [
    Field::one(1, &HELD_BUNDLE),
    Field::one(2, &HELD_BUNDLE),
    Field::one(4, &HELD_BUNDLE),
    Field::one(5, &HELD_BUNDLE),
    Field::list(6, TROUBLES),
];
// A bundle with too many is told by itself, as long as all are not far more than that.
static HELD_BUNDLE: [Field; 1] = [Field::list(2, 2 * BUNDLES * MAX_AUTHORITIES)];
static CATALOGUE: [Field; 1] = [Field::list(2, SERVICES)];
static CATALOGUE_ACK: [Field; 1] = [Field::list(2, MAX_SERVICES)];
static CATALOGUE_DELTA: [Field; 2] = [Field::list(3, SERVICES), Field::list(4, SERVICES)];
static DIAGNOSE_REPLY: [Field; 1] = [Field::list(2, CHECKS)];

// A service with too many of something is refused by its name, as long as that is not far too many.
static SERVICE: [Field; 5] = [
    Field { number: 3, most: 8 * MAX_PORTS, fields: &PORT },
    Field::list(5, 8 * MAX_SERVER_IDS),
    Field::list(6, 8 * MAX_CLIENTS),
    Field::list(7, 8 * MAX_GATEWAYS),
    Field { number: 8, most: 8 * MAX_ENDPOINTS, fields: &ENDPOINT },
];
static PORT: [Field; 1] = [Field::list(4, MAX_PORTS * MAX_CLIENTS)];
static ENDPOINT: [Field; 1] = [Field::list(2, 8 * MAX_ENDPOINTS * MAX_PORTS)];

impl Bounded for proto::Frame {
    fn fields() -> &'static [Field] {
        &FRAME
    }
}

impl Bounded for proto::Service {
    fn fields() -> &'static [Field] {
        &SERVICE
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
