//! Changes to objects of the store, as data.

use serde_json::Value;

/// One operation of a JSON patch (RFC 6902). Paths are JSON pointers (RFC 6901).
#[derive(Clone, Debug, PartialEq)]
pub enum PatchOp {
    /// Sets a member, or inserts into a list (`/-` appends). The parent must be there.
    Add { path: String, value: Value },
    /// Removes what must be there.
    Remove { path: String },
}

/// What must be so for an object to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// No object of this name: one is created.
    Absent,
    /// The object with this uid, which we wrote.
    Ours { uid: String },
    /// The object with this uid, which its owner handed over.
    Adopt { uid: String },
}
