//! `entente diagnose`: walks the real path between two trust domains, in order, and names the first broken link.
//!
//! ```text
//!  probe (I/O) --> evidence (plain data) --> judge (pure) --> checks in order --> the first that failed, and the remedy
//!  run: gathers, looks twice at what is in motion, asks the peer, answers peers
//! ```

pub mod check;
pub mod evidence;
pub mod judge;
pub mod run;

mod probe;

pub use check::{Broken, Check, Diagnosis, Side, Step, Verdict};
pub use run::Diagnoser;
