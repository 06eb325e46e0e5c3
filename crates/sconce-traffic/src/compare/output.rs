//! One output of two models, pair by pair.

use super::classes::Confusion;
use super::report::{Kind, Mean, OutputReport, Share, Summary};
use super::values::{Rows, cosine, is_distribution, label, top, top_overlap};
use super::{MAX_ELEMENTS, OutputSpec, draw};
use sconce_core::{DataType, Tensor};
use sconce_stats::Result;
use sconce_stats::distance::{jensen_shannon, kullback_leibler};
use sconce_stats::experiment::Moments;
use sconce_stats::sequential::{AsymptoticMean, BetaBinomial, tuned_rho};
use sconce_stats::sketch::LogSketch;

/// How far a row may be from a sum of 1: half-precision sums of thousands of classes are.
const SUM_TOLERANCE: f64 = 0.01;
/// Quantiles of differences are within this.
const SKETCH_ERROR: f64 = 0.02;
/// Differences outside are taken for the nearer one.
const SKETCH_RANGE: (f64, f64) = (1e-12, 1e12);
/// Differences beyond it count as not finite: the sums of their squares would not be.
const MOST_DIFFERENCE: f64 = 1e150;
/// Confidence sequences are narrowest after about as many pairs.
pub(super) const TUNED_FOR: u64 = 1_000;

/// Values of at least 0: a sketch of them, and their mean.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    sketch: LogSketch,
    moments: Moments,
}

impl Sizes {
    pub(super) fn new(error: f64, least: f64, most: f64) -> Result<Self> {
        Ok(Self { sketch: LogSketch::new(error, least, most)?, moments: Moments::default() })
    }

    pub(super) fn add(&mut self, value: f64) {
        // What is not finite was counted elsewhere.
        if self.sketch.update(value).is_ok() {
            let _ = self.moments.update(value);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        self.sketch.merge(&other.sketch)?;
        self.moments.merge(&other.moments);
        Ok(())
    }

    pub(super) fn report(&self) -> Option<Summary> {
        let quantile = |p| self.sketch.quantile(p).ok().flatten();
        Some(Summary {
            count: self.sketch.count(),
            mean: self.moments.mean(),
            p50: quantile(0.5)?,
            p90: quantile(0.9)?,
            p99: quantile(0.99)?,
            max: self.sketch.range()?.high,
        })
    }
}

pub(super) fn mean(moments: &Moments) -> Option<Mean> {
    let variance = moments.variance();
    (moments.count() > 0).then(|| Mean {
        count: moments.count(),
        mean: moments.mean(),
        deviation: if variance.is_nan() { 0.0 } else { variance.sqrt() },
    })
}

/// What one pair showed of an output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// 0 where nothing differs, 1 where all does.
    pub(super) score: f64,
    pub(super) reason: &'static str,
}

impl Shown {
    const MISMATCH: Self = Self { score: 1.0, reason: "another datatype, shape or number of outputs" };
}

/// What is known of an output. Below 100 KiB: two sketches, a confusion matrix, and numbers.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) kind: Kind,
    rows: Share,
    mismatched: Share,
    /// Of these, those that could not be compared.
    unfit: u64,
    disagreeing: Share,
    /// Pairs by whether the row that was drawn of each disagrees.
    pub(super) pairs: BetaBinomial,
    absolute: Sizes,
    relative: Sizes,
    breaches: Share,
    not_finite: u64,
    bias: Moments,
    pub(super) bias_sequence: AsymptoticMean,
    cosine: Moments,
    kl: Moments,
    kl_infinite: u64,
    js: Moments,
    top1: Share,
    top_k: Moments,
    confusion: Confusion,
}

impl Output {
    pub(super) fn new(name: &str, kind: Kind, alpha: f64) -> Result<Self> {
        let sizes = || Sizes::new(SKETCH_ERROR, SKETCH_RANGE.0, SKETCH_RANGE.1);
        Ok(Self {
            name: name.to_owned(),
            kind,
            rows: Share::default(),
            mismatched: Share::default(),
            unfit: 0,
            disagreeing: Share::default(),
            pairs: BetaBinomial::new(0.5, 0.5)?,
            absolute: sizes()?,
            relative: sizes()?,
            breaches: Share::default(),
            not_finite: 0,
            bias: Moments::default(),
            bias_sequence: AsymptoticMean::new(tuned_rho(alpha, TUNED_FOR)?)?,
            cosine: Moments::default(),
            kl: Moments::default(),
            kl_infinite: 0,
            js: Moments::default(),
            top1: Share::default(),
            top_k: Moments::default(),
            confusion: Confusion::default(),
        })
    }

    /// What `tensor`, the first of its name, is taken for.
    pub(super) fn detect(tensor: &Tensor, spec: &OutputSpec) -> Kind {
        if let Some(kind) = spec.kind {
            return kind;
        }
        let rows = Rows::new(tensor);
        let is_float =
            matches!(tensor.datatype(), DataType::Fp16 | DataType::Fp32 | DataType::Fp64 | DataType::Bf16);
        if tensor.datatype() == DataType::Bytes || (!is_float && rows.width == 1) {
            return Kind::Labels;
        }
        let mut values = Vec::new();
        let sums_to_one = |row| {
            rows.read(row, 1, &mut values);
            is_distribution(&values, SUM_TOLERANCE)
        };
        let small = rows.width.saturating_mul(rows.rows) <= MAX_ELEMENTS;
        if is_float && small && rows.rows > 0 && (0..rows.rows).all(sums_to_one) {
            Kind::Distribution
        } else if spec.classes.is_empty() {
            Kind::Values
        } else {
            Kind::Scores
        }
    }

    /// Rows that disagree, and answers that could not be compared.
    pub(super) fn differing(&self) -> u64 {
        self.disagreeing.count + self.unfit
    }

    /// An answer of either model was not there, or not comparable.
    pub(super) fn mismatch(&mut self) -> Shown {
        self.mismatched.add(true);
        self.unfit += 1;
        self.pairs.update(1, 0);
        Shown::MISMATCH
    }

    /// Compares both models' answers to one request. `number` is the pair's, for what is drawn.
    pub(super) fn add(
        &mut self,
        primary: &Tensor,
        candidate: &Tensor,
        spec: &OutputSpec,
        number: u64,
    ) -> Shown {
        if primary.shape() != candidate.shape() {
            return self.mismatch();
        }
        let both_text = primary.datatype() == DataType::Bytes && candidate.datatype() == DataType::Bytes;
        let (compared, disagrees, shown) = if both_text {
            self.add_text(primary, candidate, number)
        } else if primary.datatype() == DataType::Bytes || candidate.datatype() == DataType::Bytes {
            return self.mismatch();
        } else {
            self.add_numbers(Rows::new(primary), Rows::new(candidate), spec, number)
        };
        // Another floating-point type is another precision, and its numbers can be compared; the mismatch is noted.
        self.mismatched.add(primary.datatype() != candidate.datatype());
        if compared > 0 {
            self.pairs.update(u64::from(disagrees), u64::from(!disagrees));
        }
        shown
    }

    /// The number of rows that were compared, whether the one that was drawn disagrees, and what was shown.
    fn add_text(&mut self, primary: &Tensor, candidate: &Tensor, number: u64) -> (u64, bool, Shown) {
        let total = primary.shape().iter().product::<usize>();
        let compared = total.min(MAX_ELEMENTS) as u64;
        let drawn = draw(number) % compared.max(1);
        let mut differing = 0;
        let mut disagrees = false;
        let elements = primary.bytes_elements().zip(candidate.bytes_elements()).take(MAX_ELEMENTS);
        for (at, (ours, theirs)) in (0_u64..).zip(elements) {
            let differs = ours != theirs;
            self.disagreeing.add(differs);
            self.confusion.add(&label(ours), &label(theirs), 1);
            differing += u64::from(differs);
            disagrees |= differs && at == drawn;
        }
        self.rows.merge(Share { count: compared, of: total as u64 });
        let score = if differing == 0 { 0.0 } else { 0.5 + 0.5 * differing as f64 / compared.max(1) as f64 };
        (compared, disagrees, Shown { score, reason: "another label" })
    }

    fn add_numbers(
        &mut self,
        ours: Rows<'_>,
        theirs: Rows<'_>,
        spec: &OutputSpec,
        number: u64,
    ) -> (u64, bool, Shown) {
        // Of a request that is too large, rows at equal steps; of a row that is too wide, elements at equal steps.
        let most_rows = (MAX_ELEMENTS / ours.width.max(1)).max(1);
        let row_step = ours.rows.div_ceil(most_rows).max(1);
        let step = ours.width.div_ceil(MAX_ELEMENTS).max(1);
        let compared = if ours.width == 0 { 0 } else { ours.rows.div_ceil(row_step) as u64 };
        let drawn = draw(number) % compared.max(1);
        let mut disagrees = false;
        let mut worst = Shown { score: 0.0, reason: "" };
        let mut bias = Moments::default();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (at, row) in (0..compared).zip((0..ours.rows).step_by(row_step)) {
            ours.read(row, step, &mut a);
            theirs.read(row, step, &mut b);
            let is_whole = step == 1;
            let breach = self.add_elements(&a, &b, spec, &mut bias);
            if a.len() > 1
                && let Some(cosine) = cosine(&a, &b)
            {
                let _ = self.cosine.update(cosine);
            }
            let shown = match self.kind {
                Kind::Labels => self.add_labels(&a, &b),
                Kind::Distribution | Kind::Scores if is_whole => self.add_classes(&a, &b, spec),
                _ => Shown { score: breach / (1.0 + breach), reason: "a value beyond the tolerance" },
            };
            let differs = match self.kind {
                Kind::Labels => shown.score > 0.0,
                Kind::Distribution | Kind::Scores if is_whole => shown.score >= 0.5,
                _ => breach > 1.0,
            };
            self.disagreeing.add(differs);
            disagrees |= differs && at == drawn;
            if shown.score > worst.score {
                worst = shown;
            }
        }
        if bias.count() > 0 && self.kind == Kind::Values {
            let _ = self.bias_sequence.update(bias.mean());
            let _ = self.bias.update(bias.mean());
        }
        self.rows.merge(Share { count: compared, of: ours.rows as u64 });
        (compared, disagrees, worst)
    }

    /// The largest difference of an element, in units of its tolerance.
    fn add_elements(&mut self, a: &[f64], b: &[f64], spec: &OutputSpec, bias: &mut Moments) -> f64 {
        let mut worst = 0.0_f64;
        for (&a, &b) in a.iter().zip(b) {
            let alike = a == b || (a.is_nan() && b.is_nan());
            let difference = (b - a).abs();
            let is_finite = difference <= MOST_DIFFERENCE;
            if alike {
                self.absolute.add(0.0);
            } else if is_finite {
                self.absolute.add(difference);
            } else {
                self.not_finite += 1;
            }
            if alike || is_finite {
                let _ = bias.update(if alike { 0.0 } else { b - a });
                if a.is_finite() && a != 0.0 {
                    self.relative.add(if alike { 0.0 } else { difference / a.abs() });
                }
            }
            let tolerance = spec.absolute + spec.relative * a.abs();
            let breach = match (alike, is_finite && tolerance.is_finite()) {
                (true, _) => 0.0,
                (false, true) => difference / tolerance.max(f64::MIN_POSITIVE),
                (false, false) => f64::MAX,
            };
            self.breaches.add(breach > 1.0);
            worst = worst.max(breach);
        }
        worst.min(1e12)
    }

    fn add_labels(&mut self, a: &[f64], b: &[f64]) -> Shown {
        for (a, b) in a.iter().zip(b) {
            self.confusion.add(&a.to_string(), &b.to_string(), 1);
        }
        let differs = a.iter().zip(b).any(|(a, b)| a != b && !(a.is_nan() && b.is_nan()));
        Shown { score: f64::from(u8::from(differs)), reason: "another label" }
    }

    fn add_classes(&mut self, a: &[f64], b: &[f64], spec: &OutputSpec) -> Shown {
        let mut score = 0.0;
        if self.kind == Kind::Distribution
            && is_distribution(a, SUM_TOLERANCE)
            && is_distribution(b, SUM_TOLERANCE)
            && let (Ok(js), Ok(kl)) = (jensen_shannon(a, b), kullback_leibler(a, b))
        {
            let _ = self.js.update(js);
            match kl.is_finite() {
                true => drop(self.kl.update(kl)),
                false => self.kl_infinite += 1,
            }
            score = js / std::f64::consts::LN_2.sqrt() / 2.0;
        }
        let (Some(ours), Some(theirs)) = (top(a), top(b)) else {
            // NaN has no top class: alike only where both have none.
            let alike = top(a).is_none() && top(b).is_none();
            self.top1.add(alike);
            return Shown { score: if alike { score } else { 1.0 }, reason: "not a number" };
        };
        let name = |at: usize| spec.classes.get(at).cloned().unwrap_or_else(|| at.to_string());
        self.confusion.add(&name(ours), &name(theirs), 1);
        self.top1.add(ours == theirs);
        let k = spec.top_k.min(a.len());
        if k > 1 {
            let _ = self.top_k.update(top_overlap(a, b, k));
        }
        if ours == theirs {
            Shown { score: score.min(0.499), reason: "another distribution" }
        } else {
            Shown { score: 0.5 + score, reason: "another top class" }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        self.rows.merge(other.rows);
        self.mismatched.merge(other.mismatched);
        self.unfit += other.unfit;
        self.disagreeing.merge(other.disagreeing);
        let (disagreeing, agreeing) = other.pairs.counts();
        self.pairs.update(disagreeing, agreeing);
        self.absolute.merge(&other.absolute)?;
        self.relative.merge(&other.relative)?;
        self.breaches.merge(other.breaches);
        self.not_finite += other.not_finite;
        self.bias.merge(&other.bias);
        self.bias_sequence.merge(&other.bias_sequence)?;
        self.cosine.merge(&other.cosine);
        self.kl.merge(&other.kl);
        self.kl_infinite += other.kl_infinite;
        self.js.merge(&other.js);
        self.top1.merge(other.top1);
        self.top_k.merge(&other.top_k);
        self.confusion.merge(&other.confusion);
        Ok(())
    }

    pub(super) fn report(&self, k: usize) -> OutputReport {
        OutputReport {
            name: self.name.clone(),
            kind: self.kind,
            rows: self.rows,
            mismatched: self.mismatched,
            disagreeing: self.disagreeing,
            absolute: self.absolute.report(),
            relative: self.relative.report(),
            breaches: self.breaches,
            not_finite: self.not_finite,
            bias: mean(&self.bias),
            cosine: mean(&self.cosine),
            kl: mean(&self.kl),
            kl_infinite: self.kl_infinite,
            js: mean(&self.js),
            top1: self.top1,
            top_k: mean(&self.top_k),
            k,
            classes: self.confusion.report(),
        }
    }
}
