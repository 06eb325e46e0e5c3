//! From what a caller sends to what a backend executes.

pub(crate) mod image;
pub(crate) mod tabular;
pub(crate) mod text;
pub(crate) mod tokens;
