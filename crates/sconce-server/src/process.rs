//! What the system says of this process.

use sconce_telemetry::metrics::ProcessSample;
use std::fs;
use std::sync::OnceLock;

/// This process now, where the system says so.
pub(crate) fn sample() -> Option<ProcessSample> {
    // Linux gives no other resolution than this to programs.
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name comes second, in brackets, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Some(ProcessSample {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        start_time_seconds: booted_at()? + field(22)? as f64 / ticks,
        resident_bytes: resident_bytes()?,
        virtual_bytes: field(23)?,
        open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: limit.unwrap_or(u64::MAX),
        threads: field(20)?,
    })
}

/// Memory the process holds.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// When the machine started, in seconds since 1970. Read once, for the file is long.
fn booted_at() -> Option<f64> {
    static BOOTED_AT: OnceLock<Option<f64>> = OnceLock::new();
    *BOOTED_AT.get_or_init(|| {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_process_knows_itself() {
        let sample = sample().unwrap();
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!(
            sample.start_time_seconds < now + 2.0 && sample.start_time_seconds > now - 3600.0,
            "{sample:?}"
        );
        assert!(
            sample.resident_bytes > 1 << 20 && sample.resident_bytes < sample.virtual_bytes,
            "{sample:?}"
        );
        assert!(
            sample.threads >= 2 && sample.open_fds >= 3 && sample.max_fds >= sample.open_fds,
            "{sample:?}"
        );
    }
}
