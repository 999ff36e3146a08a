//! Reasons of the conditions of a TrustDomainPeer.

use crate::model::endpoint::{BundleAlarm, FetchProblem};

reasons! {
    /// Whether the TrustDomainPeer may be acted on.
    PeerAcceptedReason of Accepted {
        /// True: it is well formed.
        Accepted,
        /// A field breaks a rule; the message names both. Mend the field.
        Invalid,
        /// It names our own trust domain: two agents of one trust domain do not federate. Delete it.
        OwnTrustDomain,
        /// An older TrustDomainPeer names the same trust domain, and is the one in force. Delete one of them.
        DuplicateTrustDomain,
        /// It imports services, and its trust domain is no legal DNS host, so that no service can be named below it. Empty
        /// `imports.services`.
        TrustDomainNotDns,
        /// `bootstrapBundle` names a ConfigMap or Secret that is not there, lacks the key, or holds no bundle of the trust
        /// domain. Create or mend it, in the agent's namespace.
        BootstrapUnavailable,
        /// Its deletion was asked for: the message says what is still awaited.
        Ending,
    }
}

reasons! {
    /// Whether the bundle endpoint serves a bundle that can be used (SPIFFE Federation 5; Trust Domain and Bundle 4). Where
    /// several things are wrong, the reason is the worst, in this order, and the message lists all.
    BundleEndpointReason of BundleEndpointHealthy {
        /// True: the last fetch gave a bundle with usable authorities.
        Healthy,
        /// Unknown: no fetch has ended yet. Wait for it.
        AwaitingFirstFetch,
        /// The bundle has no X.509 authority that is valid now: by the specification every SVID of the trust domain is invalid.
        /// Federation is suspended, and comes back by itself once the endpoint serves authorities again.
        NoUsableAuthority,
        /// An authority of the bundle is ours, or that of another TrustDomainPeer: who has its key could speak for both. The
        /// bundle is not used, and federation suspended. Ask both operators whose it is; the other must take it out.
        AuthorityShared,
        /// No authority of the last bundle is in this one. Ask the peer's operator, by a way you trust, whether that was meant.
        AuthoritiesSubstituted,
        /// A good SVID of another SPIFFE ID than `endpointSPIFFEID`. Ask the peer's operator which is right.
        WrongEndpointSpiffeId,
        /// Its certificate does not chain to the bundle (`https_spiffe`) or to the Web PKI (`https_web`). If the peer changed its
        /// root of trust, get its bundle by a way you trust and put it into `bootstrapBundle`; else someone is in between.
        EndpointCertificateUntrusted,
        /// Its certificate has expired, or one of the clocks is wrong. The peer's operator must renew it.
        EndpointCertificateExpired,
        /// Nothing to verify the endpoint with. Give `bootstrapBundle`; for an endpoint in another trust domain, create a
        /// TrustDomainPeer of that one.
        NoBundleToVerifyEndpoint,
        /// Not a SPIFFE bundle document. Check the URL; tell the peer's operator.
        BundleUnparseable,
        /// The answer is longer than 1 MiB. It is not a bundle endpoint, or is hostile.
        BundleTooLarge,
        /// An HTTP status other than 200, or a redirect that must not be followed. Check the path of the URL.
        BadResponse,
        /// DNS, TCP, or no answer in time. Check the URL, the network and the peer's SPIRE server.
        EndpointUnreachable,
        /// The last authority expires soon, and the peer publishes no next one. Its operator must see why its SPIRE does not
        /// rotate.
        AuthorityNearExpiry,
        /// The sequence number went back: an old bundle is served, or the peer's SPIRE database was rebuilt. Ask which.
        SequenceWentBack,
        /// Other authorities under the same sequence number. Ask the peer's operator which servers answer at this URL.
        ContentChangedUnderSequence,
        /// SPIRE's own reader refuses the whole document for one key of it. The agent gives SPIRE what can be read of it; the
        /// peer's operator must mend the key that the message names.
        RefusedBySpire,
        /// SPIRE has held another bundle than the endpoint serves us for longer than two poll intervals. See its log.
        SpireDiffersFromEndpoint,
        /// The peer's agent has said for longer than two poll intervals that its bundle is another than its endpoint serves us.
        /// Ask its operator what stands in front of the endpoint.
        PeerDiffersFromEndpoint,
    }
}

impl From<FetchProblem> for BundleEndpointReason {
    fn from(problem: FetchProblem) -> Self {
        match problem {
            FetchProblem::EndpointUnreachable => Self::EndpointUnreachable,
            FetchProblem::EndpointCertificateUntrusted => Self::EndpointCertificateUntrusted,
            FetchProblem::EndpointCertificateExpired => Self::EndpointCertificateExpired,
            FetchProblem::WrongEndpointSpiffeId => Self::WrongEndpointSpiffeId,
            FetchProblem::NoBundleToVerifyEndpoint => Self::NoBundleToVerifyEndpoint,
            FetchProblem::BadResponse => Self::BadResponse,
            FetchProblem::BundleTooLarge => Self::BundleTooLarge,
            FetchProblem::BundleUnparseable => Self::BundleUnparseable,
        }
    }
}

impl From<&BundleAlarm> for BundleEndpointReason {
    fn from(alarm: &BundleAlarm) -> Self {
        match alarm {
            BundleAlarm::NoUsableAuthority => Self::NoUsableAuthority,
            BundleAlarm::SequenceWentBack { .. } => Self::SequenceWentBack,
            BundleAlarm::ContentChangedUnderSequence { .. } => Self::ContentChangedUnderSequence,
            BundleAlarm::AuthoritiesSubstituted => Self::AuthoritiesSubstituted,
        }
    }
}

reasons! {
    /// Whether SPIRE and our workloads have the freshest bundle of the peer.
    BundleDistributedReason of BundleDistributed {
        /// True: SPIRE holds it, and the Workload API delivers it.
        Distributed,
        /// Neither the endpoint nor `bootstrapBundle` has given a bundle yet. See BundleEndpointHealthy.
        AwaitingBundle,
        /// SPIRE has no relationship with the trust domain yet. Where it stays so, see the log of spire-controller-manager.
        AwaitingRelationship,
        /// SPIRE does not hold the bundle yet. Where it stays so, see the log of the SPIRE server.
        AwaitingSpire,
        /// SPIRE holds another bundle than its owner serves. It follows at its next poll.
        StaleInSpire,
        /// SPIRE holds it, but the Workload API does not deliver it to the agent. Check the agent's own registration, which
        /// must be labelled `entente.dev/agent: "true"`.
        AwaitingWorkloadApi,
        /// The Workload API gives the agent nothing, so that nobody knows what workloads get, and its own SVID runs out. Check the
        /// SPIRE agent, and the agent's own registration, labelled `entente.dev/agent: "true"`.
        WorkloadApiUnavailable,
        /// The bundle has no usable authority and would stop our workloads from renewing their SVIDs: `federatesWith` is
        /// suspended for this trust domain until three fetches have been good.
        SuspendedUnusableBundle,
        /// The bundle has an authority that is ours or another peer's: `federatesWith` is suspended for this trust domain until
        /// three fetches have been good. See BundleEndpointHealthy.
        SuspendedSharedAuthority,
        /// SPIRE holds a bundle of more than 1 MiB. Its agents receive 4 MiB at most, and renew no SVID while it does not come
        /// through: `federatesWith` is suspended for this trust domain until three fetches have been good. Ask the peer's operator
        /// what the endpoint serves.
        SuspendedOversizedBundle,
        /// `withdraw` is set: no registration federates with the trust domain. Unset it to go on.
        Withdrawn,
        /// Someone else takes `federatesWith` back each time, so the agent stopped. Find out who manages the registration.
        RegistrationContested,
        /// A ClusterFederatedTrustDomain of the trust domain is there and is not ours. Delete it, or hand it over with the
        /// annotation `entente.dev/adopt: "true"`.
        ObjectNotOurs,
        /// Unknown: the SPIRE server API cannot be read. Check `--spire-server` and the SPIRE server.
        SpireUnavailable,
        /// The relationship is being ended.
        Ending,
    }
}

reasons! {
    /// Whether the two agents talk.
    ConnectedReason of Connected {
        /// True: over mTLS, each with an ID that the other expects.
        Connected,
        /// True, but the two clocks differ by more than SPIRE allows for: new SVIDs of one side are not valid yet, or expired, on the
        /// other. Set both by NTP; the message says by how much, and Ready is False.
        ClocksDiffer,
        /// Neither side has reached the other yet. Where `agent.addresses` is empty, the peer must dial us.
        AwaitingPeer,
        /// DNS, TCP, a cut connection, or no answer in time. Check `agent.addresses` and the network.
        Unreachable,
        /// The peer holds another bundle of ours. It follows at its next poll; else its operator must see to our bundle there.
        RefusedUnknownAuthority,
        /// The peer holds no bundle of ours, or does not accept our SPIFFE ID. Its operator needs a TrustDomainPeer of ours,
        /// with our agent's ID in `agent.spiffeIDs`.
        RefusedNotAccepted,
        /// The peer says that our SVID has expired. Check the SPIRE agent here, and both clocks.
        RefusedExpired,
        /// The bundle that SPIRE gives us does not verify the peer's SVID. See BundleDistributed.
        PeerUnverified,
        /// The peer has a good SVID of an ID that is not in `agent.spiffeIDs`. Ask its operator which is right.
        WrongPeerId,
        /// The peer said goodbye; the message says why.
        PeerParted,
        /// `suspend` or `withdraw` is set here.
        Suspended,
        /// The relationship is being ended.
        Ending,
        /// Unknown: the Workload API has not given us an SVID. Check the SPIRE agent and our registration.
        NoIdentity,
    }
}

reasons! {
    /// Whether the peer, by its own word, holds our present bundle and federates with us.
    ReciprocalReason of Reciprocal {
        /// True: it said so over mTLS.
        Confirmed,
        /// Unknown: the peer cannot be asked. A cut network is not lost trust; see Connected.
        PeerUnreachable,
        /// The peer's agent refuses us: it has no bundle of ours, or does not accept our ID. Its operator needs a TrustDomainPeer
        /// of our trust domain with our agent's ID. Or it says that workloads there do not get our bundle: the message has its words.
        PeerRefusesUs,
        /// The peer holds a bundle of ours that is past two poll intervals old, or lacks the authority that signs now. Its
        /// operator must see why it does not follow our bundle endpoint.
        PeerHoldsStaleBundle,
        /// The peer's SPIRE has no relationship with us, though its agent speaks to us. Its operator must see to it.
        PeerHasNoRelationship,
        /// We do not hold the peer's bundle, so its word cannot be verified. See BundleEndpointHealthy and BundleDistributed.
        WeDoNotHoldPeerBundle,
        /// The peer ended the relationship. Delete this TrustDomainPeer, or ask its operator to create theirs again.
        PeerEnded,
        /// Unknown: the peer has not spoken yet. Its operator needs a TrustDomainPeer of our trust domain.
        AwaitingPeer,
    }
}

reasons! {
    /// Whether our signing authority can change without the peer refusing our workloads.
    RotationSafeReason of RotationSafe {
        /// True: the peer holds every authority of ours, by its own word.
        PeersHoldAuthorities,
        /// The peer lacks an authority of ours that does not sign yet: do not let it. The message names it, and when SPIRE lets it
        /// sign by itself. Its operator must see why it does not follow our bundle endpoint.
        PeerLacksAuthority,
        /// The peer says that it cannot fetch our bundle: it would learn of no new authority. See to our bundle endpoint, and to the
        /// network between; the message has the peer's own words.
        PeerCannotFetchOurBundle,
        /// The peer lacks a prepared authority of ours, or lacked it when it was last heard, and SPIRE lets it sign before the
        /// peer has fetched three times more. See to it now: from that moment on the peer refuses our workloads.
        ActivationNear,
        /// The peer lacks an authority that signs already, as that of a new SPIRE server or after a forced rotation: it refuses what
        /// is signed by it. It follows at its next fetch; its operator can have it refresh now.
        PeerLacksSigningAuthority,
        /// Unknown: the peer has not said what it holds, or is not heard now. The message names a prepared authority that it did
        /// not hold when it was last heard, and when SPIRE lets that sign. See Connected and Reciprocal.
        Unknown,
    }
}

reasons! {
    /// Whether each side has answered what the other exports.
    ServicesSyncedReason of ServicesSynced {
        /// True: the peer has answered our exports, and what it exports is imported or refused.
        InSync,
        /// The peer has not been connected since this agent started; what was imported stays.
        AwaitingPeer,
        /// Unknown: the peer's agent is away, see Connected. What was imported stays as it was last known, or until
        /// `onDisconnect.after` has passed.
        PeerAway,
        /// The peer has not answered our present exports yet.
        AwaitingAcknowledgement,
        /// What was admitted is not written yet. Where it stays so, see the log of the agent.
        AwaitingImports,
        /// True: all is answered, and some services of the peer were refused. See the message and `spec.imports`.
        SomeRefused,
        /// The peer has been away for longer than `onDisconnect.after`: its services were withdrawn.
        Withdrawn,
    }
}

reasons! {
    /// Whether the gateways through which the peer's services are called take connections from the agent: the path of services,
    /// where Connected speaks of the path of the agents. It has no part in Ready, since workloads may reach what the agent does not.
    GatewaysReachableReason of GatewaysReachable {
        /// True: each of them does.
        Reached,
        /// Some do not: calls through them fail, unless workloads have another way there. The message names them; ask the peer's
        /// operator whether they run, and see what forbids the way to them.
        SomeNotReached,
        /// None does: the peer's services cannot be called, unless workloads have another way there. As above.
        NoneReached,
        /// Unknown: some never did since the agent started, and nothing says that they are down. A NetworkPolicy or firewall may keep
        /// the agent alone from them. Let the agent dial them, or set `--gateway-check-seconds=0`.
        NeverReached,
        /// Unknown: they were not tried yet.
        NotTried,
    }
}

reasons! {
    /// Whether all of it is as it should be; GatewaysReachable has no part in it.
    ReadyReason of Ready {
        /// True: every other condition is, GatewaysReachable left aside.
        Ready,
        /// See Accepted.
        NotAccepted,
        /// See BundleEndpointHealthy.
        BundleEndpointUnhealthy,
        /// See BundleDistributed.
        BundleNotDistributed,
        /// See Connected.
        NotConnected,
        /// The two clocks differ too much. See Connected.
        ClocksDiffer,
        /// See Reciprocal.
        NotReciprocal,
        /// See RotationSafe.
        NotRotationSafe,
        /// See ServicesSynced.
        ServicesNotSynced,
        /// Our own mesh keeps services from working. See MeshReady.
        MeshNotReady,
        /// `suspend` is set: unset it to go on.
        Suspended,
        /// The relationship is being ended; the message says what is awaited.
        Ending,
        /// The relationship is to be ended, but registrations that the agent does not edit still name the trust domain, and
        /// hold back the deletion of its bundle: the message names them. Take it out of their `federatesWith`.
        EndingHeldBack,
    }
}
