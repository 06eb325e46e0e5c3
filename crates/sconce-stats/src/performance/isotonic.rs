use crate::error::{Result, at_least, finite, same_length};
use serde::{Deserialize, Serialize};

/// An increasing function through points, as knots with straight lines between them: fitted by pooling adjacent violators (Ayer and
/// others, 1955). With labels of 0 and 1 it calibrates scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Isotonic {
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Isotonic {
    /// The least-squares fit. Equal `x` are averaged first; of each flat stretch only the ends are kept.
    ///
    /// # Errors
    /// No point, different lengths, values that are not finite.
    pub fn fit(x: &[f64], y: &[f64]) -> Result<Self> {
        at_least("x", x.len(), 1)?;
        same_length(("x", x.len()), ("y", y.len()))?;
        finite("x", x)?;
        finite("y", y)?;
        let mut points: Vec<(f64, f64)> = x.iter().copied().zip(y.iter().copied()).collect();
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut blocks: Vec<Block> = Vec::new();
        for tied in points.chunk_by(|a, b| a.0 == b.0) {
            let (sum, weight) = (tied.iter().map(|point| point.1).sum::<f64>(), tied.len() as f64);
            let mut block = Block { first: tied[0].0, last: tied[0].0, sum, weight };
            // Whatever is not below what comes after it is pooled with it.
            while let Some(before) = blocks.pop_if(|before| before.mean() >= block.mean()) {
                block = Block {
                    first: before.first,
                    last: block.last,
                    sum: before.sum + block.sum,
                    weight: before.weight + block.weight,
                };
            }
            blocks.push(block);
        }
        let mut knots = Self { x: Vec::new(), y: Vec::new() };
        for block in &blocks {
            knots.push(block.first, block.mean());
            if block.last > block.first {
                knots.push(block.last, block.mean());
            }
        }
        Ok(knots)
    }

    /// The knots' places and values, ascending.
    pub fn knots(&self) -> (&[f64], &[f64]) {
        (&self.x, &self.y)
    }

    /// The value at `x`; outside the knots that of the nearest. NaN at NaN.
    pub fn predict(&self, x: f64) -> f64 {
        let above = self.x.partition_point(|knot| *knot < x);
        match (above.checked_sub(1), self.x.get(above)) {
            _ if x.is_nan() => x,
            (Some(below), Some(&high)) => {
                let slope = (self.y[above] - self.y[below]) / (high - self.x[below]);
                slope * (x - self.x[below]) + self.y[below]
            }
            (None, _) => self.y.first().copied().unwrap_or(f64::NAN),
            (Some(below), None) => self.y[below],
        }
    }

    fn push(&mut self, x: f64, y: f64) {
        self.x.push(x);
        self.y.push(y);
    }
}

/// Points that share a value.
struct Block {
    first: f64,
    last: f64,
    sum: f64,
    weight: f64,
}

impl Block {
    fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn the_fit_increases_and_keeps_the_mean() {
        let mut random = Rng::with_seed(71);
        let x: Vec<f64> = (0..300).map(|_| (random.f64() * 50.0).round()).collect();
        let y: Vec<f64> = x.iter().map(|x| x / 50.0 + random.f64()).collect();
        let fit = Isotonic::fit(&x, &y).unwrap();
        assert!(fit.knots().1.windows(2).all(|pair| pair[0] <= pair[1]));
        let (fitted, mean): (f64, f64) = (x.iter().map(|x| fit.predict(*x)).sum(), y.iter().sum());
        assert!((fitted - mean).abs() < 1e-9 * mean);
    }

    #[test]
    fn one_point_is_a_constant_and_wrong_input_is_refused() {
        let one = Isotonic::fit(&[2.0], &[0.7]).unwrap();
        assert_eq!((one.predict(-1e300), one.predict(2.0), one.predict(f64::INFINITY)), (0.7, 0.7, 0.7));
        assert!(one.predict(f64::NAN).is_nan());
        assert!(Isotonic::fit(&[], &[]).is_err() && Isotonic::fit(&[1.0], &[f64::NAN]).is_err());
        assert!(Isotonic::fit(&[1.0], &[1.0, 2.0]).is_err());
    }
}
