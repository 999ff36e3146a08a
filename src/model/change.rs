//! Changes to objects of the store, as data.

use serde_json::Value;

/// One operation of a JSON patch (RFC 6902). Paths are JSON pointers (RFC 6901): see [`pointer`].
#[derive(Clone, Debug, PartialEq)]
pub enum PatchOp {
    /// Sets a member, or inserts into a list (`/-` appends). The parent must be there.
    Add { path: String, value: Value },
    /// Sets what must be there already.
    Replace { path: String, value: Value },
    /// Removes what must be there.
    Remove { path: String },
    /// Refuses the whole patch where the value is another.
    Test { path: String, value: Value },
}

/// A JSON pointer of these steps, escaped.
#[must_use]
pub fn pointer(steps: &[&str]) -> String {
    steps.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect()
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
