//! What a rollout's controller knows of the candidate and of the control: what was counted since it began to look.

use super::Stored;
use crate::feedback::performance::Labels;
use crate::shadow::Findings;
use crate::traffic::{self, LiveRoute, Tally, Times};
use sconce_core::ErrorCode;
use sconce_traffic::compare::Share;
use sconce_traffic::rollout::{Counts, Evidence};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The evidence of one rollout.
pub(super) struct Gathered {
    /// Counts begin at 0 with each.
    epoch: u64,
    control: Answers,
    candidate: Answers,
    mirrored: Mirrored,
    labels: Labelled,
}

/// What a variant answered.
#[derive(Default)]
struct Answers {
    tally: Option<Arc<Tally>>,
    /// What the tally said at the last look.
    last: traffic::Counts,
    counts: Counts,
    /// Since the stage began.
    times: Times,
}

/// What labels say of both: of decisions since the rollout began.
#[derive(Default)]
struct Labelled {
    /// What they said when the epoch began. That was counted before.
    before: Option<[Labels; 2]>,
    /// Of the control and of the candidate.
    now: [Labels; 2],
}

/// What the candidate saw as a shadow.
#[derive(Default)]
struct Mirrored {
    findings: Option<Arc<Findings>>,
    /// What they said at the last look.
    last: Share,
    disagreement: Share,
}

impl Gathered {
    /// Nothing yet: what was counted before now is no evidence.
    pub(super) fn begin(route: Option<&LiveRoute>, stored: &Stored) -> Self {
        let mut gathered = Self {
            epoch: fastrand::u64(..),
            control: Answers::default(),
            candidate: Answers::default(),
            mirrored: Mirrored::default(),
            labels: Labelled::default(),
        };
        gathered.look(route, stored);
        for answers in [&mut gathered.control, &mut gathered.candidate] {
            (answers.counts, answers.times) = Default::default();
        }
        gathered.mirrored.disagreement = Share::default();
        gathered
    }

    /// Takes what was counted since the last look, and says what is known.
    pub(super) fn look(&mut self, route: Option<&LiveRoute>, stored: &Stored) -> Evidence {
        let tally = |label: &str| {
            let variant = route?.variants().iter().find(|variant| *variant.label == *label)?;
            Some(&variant.tally)
        };
        let lane = route.and_then(|route| {
            route.shadows().iter().find(|lane| *lane.shadow.variant.label == *stored.candidate_variant)
        });
        self.control.look(tally(&stored.control_variant));
        self.candidate.look(tally(&stored.candidate_variant));
        self.mirrored.look(lane.map(|lane| &lane.findings));
        let Share { count: disagreeing, of: mirrored } = self.mirrored.disagreement;
        let [control, candidate] = self.labels.since();
        let with = |counts: Counts, Labels { labelled, right }| Counts { labelled, right, ..counts };
        Evidence {
            epoch: self.epoch,
            control: with(self.control.counts, control),
            candidate: with(Counts { mirrored, disagreeing, ..self.candidate.counts }, candidate),
            control_latency: Evidence::latencies(self.control.times.seconds()),
            candidate_latency: Evidence::latencies(self.candidate.times.seconds()),
            facts: Default::default(),
        }
    }

    /// Takes what labels say of decisions since the rollout began, by variant.
    pub(super) fn labels(&mut self, by_variant: &BTreeMap<String, Labels>, stored: &Stored) {
        let of = |label: &str| by_variant.get(label).copied().unwrap_or_default();
        self.labels.now = [of(&stored.control_variant), of(&stored.candidate_variant)];
        self.labels.before.get_or_insert(self.labels.now);
    }

    /// Latencies are those of a stage.
    pub(super) fn stage_began(&mut self) {
        self.control.times = Times::default();
        self.candidate.times = Times::default();
    }
}

impl Answers {
    fn look(&mut self, tally: Option<&Arc<Tally>>) {
        let Some(tally) = tally else { return };
        if !self.tally.as_ref().is_some_and(|known| Arc::ptr_eq(known, tally)) {
            // A change of the route made it since the last look: all that it counted is new.
            (self.tally, self.last) = (Some(Arc::clone(tally)), traffic::Counts::default());
        }
        let now = tally.snapshot();
        let (before, after) = (counts(&self.last), counts(&now));
        self.counts.requests += after.requests.saturating_sub(before.requests);
        self.counts.errors += after.errors.saturating_sub(before.errors);
        self.counts.successes += after.successes.saturating_sub(before.successes);
        self.counts.deferred += after.deferred.saturating_sub(before.deferred);
        self.times.merge(&now.times.since(&self.last.times));
        self.last = now;
    }
}

impl Labelled {
    fn since(&self) -> [Labels; 2] {
        let since = |(now, before): (Labels, Labels)| Labels {
            labelled: now.labelled.saturating_sub(before.labelled),
            right: now.right.saturating_sub(before.right),
        };
        let before = self.before.unwrap_or_default();
        [since((self.now[0], before[0])), since((self.now[1], before[1]))]
    }
}

impl Mirrored {
    fn look(&mut self, findings: Option<&Arc<Findings>>) {
        let Some(findings) = findings else { return };
        if !self.findings.as_ref().is_some_and(|known| Arc::ptr_eq(known, findings)) {
            (self.findings, self.last) = (Some(Arc::clone(findings)), Share::default());
        }
        let now = findings.disagreement();
        self.disagreement.count += now.count.saturating_sub(self.last.count);
        self.disagreement.of += now.of.saturating_sub(self.last.of);
        self.last = now;
    }
}

/// What a tally comes to. A caller that went away says nothing of who was answering; a request that is itself wrong is no error, but
/// no success either: a candidate with another signature refuses what the control takes.
fn counts(tally: &traffic::Counts) -> Counts {
    let of = |code: ErrorCode| tally.errors.get(code.name()).copied().unwrap_or_default();
    let failed = tally.failed().saturating_sub(of(ErrorCode::Cancelled));
    Counts {
        requests: tally.answered() + failed,
        errors: failed.saturating_sub(of(ErrorCode::InvalidArgument)),
        successes: tally.answered(),
        deferred: tally.deferred,
        ..Counts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::{Error, ModelVersion};
    use std::time::Duration;

    #[test]
    fn only_what_was_counted_since_the_last_look_is_added_and_whose_fault_it_is_matters() {
        let (tally, version) = (Arc::new(Tally::default()), ModelVersion::new(1).unwrap());
        let fail = |code| tally.count::<()>(version, &Err(Error::new(code, "no")), Duration::ZERO);
        let mut answers = Answers::default();
        tally.count(version, &Ok(()), Duration::from_millis(3));
        answers.look(Some(&tally));
        for code in [ErrorCode::Cancelled, ErrorCode::InvalidArgument, ErrorCode::Internal] {
            fail(code);
        }
        answers.look(Some(&tally));
        answers.look(Some(&tally));
        let Counts { requests, errors, successes, .. } = answers.counts;
        assert_eq!((requests, errors, successes), (3, 1, 1));
        assert_eq!(answers.times.seconds().map(|(_, times)| times).sum::<u64>(), 1);
        // Another tally of the same variant goes on from what the first one said.
        let other = Arc::new(Tally::default());
        other.count(version, &Ok(()), Duration::from_millis(3));
        other.count_deferred();
        answers.look(Some(&other));
        answers.look(None);
        let Counts { requests, successes, deferred, .. } = answers.counts;
        assert_eq!((requests, successes, deferred), (4, 2, 1));
    }
}
