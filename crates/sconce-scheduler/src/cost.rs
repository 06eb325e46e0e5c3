//! What a batch takes, learned from the batches that ran.

use std::time::Duration;

/// What the time of a batch depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows.
    pub rows: usize,
    /// Tokens, 0 for models without. For a backend that pads: with the padding.
    pub tokens: usize,
}

impl Work {
    pub(crate) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.tokens += other.tokens;
    }

    pub(crate) fn take(&mut self, other: Self) {
        self.rows -= other.rows;
        self.tokens -= other.tokens;
    }

    fn features(self) -> Features {
        [1.0, self.rows as f64, self.tokens as f64]
    }
}

/// A batch, a row, a token.
type Features = [f64; 3];

/// What was learned of a model's time, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CostReport {
    /// What each batch takes, however small.
    pub batch_seconds: f64,
    /// What each row adds.
    pub row_seconds: f64,
    /// What each token adds.
    pub token_seconds: f64,
    /// By how much estimates were off of late: the mean of `|measured / estimated - 1|`.
    pub relative_error: f64,
    /// Batches it was learned from.
    pub batches: u64,
}

/// Service time as `batch + row · rows + token · tokens`, none of them negative: recursive least squares with forgetting.
///
/// Residuals are relative to the estimate, so that small batches count as much as large ones, and what lies far out counts less,
/// by Huber's rule ("Robust Estimation of a Location Parameter", 1964). Where the batches seen cannot tell the three apart, the
/// first of them decides: it is a weak prior.
#[derive(Debug, Clone)]
pub struct CostModel {
    prior: Features,
    /// The first batch: how large each feature is about, so that the prior weighs on each alike.
    scale: Features,
    theta: Features,
    /// Sums of `w x xᵀ` and `w x y`, with forgetting.
    xx: [Features; 3],
    xy: Features,
    relative_error: f64,
    batches: u64,
}

/// What a batch counts for after the next one: about the last fifty make the estimate.
const FORGETTING: f64 = 0.98;
/// What the prior counts for, against a batch's 1.
const PRIOR: f64 = 0.05;
/// What part of the first batch's time is taken to be independent of its size.
const PRIOR_OVERHEAD: f64 = 0.1;
/// How fast the error follows.
const ERROR_GAIN: f64 = 0.05;
/// Relative residuals below this are never far out.
const MIN_HUBER: f64 = 0.2;
/// Batches until the estimate can be relied on.
const CERTAIN: u64 = 8;
/// No batch takes less: keeps what is divided by away from zero.
const MIN_SECONDS: f64 = 1e-7;

impl Default for CostModel {
    fn default() -> Self {
        Self {
            prior: [0.0; 3],
            scale: [1.0; 3],
            theta: [0.0; 3],
            xx: [[0.0; 3]; 3],
            xy: [0.0; 3],
            relative_error: 0.0,
            batches: 0,
        }
    }
}

impl CostModel {
    /// Learns that a batch took `time`.
    pub fn observe(&mut self, work: Work, time: Duration) {
        let seconds = time.as_secs_f64().max(MIN_SECONDS);
        let features = work.features();
        if self.batches == 0 {
            self.start(features, seconds);
        }
        let estimate = self.seconds(features);
        let residual = (seconds / estimate - 1.0).abs();
        let far_out = (3.0 * self.relative_error).max(MIN_HUBER);
        let weight = (far_out / residual).min(1.0) / (estimate * estimate);
        for (i, sums) in self.xx.iter_mut().enumerate() {
            for (sum, feature) in sums.iter_mut().zip(features) {
                *sum = FORGETTING * *sum + weight * features[i] * feature;
            }
            self.xy[i] = FORGETTING * self.xy[i] + weight * features[i] * seconds;
        }
        if self.batches > 0 {
            // One batch that took a hundred times as long says that it did, not that all estimates are worthless.
            self.relative_error += ERROR_GAIN * (residual.min(4.0) - self.relative_error);
        }
        self.batches += 1;
        self.solve();
    }

    /// What a batch will take; `None` before anything was learned.
    pub fn estimate(&self, work: Work) -> Option<Duration> {
        (self.batches > 0).then(|| duration(self.seconds(work.features())))
    }

    /// The same with as much again as estimates were off of late: what most batches will not exceed. `None` as long as too little
    /// was learned for a decision.
    pub fn upper(&self, work: Work) -> Option<Duration> {
        let seconds = self.seconds(work.features()) * (1.0 + self.relative_error);
        (self.batches >= CERTAIN).then(|| duration(seconds))
    }

    /// Whether enough was learned for a decision.
    pub(crate) fn is_certain(&self) -> bool {
        self.batches >= CERTAIN
    }

    /// What `batches` batches of this work in all take, in seconds.
    pub(crate) fn in_batches(&self, work: Work, batches: f64) -> f64 {
        dot(self.theta, [batches, work.rows as f64, work.tokens as f64])
    }

    /// What work adds to a batch that runs anyway, in seconds; before anything was learned, a microsecond a row and a token.
    pub(crate) fn marginal(&self, work: Work) -> f64 {
        let [_, rows, tokens] = work.features();
        if self.batches == 0 { 1e-6 * (rows + tokens) } else { self.theta[1] * rows + self.theta[2] * tokens }
    }

    /// What was learned.
    pub fn report(&self) -> CostReport {
        let [batch_seconds, row_seconds, token_seconds] = self.theta;
        let Self { relative_error, batches, .. } = *self;
        CostReport { batch_seconds, row_seconds, token_seconds, relative_error, batches }
    }

    fn seconds(&self, features: Features) -> f64 {
        dot(self.theta, features).max(MIN_SECONDS)
    }

    /// Some of the first batch's time for the batch, the rest for what there is the most of.
    fn start(&mut self, features: Features, seconds: f64) {
        self.scale = features.map(|feature| feature.max(1.0));
        let size = if features[2] > 0.0 { 2 } else { 1 };
        self.prior[0] = PRIOR_OVERHEAD * seconds;
        self.prior[size] = (1.0 - PRIOR_OVERHEAD) * seconds / self.scale[size];
        self.theta = self.prior;
    }

    /// Least squares over what was seen and the prior. A negative answer is taken to be zero, and the others are found again.
    fn solve(&mut self) {
        let mut free = [true; 3];
        let seconds = dot(self.prior, self.scale).max(MIN_SECONDS);
        let ridge = self.scale.map(|scale| PRIOR * (scale / seconds).powi(2));
        loop {
            let mut matrix = [[0.0; 4]; 3];
            for (i, row) in matrix.iter_mut().enumerate() {
                if !free[i] {
                    row[i] = 1.0;
                    continue;
                }
                for j in 0..3 {
                    row[j] = if free[j] { self.xx[i][j] } else { 0.0 };
                }
                row[i] += ridge[i];
                row[3] = self.xy[i] + ridge[i] * self.prior[i];
            }
            let Some(theta) = eliminate(matrix) else { return };
            let worst = (0..3).filter(|&i| free[i] && theta[i] < 0.0);
            let by_share =
                |&a: &usize, &b: &usize| (theta[a] * self.scale[a]).total_cmp(&(theta[b] * self.scale[b]));
            match worst.min_by(by_share) {
                Some(i) => free[i] = false,
                None => {
                    self.theta = theta;
                    return;
                }
            }
        }
    }
}

/// `seconds`, at least none and at most what can be added to any time.
pub(crate) fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
}

fn dot(a: Features, b: Features) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves three linear equations, each with its right side last, by elimination. The matrix is positive definite: its pivots need
/// no search. `None` where rounding has made it otherwise.
fn eliminate(mut matrix: [[f64; 4]; 3]) -> Option<Features> {
    for pivot in 0..3 {
        let row = matrix[pivot];
        if !(row[pivot].is_finite() && row[pivot] > 0.0) {
            return None;
        }
        for below in matrix.iter_mut().skip(pivot + 1) {
            let factor = below[pivot] / row[pivot];
            below.iter_mut().zip(row).for_each(|(value, above)| *value -= factor * above);
        }
    }
    let mut solution = [0.0; 3];
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|j| matrix[i][j] * solution[j]).sum();
        solution[i] = (matrix[i][3] - known) / matrix[i][i];
    }
    solution.iter().all(|value| value.is_finite()).then_some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRUE: Features = [400e-6, 100e-6, 120e-6];

    fn time(work: Work) -> f64 {
        dot(TRUE, work.features())
    }

    fn work(seed: u64) -> Work {
        let hash = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let rows = 1 + (hash >> 33) as usize % 32;
        Work { rows, tokens: rows * (4 + (hash >> 43) as usize % 60) }
    }

    fn assert_close(model: &CostModel, work: Work, tolerance: f64) {
        let (estimate, expected) = (model.estimate(work).unwrap().as_secs_f64(), time(work));
        assert!((estimate / expected - 1.0).abs() < tolerance, "{work:?}: {estimate} for {expected}");
    }

    #[test]
    fn the_first_batch_is_the_estimate() {
        let mut model = CostModel::default();
        let first = Work { rows: 1, tokens: 20 };
        assert_eq!(model.estimate(first), None);
        model.observe(first, Duration::from_millis(3));
        let estimate = model.estimate(first).unwrap().as_secs_f64();
        assert!((estimate - 3e-3).abs() < 1e-6, "{estimate}");
        let ten = model.estimate(Work { rows: 10, tokens: 200 }).unwrap().as_secs_f64();
        assert!((25e-3..30e-3).contains(&ten), "{ten}");
        assert_eq!(model.upper(first), None, "one batch is not enough for a refusal");
    }

    #[test]
    fn it_learns_what_a_batch_a_row_and_a_token_take() {
        let mut model = CostModel::default();
        // A cold first one.
        model.observe(Work { rows: 1, tokens: 8 }, Duration::from_millis(40));
        for seed in 0..300 {
            model.observe(work(seed), Duration::from_secs_f64(time(work(seed))));
        }
        for seed in 1000..1050 {
            assert_close(&model, work(seed), 0.02);
        }
        assert!(model.report().relative_error < 0.05, "{:?}", model.report());
    }

    #[test]
    fn a_batch_now_and_then_that_took_far_longer_is_not_believed() {
        let mut model = CostModel::default();
        for seed in 0..500 {
            let factor = if seed % 17 == 3 { 20.0 } else { 1.0 };
            model.observe(work(seed), Duration::from_secs_f64(factor * time(work(seed))));
        }
        for seed in 1000..1020 {
            assert_close(&model, work(seed), 0.5);
        }
    }

    #[test]
    fn it_follows_a_machine_that_slows_down() {
        let mut model = CostModel::default();
        (0..200).for_each(|seed| model.observe(work(seed), Duration::from_secs_f64(time(work(seed)) / 3.0)));
        (0..300).for_each(|seed| model.observe(work(seed), Duration::from_secs_f64(time(work(seed)))));
        for seed in 1000..1020 {
            assert_close(&model, work(seed), 0.1);
        }
    }

    #[test]
    fn batches_all_alike_tell_what_one_like_them_takes() {
        let mut model = CostModel::default();
        let alike = Work { rows: 1, tokens: 20 };
        (0..2000).for_each(|_| model.observe(alike, Duration::from_millis(3)));
        let estimate = model.upper(alike).unwrap().as_secs_f64();
        assert!((estimate / 3e-3 - 1.0).abs() < 0.01, "{estimate}");
    }

    proptest! {
        /// Whatever was measured, estimates are finite, not negative, and grow with the work.
        #[test]
        fn estimates_stay_sane(
            seen in prop::collection::vec((0usize..100_000, 0usize..10_000_000, 0u64..=u64::MAX / 4), 1..80),
            rows in 1usize..1000,
        ) {
            let mut model = CostModel::default();
            for (rows, tokens, nanos) in seen {
                model.observe(Work { rows, tokens }, Duration::from_nanos(nanos));
                let small = model.estimate(Work { rows, tokens: rows }).unwrap();
                let large = model.estimate(Work { rows: 2 * rows, tokens: 4 * rows }).unwrap();
                prop_assert!(small <= large);
                prop_assert!(model.report().relative_error.is_finite());
            }
            let marginal = model.marginal(Work { rows, tokens: 0 });
            prop_assert!(marginal >= 0.0);
        }
    }
}
