//! What is known of a request, from its arrival until its answer has left.

use crate::feedback;
use crate::monitors;
use crate::objectives::Ends;
use crate::predictions::Draft;
use crate::shadow::Offer;
use http::HeaderMap;
use sconce_core::{Error, ErrorCode};
use sconce_telemetry::traces::{Method, Observed, Recorder, RequestTrace};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who hangs up in the last part of its time, one in so many, or so shortly before its end, hangs up for its deadline.
const LAST: u32 = 20;
const CLOCKS_APART: Duration = Duration::from_millis(10);

/// One request under observation. Whatever becomes of it, the recorder looks at it once: when this is dropped, which for an
/// answered request is when the last byte of its answer has left.
pub(crate) struct Observation {
    recorder: Arc<Recorder>,
    observed: Observed,
    ended: bool,
    /// Where its model's requests are counted, once its model is known.
    pub(crate) ends: Option<Arc<Ends>>,
    /// Who sees the request once it is answered.
    pub(crate) offer: Option<Box<Offer>>,
    /// What the prediction log gets of it.
    pub(crate) draft: Option<Box<Draft>>,
    /// What is noted of it, for feedback to be joined with.
    pub(crate) exposure: Option<Box<feedback::Draft>>,
    /// What a monitor sees of it.
    pub(crate) seen: Option<Box<monitors::Draft>>,
    /// People decide in its model's place.
    pub(crate) is_deferred: bool,
}

impl Observation {
    pub(crate) fn new(
        recorder: &Arc<Recorder>,
        mut trace: RequestTrace,
        method: Method,
        arrived_at: Instant,
    ) -> Self {
        trace.kept = recorder.keeps(&trace);
        let observed = Observed::new(trace, method, arrived_at);
        Self {
            recorder: Arc::clone(recorder),
            observed,
            ended: false,
            ends: None,
            offer: None,
            draft: None,
            exposure: None,
            seen: None,
            is_deferred: false,
        }
    }

    /// The request failed.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.observed.code = Some(error.code());
        self.ended();
    }

    /// The answer is handed to the connection.
    pub(crate) fn ended(&mut self) {
        self.observed.ended_at = Instant::now();
        self.ended = true;
    }
}

impl Deref for Observation {
    type Target = Observed;

    fn deref(&self) -> &Observed {
        &self.observed
    }
}

impl DerefMut for Observation {
    fn deref_mut(&mut self) -> &mut Observed {
        &mut self.observed
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody waits for the answer any more.
            self.ended();
            let Observed { arrived_at, ended_at, deadline, .. } = self.observed;
            let code = hung_up(arrived_at, deadline, ended_at);
            self.observed.code = Some(code);
        }
        self.recorder.observe(&self.observed);
        if let Some(ends) = &self.ends {
            ends.count(self.observed.code, self.observed.time());
        }
        if let Some(draft) = self.draft.take() {
            draft.offer(&self.observed);
        }
        if let Some(exposure) = self.exposure.take() {
            exposure.offer(&self.observed);
        }
        if let Some(seen) = self.seen.take() {
            seen.offer(&self.observed);
        }
        if let Some(offer) = self.offer.take().filter(|_| self.observed.code.is_none()) {
            offer.make(&self.recorder, &self.observed);
        }
    }
}

/// Why a caller went away at `ended_at`: one that gives up at its deadline counts from before its request arrived.
fn hung_up(arrived_at: Instant, deadline: Option<Instant>, ended_at: Instant) -> ErrorCode {
    let is_late = deadline.is_some_and(|deadline| {
        let last = (deadline.saturating_duration_since(arrived_at) / LAST).max(CLOCKS_APART);
        deadline.saturating_duration_since(ended_at) <= last
    });
    if is_late { ErrorCode::DeadlineExceeded } else { ErrorCode::Cancelled }
}

/// The trace that a call with these headers belongs to.
pub(crate) fn trace_of(headers: &HeaderMap) -> RequestTrace {
    RequestTrace::of_call(|name| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?;
        values.next().is_none().then(|| value.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_up_at_its_deadline_did_so_for_that() {
        let arrived_at = Instant::now();
        let at = |ms: u64| arrived_at + Duration::from_millis(ms);
        let code = |deadline: Option<u64>, ended: u64| hung_up(arrived_at, deadline.map(at), at(ended));
        assert_eq!(code(None, 5_000), ErrorCode::Cancelled);
        assert_eq!(code(Some(1_000), 900), ErrorCode::Cancelled);
        for (deadline, ended) in [(1_000, 950), (1_000, 1_000), (1_000, 1_200), (50, 40), (5, 1)] {
            assert_eq!(code(Some(deadline), ended), ErrorCode::DeadlineExceeded, "{deadline} {ended}");
        }
    }
}
