use sconce_core::ErrorCode;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// A result whose error is a [`RegistryError`].
pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// Why the registry did not do what it was asked. The message is for the caller; causes are for the log.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// What was given is wrong and will be wrong again.
    #[error("{0}")]
    Invalid(String),
    /// No such model, version, alias or label.
    #[error("{0}")]
    NotFound(String),
    /// It is there already.
    #[error("{0}")]
    AlreadyExists(String),
    /// What the change needs does not hold: the version is aliased, archived, failed.
    #[error("{0}")]
    Precondition(String),
    /// Another change came first.
    #[error("{0}")]
    Aborted(String),
    /// A bound was reached.
    #[error("{0}")]
    Exhausted(String),
    /// Another process has the folder open.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// The folder was written by a newer version of this program. Nothing in it was touched.
    #[error("{}: written in format {found}, this version knows formats up to {known}: nothing was touched", .folder.display())]
    NewerFormat {
        /// The registry's folder.
        folder: PathBuf,
        /// The format it is in.
        found: u64,
        /// The newest format this version reads and writes.
        known: u64,
    },
    /// The file system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A stored file is not what was stored.
    #[error("file `{file}`: {detail}")]
    Corrupt {
        /// The file's path in its version.
        file: String,
        /// What was expected and what was found.
        detail: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Another server did not answer, or not as it should.
    #[error("{what}")]
    Remote {
        /// What was asked, and what came of it.
        what: String,
        /// The cause, for the log.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// What lies on disk is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// A write could not be brought to disk. What the disk holds of it is unknown, so nothing more is written.
    #[error("no more writes until the registry is opened again: {0}")]
    Unwritable(String),
}

impl RegistryError {
    /// What the failure comes to.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::InvalidArgument,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::AlreadyExists(_) => ErrorCode::AlreadyExists,
            Self::Precondition(_) | Self::InUse(_) | Self::NewerFormat { .. } => {
                ErrorCode::FailedPrecondition
            }
            Self::Aborted(_) => ErrorCode::Aborted,
            Self::Exhausted(_) => ErrorCode::ResourceExhausted,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    ErrorCode::ResourceExhausted
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    ErrorCode::FailedPrecondition
                }
                _ => ErrorCode::Internal,
            },
            Self::Corrupt { .. } => ErrorCode::FailedPrecondition,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Remote { .. } => ErrorCode::Unavailable,
            Self::Damaged(_) => ErrorCode::Internal,
            Self::Unwritable(_) => ErrorCode::Unavailable,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// What to make of a failure while `doing` something with `path`, for `map_err`.
    pub(crate) fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        |source| Self::Io { doing, source }
    }

    /// What to make of a failure of sled.
    pub(crate) fn sled(doing: &str, path: &Path, error: sled::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        match error {
            sled::Error::Io(source) => Self::Io { doing, source },
            // What it says of itself helps nobody.
            sled::Error::Corruption { .. } => Self::Damaged(damaged_store(&doing)),
            other => Self::Damaged(format!("{doing}: {other}")),
        }
    }

    pub(crate) fn damaged(what: impl Display) -> Self {
        Self::Damaged(what.to_string())
    }
}

/// What to say of a database that is not what was written.
pub(crate) fn damaged_store(doing: &str) -> String {
    format!("{doing}: it is damaged; a backup is to be restored into another folder")
}

impl From<sconce_core::Error> for RegistryError {
    fn from(error: sconce_core::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<RegistryError> for sconce_core::Error {
    /// The message is the error's own. What is not the caller's doing goes to the log with its causes.
    fn from(error: RegistryError) -> Self {
        let told = Self::new(error.code(), error.to_string());
        match error.code() {
            ErrorCode::Internal | ErrorCode::Unavailable => told.with_source(error),
            _ => told,
        }
    }
}
