//! Monitors: what a model was fitted on, what it sees now, and whether that differs enough to matter.
//!
//! A [`Reference`] is a compact picture of data, made row by row and mergeable. A [`Monitor`] holds live rows against it in windows of
//! bounded memory, and its [`Verdict`] says of each feature whether it is stable, has drifted, or that nobody can know yet: by an effect
//! with its interval against a least effect that matters, *and* by evidence that holds however often one looks. Everything here is
//! pure: no I/O, no clock, no random numbers. Times are arguments.

mod budget;
mod cells;
mod error;
mod estimate;
mod monitor;
mod outlier;
mod performance;
mod quality;
mod reference;
mod text;
mod value;
mod verdict;
mod window;

pub use budget::Budget;
pub use error::{MonitorError, Result};
pub use estimate::{Baseline, BinaryMetrics, Estimate, Estimated, Fitted, Trust};
pub use monitor::{MAX_PANES, Monitor, MonitorSpec, PaneSize};
pub use outlier::{Outlier, Outliers};
pub use performance::{
    ClassMetrics, CohortReport, Known, MAX_CLASSES, MAX_COHORTS, Metrics, NumberMetrics, OTHERS, Performance,
    PerformanceReport, PerformanceSpec, Said, Truth, TwoClasses,
};
pub use quality::{Check, CheckKind};
pub use reference::{
    Categories, Column, ColumnKind, ColumnSpec, FORMAT, MAX_COLUMNS, Numbers, Profile, Reference,
};
pub use text::{DESCRIPTORS, describe_text};
pub use value::Value;
pub use verdict::{Alarm, Cell, FeatureVerdict, Numeric, State, Verdict};
