use crate::Result;
use crate::connection::Outcome;
use crate::process::Usage;
use crate::statistics::Executed;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// What a run found.
pub(crate) struct Results {
    /// Requests due in the measured time, by how they ended.
    pub(crate) outcomes: [u64; Outcome::NAMES.len()],
    /// Nanoseconds from the time each of these that succeeded was due until all of its answer was there.
    pub(crate) latency: Histogram<u64>,
    /// Those of them that came as soon as they should.
    pub(crate) in_time: Option<u64>,
    /// Nanoseconds from the time each request of an open loop was due until it was sent: large ones are the generator's fault.
    pub(crate) lag: Histogram<u64>,
    /// Successes that came within the measured time.
    pub(crate) completed: u64,
    /// Answers of any status that came within it.
    pub(crate) answered: u64,
    /// CPU time of the server in it, and its memory at the end.
    pub(crate) server: Option<Usage>,
    /// CPU time of the generator in it.
    pub(crate) generator: Option<Usage>,
    /// Rows in each batch that the server ran in it.
    pub(crate) mean_batch_size: Option<f64>,
}

impl Results {
    pub(crate) fn succeeded(&self) -> u64 {
        self.outcomes[Outcome::OK.index()]
    }
}

/// The measured time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start: Instant,
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

/// What server and generator have used and done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snapshot {
    pub(crate) server: Option<Usage>,
    pub(crate) generator: Option<Usage>,
    pub(crate) executed: Option<Executed>,
}

/// Counts one thread's requests. What is due in the window counts, whenever its answer comes.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) window: Window,
    slo: Option<Duration>,
    begun: u64,
    outcomes: [u64; Outcome::NAMES.len()],
    latency: Histogram<u64>,
    in_time: u64,
    lag: Histogram<u64>,
    completed: u64,
    answered: u64,
}

impl Recorder {
    /// Answers that come later than `slo` are counted apart.
    pub(crate) fn new(window: Window, slo: Option<Duration>) -> Result<Self> {
        // From a microsecond to ten minutes, to a thousandth.
        let latency = Histogram::new_with_bounds(1_000, 600_000_000_000, 3)?;
        Ok(Self {
            window,
            slo,
            begun: 0,
            outcomes: [0; Outcome::NAMES.len()],
            lag: latency.clone(),
            latency,
            in_time: 0,
            completed: 0,
            answered: 0,
        })
    }

    fn in_window(&self, time: Instant) -> bool {
        self.window.from <= time && time < self.window.until
    }

    pub(crate) fn begin(&mut self, due: Instant) {
        self.begun += u64::from(self.in_window(due));
    }

    /// A request of an open loop was on its way at `now`.
    pub(crate) fn sent(&mut self, due: Instant, now: Instant) {
        if self.in_window(due) {
            self.lag.saturating_record(nanos(now.saturating_duration_since(due)));
        }
    }

    pub(crate) fn end(&mut self, due: Instant, now: Instant, outcome: Outcome) {
        if self.in_window(now) {
            self.completed += u64::from(outcome == Outcome::OK);
            self.answered += u64::from(outcome.answered());
        }
        if self.in_window(due) {
            self.outcomes[outcome.index()] += 1;
            if outcome == Outcome::OK {
                let latency = now.saturating_duration_since(due);
                self.in_time += u64::from(self.slo.is_some_and(|slo| latency <= slo));
                self.latency.saturating_record(nanos(latency));
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.begun += other.begun;
        for (sum, count) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum += count;
        }
        self.latency.add(&other.latency)?;
        self.in_time += other.in_time;
        self.lag.add(&other.lag)?;
        self.completed += other.completed;
        self.answered += other.answered;
        Ok(())
    }

    pub(crate) fn finish(mut self, before: Snapshot, after: Snapshot) -> Results {
        self.outcomes[Outcome::UNFINISHED.index()] = self.begun - self.outcomes.iter().sum::<u64>();
        Results {
            outcomes: self.outcomes,
            latency: self.latency,
            in_time: self.slo.map(|_| self.in_time),
            lag: self.lag,
            completed: self.completed,
            answered: self.answered,
            server: after.server.zip(before.server).map(|(after, before)| after.since(before)),
            generator: after.generator.zip(before.generator).map(|(after, before)| after.since(before)),
            mean_batch_size: after
                .executed
                .zip(before.executed)
                .and_then(|(after, before)| after.mean_batch_size(before)),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_in_the_window_counts_whenever_it_ends() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut recorder =
            Recorder::new(Window { start, from: at(100), until: at(200) }, Some(Duration::from_millis(100)))
                .unwrap();
        recorder.begin(at(50));
        recorder.end(at(50), at(150), Outcome::OK);
        for due in [110, 120, 130, 140] {
            recorder.begin(at(due));
        }
        recorder.end(at(110), at(160), Outcome::OK);
        recorder.end(at(120), at(520), Outcome::OK);
        recorder.end(at(130), at(130), Outcome::DROPPED);
        let results = recorder.finish(Snapshot::default(), Snapshot::default());
        assert_eq!((results.completed, results.answered, results.succeeded()), (2, 2, 2));
        assert_eq!(results.outcomes[Outcome::DROPPED.index()], 1);
        assert_eq!(results.in_time, Some(1));
        assert_eq!(results.outcomes[Outcome::UNFINISHED.index()], 1);
        assert_eq!(results.latency.max() / 1_000_000, 400);
    }
}
