use serde::{Deserialize, Serialize};

/// How often the monitors of a model may be wrong without any change: the one knob.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Expected false alarms a month of all monitors of a model together. Default 1.
    pub false_alarms_per_month: f64,
}

impl Budget {
    /// Those that share it: windows, data quality, streams, performance.
    pub const MONITORS: f64 = 4.0;
    /// A month in milliseconds: a twelfth of a year.
    pub const MONTH_MS: f64 = 365.25 / 12.0 * 86_400_000.0;

    /// The level of one monitor that begins anew so often a month: panes a month for windows, rows a month for streams.
    pub fn level(&self, a_month: f64) -> f64 {
        let level = self.false_alarms_per_month / Self::MONITORS / a_month.max(1.0);
        if level.is_finite() { level.clamp(1e-15, 0.2) } else { 1e-15 }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { false_alarms_per_month: 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_divided() {
        assert_eq!(Budget::default().level(720.0), 0.25 / 720.0);
        assert_eq!(Budget { false_alarms_per_month: f64::NAN }.level(1.0), 1e-15);
        assert_eq!(Budget { false_alarms_per_month: 1e9 }.level(f64::NAN), 0.2);
    }
}
