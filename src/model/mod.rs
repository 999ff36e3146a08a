//! Plain data that everything else is decided from. No I/O, no clock, no client.

pub mod authority;
pub mod bundle;
pub mod change;
pub mod cluster;
pub mod condition;
pub mod diagnosis;
pub mod endpoint;
pub mod export;
pub mod import;
pub mod mesh;
pub mod name;
pub mod object;
pub mod own;
pub mod peer;
pub mod reach;
pub mod refused;
pub mod registration;
pub mod replica;
pub mod service;
pub mod session;
pub mod trust;
pub mod world;

pub use authority::{Authority, AuthorityId};
pub use bundle::{Bundle, BundleDigest};
pub use name::{NamespacedName, ServiceName};
pub use object::{Object, ObjectKey, OwnerRef};
pub use peer::Peer;
pub use service::Service;
pub use spiffe::{SpiffeId, TrustDomain};
pub use world::World;
