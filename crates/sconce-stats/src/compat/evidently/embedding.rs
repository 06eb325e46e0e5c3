use super::{Column, Score, Test, score};
use crate::bins::quantile_of_sorted;
use crate::distance::{Metric, centroid_distance, mmd_unbiased};
use crate::error::{Result, StatsError, at_least, finite, same_length};

/// How embeddings are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingMethod {
    /// The euclidean distance between the means, drift above 0.2.
    Euclidean,
    /// One less the cosine of the angle between them, drift above 0.2.
    Cosine,
    /// The sum of the differences between them, drift above 0.2.
    CityBlock,
    /// The largest of the differences between them, drift above 0.2.
    Chebyshev,
    /// The share of components that drifted by [`Test::Wasserstein`], drift above 0.2.
    Ratio,
    /// The maximum mean discrepancy, not below 0, drift above 0.015. All rows set the bandwidth; Evidently draws 1,000.
    Mmd,
}

/// Compares embeddings, one a row.
///
/// # Errors
///
/// No rows (two for MMD), rows without or of different length, values that are not finite, too many rows for MMD.
pub fn embedding_drift(
    method: EmbeddingMethod,
    reference: &[Vec<f64>],
    current: &[Vec<f64>],
) -> Result<Score> {
    at_least("reference", reference.len(), 1)?;
    at_least("current", current.len(), 1)?;
    at_least("columns", reference[0].len(), 1)?;
    for row in reference.iter().chain(current) {
        same_length(("first row", reference[0].len()), ("row", row.len()))?;
        finite("row", row)?;
    }
    let column = |sample: &[Vec<f64>], at: usize| -> Vec<f64> { sample.iter().map(|row| row[at]).collect() };
    let columns = 0..reference[0].len();
    let score = match method {
        EmbeddingMethod::Ratio => {
            let mut drifted = 0.0;
            for at in columns.clone() {
                let (reference, current) = (column(reference, at), column(current, at));
                let test = Test::Wasserstein;
                let score = score(
                    test,
                    Column::Numerical(&reference),
                    Column::Numerical(&current),
                    test.threshold(),
                )?;
                drifted += f64::from(u8::from(score.drifted));
            }
            drifted / columns.len() as f64
        }
        EmbeddingMethod::Mmd => {
            let bandwidth = median_distance(reference, current)? * 0.5_f64.sqrt();
            mmd_unbiased(reference, current, bandwidth)?
        }
        EmbeddingMethod::Euclidean => centroid_distance(Metric::Euclidean, reference, current)?,
        EmbeddingMethod::Cosine => centroid_distance(Metric::Cosine, reference, current)?,
        EmbeddingMethod::CityBlock => centroid_distance(Metric::CityBlock, reference, current)?,
        EmbeddingMethod::Chebyshev => centroid_distance(Metric::Chebyshev, reference, current)?,
    };
    let threshold = if method == EmbeddingMethod::Mmd { 0.015 } else { 0.2 };
    let shown = if method == EmbeddingMethod::Mmd { score.max(0.0) } else { score };
    Ok(Score { score: shown, drifted: score > threshold })
}

/// The median distance of a row of the reference from one of the current window.
fn median_distance(reference: &[Vec<f64>], current: &[Vec<f64>]) -> Result<f64> {
    const MOST_PAIRS: usize = 20_000_000;
    let pairs = reference.len().saturating_mul(current.len());
    if pairs > MOST_PAIRS {
        return Err(StatsError::TooMany { name: "pairs of rows", most: MOST_PAIRS, got: pairs });
    }
    let mut distances: Vec<f64> = reference
        .iter()
        .flat_map(|a| {
            current.iter().map(move |b| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt())
        })
        .collect();
    distances.sort_unstable_by(f64::total_cmp);
    Ok(quantile_of_sorted(&distances, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_embeddings_drift_and_hostile_ones_are_refused() {
        let rows = |shift: f64| -> Vec<Vec<f64>> {
            (0..20).map(|i| vec![f64::from(i % 7) + shift, f64::from(i % 5) + 1.0]).collect()
        };
        let methods = [
            EmbeddingMethod::Euclidean,
            EmbeddingMethod::CityBlock,
            EmbeddingMethod::Chebyshev,
            EmbeddingMethod::Ratio,
            EmbeddingMethod::Mmd,
        ];
        for method in methods {
            assert!(!embedding_drift(method, &rows(1.0), &rows(1.0)).unwrap().drifted, "{method:?}");
            assert!(embedding_drift(method, &rows(1.0), &rows(9.0)).unwrap().drifted, "{method:?}");
            assert!(embedding_drift(method, &rows(1.0), &[]).is_err());
            assert!(embedding_drift(method, &rows(1.0), &[vec![1.0]]).is_err());
            assert!(embedding_drift(method, &[vec![], vec![]], &[vec![], vec![]]).is_err());
        }
        assert!(
            embedding_drift(EmbeddingMethod::Cosine, &[vec![0.0, 1.0]], &[vec![1.0, 0.0]]).unwrap().drifted
        );
    }
}
