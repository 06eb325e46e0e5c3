//! Detectors of change in streams that never end: each takes one value at a time, in bounded memory.
//!
//! Those of the literature, as their reference implementations have them; [`crate::sequential::EDetector`] is the one with a
//! stated rate of false alarms. After a detection a detector starts anew with the next value. "Errors" are wrong predictions, and
//! a rise in their share is what the detectors of error rates look for.

mod adwin;
mod bayesian;
mod charts;
mod error_rate;
mod hoeffding;
mod kswin;
mod sums;

pub use adwin::{Adwin, AdwinConfig};
pub use bayesian::BayesianOnline;
pub use charts::{CusumChart, CusumPoint, EwmaChart, EwmaPoint};
pub use error_rate::{Ddm, Ecdd, Eddm, Rddm, Stepd};
pub use hoeffding::{Fhddm, HddmA, HddmW};
pub use kswin::{Kswin, KswinConfig};
pub use sums::{DriftingSum, PageHinkley, PageHinkleyConfig, Sums};

use serde::{Deserialize, Serialize};

/// What a detector says of the stream after a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signal {
    /// The stream has changed.
    pub drift: bool,
    /// It may be changing.
    pub warning: bool,
}
