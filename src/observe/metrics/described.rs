//! Every metric, described once: what is served, and what the reference says of it, come from here.

/// What sort of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// What is so now.
    Gauge,
    /// How often something happened since the process started. Its name ends in `_total`.
    Counter,
    /// How long something took, in seconds.
    Histogram,
}

impl Sort {
    /// As Prometheus calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// As Prometheus sees it: with the prefix and, of a counter, with `_total`.
    pub name: &'static str,
    pub sort: Sort,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $id:ident = $sort:ident $name:literal [$($label:literal),*];)+) => {
        $(
            $(#[doc = $help])+
            pub const $id: Described = Described {
                name: $name,
                sort: Sort::$sort,
                labels: &[$($label),*],
                help: concat!($($help),+),
            };
        )+

        /// All of them, in the order in which they are served.
        pub const ALL: &[Described] = &[$($id),+];
    };
}

metrics! {
    /// 1, with the version of the agent.
    BUILD_INFO = Gauge "entente_build_info" ["version"];
    /// 1 where /readyz says so: every source has been read, and peers are served, or passed on to the replica that leads.
    READY = Gauge "entente_ready" [];
    /// 1 where this replica leads: it alone writes, and talks to peers.
    LEADER = Gauge "entente_leader" [];
    /// How long the leader's Lease holds still, at the moment of the scrape, if it is not renewed. Only where this replica leads.
    LEASE_REMAINING = Gauge "entente_lease_remaining_seconds" [];
    /// How long the leader's Lease holds without renewal. Only where this replica leads.
    LEASE_DURATION = Gauge "entente_lease_duration_seconds" [];

    /// 1 where objects of this kind are followed in the API server; 0 until they were read, and for a minute after each failure.
    /// Only where the store is Kubernetes.
    STORE_UP = Gauge "entente_store_up" ["kind"];

    /// 1 where the Workload API serves the agent.
    WORKLOAD_API_UP = Gauge "entente_workload_api_up" [];
    /// From when on the agent's own SVID is valid.
    SVID_NOT_BEFORE = Gauge "entente_svid_not_before_timestamp_seconds" [];
    /// When the agent's own SVID expires.
    SVID_NOT_AFTER = Gauge "entente_svid_not_after_timestamp_seconds" [];
    /// 1 where the SPIRE Server API could be read when it was last asked.
    SPIRE_API_UP = Gauge "entente_spire_api_up" [];
    /// 1 where this SPIRE server tells its authorities.
    SPIRE_SERVER_UP = Gauge "entente_spire_server_up" ["server"];
    /// When the authority in this slot (active, prepared, old) of a SPIRE server of ours expires.
    AUTHORITY_NOT_AFTER = Gauge "entente_authority_not_after_timestamp_seconds" ["server", "slot"];
    /// When SPIRE lets the prepared authority of a SPIRE server of ours sign by itself. Absent while none is prepared.
    AUTHORITY_ACTIVATION = Gauge "entente_authority_activation_timestamp_seconds" ["server"];
    /// From when on too little time is left until that activation for a peer that lacks the authority: from then on
    /// RotationSafe is False with ActivationNear. The rotation margin is this less the time now.
    ROTATION_DEADLINE = Gauge "entente_rotation_deadline_timestamp_seconds" ["server"];

    /// How many TrustDomainPeers are in force.
    PEERS = Gauge "entente_peers" [];
    /// The conditions of a TrustDomainPeer: 1 for the status (True, False, Unknown) that it has, 0 for the others.
    PEER_CONDITION = Gauge "entente_peer_condition" ["trust_domain", "type", "status"];
    /// 1 for the reason that a condition of a TrustDomainPeer has now.
    PEER_CONDITION_REASON = Gauge "entente_peer_condition_reason" ["trust_domain", "type", "reason"];
    /// 1 for each alarm of a peer's bundle that stands: the reasons of BundleEndpointHealthy.
    PEER_BUNDLE_ALARM = Gauge "entente_peer_bundle_alarm" ["trust_domain", "alarm"];
    /// When the last authority of the peer's bundle in SPIRE expires.
    PEER_BUNDLE_NOT_AFTER = Gauge "entente_peer_bundle_not_after_timestamp_seconds" ["trust_domain"];
    /// When the peer's present bundle was first seen.
    PEER_BUNDLE_CHANGED = Gauge "entente_peer_bundle_changed_timestamp_seconds" ["trust_domain"];
    /// When the last fetch from the peer's bundle endpoint that ended had begun, whatever it gave.
    PEER_BUNDLE_FETCHED = Gauge "entente_peer_bundle_fetch_timestamp_seconds" ["trust_domain"];
    /// How many X.509 authorities the peer's bundle in SPIRE has.
    PEER_BUNDLE_AUTHORITIES = Gauge "entente_peer_bundle_authorities" ["trust_domain"];
    /// How many authorities of ours, that it should hold, the peer does not hold by its own last word.
    PEER_AUTHORITIES_MISSING = Gauge "entente_peer_authorities_missing" ["trust_domain"];
    /// 1 for how it stands with the stream to the peer's agent (Idle, Connected, Refused, Unverified, WrongPeerId, Unreachable,
    /// Parted), 0 for the others. Only where this replica leads.
    PEER_STREAM = Gauge "entente_peer_stream" ["trust_domain", "state"];
    /// Since when the stream to the peer's agent stands as it does. Only where this replica leads.
    PEER_STREAM_SINCE = Gauge "entente_peer_stream_since_timestamp_seconds" ["trust_domain"];
    /// How far the peer's clock is ahead of ours (behind, where negative); 0 while it differs by no more than it may. Only
    /// while connected.
    PEER_CLOCK_SKEW = Gauge "entente_peer_clock_skew_seconds" ["trust_domain"];
    /// Streams to the peer's agent that ended since the process started.
    PEER_DISCONNECTS = Counter "entente_peer_disconnects_total" ["trust_domain"];
    /// From a peer's word that it has a new bundle until our SPIRE holds that, in seconds.
    PEER_BUNDLE_PUSH = Histogram "entente_peer_bundle_push_seconds" [];

    /// Services shared with a peer, by what became of them (exported, imported, refused), as the status of its TrustDomainPeer counts them.
    PEER_SERVICES = Gauge "entente_peer_services" ["trust_domain", "outcome"];
    /// Services of a peer that are refused here, by the reason of Admitted. Only where this replica leads.
    PEER_IMPORTS_REFUSED = Gauge "entente_peer_imports_refused" ["trust_domain", "reason"];
    /// Services that are exported to a peer, by its answer (pending, imported, refused). Only where this replica leads.
    PEER_EXPORTS = Gauge "entente_peer_exports" ["trust_domain", "outcome"];
    /// How many FederatedServices, ImportedServices and ServiceExportRules have a condition with this status.
    OBJECT_CONDITIONS = Gauge "entente_object_conditions" ["kind", "type", "status"];
    /// How many objects of Entente's kinds cannot be used, since a field breaks a rule.
    OBJECTS_REJECTED = Gauge "entente_objects_rejected" ["kind"];
    /// How many generated objects of a kind should be there.
    OBJECTS_WANTED = Gauge "entente_objects_wanted" ["kind"];
    /// What is still to be done to make the plan true (write, delete, patch, spire, status). Not 0 for long only where something
    /// fails, or where this replica does not lead.
    PENDING = Gauge "entente_pending_operations" ["operation"];
    /// How many objects cannot be written now, and how many calls to SPIRE fail.
    FAILING = Gauge "entente_write_failures" [];

    /// Names of a peer's services that the DNS server answers, local names among them. Only with --dns-listen, as are all that follow
    /// on DNS.
    DNS_NAMES = Gauge "entente_dns_names" ["trust_domain"];
    /// When what the DNS server answers last changed.
    DNS_ZONE_CHANGED = Gauge "entente_dns_zone_changed_timestamp_seconds" [];
    /// Questions to the DNS server, by outcome (Answered, Empty, Unknown, Refused, Forwarded, Failed, Malformed, Limited).
    DNS_QUERIES = Counter "entente_dns_queries_total" ["outcome"];

    /// Plans made.
    PLANS = Counter "entente_plans_total" [];
    /// How long a turn of reconciliation took: plan, or apply, which makes it true.
    RECONCILE = Histogram "entente_reconcile_seconds" ["step"];
    /// Objects written, patched or deleted, and calls to SPIRE, by result (Ok, Error). A settled agent makes none.
    WRITES = Counter "entente_writes_total" ["result"];
    /// Generated objects that someone else changed or deleted while the agent ran, and that it put back.
    DRIFT_REPAIRED = Counter "entente_drift_repaired_total" ["kind"];

    /// Streams of xDS clients that are open, by what the client is (envoy, grpc). Only where xDS is served.
    XDS_STREAMS = Gauge "entente_xds_streams" ["client"];
    /// Answers sent to xDS clients, by what was in them (cluster, endpoints, listener).
    XDS_ANSWERS = Counter "entente_xds_answers_total" ["type"];
    /// Answers that xDS clients refused; why is in `entente clients` and the log.
    XDS_NACKS = Counter "entente_xds_nacks_total" ["type"];
    /// Streams of xDS clients that were ended since they asked for more than they may, or left what they were sent unread.
    XDS_VIOLATIONS = Counter "entente_xds_violations_total" [];
    /// How many imported services xDS clients are served, each those that its SPIFFE ID may call. Only where xDS is served.
    XDS_SERVICES = Gauge "entente_xds_services" [];
    /// When that last changed: how old the served state is. Only where xDS is served.
    XDS_CHANGED = Gauge "entente_xds_changed_timestamp_seconds" [];

    /// CPU time that the process has used.
    PROCESS_CPU = Counter "process_cpu_seconds_total" [];
    /// Resident memory of the process.
    PROCESS_MEMORY = Gauge "process_resident_memory_bytes" [];
    /// When the process started.
    PROCESS_START = Gauge "process_start_time_seconds" [];
    /// Open file descriptors of the process.
    PROCESS_FDS = Gauge "process_open_fds" [];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_obey_the_conventions() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is used twice");
        for Described { name, sort, labels, help } in ALL {
            let is_process = name.starts_with("process_");
            assert!(is_process || name.starts_with("entente_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert_eq!(*sort == Sort::Counter, name.ends_with("_total"), "{name}");
            assert!(*sort != Sort::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(!help.trim().is_empty() && help.trim().ends_with('.'), "{name}: {help}");
            for label in *labels {
                assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}: {label}");
                assert!(!["job", "instance", "le", "quantile"].contains(label), "{name}: {label}");
            }
        }
    }
}
