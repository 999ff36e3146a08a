//! Reasons of the conditions of a FederatedService and of an ImportedService.

reasons! {
    /// Whether the FederatedService may be acted on.
    ServiceAcceptedReason of Accepted {
        /// True: it is well formed.
        Accepted,
        /// A field breaks a rule; the message names both. Mend the field.
        Invalid,
        /// With `tlsMode: Mtls` it has ports that lead to several ports of the workload, and only the host would tell them apart.
        /// Export each by a FederatedService of its own, with another `name`.
        OneTargetPort,
        /// Our own trust domain is no legal DNS host, so that no service can be named below it.
        TrustDomainNotDns,
        /// The host name would be longer than 253 characters. Set a shorter `name`.
        HostTooLong,
        /// With the others of the same `workloadLabels` it has more ports with different clients than one AuthorizationPolicy has
        /// rules for. Export fewer, or to the same clients.
        TooManyPorts,
        /// With those of the others of the same `workloadLabels`, or of the whole mesh where there is a fence, its clients do not
        /// fit into one AuthorizationPolicy (1 MiB). Name fewer, or many at once by a trailing `/*`.
        PolicyTooLarge,
        /// An older one has the same host; the message names it. Set another `name`.
        HostTaken,
        /// An older one selects some of the same pods by another selector; the message names it. Give both the same selector, or
        /// labels that no pod can have together.
        SelectorOverlaps,
        /// An older one exports a port of the same pods with another `tlsMode`; the message names it. A sidecar either ends TLS on a
        /// port or passes it on: give both the same `tlsMode`, or different target ports.
        TlsModeConflicts,
        /// Unknown: the Workload API has not told our own trust domain yet.
        NoIdentity,
    }
}

reasons! {
    /// Whether every trust domain that it is exported to has imported it.
    ExportedReason of Exported {
        /// True: each has said so.
        Exported,
        /// See Accepted.
        NotAccepted,
        /// No server ID is known: none is given, and no pod is there that has one. Give `serverSPIFFEIDs`, or start the pods.
        /// Importers would have nothing to pin.
        NoServerIds,
        /// The pods have more SPIFFE IDs than importers take. Give those of the servers as `serverSPIFFEIDs`.
        TooManyServerIds,
        /// The Service in `serviceRef` is not there. Create it; until then what it was exported as is withdrawn.
        ServiceNotFound,
        /// The Service selects no pods by labels. Give it a selector, or give `workloadLabels`.
        ServiceHasNoSelector,
        /// The Service has no TCP port, and nothing else can be exported.
        NoTcpPort,
        /// The Service has more TCP ports than importers take. Give those to export as `ports`.
        TooManyPorts,
        /// The Service has no port of this number. Give `targetPort`, or mend `port`.
        PortNotFound,
        /// The port is not TCP: nothing else can be exported. Take it out; where all of a Service is exported, its other ports are.
        PortNotTcp,
        /// No selected pod has a TCP port of the name in `targetPort`. Start the pods, name the port, or give its number.
        TargetPortUnknown,
        /// The selected pods have unequal numbers for the port named in `targetPort`, and Istio takes one. Make them equal. What is
        /// exported already stays with the number it has.
        TargetPortUnequal,
        /// Of a rule: it selects no Service.
        NothingSelected,
        /// Of a rule: none of the Services that it selects is exported; `status.skipped` says why.
        NothingExported,
        /// Of a Service that a rule selects: a FederatedService declares it, and wins over every rule.
        LeftToFederatedService,
        /// Of a Service that a rule selects: an older rule exports it.
        LeftToOlderRule,
        /// Of a Service that a rule selects: it is in a namespace of Kubernetes, Istio or the agent, out of which no rule exports.
        /// Write a FederatedService for it.
        SystemNamespace,
        /// Of a Service that a rule selects: it is a gateway of the mesh, which no rule exports. Write a FederatedService for it.
        GatewayService,
        /// A server ID lies outside our own trust domain, and importers would refuse it. Mend `serverSPIFFEIDs`.
        ForeignServerId,
        /// No gateway is known: install the one that carries this `tlsMode`, name its Service to the agent, or give `gateways`.
        /// Importers would have nowhere to connect to. What they were told before stays.
        NoGateway,
        /// Unknown: the Service of the gateway has no address that a peer can use yet. What importers were told before stays.
        GatewayPending,
        /// A trust domain is to come to the pods themselves, and there are none that can be told of.
        NoEndpoints,
        /// An object of someone else serves its host at the same gateway; the message names it. The older of the two wins.
        HostExists,
        /// An AuthorizationPolicy of someone else allows some callers of workloads whose application ends TLS, and so denies all
        /// others; the message says what to allow in it.
        AllowStands,
        /// A PeerAuthentication of someone else selects the workloads; the message says what to set in it.
        PeerAuthenticationStands,
        /// Only gateways of a type that does not carry this `tlsMode` are given: the message says which does.
        GatewayTypeIgnored,
        /// A trust domain in `exportedTrustDomains` has no TrustDomainPeer that is accepted. Create or mend it.
        NoPeer,
        /// A trust domain in `exportedTrustDomains` is named `cluster.local`, which Istio's policies take for our own: its clients could
        /// not be told from local callers. Give it another name.
        TrustDomainReserved,
        /// A trust domain in `exportedTrustDomains` has nobody in `clients`. Add its clients, or take it out.
        NoClientsThere,
        /// More is exported to a trust domain than a peer takes in one catalogue: the older services are offered to it. Export fewer to
        /// it, or with fewer clients.
        CatalogueFull,
        /// `tlsMode` is `IstioMtls`, and no pod that is selected has a sidecar that takes its certificates from SPIRE: the message says
        /// what they have. Inject sidecars with SPIRE's socket, or let the application end TLS and set `Mtls`.
        MeshNotOnSpire,
        /// An object of a name that is needed is there and is not ours; the message names it. Delete it, or hand it over with the
        /// annotation `entente.dev/adopt: "true"`.
        ObjectNotOurs,
        /// This mesh does not serve a kind that is needed. Install Istio's CustomResourceDefinitions; or, where there is to be no
        /// Istio, have the agent serve Envoys by xDS.
        IstioAbsent,
        /// It names `endpoints`, which are called through an Envoy that the agent serves by xDS, and this agent serves none. Turn it on.
        XdsNotServed,
        /// It waits for the AuthorizationPolicy that holds callers to `clients`. Unknown: it is being written. False: it cannot
        /// be; the message has the cause.
        PolicyNotInPlace,
        /// A peer has not answered yet. Where it stays so, see Connected of its TrustDomainPeer.
        AwaitingAcknowledgement,
        /// A peer refused it; the message says which, and its reason. What it admits is in its own TrustDomainPeer.
        RefusedByPeer,
        /// Unknown: the Workload API has not told our own trust domain yet.
        NoIdentity,
    }
}

reasons! {
    /// Whether callers that are not in `clients` are refused before the application sees them.
    ClientsEnforcedReason of ClientsEnforced {
        /// True: the sidecar of the server refuses them, by an AuthorizationPolicy.
        SidecarEnforces,
        /// True: the Envoy in front of the application refuses them, by what the agent serves it.
        ProxyEnforces,
        /// The Envoy in front of the application does not take what the agent serves it, and keeps what it had; the message has its
        /// words. Mend what it lacks (`entente clients`).
        ProxyRefuses,
        /// The application ends TLS, and only it can check the client's SPIFFE ID. See to it that it does.
        ApplicationTerminatesTLS,
        /// The mesh configuration has a foreign trust domain among its `trustDomainAliases`: the sidecar takes whoever is of it for a
        /// local caller. The message says what to set.
        TrustDomainAliased,
        /// The AuthorizationPolicy is not there (Unknown: yet), could not be written as it should be, or one that is not ours
        /// stands in its place; the message says which.
        PolicyNotInPlace,
        /// See Accepted: nothing is enforced for a FederatedService that is not.
        NotAccepted,
        /// See Exported: there is nothing to enforce, since what is to be exported is not known.
        NotExported,
        /// Unknown: the Workload API has not told our own trust domain yet.
        NoIdentity,
    }
}

reasons! {
    /// Whether the TrustDomainPeer admits the service.
    AdmittedReason of Admitted {
        /// True: `spec.imports` of the TrustDomainPeer admits it.
        Admitted,
        /// A field breaks a rule, though the agent wrote the object: someone edited it. Delete it, and it is written again.
        Invalid,
        /// No pattern of `imports.services` matches it. Add one to admit it.
        NotAdmitted,
        /// More services than `imports.maxServices`. Raise it, or narrow `imports.services`.
        TooManyServices,
        /// A server ID lies outside the peer's trust domain. The peer's operator must mend its FederatedService.
        ForeignServerId,
        /// It names no server ID, so there is nothing to pin. The peer's operator must mend its FederatedService.
        NoServerId,
        /// More server IDs or clients than are admitted. The peer's operator must name fewer, or use `/*`.
        TooManyIds,
        /// Its ports are none, too many, alike, or ill named. The peer's operator must mend its FederatedService.
        PortsInvalid,
        /// A gateway's address is loopback, link-local, multicast, a name where CIDRs are given, or outside
        /// `imports.endpointCIDRs`.
        AddressNotAdmitted,
        /// More gateways than `imports.maxEndpointsPerService`.
        TooManyEndpoints,
        /// The peer's trust domain is no legal DNS host.
        TrustDomainNotDns,
        /// Its host name would be longer than 253 characters.
        HostTooLong,
        /// Its host would lie within the cluster's, our own or another peer's names.
        HostShadows,
        /// Its `tlsMode` is not served by this version of the agent.
        TlsModeNotSupported,
        /// It names no gateway, so it cannot be reached. The peer's operator must mend its FederatedService.
        NoGateway,
        /// The ImportedService was not written by this agent, so it admits nothing; or one that was not is in the way. Delete it.
        ObjectNotOurs,
        /// Its TrustDomainPeer is gone, not accepted, or being ended.
        NoPeer,
        /// The peer no longer exports it: it is about to be removed.
        NoLongerExported,
        /// The peer has been away for longer than `onDisconnect.after`.
        Withdrawn,
    }
}

reasons! {
    /// Whether what clients need was generated.
    GeneratedReason of Generated {
        /// True: it is in place.
        Generated,
        /// See Admitted.
        NotAdmitted,
        /// True: there is no Istio here, and nothing to write. Clients are served by xDS, or find it by DNS.
        WithoutIstio,
        /// It is not written yet (Unknown), or cannot be (False); the message has the cause.
        Pending,
        /// This cluster does not serve Istio's ServiceEntry. Install Istio's CustomResourceDefinitions; or, where there is to be no
        /// Istio, have the agent serve clients by xDS or DNS.
        IstioAbsent,
        /// An object of a name that is needed is there and is not ours; the message names it. Delete it, or hand it over with the
        /// annotation `entente.dev/adopt: "true"`.
        ObjectNotOurs,
        /// No address is left for it in the agent's range for imports: enlarge `--import-address-range`.
        NoAddress,
        /// Another object serves its host already, or sets for some clients how they call it; the message names it.
        HostExists,
    }
}

reasons! {
    /// Whether it also answers at its local name, where `imports.asLocal` asks for that.
    LocalReason of ServedLocally {
        /// True: together with a Service of the cluster, whose endpoints are used too. Without Istio, for workloads that ask the
        /// agent's DNS server and whose Envoy is served by xDS; there also with a FederatedService of ours that gives `endpoints`.
        Merged,
        /// True: the cluster has no Service of that name. Only workloads with a sidecar that resolves names (Istio's DNS capture)
        /// find it.
        Alone,
        /// True: without Istio, and the cluster has no Service of that name. The agent's DNS server answers it. Only workloads that
        /// ask it find it.
        ByName,
        /// Without Istio, and the cluster has a Service of that name, which answers. Call the federated name, or have clients served
        /// by xDS (`--xds-listen`).
        ServiceExists,
        /// Without Istio, and imports of older TrustDomainPeers answer: one, which the message names, or with xDS four. Call the
        /// federated name.
        OlderPeerServes,
        /// Only `*` in `imports.asLocal` matches it, and its namespace is `kube-*`, Istio's or the agent's own, or it is
        /// `kubernetes` in `default`. Name it in `imports.asLocal` if that is what you want.
        NamespaceReserved,
        /// The Service of that name is headless or an ExternalName: its callers have the addresses of its endpoints. Give it a
        /// cluster IP, or call the federated name. Without Istio also: it has a port that is not TCP.
        ServiceNotSupported,
        /// No port can be called there: the Service has none of the same number or name, or TLS is spoken on it, which is told apart
        /// by the name that is called. Call the federated name.
        PortsDiffer,
        /// The peers that serve the name are to be seen by different namespaces; the message names the other. Give both the same
        /// `imports.exportTo`.
        ExportToDiffers,
        /// `imports.exportTo` is `~`: nobody would see it.
        NotVisible,
        /// The local name is longer than 253 characters.
        HostTooLong,
        /// An older object, not the agent's, has that host already: a VirtualService for it, or a ServiceEntry where there is no
        /// Service; the message names it. Delete it, or take the service out of `imports.asLocal`.
        HostExists,
        /// An object of a name that is needed is there and is not ours; the message names it. Delete it, or hand it over with the
        /// annotation `entente.dev/adopt: "true"`.
        ObjectNotOurs,
        /// See Generated: what its federated name needs cannot be generated.
        NotGenerated,
        /// It is not written yet (Unknown), or cannot be (False); the message has the cause.
        Pending,
        /// Unknown: another import of the same name cannot be read now, and what stands is kept until it can.
        OtherUnreadable,
        /// This cluster does not serve a kind of Istio's that is needed. Install Istio's CustomResourceDefinitions.
        IstioAbsent,
    }
}

reasons! {
    /// Whether clients without Istio take what they are served of it by xDS. There only while one that the leading replica serves
    /// refuses some of it.
    TakenReason of TakenByClients {
        /// False: a client refuses what it is served, and goes on with what it had; the message has whom and its words. Every
        /// replica says so of its own clients in `entente clients`, its log and `entente_xds_nacks_total`. What to do is in the
        /// client's words: an address that it cannot bind, say, or a version of it that does not know a field.
        ClientRefuses,
    }
}
