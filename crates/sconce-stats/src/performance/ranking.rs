use crate::error::{Result, at_least, in_range};
use serde::{Deserialize, Serialize};

/// How good rankings are, on average over users. A user without any relevant item counts 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Normalised discounted cumulative gain, the gain being the relevance.
    pub ndcg: f64,
    /// The same with gain `2^relevance - 1`.
    pub ndcg_exponential: f64,
    /// Mean average precision, relative to the most relevant items that fit.
    pub mean_average_precision: f64,
    /// Mean reciprocal rank of the first relevant item.
    pub mean_reciprocal_rank: f64,
    /// The share of users with a relevant item.
    pub hit_rate: f64,
    /// Relevant items over `k`.
    pub precision: f64,
    /// Relevant items that were found over all there are.
    pub recall: f64,
}

/// Of each user's items the first `k`; relevances are listed in the order of the ranking, 0 is irrelevant.
///
/// # Errors
/// No user, a `k` of 0, a relevance above 1,000.
pub fn ranking(users: &[Vec<u32>], k: usize) -> Result<Ranking> {
    at_least("users", users.len(), 1)?;
    in_range("k", k as f64, k > 0, "at least 1")?;
    for &relevance in users.iter().flatten() {
        in_range("relevance", f64::from(relevance), relevance <= 1_000, "at most 1,000")?;
    }
    let count = users.len() as f64;
    let mean = |of: &dyn Fn(&[u32]) -> f64| users.iter().map(|items| of(items)).sum::<f64>() / count;
    let relevant = |items: &[u32]| items.iter().filter(|relevance| **relevance > 0).count() as f64;
    let first = |items: &[u32]| relevant(&items[..items.len().min(k)]);
    Ok(Ranking {
        ndcg: mean(&|items| normalised_gain(items, k, f64::from)),
        ndcg_exponential: mean(&|items| {
            normalised_gain(items, k, |relevance| f64::from(relevance).exp2() - 1.0)
        }),
        mean_average_precision: mean(&|items| average_precision(items, k)),
        mean_reciprocal_rank: mean(&|items| {
            let at = items.iter().take(k).position(|relevance| *relevance > 0);
            at.map_or(0.0, |at| 1.0 / (at + 1) as f64)
        }),
        hit_rate: mean(&|items| f64::from(u8::from(first(items) > 0.0))),
        precision: mean(&|items| first(items) / k as f64),
        recall: mean(&|items| super::ratio(first(items), relevant(items))),
    })
}

fn normalised_gain(items: &[u32], k: usize, gain: impl Fn(u32) -> f64) -> f64 {
    let sum = |items: &[u32]| {
        let discounted = items.iter().take(k).enumerate().map(|(at, r)| gain(*r) / ((at + 2) as f64).log2());
        discounted.sum::<f64>()
    };
    let mut ideal = items.to_vec();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    super::ratio(sum(items), sum(&ideal))
}

fn average_precision(items: &[u32], k: usize) -> f64 {
    let all = items.iter().filter(|relevance| **relevance > 0).count().min(k);
    let (mut found, mut sum) = (0.0, 0.0);
    for (at, relevance) in items.iter().take(k).enumerate() {
        if *relevance > 0 {
            found += 1.0;
            sum += found / (at + 1) as f64;
        }
    }
    super::ratio(sum, all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ideal_ranking_scores_one() {
        let result = ranking(&[vec![3, 2, 0, 0], vec![1]], 2).unwrap();
        assert_eq!((result.ndcg, result.ndcg_exponential, result.mean_average_precision), (1.0, 1.0, 1.0));
        assert_eq!((result.mean_reciprocal_rank, result.recall, result.precision), (1.0, 1.0, 0.75));
    }

    #[test]
    fn empty_lists_count_zero_and_wrong_input_is_refused() {
        assert_eq!(ranking(&[vec![]], 3).unwrap().ndcg, 0.0);
        assert!(
            ranking(&[], 3).is_err()
                && ranking(&[vec![1]], 0).is_err()
                && ranking(&[vec![5_000]], 1).is_err()
        );
    }
}
