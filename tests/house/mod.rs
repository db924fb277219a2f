//! The house: who may name whom, and rules that no compiler knows.

mod floors;
#[allow(unused_imports, reason = "that a path is there is all that is asked")]
#[rustfmt::skip]
mod public_paths;
pub mod tidy;
mod tidy_documents;
