use crate::Result;
use crate::connection::{Connection, Outcome};
use crate::pace::{Gaps, Timer};
use crate::process::Usage;
use crate::recorder::{Recorder, Results, Snapshot, Window};
use crate::statistics::Statistics;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// A run.
pub(crate) struct Plan {
    pub(crate) addr: SocketAddr,
    /// Sent in turn; at least one.
    pub(crate) messages: Vec<Bytes>,
    /// Goes with every request.
    pub(crate) metadata: Vec<(HeaderName, HeaderValue)>,
    pub(crate) terms: Terms,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) arrivals: Arrivals,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) drain: Duration,
    pub(crate) server_pid: Option<u32>,
    pub(crate) statistics: Option<Statistics>,
}

/// What is wanted of each request, counted from the time it was due.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// What the server is told.
    pub(crate) timeout: Option<Duration>,
    /// What its answer is judged by.
    pub(crate) slo: Option<Duration>,
}

impl Terms {
    /// What is left of the timeout.
    fn left(self, due: Instant) -> Option<Duration> {
        Some(self.timeout?.saturating_sub(due.elapsed()))
    }
}

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    Closed { concurrency: usize },
    Open { rate: f64, poisson_seed: Option<u64>, max_outstanding: usize },
}

/// Runs `plan`: every thread has its own connections, its own runtime and its own counters.
pub(crate) fn run(plan: &Plan) -> Result<Results> {
    let threads = match plan.arrivals {
        Arrivals::Closed { concurrency } => plan.threads.min(concurrency.max(1)),
        Arrivals::Open { .. } => plan.threads,
    };
    let threads = threads.min(plan.connections);
    let (ready_sender, ready) = mpsc::channel();
    let mut workers = Vec::new();
    for index in 0..threads {
        workers.push(Worker::start(plan, index, threads, ready_sender.clone())?);
    }
    drop(ready_sender);
    // Dropping the workers' start signals ends those that did connect.
    ready.iter().take(threads).collect::<Result<()>>()?;

    let start = Instant::now();
    let from = start + plan.warmup;
    let window = Window { start, from, until: from + plan.duration };
    let (signals, running): (Vec<_>, Vec<_>) =
        workers.into_iter().map(|worker| (worker.start, (worker.thread, worker.answered))).unzip();
    for signal in signals {
        // A worker that is gone says so when it is joined.
        let _ = signal.send(window);
    }

    let counters: Vec<_> = running.iter().map(|(_, answered)| Arc::clone(answered)).collect();
    wait_until(window.from, &counters, "warm-up");
    let before = snapshot(plan)?;
    wait_until(window.until, &counters, "measuring");
    let after = snapshot(plan)?;

    let mut recorder = Recorder::new(window, plan.terms.slo)?;
    for (thread, _) in running {
        recorder.add(&thread.join().map_err(|_| "a thread of the generator panicked")??)?;
    }
    Ok(recorder.finish(before, after))
}

fn snapshot(plan: &Plan) -> Result<Snapshot> {
    Ok(Snapshot {
        server: plan.server_pid.and_then(Usage::of),
        generator: Usage::of(std::process::id()),
        executed: plan.statistics.as_ref().map(Statistics::executed).transpose()?,
    })
}

/// Sleeps until `due`; on a terminal with a line that shows what is going on.
fn wait_until(due: Instant, counters: &[Arc<AtomicU64>], phase: &str) {
    let total = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum::<u64>();
    let terminal = std::io::stderr().is_terminal();
    let mut seen = total();
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let step = left.min(Duration::from_secs(1));
        std::thread::sleep(if terminal { step } else { left });
        if terminal {
            let now = total();
            let rate = (now - seen) as f64 / step.as_secs_f64();
            eprint!("\r\x1b[K{phase}: {:.0} s left, {rate:.0} requests/s", left.as_secs_f64());
            seen = now;
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
}

struct Worker {
    start: oneshot::Sender<Window>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<Recorder>>,
}

impl Worker {
    fn start(plan: &Plan, index: usize, threads: usize, ready: mpsc::Sender<Result<()>>) -> Result<Self> {
        let (start, started) = oneshot::channel();
        let answered = Arc::new(AtomicU64::new(0));
        let share = Share {
            addr: plan.addr,
            messages: plan.messages.clone().into(),
            metadata: plan.metadata.clone(),
            terms: plan.terms,
            connections: share(plan.connections, index, threads),
            arrivals: plan.arrivals,
            index,
            threads,
            drain: plan.drain,
            answered: Arc::clone(&answered),
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name(format!("loadtest-{index}"))
            .spawn(move || runtime.block_on(share.run(ready, started)))?;
        Ok(Self { start, answered, thread })
    }
}

/// `total` divided among `parts`: what part `index` gets.
fn share(total: usize, index: usize, parts: usize) -> usize {
    total / parts + usize::from(index < total % parts)
}

/// One thread's part of the plan.
struct Share {
    addr: SocketAddr,
    messages: Arc<[Bytes]>,
    metadata: Vec<(HeaderName, HeaderValue)>,
    terms: Terms,
    connections: usize,
    arrivals: Arrivals,
    index: usize,
    threads: usize,
    drain: Duration,
    answered: Arc<AtomicU64>,
}

impl Share {
    async fn run(
        self,
        ready: mpsc::Sender<Result<()>>,
        started: oneshot::Receiver<Window>,
    ) -> Result<Recorder> {
        let keepers = TaskTracker::new();
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            match Connection::open(self.addr, &self.metadata).await {
                Ok((connection, driver)) => {
                    let connection = Arc::new(connection);
                    let kept = Arc::clone(&connection);
                    keepers.spawn(async move { kept.keep(driver).await });
                    connections.push(connection);
                }
                Err(error) => {
                    // The error ends the run; the main thread cannot be gone before.
                    let _ = ready.send(Err(error));
                    break;
                }
            }
        }
        let _ = ready.send(Ok(()));
        drop(ready);
        let window = started.await.map_err(|_| "the run was called off")?;
        let recorder = Arc::new(Mutex::new(Recorder::new(window, self.terms.slo)?));
        let requests = TaskTracker::new();
        match self.arrivals {
            Arrivals::Closed { concurrency } => {
                for slot in 0..share(concurrency, self.index, self.threads) {
                    requests.spawn(self.slot(slot, &connections, &recorder));
                }
            }
            Arrivals::Open { .. } => self.pace(window, &connections, &recorder, &requests).await?,
        }
        requests.close();
        let give_up = tokio::time::Instant::from_std(window.until + self.drain);
        // Whatever is still out then is counted by the recorder: it knows what it saw begin.
        let _ = tokio::time::timeout_at(give_up, requests.wait()).await;
        let recorder = lock(&recorder).clone();
        Ok(recorder)
    }

    /// One of the requests in flight of a closed loop: the next is sent when its answer has come.
    fn slot(
        &self,
        slot: usize,
        connections: &[Arc<Connection>],
        recorder: &Arc<Mutex<Recorder>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let connection = Arc::clone(&connections[slot % connections.len()]);
        let (messages, recorder) = (Arc::clone(&self.messages), Arc::clone(recorder));
        let answered = Arc::clone(&self.answered);
        let (until, terms) = (lock(&recorder).window.until, self.terms);
        async move {
            let mut due = Instant::now();
            let mut messages = messages.iter().cycle().skip(slot * 7);
            while due < until
                && let Some(message) = messages.next()
            {
                lock(&recorder).begin(due);
                let outcome = connection.call(message.clone(), terms.left(due)).await;
                answered.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                lock(&recorder).end(due, now, outcome);
                due = now;
            }
        }
    }

    /// Sends what is due until the end, however many are still unanswered.
    async fn pace(
        &self,
        window: Window,
        connections: &[Arc<Connection>],
        recorder: &Arc<Mutex<Recorder>>,
        requests: &TaskTracker,
    ) -> Result<()> {
        let Arrivals::Open { rate, poisson_seed, max_outstanding } = self.arrivals else { return Ok(()) };
        let most = share(max_outstanding, self.index, self.threads).max(1);
        let timer = Timer::new()?;
        let gaps = gaps(rate, poisson_seed, self.index, self.threads)?;
        let targets = self.messages.iter().cycle().zip(connections.iter().cycle());
        for (sent, (after, (message, connection))) in gaps.zip(targets).enumerate() {
            let due = window.start + after;
            if due >= window.until {
                break;
            }
            timer.sleep_until(due).await?;
            if sent % YIELD_EVERY == 0 {
                // When everything is late nothing above waits, and the connections must have their turn.
                tokio::task::yield_now().await;
            }
            lock(recorder).begin(due);
            lock(recorder).sent(due, Instant::now());
            if requests.len() >= most {
                lock(recorder).end(due, Instant::now(), Outcome::DROPPED);
                continue;
            }
            let (connection, message, recorder) =
                (Arc::clone(connection), message.clone(), Arc::clone(recorder));
            let (answered, left) = (Arc::clone(&self.answered), self.terms.left(due));
            requests.spawn(async move {
                let outcome = connection.call(message, left).await;
                answered.fetch_add(1, Ordering::Relaxed);
                lock(&recorder).end(due, Instant::now(), outcome);
            });
        }
        Ok(())
    }
}

const YIELD_EVERY: usize = 16;

/// When thread `index` of `threads` sends: its equal part of the whole, the threads' turns interleaved.
fn gaps(rate: f64, poisson_seed: Option<u64>, index: usize, threads: usize) -> Result<Gaps> {
    let gap = |requests: usize| {
        Duration::try_from_secs_f64(requests as f64 / rate).ok().filter(|gap| !gap.is_zero())
    };
    let gap_of_thread =
        gap(threads).ok_or_else(|| format!("rate: expected requests a second, got {rate}"))?;
    Ok(match poisson_seed {
        None => Gaps::Constant { next: gap(index).unwrap_or_default(), gap: gap_of_thread },
        Some(seed) => Gaps::Poisson {
            next: Duration::ZERO,
            mean: gap_of_thread,
            random: fastrand::Rng::with_seed(seed.wrapping_add(index as u64)),
        },
    })
}

fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (total, parts) in [(64, 3), (2, 4), (8, 8)] {
            assert_eq!((0..parts).map(|index| share(total, index, parts)).sum::<usize>(), total);
        }
    }
}
