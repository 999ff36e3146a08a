//! A path that is well, and each link of it broken in turn: which is named, on which side, with which remedy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::*;
use crate::bundle::endpoint::{FailedProbe, Fetched};
use crate::bundle::testing::{Ca, NOW};
use crate::diagnose::evidence::{AddressSeen, EndpointSeen, TcpFailure, WorkloadSeen};
use crate::model::NamespacedName;
use crate::model::diagnosis::ToldCheck;
use crate::model::endpoint::{
    BundleAlarm, BundleEndpoint, EndpointProfile, EndpointState, EndpointUrl, FetchFailure, FetchProblem,
};
use crate::model::mesh::{SdsNames, Seen};
use crate::model::object::Kind;
use crate::model::own::Identity;
use crate::model::peer::{LabelSelector, RegistrationSelection};
use crate::model::reach::{Attempt, Tried};
use crate::model::registration::{Record, Registration};
use crate::model::session::{
    GoodbyeReason, HeldBundle, LinkState, Refusal, SessionState, Trouble, TrustReport,
};
use crate::model::trust::{Entry, Relationship};
use crate::model::world::{Harm, Poisoned, Relationships};
use crate::model::{Bundle, Object, ObjectKey};
use crate::plan::fixtures::{WorldExt as _, id, peer, session, td, world};
use crate::plan::relationship as planned;

const WEST: &str = "west.example";
const EAST: &str = "east.example";
const OWN: &str = "spiffe://east.example/ns/entente-system/sa/entente";

fn now() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

fn registration(name: &str, is_agent: bool) -> Arc<Registration> {
    Arc::new(Registration {
        key: ObjectKey::cluster(Kind::ClusterStaticEntry, name),
        uid: name.to_owned(),
        resource_version: "1".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        has_annotations: false,
        class_name: String::new(),
        is_agent,
        federates_with: vec![WEST.to_owned()],
        record: Record { added: [td(WEST)].into(), suspended: BTreeSet::new() },
    })
}

/// East, and west as east's peer: everything is well.
fn healthy() -> Evidence {
    let (west, east) = (Ca::new().bundle(WEST), Ca::new().bundle(EAST));
    let mut described = peer(WEST);
    described.agent_addresses = vec!["agent.west.example:7443".to_owned()];
    described.federates_with = Some(RegistrationSelection::default());
    let relationship = Relationship { trust_domain: td(WEST), endpoint: described.endpoint.clone() };
    let mut world = world(EAST).with_peer(described);
    world.now = now();
    let identity = Arc::make_mut(world.identity.as_mut().unwrap());
    identity.not_after = now().saturating_add(std::time::Duration::from_secs(600)).unwrap();
    identity.bundle = Arc::clone(&east);
    identity.federated = BTreeMap::from([(td(WEST), Arc::clone(&west))]);
    let entry = Entry {
        id: "1".to_owned(),
        spiffe_id: id(OWN),
        selectors: BTreeSet::new(),
        federates_with: [td(WEST)].into(),
    };
    world.spire = Some(Arc::new(SpireState {
        relationships: [(td(WEST), relationship)].into(),
        bundles: [(td(WEST), Arc::clone(&west))].into(),
        entries: [("1".to_owned(), entry)].into(),
        own: Some(Arc::clone(&east)),
        ..SpireState::default()
    }));
    for one in [registration("agent", true), registration("cart", false)] {
        world.registrations.insert(one.key.clone(), one);
    }
    let state = EndpointState { latest: Some(Arc::clone(&west)), ..EndpointState::default() };
    world.endpoints = Arc::new([(td(WEST), state)].into());
    let mut exchange = session(LinkState::Connected, None);
    let held = Some(HeldBundle::from(&*east));
    exchange.remote =
        Some(TrustReport { delivered: held.clone(), held, relationship: true, ..TrustReport::default() });
    world.mesh = Some(Arc::new(crate::plan::fixtures::mesh(EAST)));
    let cart = crate::plan::fixtures::remote_cart();
    let world = world.with_session(WEST, exchange).with_written(&BTreeMap::new(), &[(WEST, cart)]);
    let mut world = world;
    let carrier = crate::plan::fixtures::gateway("10.77.2.2", 15_443);
    world.reached = Arc::new([(carrier.clone(), Tried::first(Attempt::Answered))].into());
    let address = "192.0.2.1:443".parse().unwrap();
    let fetched = Fetched {
        bundle: Bundle::clone(&west),
        ignored: Vec::new(),
        refused_by_spire: None,
        proof: Vec::new(),
    };
    Evidence {
        trust_domain: td(WEST),
        asked: WEST.to_owned(),
        workload_api: "unix:///agent.sock".to_owned(),
        spire_server: "unix:///api.sock".to_owned(),
        workload: WorkloadSeen::Delivered(world.identity.clone().unwrap()),
        spire: Ok(world.spire.clone()),
        world: Arc::new(world),
        endpoint: EndpointSeen {
            dns: Some(Ok(vec![address])),
            tcp: Some(Ok(address)),
            fetch: Some(Ok(fetched)),
        },
        gateways: [(carrier, Attempt::Answered)].into(),
        agent: vec![AddressSeen {
            address: "agent.west.example:7443".to_owned(),
            dns: Ok(vec![address]),
            tcp: Some(Ok(address)),
            handshake: None,
        }],
        word: PeerWord::Told(Vec::new()),
        leads: true,
        replica: "one".to_owned(),
        is_patient: true,
    }
}

impl Evidence {
    fn world(&mut self, change: impl FnOnce(&mut World)) {
        change(Arc::make_mut(&mut self.world));
    }

    fn peer(&mut self, change: impl FnOnce(&mut Peer)) {
        self.world(|world| change(Arc::make_mut(world.peers.get_mut(&td(WEST)).unwrap())));
    }

    fn holds(&mut self, change: impl FnOnce(&mut SpireState)) {
        self.world(|world| change(Arc::make_mut(world.spire.as_mut().unwrap())));
        self.spire = Ok(self.world.spire.clone());
    }

    fn gets(&mut self, change: impl FnOnce(&mut Identity)) {
        self.world(|world| change(Arc::make_mut(world.identity.as_mut().unwrap())));
        self.workload = WorkloadSeen::Delivered(self.world.identity.clone().unwrap());
    }

    fn exchange(&mut self, change: impl FnOnce(&mut SessionState)) {
        self.world(|world| change(Arc::make_mut(&mut world.sessions).get_mut(&td(WEST)).unwrap()));
    }

    fn link(&mut self, link: LinkState) {
        self.exchange(|session| session.link = link);
        self.word = PeerWord::Silent("there is no exchange with its agent now".to_owned());
    }

    fn reports(&mut self, change: impl FnOnce(&mut TrustReport)) {
        self.exchange(|session| change(session.remote.as_mut().unwrap()));
    }

    fn registered(&mut self, name: &str, change: impl FnOnce(&mut Registration)) {
        let key = ObjectKey::cluster(Kind::ClusterStaticEntry, name);
        self.world(|world| change(Arc::make_mut(world.registrations.get_mut(&key).unwrap())));
    }

    /// The agent's own entry does not federate.
    fn stripped(&mut self) {
        self.holds(|spire| spire.entries.get_mut("1").unwrap().federates_with.clear());
        self.registered("agent", |one| {
            one.federates_with.clear();
            one.record = Record::default();
        });
    }

    fn fetch_fails(&mut self, problem: FetchProblem, is_authenticated: bool, presented: Option<&str>) {
        let message = "all of it".to_owned();
        self.endpoint.fetch = Some(Err(FailedProbe {
            failure: FetchFailure { problem, message },
            cause: "this happened".to_owned(),
            advice: "do that".to_owned(),
            is_authenticated,
            presented: presented.map(id),
        }));
    }

    fn https_spiffe(&mut self) {
        self.peer(|peer| {
            peer.endpoint.profile =
                EndpointProfile::HttpsSpiffe { endpoint_id: id("spiffe://west.example/spire/server") };
        });
        self.holds(|spire| {
            spire.relationships.get_mut(&td(WEST)).unwrap().endpoint.profile =
                EndpointProfile::HttpsSpiffe { endpoint_id: id("spiffe://west.example/spire/server") };
        });
    }
}

fn refused_tcp() -> TcpFailure {
    TcpFailure { cause: "refused".to_owned(), is_refused: true }
}

fn message() -> String {
    "so it was".to_owned()
}

fn parted(reason: GoodbyeReason) -> LinkState {
    LinkState::Parted { reason, message: message() }
}

type Break = fn(&mut Evidence);
type Case = (&'static str, Break, Step, Side, &'static str);

const OURS: Side = Side::Ours;
const THEIRS: Side = Side::Theirs;
const BETWEEN: Side = Side::Between;

const OWN_SIDE: &[Case] = &[
    ("no object", |e| e.world(|w| w.peers.clear()), Step::PeerObject, OURS, "spec.trustDomain: west.example"),
    (
        "no object, and none was read",
        |e| {
            e.world(|w| {
                w.peers.clear();
                w.read.clear();
            });
        },
        Step::PeerObject,
        OURS,
        "agent's log",
    ),
    (
        "an object that is not accepted",
        |e| {
            let key = ObjectKey::cluster(Kind::TrustDomainPeer, "west-example");
            e.world = Arc::new(World::clone(&e.world).with_rejected(key, Some(WEST)));
        },
        Step::PeerObject,
        OURS,
        "TrustDomainPeer west-example",
    ),
    ("suspended", |e| e.peer(|p| p.suspend = true), Step::PeerObject, OURS, "unset spec.suspend"),
    ("ending", |e| e.peer(|p| p.deletion = Some(now())), Step::PeerObject, OURS, "apply TrustDomainPeer"),
    (
        "a bootstrap bundle that is not there",
        |e| {
            e.world(|w| {
                w.bootstraps.insert(td(WEST), Err("no ConfigMap west".to_owned()));
            });
        },
        Step::PeerObject,
        OURS,
        "spec.bootstrapBundle",
    ),
    (
        "no Workload API",
        |e| e.workload = WorkloadSeen::Unreachable("no such file".to_owned()),
        Step::WorkloadApi,
        OURS,
        "spire-agent healthcheck",
    ),
    (
        "no registration",
        |e| e.workload = WorkloadSeen::Refused("no identity issued".to_owned()),
        Step::OwnSvid,
        OURS,
        "entente.dev/agent",
    ),
    ("an SVID that has expired", |e| e.gets(|i| i.not_after = now()), Step::OwnSvid, OURS, "clock"),
    ("withdrawn", |e| e.peer(|p| p.withdraw = true), Step::PeerObject, OURS, "unset spec.withdraw"),
    (
        "one SPIRE server of several",
        |e| {
            let failure = Some("no answer".to_owned());
            let server = crate::model::trust::LocalServer { failure, ..Default::default() };
            e.holds(|s| drop(s.servers.insert("spire-1:8081".to_owned(), server)));
        },
        Step::SpireServer,
        OURS,
        "spire-1:8081",
    ),
    (
        "no SPIRE server",
        |e| e.spire = Err("ListEntries failed".to_owned()),
        Step::SpireServer,
        OURS,
        "unix:///api.sock",
    ),
];

const ENDPOINT: &[Case] = &[
    (
        "no address",
        |e| {
            e.endpoint = EndpointSeen { dns: Some(Err("no such host".to_owned())), ..EndpointSeen::default() }
        },
        Step::EndpointDns,
        OURS,
        "spec.bundleEndpoint.url",
    ),
    (
        "a closed port",
        |e| {
            e.endpoint.tcp = Some(Err(refused_tcp()));
            e.endpoint.fetch = None;
        },
        Step::EndpointTcp,
        THEIRS,
        "spec.bundleEndpoint.url",
    ),
    (
        "a firewall",
        |e| {
            e.endpoint.tcp = Some(Err(TcpFailure { is_refused: false, ..refused_tcp() }));
            e.endpoint.fetch = None;
        },
        Step::EndpointTcp,
        BETWEEN,
        "firewalls",
    ),
    (
        "https_web where an SVID is presented",
        |e| e.fetch_fails(FetchProblem::EndpointCertificateUntrusted, false, Some("spiffe://west.example/x")),
        Step::EndpointTls,
        OURS,
        "https_spiffe",
    ),
    (
        "https_spiffe where none is presented",
        |e| {
            e.https_spiffe();
            e.fetch_fails(FetchProblem::EndpointCertificateUntrusted, false, None);
        },
        Step::EndpointTls,
        OURS,
        "https_web",
    ),
    (
        "an authority that is in no bundle",
        |e| {
            e.https_spiffe();
            e.fetch_fails(FetchProblem::EndpointCertificateUntrusted, false, Some("spiffe://west.example/x"));
        },
        Step::EndpointTls,
        THEIRS,
        "spec.bootstrapBundle",
    ),
    (
        "another ID",
        |e| {
            e.https_spiffe();
            e.fetch_fails(FetchProblem::WrongEndpointSpiffeId, false, Some("spiffe://west.example/x"));
        },
        Step::EndpointTls,
        OURS,
        "endpointSPIFFEID",
    ),
    (
        "an expired certificate",
        |e| e.fetch_fails(FetchProblem::EndpointCertificateExpired, false, None),
        Step::EndpointTls,
        THEIRS,
        "do that",
    ),
    (
        "nothing to verify by",
        |e| e.fetch_fails(FetchProblem::NoBundleToVerifyEndpoint, false, None),
        Step::EndpointTls,
        OURS,
        "spec.bootstrapBundle",
    ),
    (
        "no handshake",
        |e| e.fetch_fails(FetchProblem::EndpointUnreachable, false, None),
        Step::EndpointTls,
        THEIRS,
        "what answers there",
    ),
    (
        "no answer after the handshake",
        |e| e.fetch_fails(FetchProblem::EndpointUnreachable, true, None),
        Step::EndpointHttp,
        THEIRS,
        "spec.bundleEndpoint.url",
    ),
    (
        "another status",
        |e| e.fetch_fails(FetchProblem::BadResponse, true, None),
        Step::EndpointHttp,
        THEIRS,
        "spec.bundleEndpoint.url",
    ),
    (
        "no bundle",
        |e| e.fetch_fails(FetchProblem::BundleUnparseable, true, None),
        Step::BundleDocument,
        THEIRS,
        "spec.bundleEndpoint.url",
    ),
    (
        "a bundle that SPIRE refuses",
        |e| {
            let Some(Ok(probed)) = &mut e.endpoint.fetch else { panic!() };
            probed.refused_by_spire = Some("unrecognized use".to_owned());
        },
        Step::BundleDocument,
        THEIRS,
        "x509-svid",
    ),
    (
        "an empty bundle",
        |e| {
            let Some(Ok(probed)) = &mut e.endpoint.fetch else { panic!() };
            probed.bundle = Bundle::new(td(WEST), []);
        },
        Step::BundleAuthorities,
        THEIRS,
        "X.509",
    ),
    (
        "a sequence that went back",
        |e| {
            e.world(|w| {
                let endpoints = Arc::make_mut(&mut w.endpoints);
                endpoints.get_mut(&td(WEST)).unwrap().alarms =
                    vec![BundleAlarm::SequenceWentBack { from: 2, to: 1 }];
            });
        },
        Step::BundleAlarms,
        THEIRS,
        "ask the operator",
    ),
];

const SPIRE: &[Case] = &[
    (
        "no relationship, though its object is there",
        |e| {
            e.holds(|s| s.relationships.clear());
            let mut object =
                Object::desired(planned::key(&td(WEST)), serde_json::json!({"trustDomain": WEST}));
            object.meta.labels.insert("entente.dev/instance".to_owned(), "main".to_owned());
            e.world = Arc::new(World::clone(&e.world).with_object(object));
            e.world(|w| Arc::make_mut(&mut w.settings).spire_class_name = "mine".to_owned());
        },
        Step::Relationship,
        OURS,
        "className \"mine\"",
    ),
    (
        "no relationship, and no object",
        |e| e.holds(|s| s.relationships.clear()),
        Step::Relationship,
        OURS,
        "spec.bootstrapBundle",
    ),
    (
        "no relationship, where the agent makes it itself",
        |e| {
            e.holds(|s| s.relationships.clear());
            e.world(|w| Arc::make_mut(&mut w.settings).relationships = Relationships::ServerApi);
        },
        Step::Relationship,
        OURS,
        "the agent makes it so",
    ),
    (
        "a relationship with another URL",
        |e| {
            e.holds(|s| {
                let url = EndpointUrl::parse("https://other.example").unwrap();
                s.relationships.get_mut(&td(WEST)).unwrap().endpoint =
                    BundleEndpoint { url, profile: EndpointProfile::HttpsWeb };
            });
        },
        Step::Relationship,
        OURS,
        "federation show -trustDomain west.example",
    ),
    (
        "a relationship that cannot be read",
        |e| {
            e.holds(|s| {
                s.unreadable.insert(WEST.to_owned(), "no URL".to_owned());
            });
        },
        Step::Relationship,
        OURS,
        "federation delete",
    ),
    (
        "someone else's object",
        |e| {
            let mut theirs = crate::plan::fixtures::foreign(
                Kind::ClusterFederatedTrustDomain,
                "",
                "hand-made",
                serde_json::json!({"trustDomain": WEST}),
            );
            theirs.key.namespace = None;
            e.world = Arc::new(World::clone(&e.world).with_object(theirs));
        },
        Step::Relationship,
        OURS,
        "delete ClusterFederatedTrustDomain hand-made",
    ),
    (
        "an object that cannot be written",
        |e| {
            e.world(|w| w.failures = Arc::new([(planned::key(&td(WEST)), "forbidden".to_owned())].into()));
        },
        Step::Relationship,
        OURS,
        "RBAC",
    ),
    (
        "no bundle in SPIRE",
        |e| e.holds(|s| s.bundles.clear()),
        Step::BundleInSpire,
        OURS,
        "federation refresh -id spiffe://west.example",
    ),
    (
        "another bundle in SPIRE",
        |e| {
            e.holds(|s| {
                s.bundles.insert(td(WEST), Ca::new().bundle(WEST));
            });
        },
        Step::BundleInSpire,
        OURS,
        "federation refresh",
    ),
    (
        "an empty bundle in SPIRE",
        |e| {
            e.holds(|s| {
                s.bundles.insert(td(WEST), Arc::new(Bundle::new(td(WEST), [])));
            });
        },
        Step::BundleInSpire,
        OURS,
        "federation refresh",
    ),
    (
        "no entry of the agent",
        |e| e.holds(|s| s.entries.clear()),
        Step::AgentRegistration,
        OURS,
        "register the agent again",
    ),
    (
        "the agent does not federate, by someone's hand",
        |e| {
            e.stripped();
            e.registered("agent", |one| {
                one.record.added.insert(td(WEST));
            });
        },
        Step::AgentRegistration,
        OURS,
        "spec.federatesWith of ClusterStaticEntry agent",
    ),
    (
        "the agent is labelled nowhere",
        |e| {
            e.stripped();
            e.world(|w| w.registrations.clear());
        },
        Step::AgentRegistration,
        OURS,
        "entente.dev/agent: \"true\"",
    ),
    (
        "the controller does not follow",
        |e| e.holds(|s| s.entries.get_mut("1").unwrap().federates_with.clear()),
        Step::AgentRegistration,
        OURS,
        "spire-controller-manager",
    ),
    (
        "suspended for its bundle, which is good again",
        |e| {
            e.stripped();
            e.world(|w| {
                let (cause, harm) = ("empty".to_owned(), Harm::NoUsableAuthority);
                let poisoned = Poisoned { since: now(), cause, harm, good_before: 0 };
                w.memory.entry(td(WEST)).or_default().poisoned = Some(poisoned);
            });
        },
        Step::AgentRegistration,
        THEIRS,
        "3 good fetches",
    ),
    (
        "not delivered",
        |e| e.gets(|i| i.federated.clear()),
        Step::BundleInWorkloadApi,
        OURS,
        "SPIRE agent's log",
    ),
    (
        "an old one delivered",
        |e| {
            e.gets(|i| {
                i.federated.insert(td(WEST), Ca::new().bundle(WEST));
            });
        },
        Step::BundleInWorkloadApi,
        OURS,
        "SPIRE agent's log",
    ),
    (
        "proxies that get our bundle alone",
        |e| {
            e.world(|world| {
                let mesh = Arc::make_mut(world.mesh.as_mut().unwrap());
                mesh.spire_agents = Seen::There(vec![SdsNames {
                    object: NamespacedName::new("spire", "spire-agent"),
                    own: "ROOTCA".to_owned(),
                    all: "ALL".to_owned(),
                }]);
            });
        },
        Step::Mesh,
        OURS,
        "default_all_bundles_name = \"ROOTCA\"",
    ),
    (
        "a gateway that nobody runs",
        |e| e.gateways.values_mut().for_each(|attempt| *attempt = Attempt::Refused),
        Step::Gateways,
        THEIRS,
        "see that its gateways run there",
    ),
    (
        "a gateway that answered and is silent",
        |e| e.gateways.values_mut().for_each(|attempt| *attempt = Attempt::Silent),
        Step::Gateways,
        BETWEEN,
        "NetworkPolicies",
    ),
    (
        "a workload that someone reverts",
        |e| e.registered("cart", |one| one.federates_with.clear()),
        Step::WorkloadRegistrations,
        OURS,
        "at its source",
    ),
    (
        "nothing selected",
        |e| {
            e.peer(|p| {
                let selector = LabelSelector {
                    match_labels: [("app".to_owned(), "none".to_owned())].into(),
                    ..LabelSelector::default()
                };
                p.federates_with =
                    Some(RegistrationSelection { selector, ..RegistrationSelection::default() });
            });
        },
        Step::WorkloadRegistrations,
        OURS,
        "spec.federatesWith",
    ),
];

const AGENTS: &[Case] = &[
    (
        "an agent's name that does not resolve",
        |e| {
            e.agent[0] = AddressSeen { dns: Err("no such host".to_owned()), tcp: None, ..e.agent[0].clone() };
            e.link(LinkState::Unreachable { message: message() });
        },
        Step::AgentDns,
        OURS,
        "spec.agent.addresses",
    ),
    (
        "an agent's port that is closed",
        |e| {
            e.agent[0].tcp = Some(Err(refused_tcp()));
            e.link(LinkState::Unreachable { message: message() });
        },
        Step::AgentTcp,
        THEIRS,
        "spec.agent.addresses",
    ),
    (
        "our ID is not listed",
        |e| e.link(LinkState::Refused { by: Refusal::NotAccepted, message: message() }),
        Step::AgentMtls,
        THEIRS,
        OWN,
    ),
    (
        "our certificate is of an unknown authority, as tried just now",
        |e| {
            let refused = LinkState::Refused { by: Refusal::UnknownAuthority, message: message() };
            e.agent[0].handshake = Some(Err(refused));
            e.link(LinkState::Idle);
        },
        Step::AgentMtls,
        THEIRS,
        "federation refresh -id spiffe://east.example",
    ),
    (
        "our certificate has expired, for the peer",
        |e| e.link(LinkState::Refused { by: Refusal::Expired, message: message() }),
        Step::AgentMtls,
        BETWEEN,
        "clocks",
    ),
    (
        "the peer's ID is not listed",
        |e| e.link(LinkState::WrongPeerId { message: message() }),
        Step::AgentMtls,
        OURS,
        "spec.agent.spiffeIDs",
    ),
    (
        "the peer is not verified",
        |e| e.link(LinkState::Unverified { message: message() }),
        Step::AgentMtls,
        OURS,
        "federation refresh -id spiffe://west.example",
    ),
    ("suspended there", |e| e.link(parted(GoodbyeReason::Suspended)), Step::Session, THEIRS, "spec.suspend"),
    (
        "ended there",
        |e| {
            // that it refuses us since says less
            let refused = LinkState::Refused { by: Refusal::NotAccepted, message: message() };
            e.agent[0].handshake = Some(Err(refused));
            e.link(parted(GoodbyeReason::RelationshipEnded));
        },
        Step::Session,
        THEIRS,
        "entente peer end west.example",
    ),
    (
        "nobody dials",
        |e| {
            e.peer(|p| p.agent_addresses.clear());
            e.agent.clear();
            e.link(LinkState::Idle);
        },
        Step::Session,
        THEIRS,
        "spec.agent.addresses",
    ),
    (
        "an agent that does not answer",
        |e| e.link(LinkState::Unreachable { message: message() }),
        Step::Session,
        THEIRS,
        "whether its agent runs",
    ),
];

fn told(step: &str, outcome: Outcome) -> ToldCheck {
    ToldCheck {
        step: step.to_owned(),
        outcome,
        message: message(),
        remedy: "mend it there".to_owned(),
        side: None,
    }
}

const PEER: &[Case] = &[
    (
        "the peer says what is wrong there",
        |e| {
            e.word = PeerWord::Told(vec![
                told("own-svid", Outcome::Passed),
                told("spire-server", Outcome::Failed),
                told("relationship", Outcome::Failed),
            ]);
        },
        Step::PeerView,
        THEIRS,
        "west.example says: mend it there",
    ),
    (
        "the peer was not asked, and reported trouble",
        |e| {
            e.word = PeerWord::NotAsked;
            let trouble = |word: &str| word.to_owned();
            let trouble = Trouble {
                condition: trouble("BundleDistributed"),
                reason: trouble("AwaitingRelationship"),
                message: message(),
            };
            e.reports(|r| r.troubles = vec![trouble]);
        },
        Step::PeerView,
        THEIRS,
        "BundleDistributed",
    ),
    (
        "the peer has no relationship",
        |e| e.reports(|r| r.relationship = false),
        Step::OurBundleAtPeer,
        THEIRS,
        "`entente diagnose east.example` at west.example",
    ),
    (
        "the peer holds no bundle of ours",
        |e| e.reports(|r| r.held = None),
        Step::OurBundleAtPeer,
        THEIRS,
        "federation refresh -id spiffe://east.example",
    ),
    (
        "our bundle reaches no workload there",
        |e| e.reports(|r| r.delivered = None),
        Step::OurBundleAtPeer,
        THEIRS,
        "entente diagnose",
    ),
    ("clocks that differ", |e| e.exchange(|s| s.skew = Some(-40)), Step::ClockSkew, BETWEEN, "NTP"),
];

fn all() -> impl Iterator<Item = &'static Case> {
    [OWN_SIDE, ENDPOINT, SPIRE, AGENTS, PEER].into_iter().flatten()
}

#[test]
fn a_path_that_is_well_raises_nothing() {
    for is_patient in [true, false] {
        let evidence = Evidence { is_patient, ..healthy() };
        let checks = checks(&evidence);
        assert_eq!(checks.len(), Step::ALL.len());
        for check in &checks {
            assert_eq!(check.outcome, Outcome::Passed, "{check:?}");
            assert!(!check.message.is_empty(), "{check:?}");
        }
        let diagnosis = conclude(&evidence, checks);
        assert_eq!((diagnosis.verdict, diagnosis.broken), (Verdict::Healthy, None));
        assert_eq!(diagnosis.object.as_deref(), Some("west-example"));
    }
}

#[test]
fn each_broken_link_is_named_with_its_side_and_remedy() {
    for (name, damage, step, side, remedy) in all() {
        let mut evidence = healthy();
        damage(&mut evidence);
        let checks = checks(&evidence);
        let failed: Vec<Step> =
            checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.step).collect();
        assert_eq!(failed, [*step], "{name}: one cause, and what follows from it is none: {checks:#?}");
        let diagnosis = conclude(&evidence, checks);
        let broken = diagnosis.broken.unwrap();
        assert_eq!((diagnosis.verdict, broken.side), (Verdict::Broken, *side), "{name}: {broken:?}");
        assert!(broken.remedy.contains(remedy), "{name}: {broken:?}");
        assert!(!broken.message.is_empty(), "{name}");
        let by_peer = *step == Step::PeerView;
        assert_eq!(broken.told_by_peer, by_peer, "{name}");
        if !by_peer {
            assert_eq!(broken.step, step.as_str(), "{name}");
        }
    }
}

#[test]
fn every_step_that_can_fail_is_broken_once() {
    let broken: BTreeSet<Step> = all().map(|case| case.2).collect();
    let never: Vec<&Step> = Step::ALL.iter().filter(|step| !broken.contains(step)).collect();
    assert_eq!(never, [&Step::Leadership]);
}

#[test]
fn two_causes_are_two_and_the_first_in_the_path_is_the_broken_link() {
    let mut evidence = healthy();
    evidence.endpoint = EndpointSeen { dns: Some(Err("no such host".to_owned())), ..EndpointSeen::default() };
    evidence.exchange(|session| session.skew = Some(20));
    let checks = checks(&evidence);
    let failed: Vec<Step> =
        checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.step).collect();
    assert_eq!(failed, [Step::EndpointDns, Step::ClockSkew]);
    assert_eq!(conclude(&evidence, checks).broken.unwrap().step, "endpoint-dns");
}

#[test]
fn a_step_of_the_peer_is_called_by_its_own_name() {
    let mut evidence = healthy();
    evidence.word = PeerWord::Told(vec![told("bundle-in-spire", Outcome::Failed)]);
    let broken = conclude(&evidence, checks(&evidence)).broken.unwrap();
    assert_eq!(
        (broken.step.as_str(), broken.side, broken.told_by_peer),
        ("bundle-in-spire", Side::Theirs, true)
    );
}

/// What the peer says of our endpoint is broken here, not there, whether it tells the side or is too old to.
#[test]
fn what_the_peer_sees_of_our_endpoint_is_on_our_side() {
    let side = |evidence: &Evidence| conclude(evidence, checks(evidence)).broken.unwrap().side;
    let says = |step: &str, side| {
        let mut evidence = healthy();
        evidence.word = PeerWord::Told(vec![ToldCheck { side, ..told(step, Outcome::Failed) }]);
        evidence
    };
    for step in ["endpoint-dns", "endpoint-http", "bundle-document", "bundle-authorities", "bundle-alarms"] {
        assert_eq!(side(&says(step, None)), Side::Ours, "{step}");
    }
    for step in ["spire-server", "bundle-in-spire", "agent-mtls", "what is this"] {
        assert_eq!(side(&says(step, None)), Side::Theirs, "{step}");
    }
    assert_eq!(side(&says("agent-mtls", Some(Side::Ours))), Side::Ours);
    assert_eq!(side(&says("endpoint-tcp", Some(Side::Between))), Side::Between);
    let troubled = |condition: &str, reason: &str| {
        let mut evidence = healthy();
        evidence.word = PeerWord::NotAsked;
        let (condition, reason) = (condition.to_owned(), reason.to_owned());
        evidence.reports(|r| r.troubles = vec![Trouble { condition, reason, message: message() }]);
        side(&evidence)
    };
    assert_eq!(troubled("BundleEndpointHealthy", "BadResponse"), Side::Ours);
    assert_eq!(troubled("BundleEndpointHealthy", "EndpointUnreachable"), Side::Between);
    assert_eq!(troubled("BundleEndpointHealthy", "NoBundleToVerifyEndpoint"), Side::Theirs);
    assert_eq!(troubled("BundleDistributed", "StaleInSpire"), Side::Theirs);
}

#[test]
fn a_peer_that_does_not_answer_is_no_failure() {
    for word in [PeerWord::NotAsked, PeerWord::Silent("it did not answer".to_owned())] {
        let mut evidence = healthy();
        evidence.word = word;
        assert_eq!(conclude(&evidence, checks(&evidence)).verdict, Verdict::Healthy);
    }
}

#[test]
fn a_replica_that_does_not_lead_says_so_and_concludes_nothing_of_the_exchange() {
    let mut evidence = healthy();
    evidence.leads = false;
    evidence.link(LinkState::Idle);
    let list = checks(&evidence);
    let last = list.last().unwrap();
    assert!(last.message.contains("Lease main-leader in entente-system"), "{last:?}");
    assert_eq!(conclude(&evidence, list).verdict, Verdict::Incomplete);
    // what is broken on its own side is, all the same
    evidence.workload = WorkloadSeen::Unreachable("no such file".to_owned());
    assert_eq!(conclude(&evidence, checks(&evidence)).verdict, Verdict::Broken);
}

#[test]
fn addresses_are_not_needed_while_the_peer_dials_us() {
    let mut evidence = healthy();
    evidence.agent[0] =
        AddressSeen { dns: Err("no such host".to_owned()), tcp: None, ..evidence.agent[0].clone() };
    let checks = checks(&evidence);
    let dns = checks.iter().find(|check| check.step == Step::AgentDns).unwrap();
    assert_eq!(dns.outcome, Outcome::Skipped);
    assert!(dns.message.contains("no such host") && dns.message.contains("spec.agent.addresses"), "{dns:?}");
    assert_eq!(conclude(&evidence, checks).verdict, Verdict::Healthy);
}

/// A rotation that is under way: each holder has the old authority, and the new one in turn.
#[test]
fn a_bundle_that_is_on_its_way_is_no_failure_to_a_peer_that_asks() {
    let mut evidence = healthy();
    let (old, new) = (Ca::new().authority(), Ca::new().authority());
    let (before, after) = (Bundle::new(td(WEST), [old.clone()]), Bundle::new(td(WEST), [old, new]));
    let Some(Ok(probed)) = &mut evidence.endpoint.fetch else { panic!() };
    probed.bundle = after.clone();
    let mut behind = evidence.clone();
    behind.holds(|s| drop(s.bundles.insert(td(WEST), Arc::new(before.clone()))));
    behind.gets(|i| drop(i.federated.insert(td(WEST), Arc::new(before.clone()))));
    let mut undelivered = evidence.clone();
    undelivered.holds(|s| drop(s.bundles.insert(td(WEST), Arc::new(after))));
    undelivered.gets(|i| drop(i.federated.insert(td(WEST), Arc::new(before))));
    for (mut evidence, step) in [(behind, Step::BundleInSpire), (undelivered, Step::BundleInWorkloadApi)] {
        let first = |evidence: &Evidence| {
            checks(evidence)
                .into_iter()
                .find(|check| check.outcome == Outcome::Failed)
                .map(|check| check.step)
        };
        assert_eq!(first(&evidence), Some(step), "who has time looks again");
        assert!(step.is_in_motion());
        evidence.is_patient = false;
        assert_eq!(first(&evidence), None);
    }
}

/// By what it says now, what it said before, and what is on record.
#[test]
fn a_gateway_is_lost_once_it_answered_or_refuses() {
    let carrier = crate::plan::fixtures::gateway("10.77.2.2", 15_443);
    let with = |known: Attempt, now: Attempt| {
        let mut evidence = healthy();
        let mut world = World::clone(&evidence.world);
        world.reached = Arc::new([(carrier.clone(), Tried::first(known))].into());
        evidence.world = Arc::new(world);
        evidence.gateways = [(carrier.clone(), now)].into();
        let all = checks(&evidence);
        all.into_iter().find(|check| check.step == Step::Gateways).unwrap()
    };
    for (known, now, outcome, side) in [
        (Attempt::Answered, Attempt::Answered, Outcome::Passed, None),
        (Attempt::Silent, Attempt::Answered, Outcome::Passed, None),
        (Attempt::Answered, Attempt::Silent, Outcome::Failed, Some(Side::Between)),
        (Attempt::Silent, Attempt::Refused, Outcome::Failed, Some(Side::Theirs)),
        (Attempt::Silent, Attempt::Silent, Outcome::Skipped, None),
        (Attempt::NoAddress, Attempt::NoAddress, Outcome::Skipped, None),
        (Attempt::NoAddress, Attempt::NotAdmitted, Outcome::Failed, Some(Side::Between)),
    ] {
        let check = with(known, now);
        assert_eq!((check.outcome, check.side), (outcome, side), "{known:?} {now:?}: {}", check.message);
        assert!(outcome == Outcome::Passed || check.message.contains("10.77.2.2:15443"), "{}", check.message);
    }
}
