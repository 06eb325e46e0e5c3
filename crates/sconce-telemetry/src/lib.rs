//! Logs and metrics: set up once, used by name.

pub mod logs;
pub mod metrics;
