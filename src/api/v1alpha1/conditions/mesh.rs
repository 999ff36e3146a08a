//! Reasons of the condition of a TrustDomainPeer that speaks of our own mesh.

reasons! {
    /// Whether our own mesh is set up so that services to and from the peer work, and no more than they are open to it. Where
    /// several things are wrong, the reason is the worst, in this order, and the message lists all. The first three break
    /// services, and with them Ready is False; the others do not change Ready.
    MeshReadyReason of MeshReady {
        /// `caCertificates[].trustDomains` of the mesh configuration lacks the peer's trust domain, though services are exported to
        /// it: our sidecars refuse its workloads. Add it; the message says where.
        PeerNotInCaCertificates,
        /// `trustDomain` of the mesh configuration is not our own trust domain, though services are exported: our sidecars refuse our
        /// own workloads, and policies speak of another trust domain. Set it; the message says to what.
        MeshTrustDomainDiffers,
        /// SPIRE's agents serve proxies our own bundle alone: they trust nobody of another trust domain. Set the `sds` names that
        /// the message has.
        SdsNamesNotIstios,
        /// `trustDomainAliases` of the mesh configuration names the peer's trust domain: every policy that lets one of our workloads
        /// in lets in the peer's of the same namespace and service account. Take it out.
        PeerInTrustDomainAliases,
        /// `PILOT_SKIP_VALIDATE_TRUST_DOMAIN` is set on istiod: every sidecar lets in every trust domain that its workload federates
        /// with. Unset it, and name trust domains in `caCertificates[].trustDomains`.
        TrustDomainsNotValidated,
        /// A Gateway passes on TLS for every service of the cluster, exported or not; the message names it. Name hosts in it.
        GatewayExposesAll,
        /// An AuthorizationPolicy uses `trustDomains`, which this istiod ignores. Upgrade Istio to 1.30.2, or name `principals`.
        TrustDomainsIgnored,
        /// Workloads that are to be exported by `IstioMtls` do not take their certificates from SPIRE, and are not exported. See
        /// the FederatedServices that the message names.
        WorkloadsNotOnSpire,
        /// Workloads are in Istio's ambient mode, which lets in its own trust domain alone. Give them sidecars.
        AmbientWorkloads,
        /// Services of the peer are imported, and proxies do not answer for their names. Set `ISTIO_META_DNS_CAPTURE`, or have
        /// something else resolve them.
        DnsCaptureOff,
        /// Services of the peer are imported, and nothing gives their names addresses. Set `PILOT_ENABLE_IP_AUTOALLOCATE` on istiod.
        AddressesNotAllocated,
        /// This version of Istio does not serve what is needed. Upgrade it.
        IstioTooOld,
        /// True: an ALLOW AuthorizationPolicy on an exported workload names namespaces or service accounts, which match in every
        /// trust domain; the agent's own policy shuts foreign callers out all the same. Name `principals` instead.
        AllowMatchesAnyTrustDomain,
        /// True: a part of the mesh cannot be seen, so that it is not known to be right; the message says which.
        NotAllSeen,
        /// True: nothing is wrong that can be seen.
        Configured,
        /// Unknown: the mesh configuration cannot be read; the message says why, and what to do.
        MeshConfigUnreadable,
        /// Unknown: services are exchanged with the peer, and there is no mesh configuration where it was looked for. Set
        /// `--istio-namespace` and `--istio-revision` of the agent.
        NoMeshConfig,
    }
}
