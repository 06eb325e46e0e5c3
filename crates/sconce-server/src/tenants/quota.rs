//! What tenants may have: their part of the configuration, and the bucket behind a rate.

use super::{DEFAULT, MAX_TENANTS, check_name};
use http::HeaderName;
use sconce_core::abbreviate;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Who calls, and what each may have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenants {
    /// The metadata key that names the tenant. Default none: tenants are off. Whoever sends none is the tenant `default`.
    pub header: Option<String>,
    /// What `default` may have, and each tenant without a quota of its own. Default weight 1 and no bounds.
    pub default: Quota,
    /// What others may have, by their names.
    pub quotas: BTreeMap<String, Quota>,
}

/// What a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Its share of a device beside others', 0.001 to 1000. Default 1.
    pub weight: f32,
    /// Requests in progress. Default 0: no bound.
    pub max_concurrent: usize,
    /// Requests a second, 0.001 to 1,000,000,000; a second's worth of them, at least 1, may come at once. Default 0: no bound.
    pub max_requests_per_second: f64,
    /// The best priority of its requests, 1 to 8: those that ask for a better one have this. Default 1. Tenants share within a priority, so
    /// whoever may have a better one is ahead of the others.
    pub best_priority: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { weight: 1.0, max_concurrent: 0, max_requests_per_second: 0.0, best_priority: 1 }
    }
}

/// Tenants with a quota of their own: they are never forgotten, and others must have room beside them.
const MAX_QUOTAS: usize = MAX_TENANTS / 4;
/// Metadata keys that say something else. What a tenant's key says is published in metrics, so it must be no secret.
const RESERVED: [&str; 7] =
    ["authorization", "connection", "content-type", "cookie", "host", "te", "user-agent"];

impl Tenants {
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(header) = &self.header
            && header_name(header).is_none()
        {
            let got = abbreviate(header);
            problems.push(format!(
                "tenants.header: expected a metadata key with a text value and no other meaning, got {got:?}"
            ));
        }
        if self.header.is_none() && (self.default != Quota::default() || !self.quotas.is_empty()) {
            problems
                .push("tenants.header: expected a metadata key: without one no quota is applied".to_owned());
        }
        if self.quotas.len() > MAX_QUOTAS {
            let got = self.quotas.len();
            problems.push(format!("tenants.quotas: expected at most {MAX_QUOTAS} tenants, got {got}"));
        }
        problems.extend(self.default.problems("tenants.default"));
        for (name, quota) in self.quotas.iter().take(MAX_QUOTAS) {
            let place = format!("tenants.quotas.{:?}", abbreviate(name));
            if let Err(problem) = check_name(name.as_bytes()) {
                problems.push(format!("{place}: {problem}"));
            }
            if name == DEFAULT {
                problems.push(format!("{place}: its quota is tenants.default"));
            }
            problems.extend(quota.problems(&place));
        }
        problems
    }
}

impl Quota {
    fn problems(&self, place: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if !(0.001..=1000.0).contains(&self.weight) {
            problems.push(format!("{place}.weight: expected 0.001 to 1000, got {}", self.weight));
        }
        if !(1..=8).contains(&self.best_priority) {
            problems.push(format!("{place}.best_priority: expected 1 to 8, got {}", self.best_priority));
        }
        let rate = self.max_requests_per_second;
        if rate != 0.0 && !(0.001..=1e9).contains(&rate) {
            problems.push(format!(
                "{place}.max_requests_per_second: expected 0 (no bound) or 0.001 to 1000000000, got {rate}"
            ));
        }
        problems
    }
}

/// The key as it is looked up; `None` for one that cannot name a tenant.
pub(super) fn header_name(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    let key = name.as_str();
    let other = key.starts_with("grpc-") || key.ends_with("-bin") || RESERVED.contains(&key);
    (!other).then_some(name)
}

/// A token bucket: `rate` requests a second, of which a second's worth, at least one, may come at once.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    /// When there were as many.
    at: Instant,
}

/// What sums of fractions may be off by.
const TOLERANCE: f64 = 1e-6;

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: f64, now: Instant) -> Self {
        Self { tokens: burst(rate), at: now }
    }

    /// Takes a token; `Err` says when there will be one.
    pub(super) fn take(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        self.tokens = self.filled(rate, now);
        // Callers read their clocks before they get here: one may come after a later one, and time must not run twice.
        self.at = self.at.max(now);
        if self.tokens + TOLERANCE >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.tokens) / rate).unwrap_or(Duration::MAX);
        Err(wait.saturating_add(now.saturating_duration_since(self.at)))
    }

    /// Whether nothing has to be remembered.
    pub(super) fn is_full(&self, rate: f64, now: Instant) -> bool {
        self.filled(rate, now) + TOLERANCE >= burst(rate)
    }

    fn filled(&self, rate: f64, now: Instant) -> f64 {
        (self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst(rate))
    }
}

fn burst(rate: f64) -> f64 {
    rate.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut Bucket, rate: f64, now: Instant) -> usize {
        (0..1000).take_while(|_| bucket.take(rate, now).is_ok()).count()
    }

    #[test]
    fn a_second_may_come_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(20.0, start);
        assert_eq!(taken(&mut bucket, 20.0, start), 20);
        assert_eq!(bucket.take(20.0, start), Err(Duration::from_millis(50)));
        assert_eq!(taken(&mut bucket, 20.0, start + Duration::from_millis(49)), 0);
        assert_eq!(taken(&mut bucket, 20.0, start + Duration::from_millis(51)), 1);
        assert_eq!(taken(&mut bucket, 20.0, start + Duration::from_millis(551)), 10);
        // An hour of silence saves up no more than a second.
        assert!(!bucket.is_full(20.0, start + Duration::from_millis(1500)));
        let later = start + Duration::from_secs(3600);
        assert!(bucket.is_full(20.0, later));
        assert_eq!(taken(&mut bucket, 20.0, later), 20);
    }

    #[test]
    fn whoever_comes_back_when_told_is_let_in_and_in_the_long_run_the_rate_holds() {
        for rate in [0.001, 0.3, 1.0, 7.0, 333.0, 1e9] {
            let mut now = Instant::now();
            let (start, mut bucket) = (now, Bucket::new(rate, now));
            let mut admitted = 0.0;
            for _ in 0..2000 {
                match bucket.take(rate, now) {
                    Ok(()) => admitted += 1.0,
                    Err(wait) => {
                        now += wait;
                        assert_eq!(bucket.take(rate, now), Ok(()), "{rate} a second");
                        admitted += 1.0;
                    }
                }
            }
            let most = burst(rate) + (now - start).as_secs_f64() * rate;
            assert!(admitted <= most + 0.01, "{rate} a second: {admitted}, at most {most}");
        }
    }

    #[test]
    fn a_clock_that_was_read_earlier_fills_nothing_twice() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1.0, start);
        let later = start + Duration::from_secs(10);
        assert_eq!(bucket.take(1.0, later), Ok(()));
        assert!(bucket.take(1.0, start).is_err() && bucket.take(1.0, later).is_err());
        assert_eq!(taken(&mut bucket, 1.0, later + Duration::from_secs(1)), 1);
    }

    #[test]
    fn keys_with_another_meaning_name_no_tenant() {
        for good in ["x-tenant-id", "X-Tenant", "tenant"] {
            assert!(header_name(good).is_some(), "{good}");
        }
        for bad in ["", "a b", "é", ":path", "grpc-timeout", "x-tenant-bin", "Authorization", "te"] {
            assert_eq!(header_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn quotas_without_a_key_and_values_out_of_range_are_problems() {
        let problems = |text: &str| toml::from_str::<Tenants>(text).unwrap().problems();
        assert!(problems("").is_empty());
        assert!(problems("header = 'x-t'\n[quotas.a]\nweight = 4\nmax_requests_per_second = 0.5").is_empty());
        assert_eq!(problems("[quotas.a]").len(), 1);
        assert_eq!(problems("default = { max_concurrent = 1 }").len(), 1);
        let text = "header = 'x-t'
            [quotas.default]
            [quotas.\"\"]
            [quotas.a]
            weight = nan
            max_requests_per_second = inf
            [quotas.b]
            weight = 1001
            max_requests_per_second = -1";
        assert_eq!(problems(text).len(), 6, "{:#?}", problems(text));
    }
}
