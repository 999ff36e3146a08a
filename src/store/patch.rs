//! Changes to a part of an object (RFC 6902), where the whole cannot be ours.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};

pub use crate::model::change::{PatchOp, pointer};

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
