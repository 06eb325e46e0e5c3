//! The registry of Sconce: the source of truth for which models exist and what should run.
//!
//! Below one folder lie a catalogue (models, versions, aliases, documents, audit trail; each change on disk before it is acknowledged),
//! the files of all versions by content, and a journal (what is written often and may age). One process at a time has it
//! open. Everything blocks and can be called from any thread.
//!
//! ```text
//! FORMAT              `sconce-registry 1`; read before anything else
//! LOCK                held while it is open
//! HEAD                how far the catalogue came: shows when sled lost something
//! catalogue/          sled
//! journal/            sled
//! artifacts/          files by their digest
//! ```

mod aliases;
mod artifacts;
mod audit;
mod backup;
mod changes;
mod check;
mod digest;
mod documents;
mod edits;
mod error;
mod folder;
pub mod gates;
pub mod journal;
pub mod limits;
mod records;
mod registry;
pub mod source;
mod store;
mod topic;
mod witness;

pub use artifacts::{Artifacts, Checkout, FileWriter, Garbage, Import, Importer, Limits, Progress, Transfer};
pub use audit::{AuditBody, AuditEntry, AuditReport};
pub use backup::BackupReport;
pub use check::CheckReport;
pub use digest::Digest;
pub use documents::{Applied, Document, DocumentChange, Names, Together};
pub use error::{RegistryError, Result};
pub use gates::{Gates, NotWorse, SmokeSample, Verdict};
pub use journal::{Journal, Ticket};
pub use records::{
    Alias, AliasMove, By, Changed, FileRecord, Lineage, ModelRecord, ModelUpdate, NewVersion, Outcome,
    SignatureRecord, TensorRecord, VersionRecord, VersionState, VersionUpdate, Wanted,
};
pub use registry::Registry;
pub use topic::{Topic, TopicLimits, TopicStats};
