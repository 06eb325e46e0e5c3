//! Experiments: proportions, power, corrections, group-sequential bounds.

use super::Run;

pub(crate) fn find(_test: &str) -> Option<Run> {
    None
}
