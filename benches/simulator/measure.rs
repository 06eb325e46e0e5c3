//! What a simulation comes to.

use crate::lengths::Lengths;
use crate::policy::MAX_ROWS;
use crate::simulation::{Cost, End, Outcome};
use crate::trace::Arrival;
use std::time::Duration;

/// Of the requests that came in the measured time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Measures {
    /// Answers in time, a second.
    pub(crate) goodput: f64,
    /// The part of the time that went into answers in time.
    pub(crate) useful: f64,
    /// The part of the time that went into answers, whenever their requests came.
    pub(crate) served: f64,
    /// Parts of all requests.
    pub(crate) refused: f64,
    pub(crate) dropped: f64,
    /// Answered too late, or not at all before the end.
    pub(crate) late: f64,
    pub(crate) in_time: f64,
    /// Of those that were neither refused nor dropped.
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// The part of what was computed that was padding, in the whole simulation.
    pub(crate) padding: f64,
    /// Tokens of a batch, without padding, in the whole simulation.
    pub(crate) batch_tokens: f64,
}

impl Measures {
    /// Of the arrivals that `counts` and that came from `from` to `until`.
    pub(crate) fn of(
        arrivals: &[Arrival],
        outcome: &Outcome,
        (from, until): (Duration, Duration),
        slo: Duration,
        counts: impl Fn(&Arrival) -> bool,
    ) -> Self {
        let mut measures = Self::default();
        let mut latencies = Vec::new();
        let (mut requests, mut good, mut useful, mut served) = (0u64, 0u64, 0.0, 0.0);
        let measured = arrivals.iter().zip(&outcome.ends);
        let is_measured = |at: Duration| from <= at && at < until;
        for (arrival, end) in measured.filter(|(arrival, _)| counts(arrival)) {
            let takes = Cost::MINILM.of_row(arrival.tokens);
            if matches!(end, End::Answered(after) if is_measured(arrival.at + *after)) {
                served += takes;
            }
            if !is_measured(arrival.at) {
                continue;
            }
            requests += 1;
            match *end {
                End::Refused => measures.refused += 1.0,
                End::Dropped => measures.dropped += 1.0,
                End::Answered(after) if after <= slo => {
                    latencies.push(after);
                    good += 1;
                    useful += takes;
                }
                End::Answered(after) | End::Waiting(after) => {
                    latencies.push(after);
                    measures.late += 1.0;
                }
            }
        }
        let (seconds, all) = ((until - from).as_secs_f64(), requests.max(1) as f64);
        for part in [&mut measures.refused, &mut measures.dropped, &mut measures.late] {
            *part /= all;
        }
        latencies.sort_unstable();
        let percentile = |part: f64| {
            let at = (latencies.len() as f64 * part) as usize;
            latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        (measures.p50, measures.p99) = (percentile(0.5), percentile(0.99));
        measures.goodput = good as f64 / seconds;
        (measures.useful, measures.served) = (useful / seconds, served / seconds);
        measures.in_time = good as f64 / all;
        measures.padding = outcome.padding as f64 / (outcome.padding + outcome.tokens).max(1) as f64;
        measures.batch_tokens = outcome.tokens as f64 / outcome.batches.max(1) as f64;
        measures
    }
}

/// Requests a second that the device can answer in full batches without padding.
pub(crate) fn saturation(lengths: Lengths, cost: Cost) -> f64 {
    const DRAWN: usize = 200_000;
    let mut random = fastrand::Rng::with_seed(1);
    let tokens: usize = (0..DRAWN).map(|_| lengths.pick(&mut random)).sum();
    let Cost { batch, row, token } = cost;
    1.0 / (batch / MAX_ROWS as f64 + row + token * tokens as f64 / DRAWN as f64)
}

/// Jain's index ("A Quantitative Measure of Fairness", 1984) of time got over time due: 1 where all got the same part of what was
/// due to them, 1/n where one got all. Due is what max-min fairness gives of `capacity` to equals who want `wanted`.
pub(crate) fn fairness(wanted: &[f64], got: &[f64], capacity: f64) -> f64 {
    let mut due = vec![0.0; wanted.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut left = capacity;
    for (at, &index) in order.iter().enumerate() {
        due[index] = wanted[index].min(left / (order.len() - at) as f64);
        left -= due[index];
    }
    let parts: Vec<f64> = got.iter().zip(&due).map(|(got, due)| got / due.max(f64::MIN_POSITIVE)).collect();
    let squares: f64 = parts.iter().map(|part| part * part).sum();
    parts.iter().sum::<f64>().powi(2) / (parts.len() as f64 * squares).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_of_what_is_due() {
        assert!((fairness(&[1.0, 1.0], &[0.5, 0.5], 1.0) - 1.0).abs() < 1e-9);
        assert!((fairness(&[1.0, 1.0], &[1.0, 0.0], 1.0) - 0.5).abs() < 1e-9);
        let modest = fairness(&[0.1, 10.0], &[0.1, 0.9], 1.0);
        assert!(
            (modest - 1.0).abs() < 1e-9,
            "who wants little is given it, the rest is the other's: {modest}"
        );
    }

    #[test]
    fn a_request_counts_as_what_it_came_to() {
        let (slo, ms) = (Duration::from_millis(500), Duration::from_millis);
        let ends = vec![
            End::Refused,
            End::Dropped,
            End::Answered(ms(100)),
            End::Answered(ms(501)),
            End::Waiting(ms(9000)),
        ];
        let arrival = Arrival { at: ms(10), model: 0, tenant: 0, tokens: 10 };
        let outcome = Outcome { ends, batches: 2, tokens: 30, padding: 10 };
        let measures = Measures::of(&[arrival; 5], &outcome, (ms(0), ms(1000)), slo, |_| true);
        let Measures { refused, dropped, late, in_time, goodput, padding, batch_tokens, .. } = measures;
        assert_eq!((refused, dropped, late, in_time, goodput), (0.2, 0.2, 0.4, 0.2, 1.0));
        assert_eq!((padding, batch_tokens, measures.p50, measures.p99), (0.25, 15.0, ms(501), ms(9000)));
    }
}
