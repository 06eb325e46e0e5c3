//! Distances between distributions, and bins.

use super::Run;

pub(crate) fn find(_test: &str) -> Option<Run> {
    None
}
