use crate::cost::Work;
use sconce_core::{Error, Result};
use std::time::{Duration, Instant};

/// A request's priority: 1 is served first, [`Priority::LEVELS`] last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(usize);

impl Priority {
    /// How many priorities there are.
    pub const LEVELS: usize = 8;
    /// Served last.
    pub const LOWEST: Self = Self(Self::LEVELS);

    /// Priority `level`; 0 means the default.
    ///
    /// # Errors
    /// `InvalidArgument` above [`Self::LEVELS`].
    pub fn new(level: u64) -> Result<Self> {
        match usize::try_from(level) {
            Ok(0) => Ok(Self::default()),
            Ok(level) if level <= Self::LEVELS => Ok(Self(level)),
            _ => Err(Error::invalid(format!(
                "priority: expected 0 (default) to {}, got {level}",
                Self::LEVELS
            ))),
        }
    }

    /// The level, 1 to [`Self::LEVELS`].
    pub fn level(self) -> usize {
        self.0
    }
}

impl Default for Priority {
    /// The middle, so that callers can ask for better and for worse.
    fn default() -> Self {
        Self(Self::LEVELS / 2)
    }
}

/// Whom a request is for, as far as sharing goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tenant {
    /// Who it is.
    pub id: u32,
    /// The share of the time it gets while others want theirs, relative to their weights: more than 0.
    pub weight: f32,
}

impl Default for Tenant {
    fn default() -> Self {
        Self { id: 0, weight: 1.0 }
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Somebody waits for its answer.
    #[default]
    Primary,
    /// Its answer is for comparison alone: it runs while nobody else wants the device, and gives way first.
    Shadow,
}

/// One waiting request.
#[derive(Debug)]
pub struct Entry<T> {
    /// What the caller wants back.
    pub ticket: T,
    /// Rows, at least 1 and at most [`BatchPolicy::max_rows`](crate::BatchPolicy::max_rows).
    pub rows: usize,
    /// Tokens of all rows, 0 for models without.
    pub tokens: usize,
    /// Tokens of its longest row: what each of a batch's rows takes where the backend pads.
    pub longest: usize,
    /// Served before entries of a lower priority.
    pub priority: Priority,
    /// Whose it is: within a priority, tenants share.
    pub tenant: Tenant,
    /// When it entered the queue.
    pub queued_at: Instant,
    /// After this its answer is worthless.
    pub deadline: Option<Instant>,
}

impl<T> Entry<T> {
    pub(crate) fn expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// What it is alone.
    pub(crate) fn work(&self, is_padded: bool) -> Work {
        Work { rows: self.rows, tokens: if is_padded { self.rows * self.longest } else { self.tokens } }
    }
}

/// Why a request was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests wait as may, none of a lower priority.
    Full {
        /// When there may be room.
        retry_after: Duration,
    },
    /// Requests have waited for longer than they should for too long, and this one would as well.
    Overloaded {
        /// How long it would wait.
        wait: Duration,
        /// When it would wait no longer than it should.
        retry_after: Duration,
    },
    /// The answer would come after the deadline.
    TooLate {
        /// When the answer would come, from now.
        estimate: Duration,
        /// When it is due, from now.
        allowed: Duration,
    },
}

impl Refusal {
    /// The name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Full { .. } => "queue_full",
            Self::Overloaded { .. } => "overloaded",
            Self::TooLate { .. } => "deadline",
        }
    }
}
