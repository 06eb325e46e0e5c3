//! Evidence that holds at any time.

use super::Run;

pub(crate) fn find(_test: &str) -> Option<Run> {
    None
}
