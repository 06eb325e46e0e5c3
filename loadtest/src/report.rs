use crate::connection::Outcome;
use crate::load::{Arrivals, Plan};
use crate::process::Usage;
use crate::recorder::Results;
use serde_json::{Map, Value};
use std::fmt::Write as _;

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// One line for scripts: times in microseconds.
pub(crate) fn json(plan: &Plan, results: &Results) -> Value {
    let mut line = Map::new();
    match plan.arrivals {
        Arrivals::Closed { concurrency } => {
            line.insert("loop".into(), "closed".into());
            line.insert("concurrency".into(), concurrency.into());
        }
        Arrivals::Open { rate, poisson_seed, .. } => {
            line.insert("loop".into(), "open".into());
            line.insert("rate".into(), rate.into());
            line.insert("poisson".into(), poisson_seed.is_some().into());
        }
    }
    line.insert("connections".into(), plan.connections.into());
    line.insert("seconds".into(), plan.duration.as_secs_f64().into());
    line.insert("requests".into(), results.succeeded().into());
    line.insert("requests_per_s".into(), rounded(requests_per_s(plan, results)));
    line.insert("goodput_per_s".into(), goodput_per_s(plan, results).map_or(Value::Null, rounded));
    line.insert("errors".into(), errors(results).collect());
    for (name, percentile) in PERCENTILES {
        let micros = results.latency.value_at_percentile(percentile) as f64 / 1e3;
        line.insert(format!("{}_us", name.replace('.', "_")), rounded(micros));
    }
    line.insert("max_us".into(), rounded(results.latency.max() as f64 / 1e3));
    line.insert("server_cpu_us".into(), cpu_us(results.server, results).map_or(Value::Null, rounded));
    line.insert(
        "server_rss_bytes".into(),
        results.server.map_or(Value::Null, |usage| usage.rss_bytes.into()),
    );
    line.insert("mean_batch_size".into(), results.mean_batch_size.map_or(Value::Null, rounded));
    line.insert("generator_cores".into(), generator_cores(plan, results).map_or(Value::Null, rounded));
    line.insert("send_lag_p99_us".into(), rounded(results.lag.value_at_percentile(99.0) as f64 / 1e3));
    line.insert("generator_cpu_us".into(), cpu_us(results.generator, results).map_or(Value::Null, rounded));
    Value::Object(line)
}

/// A table for people.
pub(crate) fn table(plan: &Plan, results: &Results) -> String {
    let mut rows = vec![
        ("requests/s".to_owned(), format!("{:.0}", requests_per_s(plan, results))),
        ("succeeded".to_owned(), results.succeeded().to_string()),
    ];
    if let Some(goodput) = goodput_per_s(plan, results) {
        rows.push(("in time/s".to_owned(), format!("{goodput:.0}")));
    }
    rows.extend(errors(results).map(|(name, count)| (name, count.to_string())));
    for (name, percentile) in PERCENTILES {
        rows.push((name.to_owned(), millis(results.latency.value_at_percentile(percentile))));
    }
    rows.push(("max".to_owned(), millis(results.latency.max())));
    if let Some(micros) = cpu_us(results.server, results) {
        rows.push(("server CPU a request".to_owned(), format!("{micros:.1} µs")));
    }
    if let Some(usage) = results.server {
        rows.push((
            "server memory".to_owned(),
            format!("{:.1} MiB", usage.rss_bytes as f64 / f64::from(1 << 20)),
        ));
    }
    if let Some(size) = results.mean_batch_size {
        rows.push(("mean batch size".to_owned(), format!("{size:.2}")));
    }
    if let Some(micros) = cpu_us(results.generator, results) {
        rows.push(("generator CPU a request".to_owned(), format!("{micros:.1} µs")));
    }
    if let Some(cores) = generator_cores(plan, results) {
        rows.push(("generator CPU".to_owned(), format!("{cores:.2} cores")));
    }
    if !results.lag.is_empty() {
        rows.push(("sent late, p99".to_owned(), millis(results.lag.value_at_percentile(99.0))));
    }
    rows.iter().fold(String::new(), |mut table, (name, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{name:<24}{value:>16}");
        table
    })
}

fn requests_per_s(plan: &Plan, results: &Results) -> f64 {
    results.completed as f64 / plan.duration.as_secs_f64()
}

/// Of the requests due in the measured time, those answered in time, a second.
fn goodput_per_s(plan: &Plan, results: &Results) -> Option<f64> {
    Some(results.in_time? as f64 / plan.duration.as_secs_f64())
}

/// How busy the generator was.
fn generator_cores(plan: &Plan, results: &Results) -> Option<f64> {
    Some(results.generator?.cpu_time.as_secs_f64() / plan.duration.as_secs_f64())
}

fn errors(results: &Results) -> impl Iterator<Item = (String, Value)> + '_ {
    let counts = Outcome::NAMES.into_iter().zip(results.outcomes).skip(1);
    counts.filter(|&(_, count)| count > 0).map(|(name, count)| (name.to_owned(), count.into()))
}

/// CPU time for each answer, rejections included.
fn cpu_us(usage: Option<Usage>, results: &Results) -> Option<f64> {
    (results.answered > 0).then_some(usage?.cpu_time.as_secs_f64() * 1e6 / results.answered as f64)
}

fn rounded(value: f64) -> Value {
    ((value * 100.0).round() / 100.0).into()
}

fn millis(nanos: u64) -> String {
    format!("{:.3} ms", nanos as f64 / 1e6)
}
