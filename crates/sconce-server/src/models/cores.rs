//! Cores for instances that have their own: each runs on as many as it has threads, and on no others.

use sconce_core::{Error, Result};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The cores this process may use, each with how many pinned instances' threads it has.
#[derive(Debug)]
pub(crate) struct Cores(Mutex<BTreeMap<usize, usize>>);

impl Cores {
    /// The cores the calling thread may use.
    pub(crate) fn available() -> Arc<Self> {
        Self::of(allowed())
    }

    fn of(cores: impl IntoIterator<Item = usize>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(cores.into_iter().map(|core| (core, 0)).collect())))
    }

    /// `threads` cores for each of `instances`: those with the fewest threads so far, lowest first. So they go round robin, and
    /// what a model that was unloaded gave back is taken first. Where there are fewer cores than threads, an instance has all
    /// of them.
    pub(super) fn take(self: &Arc<Self>, instances: usize, threads: usize) -> Pins {
        let mut cores = self.lock();
        let one = |cores: &mut BTreeMap<usize, usize>| {
            let mut order: Vec<(usize, usize)> = cores.iter().map(|(core, taken)| (*taken, *core)).collect();
            order.sort_unstable();
            let mut set: Vec<usize> = order.into_iter().take(threads.max(1)).map(|(_, core)| core).collect();
            set.sort_unstable();
            for core in &set {
                *cores.entry(*core).or_default() += 1;
            }
            set
        };
        let sets = (0..instances).map(|_| one(&mut cores)).collect();
        Pins { cores: Arc::clone(self), sets, next: Mutex::new(0) }
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cores of a version's instances, given back on drop.
#[derive(Debug)]
pub(super) struct Pins {
    cores: Arc<Cores>,
    sets: Vec<Vec<usize>>,
    /// Whose turn it is.
    next: Mutex<usize>,
}

thread_local! {
    static IS_BOUND: Cell<bool> = const { Cell::new(false) };
}

impl Pins {
    /// Binds the calling thread, and those it will start, to the next instance's cores. A worker is bound once: an instance that
    /// is made again after a panic stays where it was.
    ///
    /// # Errors
    /// `Internal` when the system refuses.
    pub(super) fn bind(&self) -> Result<()> {
        if IS_BOUND.get() {
            return Ok(());
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(set) = self.sets.get(*next) else {
            return Err(Error::internal("there are more workers than instances with cores of their own"));
        };
        bind_to(set)?;
        *next += 1;
        IS_BOUND.set(true);
        Ok(())
    }

    /// The cores in words, an instance after the other: `0, 1-2`.
    pub(super) fn describe(&self) -> String {
        self.sets.iter().map(|set| ranges(set)).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut cores = self.cores.lock();
        for core in self.sets.iter().flatten() {
            if let Some(taken) = cores.get_mut(core) {
                *taken = taken.saturating_sub(1);
            }
        }
    }
}

/// Ascending numbers as the system writes them: `0-3,8`.
fn ranges(cores: &[usize]) -> String {
    let mut text = String::new();
    for run in cores.chunk_by(|a, b| *b == a + 1) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let comma = if text.is_empty() { "" } else { "," };
        // Writing into a string cannot fail.
        let _ = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
    }
    text
}

#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

#[cfg(target_os = "linux")]
fn bind_to(cores: &[usize]) -> Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).map_err(|error| {
        Error::internal(format!("an instance could not be bound to the cores {}", ranges(cores)))
            .with_source(error)
    })
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn bind_to(_cores: &[usize]) -> Result<()> {
    Err(Error::new(sconce_core::ErrorCode::Unimplemented, "`pin_cores`: only Linux binds threads to cores"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_go_round_robin_over_all_instances_and_come_back() {
        let cores = Cores::of([0, 1, 4, 5]);
        let first = cores.take(1, 2);
        let second = cores.take(2, 1);
        assert_eq!(first.describe(), "0-1");
        assert_eq!(second.describe(), "4 | 5");
        // A reload is loaded beside what it replaces; then that gives its cores back.
        let reloaded = cores.take(1, 2);
        assert_eq!(reloaded.describe(), "0-1");
        drop(first);
        drop(second);
        let third = cores.take(3, 1);
        assert_eq!(third.describe(), "4 | 5 | 0");
        let wide = cores.take(1, 100);
        assert_eq!(wide.describe(), "0-1,4-5");
        drop((third, wide, reloaded));
        assert!(cores.lock().values().all(|taken| *taken == 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_worker_and_the_threads_it_starts_run_on_its_cores_alone() {
        let cores = Cores::available();
        let pins = cores.take(2, 1);
        let on = || allowed();
        let both = std::thread::scope(|scope| {
            let bound = || {
                pins.bind().unwrap();
                // Bound once: the second instance's cores stay free for its own worker.
                pins.bind().unwrap();
                (on(), std::thread::spawn(allowed).join().unwrap())
            };
            let first = scope.spawn(bound).join().unwrap();
            [first, scope.spawn(bound).join().unwrap()]
        });
        for (set, (own, inherited)) in pins.sets.iter().zip(&both) {
            assert_eq!((set, set), (own, inherited));
        }
        assert_eq!(on(), cores.lock().keys().copied().collect::<Vec<_>>(), "who asks is not bound");
        assert!(std::thread::scope(|scope| scope.spawn(|| pins.bind()).join().unwrap()).is_err());
    }
}
