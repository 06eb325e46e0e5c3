use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// One model version in the eyes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientId(usize);

/// A place in the line for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// What a claim came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The slot is the claimant's.
    Granted,
    /// Wait until a release grants this ticket.
    Wait(Ticket),
}

/// Shares a device's slots among models, round robin: a model that wants ten slots waits as long between two of them as
/// one that wants two. Pure.
#[derive(Debug)]
pub struct Arbiter {
    free: usize,
    /// Models that wait, next first; each once, with its tickets in order.
    ring: VecDeque<(ClientId, VecDeque<Ticket>)>,
    next_ticket: u64,
}

impl Arbiter {
    /// An arbiter of `slots` slots, all free.
    pub fn new(slots: usize) -> Self {
        Self { free: slots, ring: VecDeque::new(), next_ticket: 0 }
    }

    /// Asks for a slot.
    pub fn claim(&mut self, client: ClientId) -> Claim {
        if self.free > 0 {
            self.free -= 1;
            return Claim::Granted;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        match self.ring.iter_mut().find(|(waiting, _)| *waiting == client) {
            Some((_, tickets)) => tickets.push_back(ticket),
            None => self.ring.push_back((client, VecDeque::from([ticket]))),
        }
        Claim::Wait(ticket)
    }

    /// Gives a slot back; it passes to the ticket that is returned, if any waits.
    pub fn release(&mut self) -> Option<Ticket> {
        let Some((client, mut tickets)) = self.ring.pop_front() else {
            self.free += 1;
            return None;
        };
        let granted = tickets.pop_front();
        if !tickets.is_empty() {
            self.ring.push_back((client, tickets));
        }
        granted
    }
}

/// A device and its slots: as many batches run on it at once.
#[derive(Debug)]
pub struct Device {
    state: Mutex<State>,
    /// Claims that wait, readable without the lock.
    waiting: AtomicUsize,
    next_client: AtomicUsize,
}

#[derive(Debug)]
struct State {
    arbiter: Arbiter,
    /// The threads to wake, one each, by the tickets they hold.
    waiting: Vec<(Ticket, Thread)>,
}

/// A slot of a device, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot<'a>(&'a Device);

impl Device {
    /// A device with `slots` slots (at least 1): one a compute core on CPU, one on a GPU.
    pub fn new(slots: usize) -> Self {
        Self {
            state: Mutex::new(State { arbiter: Arbiter::new(slots.max(1)), waiting: Vec::new() }),
            waiting: AtomicUsize::new(0),
            next_client: AtomicUsize::new(0),
        }
    }

    /// Workers that stand in line for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A new client's identity.
    pub(crate) fn client(&self) -> ClientId {
        ClientId(self.next_client.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits for a slot.
    pub(crate) fn acquire(&self, client: ClientId) -> Slot<'_> {
        let mut state = self.lock();
        if let Claim::Wait(ticket) = state.arbiter.claim(client) {
            state.waiting.push((ticket, thread::current()));
            self.waiting.fetch_add(1, Ordering::Relaxed);
            while state.waiting.iter().any(|(waiting, _)| *waiting == ticket) {
                drop(state);
                thread::park();
                state = self.lock();
            }
        }
        Slot(self)
    }

    // The state is only touched by the few lines here, which do not panic: a poisoned lock is still a sound one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Whether someone else waits for a slot of this device.
    pub(crate) fn contested(&self) -> bool {
        self.0.waiting() > 0
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let granted = state.arbiter.release();
        if let Some(place) = state.waiting.iter().position(|(waiting, _)| Some(*waiting) == granted) {
            let (_, thread) = state.waiting.swap_remove(place);
            self.0.waiting.fetch_sub(1, Ordering::Relaxed);
            drop(state);
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_model_does_not_starve_another() {
        let mut arbiter = Arbiter::new(1);
        let (greedy, modest) = (ClientId(0), ClientId(1));
        assert_eq!(arbiter.claim(greedy), Claim::Granted);
        let greedy_tickets: Vec<_> = (0..5).map(|_| arbiter.claim(greedy)).collect();
        let modest_ticket = arbiter.claim(modest);
        let order: Vec<_> = std::iter::from_fn(|| arbiter.release()).map(Claim::Wait).collect();
        assert_eq!(order[0], greedy_tickets[0]);
        assert_eq!(order[1], modest_ticket, "the second model is next, however many the first has in line");
        assert_eq!(order[2..], greedy_tickets[1..]);
        assert_eq!(arbiter.claim(modest), Claim::Granted, "the last release freed the slot");
    }

    #[test]
    fn slots_bound_what_runs_at_once() {
        let device = Device::new(2);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let client = device.client();
                    for _ in 0..200 {
                        let slot = device.acquire(client);
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(slot);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 2);
        assert_eq!(device.lock().arbiter.free, 2);
        assert!(device.lock().waiting.is_empty() && device.waiting() == 0);
    }
}
