//! Entente: a SPIFFE-native federation agent.
//!
//! It runs beside SPIRE in each trust domain and makes two trust domains able to call each other's services
//! by SPIFFE ID. Data flows one way:
//!
//! ```text
//!  Kubernetes or directory watches   peers' gRPC   Workload API   SPIRE Server API   bundle endpoints
//!         |  store/                  | federation/   | identity/     | spire/              | bundle/
//!         +-------- parse at the edge: a typed value, or a rejection on that object alone -+   index/
//!                                    |
//!                      World      plain data, PartialEq; no I/O, no clock                    model/
//!                                    |
//!                      plan(&World) -> Plan   pure, total, deterministic                     plan/
//!                                    |
//!       +---------------+------------+-------------+----------------+--------------+--------------+
//!    objects and     SPIRE's        peers' gRPC     status and       names          Envoys and
//!    patches         own API        streams         metrics          of imports     gRPC libraries
//!    apply/          apply/, spire/ federation/     apply/, observe/ dns/           xds/
//! ```
//!
//! Nothing below `model/` and `plan/` names a client, a runtime, a clock or the environment; `plan/purity.rs`
//! holds them to it. Everything that was decided can be read in an object: see `api/v1alpha1/`.

pub mod api;
pub mod app;
pub mod apply;
pub mod bounded;
pub mod bundle;
pub(crate) mod causes;
#[cfg(test)]
mod chart_tests;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod devkit;
pub mod diagnose;
pub mod dns;
pub mod enrol;
pub mod federation;
pub mod identity;
pub mod index;
pub mod istio;
pub mod leases;
pub mod model;
pub mod observe;
pub mod plan;
pub mod proto;
pub mod proxyless;
pub(crate) mod rate;
pub mod reach;
#[cfg(test)]
mod reference;
pub mod socket;
pub mod spire;
pub mod store;
pub mod xds;
