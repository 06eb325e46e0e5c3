//! The canary judge.

use super::Run;

pub(crate) fn find(_test: &str) -> Option<Run> {
    None
}
