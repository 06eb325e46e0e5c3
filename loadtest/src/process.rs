use rustix::param::{clock_ticks_per_second, page_size};
use std::time::Duration;

/// What a process has used so far, all its threads together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_time: Duration,
    pub(crate) rss_bytes: u64,
}

impl Usage {
    /// `None` when there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The CPU time since `before`, and the memory as it is now.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { cpu_time: self.cpu_time.saturating_sub(before.cpu_time), ..self }
    }
}

/// Fields 14 (utime), 15 (stime) and 24 (rss) of proc(5)'s `stat`. Field 2 is a name that may hold anything, so the
/// count starts behind its last parenthesis.
fn parse(stat: &str) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some(Usage {
        cpu_time: Duration::from_micros(ticks * 1_000_000 / clock_ticks_per_second().max(1)),
        rss_bytes: field(24)? * u64::try_from(page_size()).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_behind_a_hostile_name() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 3 0 100 1000000 25 18446744073709551615";
        let usage = parse(stat).unwrap();
        assert_eq!(
            usage.cpu_time,
            Duration::from_secs(200) / u32::try_from(clock_ticks_per_second()).unwrap()
        );
        assert_eq!(usage.rss_bytes, 25 * u64::try_from(page_size()).unwrap());
        assert!(Usage::of(std::process::id()).unwrap().rss_bytes > 0);
    }
}
