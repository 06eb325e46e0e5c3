//! Verdicts of other drift libraries, reproduced to the last digits, for those who move from one and want to see the same
//! numbers first.
//!
//! Each file copies one library's rules, its defects included, and says which these are; nothing else in the crate does.

pub mod alibi;
pub mod deepchecks;
pub mod evidently;
pub mod frouros;
pub mod nannyml;
pub mod whylogs;
