//! Tests of two samples: do they come from one distribution?
//!
//! Every test takes plain slices in any order, refuses what is not finite, and sorts once. Its p-value is exact where that is
//! affordable, and says from where on it is not.

mod anderson_darling;
mod brunner_munzel;
mod cramer_von_mises;
mod delong;
mod epps_singleton;
mod kolmogorov_smirnov;
mod kuiper;
mod mann_whitney;
mod pooled;
mod student;

pub use anderson_darling::{TieRule, anderson_darling};
pub use brunner_munzel::brunner_munzel;
pub use cramer_von_mises::cramer_von_mises;
pub use delong::{AreaUnderCurve, area_under_curve};
pub use epps_singleton::epps_singleton;
pub use kolmogorov_smirnov::kolmogorov_smirnov;
pub use kuiper::{Kuiper, kuiper};
pub use mann_whitney::{Continuity, mann_whitney};
pub use student::{MeanDifference, Variances, t_test};

pub(crate) use delong::judge as judge_area;

/// Which differences count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alternative {
    /// Any.
    #[default]
    TwoSided,
    /// What the test's documentation calls less.
    Less,
    /// What the test's documentation calls greater.
    Greater,
}

/// How a p-value is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Exactly for small samples, else asymptotically; where the change lies is said by each test.
    #[default]
    Auto,
    /// Exactly, or not at all if the samples are too large for that.
    Exact,
    /// From the limiting distribution.
    Asymptotic,
}
