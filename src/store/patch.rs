//! Changes to a part of an object (RFC 6902), where the whole cannot be ours.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};
use serde_json::Value;

/// One operation of a JSON patch. Paths are JSON pointers (RFC 6901): see [`pointer`].
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

/// The patch as the API server takes it.
///
/// # Errors
/// The path that is no JSON pointer.
pub(super) fn to_json_patch(ops: Vec<PatchOp>) -> Result<Patch, String> {
    let parse =
        |path: String| PointerBuf::parse(path.as_str()).map_err(|e| format!("no JSON pointer: {path}: {e}"));
    let operation = |op| {
        Ok(match op {
            PatchOp::Add { path, value } => PatchOperation::Add(AddOperation { path: parse(path)?, value }),
            PatchOp::Replace { path, value } => {
                PatchOperation::Replace(ReplaceOperation { path: parse(path)?, value })
            }
            PatchOp::Remove { path } => PatchOperation::Remove(RemoveOperation { path: parse(path)? }),
            PatchOp::Test { path, value } => {
                PatchOperation::Test(TestOperation { path: parse(path)?, value })
            }
        })
    };
    Ok(Patch(ops.into_iter().map(operation).collect::<Result<_, String>>()?))
}
