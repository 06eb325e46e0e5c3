//! Distances between two distributions: of samples, of shares, of rows.

mod centroid;
mod divergence;
mod kernel;
mod psi;
mod transport;

pub use centroid::{Metric, centroid_distance};
pub use divergence::{
    hellinger, jeffreys, jensen_shannon, kullback_leibler, largest_difference, total_variation,
};
pub use kernel::{
    LinearTimeMmd, least_squares_density_difference, median_bandwidth, mmd_biased, mmd_linear_time,
    mmd_unbiased,
};
pub use psi::{Psi, Stability, population_stability, stability_of_counts};
pub use transport::{Weighted, energy, wasserstein};
