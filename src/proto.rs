//! Code generated from `proto/` at build time. Our own protocol, and the calls of SPIRE and of the Workload API
//! that we make or, in `devkit`, serve: minimal protos with the field numbers of the public ones.

#![allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// `entente.federation.v1`: the peer protocol.
pub mod federation {
    pub mod v1 {
        tonic::include_proto!("entente.federation.v1");
    }
}

/// `entente.enrol.v1`: inviting and joining.
pub mod enrol {
    pub mod v1 {
        tonic::include_proto!("entente.enrol.v1");
    }
}

/// The SPIFFE Workload API (`SpiffeWorkloadAPI`, which has no package).
pub mod workload {
    tonic::include_proto!("_");
}

/// The SPIRE Server API: the part the agent calls.
pub mod spire {
    pub mod types {
        tonic::include_proto!("spire.api.types");
    }
    pub mod server {
        pub mod trustdomain {
            pub mod v1 {
                tonic::include_proto!("spire.api.server.trustdomain.v1");
            }
        }
        pub mod bundle {
            pub mod v1 {
                tonic::include_proto!("spire.api.server.bundle.v1");
            }
        }
        pub mod entry {
            pub mod v1 {
                tonic::include_proto!("spire.api.server.entry.v1");
            }
        }
        pub mod localauthority {
            pub mod v1 {
                tonic::include_proto!("spire.api.server.localauthority.v1");
            }
        }
    }
}

/// Envoy's discovery protocol, and the part of its configuration that is served by it.
pub mod xds {
    /// `envoy.service.discovery.v3`.
    pub mod discovery {
        tonic::include_proto!("envoy.service.discovery.v3");
    }
    /// Envoy's resources, by names of our own.
    pub mod resources {
        tonic::include_proto!("entente.xds");
    }
}
