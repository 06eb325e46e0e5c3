use std::time::{Duration, Instant};

/// Why a batch stopped growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The next request did not fit under the row or token bound.
    Full,
    /// A worker was free, and nothing else waited.
    FreeWorker,
    /// The configured queue delay of its oldest request ran out.
    Delay,
    /// With one more request, one of it would have been late.
    Deadline,
    /// With one more request it would have taken longer than others who want the device should wait.
    Quantum,
}

impl CloseReason {
    /// The name in metrics, logs and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FreeWorker => "free_worker",
            Self::Delay => "delay",
            Self::Deadline => "deadline",
            Self::Quantum => "quantum",
        }
    }
}

/// What happened to one request in the scheduler, returned with its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionRecord {
    /// The batch it ran in; unique within a model version's run.
    pub batch_id: u64,
    /// The instance that ran it.
    pub instance: usize,
    /// Requests in the batch.
    pub batch_requests: usize,
    /// Rows in the batch.
    pub batch_rows: usize,
    /// Tokens in the batch, without padding; 0 for models without tokens.
    pub batch_tokens: usize,
    /// Tokens of padding the backend added.
    pub batch_padding: usize,
    /// Why the batch was closed.
    pub close_reason: CloseReason,
    /// Requests that waited before the batch was composed.
    pub queue_depth: usize,
    /// When the request entered the queue.
    pub queued_at: Instant,
    /// When its batch was closed and handed to the backend.
    pub started_at: Instant,
    /// When the backend's answer was there.
    pub finished_at: Instant,
    /// How long of that the batch stood still, because other models went first.
    pub paused: Duration,
}

impl ExecutionRecord {
    /// Time from queue to backend.
    pub fn queue_time(&self) -> Duration {
        self.started_at.saturating_duration_since(self.queued_at)
    }

    /// Time in the backend.
    pub fn execute_time(&self) -> Duration {
        self.finished_at.saturating_duration_since(self.started_at)
    }
}
