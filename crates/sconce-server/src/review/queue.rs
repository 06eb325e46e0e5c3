//! Who has what of that which waits for people, and until when. Pure: it reads no clock and stores nothing.

use sconce_core::{Error, ErrorCode, ModelName, PredictionId, Result};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Who gave a prediction back, up to so many: the one who did so first may get it again.
const SKIPPERS: usize = 8;

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Predictions of one model.
    pub(super) max_items: usize,
    /// Bytes of all.
    pub(super) max_bytes: u64,
    /// How long one waits.
    pub(super) time_to_live_ms: u64,
}

/// Predictions that wait, by model, the oldest first: their ids sort by time.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    bytes: u64,
    models: BTreeMap<ModelName, BTreeMap<PredictionId, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    claim: Option<Claim>,
    skipped_by: Vec<String>,
}

/// Who has a prediction, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) by: String,
    pub(crate) until_ms: u64,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, bytes: 0, models: BTreeMap::new() }
    }

    /// Whether one more of `bytes` has room.
    ///
    /// # Errors
    /// `ResourceExhausted` with the bound it meets.
    pub(super) fn check_room(&self, model: &ModelName, bytes: u64) -> Result<()> {
        let waiting = self.waiting(model);
        let full = |what: String| {
            let message = format!("people are to decide, and {what} wait for them already, as many as may");
            Err(Error::new(ErrorCode::ResourceExhausted, message))
        };
        if waiting >= self.bounds.max_items {
            return full(format!("{waiting} predictions"));
        }
        if self.bytes.saturating_add(bytes) > self.bounds.max_bytes {
            return full(format!("{} bytes of predictions", self.bytes));
        }
        Ok(())
    }

    pub(super) fn add(&mut self, model: &ModelName, id: PredictionId, bytes: u64) {
        let waiting = Waiting { bytes, claim: None, skipped_by: Vec::new() };
        let replaced = self.models.entry(model.clone()).or_default().insert(id, waiting);
        self.bytes = self.bytes + bytes - replaced.map_or(0, |replaced| replaced.bytes);
    }

    /// Gives `by` the oldest `count` that nobody has and that they did not give back, until `until_ms`.
    pub(super) fn claim(
        &mut self,
        model: &ModelName,
        by: &str,
        count: usize,
        (now_ms, until_ms): (u64, u64),
    ) -> Vec<PredictionId> {
        let all = self.models.get_mut(model).into_iter().flatten();
        let is_free = |waiting: &Waiting| {
            waiting.holder(now_ms).is_none() && !waiting.skipped_by.iter().any(|skipper| skipper == by)
        };
        let free = all.filter(|(_, waiting)| is_free(waiting)).take(count);
        free.map(|(id, waiting)| {
            waiting.claim = Some(Claim { by: by.to_owned(), until_ms });
            *id
        })
        .collect()
    }

    /// Whether `by` may decide about a prediction: nobody else has it.
    ///
    /// # Errors
    /// `NotFound` where it does not wait; `FailedPrecondition` where somebody else has it.
    pub(super) fn check(&self, model: &ModelName, id: PredictionId, by: &str, now_ms: u64) -> Result<()> {
        let found = self.models.get(model).and_then(|waiting| waiting.get(&id));
        let waiting = found.ok_or_else(|| {
            let message = format!("model `{model}`: prediction {id} does not wait for anybody (any more)");
            Error::new(ErrorCode::NotFound, message)
        })?;
        match waiting.holder(now_ms).filter(|claim| claim.by != by) {
            None => Ok(()),
            Some(claim) => {
                let (holder, seconds) = (&claim.by, claim.until_ms.saturating_sub(now_ms).div_ceil(1000));
                let message = format!("prediction {id}: {holder} has it, for {seconds} s more");
                Err(Error::new(ErrorCode::FailedPrecondition, message))
            }
        }
    }

    /// Leaves a prediction to `by` until `until_ms` at least.
    pub(super) fn hold(&mut self, model: &ModelName, id: PredictionId, by: &str, until_ms: u64) {
        let Some(waiting) = self.models.get_mut(model).and_then(|all| all.get_mut(&id)) else { return };
        let own = waiting.claim.as_ref().filter(|claim| claim.by == by).map_or(0, |claim| claim.until_ms);
        waiting.claim = Some(Claim { by: by.to_owned(), until_ms: until_ms.max(own) });
    }

    /// `by` gives a prediction back.
    pub(super) fn skip(&mut self, model: &ModelName, id: PredictionId, by: &str) {
        let Some(waiting) = self.models.get_mut(model).and_then(|all| all.get_mut(&id)) else { return };
        waiting.claim = None;
        if waiting.skipped_by.iter().all(|skipper| skipper != by) {
            if waiting.skipped_by.len() >= SKIPPERS {
                waiting.skipped_by.remove(0);
            }
            waiting.skipped_by.push(by.to_owned());
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, model: &ModelName, id: PredictionId) -> bool {
        let Some(all) = self.models.get_mut(model) else { return false };
        let removed = all.remove(&id);
        if all.is_empty() {
            self.models.remove(model);
        }
        self.bytes -= removed.as_ref().map_or(0, |waiting| waiting.bytes);
        removed.is_some()
    }

    /// What has waited too long, whoever has it.
    pub(super) fn expired(&self, now_ms: u64) -> Vec<(ModelName, PredictionId)> {
        let is_old = |id: &PredictionId| self.expires_ms(*id) <= now_ms;
        let of = |(model, all): (&ModelName, &BTreeMap<PredictionId, Waiting>)| {
            let old = all.keys().take_while(|id| is_old(id));
            old.map(|id| (model.clone(), *id)).collect::<Vec<_>>()
        };
        self.models.iter().flat_map(of).collect()
    }

    /// When it leaves the queue unanswered, in milliseconds since 1970.
    pub(super) fn expires_ms(&self, id: PredictionId) -> u64 {
        id.at_ms().saturating_add(self.bounds.time_to_live_ms)
    }

    /// Up to `limit` behind `after`, of one model or of all, with who has each.
    pub(super) fn list(
        &self,
        model: Option<&ModelName>,
        after: Option<(&ModelName, PredictionId)>,
        limit: usize,
        now_ms: u64,
    ) -> Vec<(ModelName, PredictionId, Option<Claim>)> {
        let from = after.map_or(Bound::Unbounded, |(model, _)| Bound::Included(model));
        let models = self.models.range::<ModelName, _>((from, Bound::Unbounded));
        let wanted = models.filter(|(name, _)| model.is_none_or(|model| model == *name));
        let of = |(name, all): (&ModelName, &BTreeMap<PredictionId, Waiting>)| {
            let behind = after.filter(|(model, _)| *model == name);
            let from = behind.map_or(Bound::Unbounded, |(_, id)| Bound::Excluded(id));
            let rows = all.range((from, Bound::Unbounded)).take(limit);
            rows.map(|(id, waiting)| (name.clone(), *id, waiting.holder(now_ms).cloned())).collect::<Vec<_>>()
        };
        wanted.flat_map(of).take(limit).collect()
    }

    /// How many of a model wait.
    pub(super) fn waiting(&self, model: &ModelName) -> usize {
        self.models.get(model).map_or(0, BTreeMap::len)
    }

    /// When the one of each model that has waited longest was made, in milliseconds since 1970.
    pub(super) fn oldest(&self) -> impl Iterator<Item = (&ModelName, u64)> {
        self.models.iter().filter_map(|(model, waiting)| Some((model, waiting.keys().next()?.at_ms())))
    }

    /// How many of each model wait.
    pub(super) fn depths(&self) -> impl Iterator<Item = (&ModelName, usize)> {
        self.models.iter().map(|(model, all)| (model, all.len()))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Waiting {
    fn holder(&self, now_ms: u64) -> Option<&Claim> {
        self.claim.as_ref().filter(|claim| now_ms < claim.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { max_items: 3, max_bytes: 100, time_to_live_ms: 1_000 };

    fn name(text: &str) -> ModelName {
        ModelName::new(text).unwrap()
    }

    fn queue(count: usize) -> (Queue, Vec<PredictionId>) {
        let (mut queue, ids) =
            (Queue::new(BOUNDS), (0..count).map(|_| PredictionId::new()).collect::<Vec<_>>());
        ids.iter().for_each(|id| queue.add(&name("m"), *id, 10));
        (queue, ids)
    }

    #[test]
    fn nobody_gets_what_another_has_until_the_lease_ends() {
        let (mut queue, ids) = queue(3);
        let m = name("m");
        assert_eq!(queue.claim(&m, "anna", 2, (0, 100)), ids[..2]);
        assert_eq!(queue.claim(&m, "bert", 2, (50, 150)), ids[2..]);
        assert!(queue.claim(&m, "carl", 9, (99, 199)).is_empty());
        assert_eq!(queue.check(&m, ids[0], "bert", 99).unwrap_err().code(), ErrorCode::FailedPrecondition);
        assert!(queue.check(&m, ids[0], "anna", 99).is_ok());
        // A lease that ended keeps nobody out, its holder neither.
        assert!(queue.check(&m, ids[0], "bert", 100).is_ok() && queue.check(&m, ids[0], "anna", 100).is_ok());
        assert_eq!(queue.claim(&m, "carl", 9, (100, 200)), ids[..2]);
        assert!(queue.check(&m, ids[0], "anna", 101).is_err());
        assert!(queue.remove(&m, ids[0]) && !queue.remove(&m, ids[0]));
        assert_eq!(queue.check(&m, ids[0], "carl", 101).unwrap_err().code(), ErrorCode::NotFound);
        assert!(queue.claim(&name("n"), "anna", 1, (0, 1)).is_empty());
        // Who is about to answer is left alone for longer.
        queue.hold(&m, ids[1], "carl", 900);
        queue.hold(&m, ids[1], "carl", 300);
        assert!(
            queue.check(&m, ids[1], "anna", 899).is_err() && queue.check(&m, ids[1], "anna", 900).is_ok()
        );
    }

    #[test]
    fn what_somebody_gives_back_is_for_others() {
        let (mut queue, ids) = queue(2);
        let m = name("m");
        assert_eq!(queue.claim(&m, "anna", 1, (0, 100)), ids[..1]);
        queue.skip(&m, ids[0], "anna");
        assert_eq!(queue.claim(&m, "anna", 9, (1, 100)), ids[1..]);
        assert_eq!(queue.claim(&m, "bert", 9, (1, 100)), ids[..1]);
        // Who is told apart is bounded.
        (0..2 * SKIPPERS).for_each(|number| queue.skip(&m, ids[0], &format!("reviewer {number}")));
        assert_eq!(queue.claim(&m, "anna", 9, (2, 100)), ids[..1]);
    }

    #[test]
    fn a_queue_is_bounded_by_number_by_bytes_and_by_time() {
        let (mut queue, ids) = queue(3);
        let (m, n) = (name("m"), name("n"));
        let refusal = queue.check_room(&m, 1).unwrap_err();
        assert!(
            refusal.code() == ErrorCode::ResourceExhausted && refusal.to_string().contains("3 predictions")
        );
        assert!(queue.check_room(&n, 70).is_ok());
        assert!(queue.check_room(&n, 71).unwrap_err().to_string().contains("30 bytes"));
        let now = ids[1].at_ms() + 1_000;
        let expired = queue.expired(now);
        assert!(expired.contains(&(m.clone(), ids[1])) && queue.expired(ids[0].at_ms() + 999).is_empty());
        expired.iter().for_each(|(model, id)| assert!(queue.remove(model, *id)));
        for id in &ids {
            queue.remove(&m, *id);
        }
        assert_eq!((queue.bytes(), queue.depths().count()), (0, 0));
    }

    #[test]
    fn it_is_listed_page_by_page() {
        let (mut queue, ids) = queue(3);
        let (m, n) = (name("m"), name("n"));
        queue.add(&n, ids[0], 1);
        queue.claim(&m, "anna", 1, (0, 100));
        for limit in 1..=5 {
            let (mut all, mut after) = (Vec::new(), None::<(ModelName, PredictionId)>);
            loop {
                let page = queue.list(None, after.as_ref().map(|(model, id)| (model, *id)), limit, 50);
                let Some((model, id, _)) = page.last() else { break };
                after = Some((model.clone(), *id));
                all.extend(page);
            }
            let found: Vec<_> =
                all.iter().map(|(model, id, claim)| (model.as_str(), *id, claim.is_some())).collect();
            assert_eq!(
                found,
                [("m", ids[0], true), ("m", ids[1], false), ("m", ids[2], false), ("n", ids[0], false)]
            );
        }
        assert_eq!(queue.list(Some(&n), None, 9, 50).len(), 1);
    }
}
