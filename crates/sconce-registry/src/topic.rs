//! What the journal is about, and how much of it there may be.

use std::time::Duration;

/// What entries are about. Each has its own keys and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Which version answered which prediction.
    Exposures,
    /// What turned out to be true.
    Feedback,
    /// What people are to look at, and what they said.
    Reviews,
    /// What monitors saw.
    Monitors,
}

/// How long entries of a topic stay, and how much of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicLimits {
    /// After this an entry is gone.
    pub time_to_live: Duration,
    /// Bytes of keys and values, with 64 more an entry; the oldest entries make room.
    pub max_bytes: u64,
}

/// What there is of a topic, and what went since the journal was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicStats {
    /// Entries, those included that expired and are not removed yet.
    pub entries: u64,
    /// Their bytes, as [`TopicLimits::max_bytes`] counts them.
    pub bytes: u64,
    /// Entries removed because they expired.
    pub expired: u64,
    /// Entries removed to make room.
    pub evicted: u64,
}

#[derive(Clone, Default)]
pub(crate) struct TopicState {
    pub(crate) limits: TopicLimits,
    pub(crate) stats: TopicStats,
    /// No entry stands before this in the topic's order: where to look for the oldest, for sled would walk through all that
    /// was emptied before it.
    pub(crate) front: Vec<u8>,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 4] = [Self::Exposures, Self::Feedback, Self::Reviews, Self::Monitors];

    /// Stored, so it does not change.
    pub(crate) fn tag(self) -> u8 {
        match self {
            Self::Exposures => b'e',
            Self::Feedback => b'f',
            Self::Reviews => b'r',
            Self::Monitors => b'm',
        }
    }

    pub(crate) fn index(self) -> usize {
        Self::ALL.iter().position(|topic| *topic == self).unwrap_or_default()
    }
}

impl Default for TopicLimits {
    /// 30 days, 256 MiB.
    fn default() -> Self {
        Self { time_to_live: Duration::from_secs(30 * 24 * 3600), max_bytes: 256 * 1024 * 1024 }
    }
}
