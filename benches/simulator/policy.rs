//! The policies that are compared.

use sconce_scheduler::BatchPolicy;
use std::time::Duration;

/// How requests become batches, and on what kind of backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The scheduler as it is, for a backend that runs lengths mixed.
    Sconce,
    /// The same, where callers do not tell their deadlines.
    SconceUntold,
    /// In order of arrival up to the bound of rows; all that comes is taken in, and nothing is known of deadlines, tenants or
    /// fairness.
    Fifo,
    /// The same, but what has expired is not run.
    FifoWithExpiry,
    /// The scheduler as it is, for a backend that pads.
    SconcePadded,
    /// In order of arrival, for a backend that pads.
    FifoPadded,
}

impl Policy {
    /// Those that one tenant and one model can tell apart.
    pub(crate) const ALL: [Self; 5] =
        [Self::Sconce, Self::Fifo, Self::FifoWithExpiry, Self::SconcePadded, Self::FifoPadded];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sconce => "Sconce",
            Self::SconceUntold => "Sconce, not told deadlines",
            Self::Fifo => "FIFO",
            Self::FifoWithExpiry => "FIFO, expired dropped",
            Self::SconcePadded => "Sconce, padded",
            Self::FifoPadded => "FIFO, padded",
        }
    }

    /// Whether it is Sconce's: with tenants, and the device shared by time.
    pub(crate) fn is_fair(self) -> bool {
        matches!(self, Self::Sconce | Self::SconceUntold | Self::SconcePadded)
    }

    pub(crate) fn knows_deadlines(self) -> bool {
        matches!(self, Self::Sconce | Self::SconcePadded)
    }

    pub(crate) fn drops_expired(self) -> bool {
        self == Self::FifoWithExpiry
    }

    pub(crate) fn pads(self) -> bool {
        matches!(self, Self::SconcePadded | Self::FifoPadded)
    }

    /// As a server has it for a model with tokens whose configuration says nothing.
    pub(crate) fn batching(self) -> BatchPolicy {
        let sconce = BatchPolicy {
            max_rows: MAX_ROWS,
            max_tokens: Some(16_384),
            is_padded: self.pads(),
            ..BatchPolicy::default()
        };
        if self.is_fair() {
            return sconce;
        }
        BatchPolicy {
            max_tokens: None,
            queue_depth: 1 << 24,
            queue_target: Duration::ZERO,
            quantum: Duration::MAX,
            is_padded: false,
            ..sconce
        }
    }
}

/// Rows of a batch, at most.
pub(crate) const MAX_ROWS: usize = 64;
