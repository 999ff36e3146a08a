//! What one stream of a client has asked for, got and refused: state machines without I/O, one for each variant of the
//! protocol (xDS REST and gRPC protocol, "state of the world" and "incremental").
//!
//! Nothing a client says is believed beyond its bounds: what it names is counted, and a name that is too long or one too
//! many ends its stream.

pub mod delta;
pub mod sotw;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bounded::{Bounded, Field};
use crate::plan::xds::view::{ClientKind, View};
use crate::plan::xds::{Resource, ResourceType};
use crate::proto::xds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, Node};

/// Most names that a stream may be subscribed to, of one type; and that it may say that it has.
pub const MOST_NAMES: usize = 20_000;
/// Longest name of a resource: a host, a colon and a port are 259.
pub const LONGEST_NAME: usize = 512;
/// What is kept of a client's words.
const WORDS: usize = 500;
/// How many words of a refusal are looked at for names of resources, and how many names are taken.
const MOST_WORDS: usize = 10_000;
const MOST_NAMED: usize = 64;

/// Why a stream ends: what the client did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a resource name has {0} bytes, more than {LONGEST_NAME}")]
    LongName(usize),
    #[error("more than {MOST_NAMES} resource names of one type")]
    TooManyNames,
}

/// An answer that a client refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    pub kind: ResourceType,
    /// In the client's words, cut.
    pub message: String,
    /// What in them may be the name of a resource.
    pub names: BTreeSet<String>,
    /// What of the type is refused; `None`: all of it, as far as is known.
    pub refused: Option<Vec<Arc<str>>>,
}

/// Who is at the other end, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// `id` of its node, cut.
    pub node: String,
    pub kind: Option<ClientKind>,
}

impl Introduction {
    /// Takes the node of a request, which the first one on a stream has.
    pub fn hear(&mut self, node: Option<&Node>) {
        if let (None, Some(node)) = (self.kind, node) {
            self.kind = Some(ClientKind::of_user_agent(&node.user_agent_name));
            self.node = cut(&node.id);
        }
    }
}

/// The two variants of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    StateOfTheWorld,
    Incremental,
}

/// An answer to a client, to be written as its variant has it. Resources are shared with all other answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: ResourceType,
    /// With the state of the world: its version; otherwise empty.
    pub version: String,
    pub nonce: String,
    pub resources: Vec<Resource>,
    /// Incremental: names of what is gone.
    pub removed: Vec<Arc<str>>,
}

impl Answer {
    /// One with nothing.
    const fn of(kind: ResourceType) -> Self {
        Self {
            kind,
            version: String::new(),
            nonce: String::new(),
            resources: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// A variant of the protocol, on one stream.
pub trait Session: Default + Send + 'static {
    const VARIANT: Variant;
    type Request: Bounded + Send + 'static;

    /// The node of a request, where it has one.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Takes a request in; then [`Session::answers`] has what is due.
    ///
    /// # Errors
    /// What the client did that it may not.
    fn request(&mut self, request: Self::Request) -> Result<Heard, Violation>;

    /// What the client is to be sent now, in order.
    fn answers(&mut self, view: &View) -> Vec<Answer>;

    /// About how many bytes it keeps of what the client says, beside names that are served.
    fn unserved(&self) -> usize;

    /// Whether a resource of which the client has refused what it was sent is still there, and asked for.
    fn wants(&self, kind: ResourceType, name: &str) -> bool;

    /// How many names it is subscribed to, of each type; `None` where it takes all.
    fn subscriptions(&self) -> BTreeMap<ResourceType, Option<usize>>;
}

// A stream is told by itself what is too much, as long as it is not far too much.
static REQUEST: [Field; 1] = [Field::list(3, 2 * MOST_NAMES)];
static DELTA_REQUEST: [Field; 3] =
    [Field::list(3, 2 * MOST_NAMES), Field::list(4, 2 * MOST_NAMES), Field::list(5, 2 * MOST_NAMES)];

impl Bounded for DiscoveryRequest {
    fn fields() -> &'static [Field] {
        &REQUEST
    }
}

impl Bounded for DeltaDiscoveryRequest {
    fn fields() -> &'static [Field] {
        &DELTA_REQUEST
    }
}

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, or a change of one, or of a type that is not served.
    Asked,
    /// It took these of what it was sent; `None`: all that there is of the type.
    Acked(ResourceType, Option<Vec<Arc<str>>>),
    Nacked(Nack),
}

/// Numbers the answers of a stream.
#[derive(Debug, Default)]
struct Nonces(u64);

impl Nonces {
    fn next(&mut self) -> String {
        self.0 += 1;
        self.0.to_string()
    }
}

/// A refusal of an answer with these; of those that it names, if it names any.
fn nack(kind: ResourceType, message: &str, answer: Option<Vec<Arc<str>>>) -> Nack {
    let names = named(message);
    let refused = answer.map(|all| {
        let found: Vec<Arc<str>> = all.iter().filter(|name| names.contains(&***name)).cloned().collect();
        if found.is_empty() { all } else { found }
    });
    Nack { kind, message: cut(message), names, refused: refused.filter(|all| !all.is_empty()) }
}

/// What in a text has the form of a resource's name, HOST:PORT, as Envoy and gRPC write it among other words.
fn named(text: &str) -> BTreeSet<String> {
    let is_outside = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'));
    let words = text.split(is_outside).take(MOST_WORDS).map(|word| word.trim_matches([':', '.']));
    let names = words.filter(|word| word.contains(':') && word.len() <= LONGEST_NAME);
    names.take(MOST_NAMED).map(str::to_owned).collect()
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == ' ').take(WORDS).collect()
}

/// What a name costs beside its own bytes.
const NAME: usize = 64;

/// About the bytes of names that nobody else has.
fn unserved<'n>(names: impl Iterator<Item = &'n Arc<str>>) -> usize {
    names.filter(|name| Arc::strong_count(name) == 1).map(|name| name.len() + NAME).sum()
}

fn checked(name: &str) -> Result<Arc<str>, Violation> {
    if name.len() > LONGEST_NAME { Err(Violation::LongName(name.len())) } else { Ok(name.into()) }
}
