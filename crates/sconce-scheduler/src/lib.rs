//! Admit, queue, batch, arbitrate, execute, reply: one [`Scheduler`] a model version.
//!
//! Generic over [`sconce_core::Backend`]; it knows no model, no wire format and no telemetry. The batcher and the
//! arbiter are pure: time is an argument, threads are elsewhere. A worker is an OS thread that owns its backend.
//!
//! A worker waits until a batch is due, waits for a slot of its device, and only then composes the batch: what arrived
//! while the device was busy joins.

mod arbiter;
mod batcher;
mod cost;
mod entry;
mod line;
mod scheduler;
mod worker;

pub use arbiter::{Arbiter, Claim, ClientId, Device, Rivals, Ticket};
pub use batcher::{BatchPolicy, Batcher, Dispatch, Due, PATIENCE};
pub use cost::{CostModel, CostReport, Work};
pub use entry::{Class, Entry, Priority, Refusal, Tenant};
pub use scheduler::{Reply, Scheduler, Submission};
