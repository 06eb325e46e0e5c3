//! Evidence that holds at any time: e-processes, always-valid p-values, confidence sequences and e-detectors.
//!
//! An *e-process* is a running number that, if the null hypothesis holds, has an expectation of at most 1 whenever one stops.
//! So the chance that it *ever* reaches `1 / alpha` is at most `alpha` (Ville's inequality), and one may look after every
//! observation, stop, or go on. A *confidence sequence* is its counterpart: intervals that all contain the truth together with
//! probability `1 - alpha`. Each state here takes observations by `update`, keeps a few numbers, and can be stored.

mod bernoulli;
mod cell_detector;
mod cells;
mod detector;
mod mean;
mod paired;
mod quantile;
mod sprt;
mod two_by_two;

pub use bernoulli::{BetaBinomial, Side};
pub use cell_detector::CellDetector;
pub use cells::SameCells;
pub use detector::{Accumulation, EDetector};
pub use mean::{AsymptoticMean, BoundedMean, Centred, SubGaussianMean, tuned_rho};
pub use paired::PairedDecisions;
pub use quantile::{QuantileRanks, quantile_ranks};
pub use sprt::MixtureSprt;
pub use two_by_two::SafeTwoByTwo;

/// Whether evidence of `log_e` rejects the null hypothesis at level `alpha`, at any time.
pub fn rejects(log_e: f64, alpha: f64) -> bool {
    log_e >= -alpha.ln()
}
