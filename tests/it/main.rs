//! End to end: each test starts a real server on free ports and talks to it over real connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod answers;
mod cache;
mod ensemble;
mod experiments;
mod feedback;
mod health;
mod layering;
mod lifecycle;
mod limits;
mod monitor;
mod packages;
mod performance;
mod predictions;
mod prometheus;
mod registry;
mod remote;
mod review;
mod rollout;
mod shadow;
#[path = "../support/mod.rs"]
mod support;
mod tenants;
mod traces;
mod traffic;
mod webhooks;
