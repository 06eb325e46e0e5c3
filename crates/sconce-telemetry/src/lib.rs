//! Traces, metrics and logs: set up once, used by name.

pub mod gpus;
pub mod logs;
pub mod metrics;
pub mod traces;
