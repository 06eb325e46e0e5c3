//! Decisions about traffic: who answers a request, and what that shows.
//!
//! [`route`] sends each request to a variant of its model, [`compare`] holds two models' answers to the same requests beside each
//! other, [`rollout`] moves traffic to a candidate while the evidence holds, [`experiment`] finds which variant does better by what
//! its users do, [`defer`] leaves to people what a model is not sure of, and [`judge`] is Kayenta's. Everything here is pure: it
//! does no I/O, reads no clock and draws no random numbers. `now` and what is random are arguments, and what must outlast a restart
//! is plain data that serializes.

pub mod compare;
pub mod defer;
pub mod experiment;
pub mod judge;
pub mod rollout;
pub mod route;

use sconce_core::ErrorCode;

/// Everything that is wrong with something that was declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Problems(pub Vec<String>);

impl Problems {
    /// What they come to: [`ErrorCode::InvalidArgument`].
    pub fn code(&self) -> ErrorCode {
        ErrorCode::InvalidArgument
    }
}

impl From<Problems> for sconce_core::Error {
    fn from(problems: Problems) -> Self {
        Self::invalid(problems.to_string())
    }
}
