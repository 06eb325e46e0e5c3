//! What is asked of the registry, and how long it takes. [`Models::read`](super::Models::read) and the changes go through one function,
//! which counts them; transfers of files are not among them.

use sconce_core::DurationHistogram;
use sconce_registry::RegistryError;
use sconce_telemetry::metrics::RegistrySample;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Kinds of operations on the registry, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Whatever changes no version and no alias; noting where a rollout stands and what turned out of predictions among it.
    Read,
    /// A new version.
    Register,
    /// A model's or a version's description, tags, metrics, gates.
    Update,
    /// An alias that moves to another version.
    Promote,
    /// An alias that moves back.
    Rollback,
    /// An alias that goes.
    RemoveAlias,
    /// Documents, and an alias with them: routes, rollouts, experiments.
    SetDocuments,
    /// Whether a version should be in memory.
    SetWanted,
    /// Archiving, and taking back out.
    Archive,
    /// A version or a model that goes.
    Delete,
}

const OPERATIONS: [(Operation, &str); 10] = [
    (Operation::Read, "read"),
    (Operation::Register, "register"),
    (Operation::Update, "update"),
    (Operation::Promote, "promote"),
    (Operation::Rollback, "rollback"),
    (Operation::RemoveAlias, "remove_alias"),
    (Operation::SetDocuments, "set_documents"),
    (Operation::SetWanted, "set_wanted"),
    (Operation::Archive, "archive"),
    (Operation::Delete, "delete"),
];

/// How the operations went, in the order of [`OPERATIONS`].
#[derive(Debug, Default)]
pub(super) struct Operations(Mutex<[Counted; OPERATIONS.len()]>);

#[derive(Debug, Clone, Default)]
struct Counted {
    refused: u64,
    failed: u64,
    times: DurationHistogram,
}

impl Operations {
    /// Counts one that took so long.
    pub(super) fn count<T>(&self, operation: Operation, time: Duration, done: &Result<T, RegistryError>) {
        // Nothing that panics runs under the lock: a poisoned one is still sound.
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = OPERATIONS.iter().position(|(one, _)| *one == operation);
        let Some(counted) = place.and_then(|place| counted.get_mut(place)) else { return };
        counted.times.add(time);
        match done {
            Ok(_) => {}
            Err(
                RegistryError::Io { .. }
                | RegistryError::Corrupt { .. }
                | RegistryError::Remote { .. }
                | RegistryError::Damaged(_)
                | RegistryError::Unwritable(_),
            ) => counted.failed += 1,
            Err(_) => counted.refused += 1,
        }
    }

    /// A scrape's view.
    pub(super) fn sample(&self) -> Vec<RegistrySample> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of =
            |((_, operation), Counted { refused, failed, times }): (&(Operation, &'static str), Counted)| {
                RegistrySample { operation, refused, failed, times }
            };
        OPERATIONS.iter().zip(counted).map(of).collect()
    }
}
