//! Requests as they come, drawn from a seed.

use crate::lengths::Lengths;
use std::time::Duration;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// Since the start.
    pub(crate) at: Duration,
    pub(crate) model: usize,
    pub(crate) tenant: u32,
    pub(crate) tokens: usize,
}

/// How the rate of a stream of requests changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pattern {
    /// Not at all.
    Poisson,
    /// On for half a second and off for one and a half on the mean, exponentially distributed, with four times the mean rate or none.
    OnOff,
    /// A Markov-modulated Poisson process: two states that last two seconds on the mean, with 1.7 and 0.3 times the mean rate.
    Modulated,
    /// A day in a minute: a sinusoid from 0.1 to 1.9 times the mean rate.
    Diurnal,
}

impl Pattern {
    pub(crate) const ALL: [Self; 4] = [Self::Poisson, Self::OnOff, Self::Modulated, Self::Diurnal];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Poisson => "Poisson",
            Self::OnOff => "bursts, on and off",
            Self::Modulated => "bursts, Markov-modulated",
            Self::Diurnal => "diurnal, a day a minute",
        }
    }

    /// The highest rate there is, over the mean.
    fn peak(self) -> f64 {
        match self {
            Self::Poisson => 1.0,
            Self::OnOff => 4.0,
            Self::Modulated => 1.7,
            Self::Diurnal => 1.9,
        }
    }
}

/// Requests of one tenant for one model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) model: usize,
    pub(crate) tenant: u32,
    /// Requests a second, on the mean.
    pub(crate) rate: f64,
    pub(crate) pattern: Pattern,
    pub(crate) lengths: Lengths,
}

/// A modulated rate: its state, and until when it lasts.
struct State {
    is_high: bool,
    until: f64,
}

impl State {
    /// The rate over the mean at `at`, which never goes back.
    fn factor(&mut self, pattern: Pattern, at: f64, random: &mut fastrand::Rng) -> f64 {
        let (high, low, high_seconds, low_seconds) = match pattern {
            Pattern::Poisson => return 1.0,
            Pattern::Diurnal => return 1.0 - 0.9 * (std::f64::consts::TAU * at / 60.0).cos(),
            Pattern::OnOff => (4.0, 0.0, 0.5, 1.5),
            Pattern::Modulated => (1.7, 0.3, 2.0, 2.0),
        };
        while self.until <= at {
            self.is_high = !self.is_high;
            self.until += exponential(if self.is_high { high_seconds } else { low_seconds }, random);
        }
        if self.is_high { high } else { low }
    }
}

fn exponential(mean: f64, random: &mut fastrand::Rng) -> f64 {
    -mean * (1.0 - random.f64()).ln()
}

/// All requests of `streams` in the first `seconds`, in order. Each stream has random numbers of its own: adding one does not change
/// the others.
pub(crate) fn trace(streams: &[Stream], seconds: f64, seed: u64) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    for (index, stream) in streams.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
        let mut state = State { is_high: false, until: 0.0 };
        let peak = stream.pattern.peak();
        let mut at = 0.0;
        // Thinning: candidates come at the highest rate, and some of them are left out.
        loop {
            at += exponential(1.0 / (stream.rate * peak), &mut random);
            if at >= seconds {
                break;
            }
            if random.f64() * peak < state.factor(stream.pattern, at, &mut random) {
                let Stream { model, tenant, .. } = *stream;
                let tokens = stream.lengths.pick(&mut random);
                arrivals.push(Arrival { at: Duration::from_secs_f64(at), model, tenant, tokens });
            }
        }
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_the_rate_asked_for_and_a_seed_fixes_it() {
        for pattern in Pattern::ALL {
            let stream = Stream { model: 0, tenant: 0, rate: 200.0, pattern, lengths: Lengths::HeavyTailed };
            let arrivals = trace(&[stream], 600.0, 7);
            let rate = arrivals.len() as f64 / 600.0;
            assert!((170.0..230.0).contains(&rate), "{pattern:?}: {rate}");
            assert!(arrivals.iter().all(|arrival| (4..=512).contains(&arrival.tokens)));
            assert_eq!(arrivals, trace(&[stream], 600.0, 7));
            assert_ne!(arrivals, trace(&[stream], 600.0, 8));
        }
    }
}
