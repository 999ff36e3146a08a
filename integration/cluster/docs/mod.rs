//! The documentation's commands, run as they stand: blocks of Markdown, a reader's terminal, and what a cluster with nodes and a
//! mesh would be to it.

pub(crate) mod blocks;
pub(crate) mod mesh;
pub(crate) mod nodes;
pub(crate) mod shell;
