//! How long requests are, in tokens: what the simulator and the bench of packing draw from.

/// A distribution of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// 8 to 32, each as often.
    Uniform,
    /// Lognormal with a median of 32 and a shape of 1.1, those outside of 4 to 512 drawn again: most are short, the long ones
    /// make up the work.
    HeavyTailed,
}

impl Lengths {
    pub(crate) const ALL: [Self; 2] = [Self::Uniform, Self::HeavyTailed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform, 8 to 32",
            Self::HeavyTailed => "heavy-tailed, 4 to 512",
        }
    }

    pub(crate) fn pick(self, random: &mut fastrand::Rng) -> usize {
        match self {
            Self::Uniform => random.usize(8..=32),
            Self::HeavyTailed => loop {
                let length = (32.0 * (1.1 * normal(random)).exp()).round();
                if (4.0..=512.0).contains(&length) {
                    return length as usize;
                }
            },
        }
    }
}

/// A standard normal number, by Box and Muller.
pub(crate) fn normal(random: &mut fastrand::Rng) -> f64 {
    // 1 - x is in (0, 1], so its logarithm is finite.
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}
