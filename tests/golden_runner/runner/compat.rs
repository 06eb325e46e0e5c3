//! Other libraries' verdicts, reproduced.

use super::Run;

pub(crate) fn find(_test: &str) -> Option<Run> {
    None
}
