//! The house: who may name whom, and rules that no compiler knows.

mod floors;
pub mod tidy;
mod tidy_documents;
