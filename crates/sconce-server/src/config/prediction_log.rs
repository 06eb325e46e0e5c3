use crate::post;
use serde::Deserialize;
use std::path::PathBuf;

/// Where predictions are logged. Which requests are is the model's `[prediction_log]`, and what of them its `data_policy`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictionLog {
    /// The folder of the log's files, this server's alone; made if it is not there. Default none.
    pub dir: Option<PathBuf>,
    /// `parquet` (default) or `jsonl`: the form of the files.
    pub format: String,
    /// Where CloudEvents go, `http://host:port/path`. Default none.
    pub cloudevents: Option<String>,
    /// The share of the requests that is logged, 0 to 1, of models that say nothing themselves. Default 0.
    pub sample: f64,
    /// Records that wait, of each sink; what does not fit is dropped. Default 4096, 1 to 1048576.
    pub queue: usize,
    /// Seconds after which a record is on disk. Default 10, 1 to 3600.
    pub flush_seconds: u64,
    /// Bytes from which on a file is ended. Default 128 MiB, minimum 1 MiB.
    pub max_file_bytes: u64,
    /// Seconds after which a file is ended. Default 3600, minimum 1.
    pub max_file_seconds: u64,
    /// Bytes of all ended files; over it the oldest are deleted. Default 10 GiB.
    pub retain_bytes: u64,
    /// Days after which a file is deleted. Default 30, 1 to 36500.
    pub retain_days: u64,
}

impl Default for PredictionLog {
    fn default() -> Self {
        Self {
            dir: None,
            format: "parquet".to_owned(),
            cloudevents: None,
            sample: 0.0,
            queue: 4096,
            flush_seconds: 10,
            max_file_bytes: 128 << 20,
            max_file_seconds: 3600,
            retain_bytes: 10 << 30,
            retain_days: 30,
        }
    }
}

impl PredictionLog {
    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        if let Some(dir) = &self.dir {
            let fits = dir.is_dir() || !dir.exists();
            check(fits, format!("prediction_log.dir: expected a folder, got {}", dir.display()));
        }
        let format = sconce_core::abbreviate(&self.format);
        check(
            matches!(&*self.format, "parquet" | "jsonl"),
            format!("prediction_log.format: expected parquet or jsonl, got {format:?}"),
        );
        if let Some(Err(error)) = self.cloudevents.as_deref().map(post::check_url) {
            check(false, format!("prediction_log.cloudevents: {error}"));
        }
        let sample = self.sample;
        let share = (0.0..=1.0).contains(&sample);
        check(share, format!("prediction_log.sample: expected 0 to 1, got {sample}"));
        let queue = u64::try_from(self.queue).unwrap_or(u64::MAX);
        for (key, value, from, to) in [
            ("queue", queue, 1, 1 << 20),
            ("flush_seconds", self.flush_seconds, 1, 3600),
            ("max_file_bytes", self.max_file_bytes, 1 << 20, 1 << 40),
            ("max_file_seconds", self.max_file_seconds, 1, 30 * 86_400),
            ("retain_bytes", self.retain_bytes, 0, 1 << 60),
            ("retain_days", self.retain_days, 1, 36_500),
        ] {
            let fits = (from..=to).contains(&value);
            check(fits, format!("prediction_log.{key}: expected {from} to {to}, got {value}"));
        }
    }
}
