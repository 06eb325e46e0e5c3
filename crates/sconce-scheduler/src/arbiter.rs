use crate::batcher::{CREDIT, RIVALRY};
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A model in the eyes of a device. Its versions are one: requests that came before a swap go before those that came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientId(u64);

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

/// Shares a device's slots among models by the time they use them: start-time fair queueing (Goyal, Vin, Cheng 1996). While several
/// want slots, each gets time by its weight, however many slots it asks for at once and however long its batches are; and who asked
/// for less of late goes first until it has had 100 ms of that. Pure.
#[derive(Debug)]
pub struct Arbiter {
    free: usize,
    /// Where the client that was granted a slot last stood.
    virtual_time: f64,
    /// Clients that hold or want slots, or have less than all the credit there is.
    clients: Vec<Client>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    /// Seconds of slots it used, over its weight.
    virtual_time: f64,
    held: usize,
    /// In order.
    tickets: VecDeque<Ticket>,
}

impl Arbiter {
    /// An arbiter of `slots` slots, all free.
    pub fn new(slots: usize) -> Self {
        Self { free: slots, virtual_time: 0.0, clients: Vec::new(), next_ticket: 0 }
    }

    /// Asks for a slot.
    pub fn claim(&mut self, client: ClientId) -> Claim {
        let now = self.virtual_time;
        let earliest = now - CREDIT.as_secs_f64();
        let at = self.clients.iter().position(|known| known.id == client).unwrap_or_else(|| {
            let new = Client { id: client, virtual_time: earliest, held: 0, tickets: VecDeque::new() };
            self.clients.push(new);
            self.clients.len() - 1
        });
        let client = &mut self.clients[at];
        if client.held == 0 && client.tickets.is_empty() {
            // What it did not ask for in the past it cannot ask for now, but for a little.
            client.virtual_time = client.virtual_time.max(earliest);
        }
        if self.free > 0 {
            self.free -= 1;
            client.held += 1;
            self.virtual_time = now.max(client.virtual_time);
            return Claim::Granted;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        client.tickets.push_back(ticket);
        Claim::Wait(ticket)
    }

    /// A slot for work that nobody waits for, if one is free and nobody stands in line. It is no client's, and counts for none.
    pub fn claim_idle(&mut self) -> bool {
        let is_idle = self.free > 0 && self.clients.iter().all(|client| client.tickets.is_empty());
        self.free -= usize::from(is_idle);
        is_idle
    }

    /// Gives back a slot of [`claim_idle`](Self::claim_idle); it passes to the ticket that is returned, if any waits.
    pub fn release_idle(&mut self) -> Option<Ticket> {
        self.pass_on()
    }

    /// A client of `weight` that no other waits for has used a slot of its for `used`, and keeps it.
    pub fn charge(&mut self, client: ClientId, weight: f32, used: Duration) {
        if let Some(client) = self.clients.iter_mut().find(|known| known.id == client) {
            client.virtual_time += over(used, weight);
            // As if it had given it back and claimed it again: who comes now begins where it is.
            self.virtual_time = self.virtual_time.max(client.virtual_time);
        }
    }

    /// Where a client stands: who stands lower had less.
    pub fn standing(&self, client: ClientId) -> f64 {
        self.clients
            .iter()
            .find(|known| known.id == client)
            .map_or(self.virtual_time, |known| known.virtual_time)
    }

    /// Whether someone in line is owed a slot before one who was granted its own at `standing` has finished with it: by then, and not
    /// only since, it had at least 10 ms less. Two who both want all they can have take turns as their batches end.
    pub fn is_owed(&self, standing: f64) -> bool {
        let before = standing - OWED.as_secs_f64();
        self.clients.iter().any(|client| !client.tickets.is_empty() && client.virtual_time < before)
    }

    /// Gives back a slot that a client of `weight` held for `used`; it passes to the ticket that is returned, if any waits.
    pub fn release(&mut self, client: ClientId, weight: f32, used: Duration) -> Option<Ticket> {
        if let Some(client) = self.clients.iter_mut().find(|known| known.id == client) {
            client.held = client.held.saturating_sub(1);
            client.virtual_time += over(used, weight);
        }
        self.pass_on()
    }

    /// A slot that came free goes to whoever had least of those who wait.
    fn pass_on(&mut self) -> Option<Ticket> {
        let waiting = self.clients.iter_mut().filter(|client| !client.tickets.is_empty());
        let next = waiting.min_by(|a, b| a.virtual_time.total_cmp(&b.virtual_time));
        let granted = next.and_then(|client| {
            client.held += 1;
            self.virtual_time = self.virtual_time.max(client.virtual_time);
            client.tickets.pop_front()
        });
        if granted.is_none() {
            self.free += 1;
        }
        // Who has all the credit there is needs not be known.
        let earliest = self.virtual_time - CREDIT.as_secs_f64();
        self.clients
            .retain(|client| client.held > 0 || !client.tickets.is_empty() || client.virtual_time > earliest);
        granted
    }
}

fn over(used: Duration, weight: f32) -> f64 {
    used.as_secs_f64() / f64::from(weight.max(f32::MIN_POSITIVE))
}

/// How much less someone must have had to go first within a batch.
const OWED: Duration = Duration::from_millis(10);
/// How long a slot may be used before that counts: the lock is not worth less.
const CHARGED_EACH: Duration = Duration::from_millis(10);

/// A device and its slots: as many batches run on it at once.
#[derive(Debug)]
pub struct Device {
    state: Mutex<State>,
    /// Claims that wait, readable without the lock.
    waiting: AtomicUsize,
    /// Makes identities of names.
    names: RandomState,
}

#[derive(Debug)]
struct State {
    arbiter: Arbiter,
    /// The threads to wake, one each, by the tickets they hold.
    waiting: Vec<(Ticket, Thread)>,
    rivals: Rivals<ClientId, Instant>,
    /// Who has shadow work, and is to be told when a slot is free and nobody waits for it. At most one entry a model version.
    shadows: Vec<Weak<dyn AwaitsIdle>>,
}

/// Whoever has work for a device that nobody else wants.
pub(crate) trait AwaitsIdle: Send + Sync {
    /// The device may be idle. Called without any lock of the device's.
    fn may_be_idle(&self);
}

/// Who was there last, and when; and when there last was anybody else.
#[derive(Debug, Clone)]
pub struct Rivals<C, T> {
    last: Option<(C, T)>,
    other_at: Option<T>,
}

impl<C, T> Default for Rivals<C, T> {
    fn default() -> Self {
        Self { last: None, other_at: None }
    }
}

impl<C: Copy + PartialEq, T: Copy> Rivals<C, T> {
    /// `client` wants something, or has it still.
    pub fn saw(&mut self, client: C, now: T) {
        if let Some((_, at)) = self.last.filter(|(last, _)| *last != client) {
            self.other_at = Some(at);
        }
        self.last = Some((client, now));
    }

    /// When there last was another than who was there last.
    pub fn others_at(&self) -> Option<T> {
        self.other_at
    }

    /// When there last was another than `client`.
    pub fn of(&self, client: C) -> Option<T> {
        self.last.filter(|(last, _)| *last != client).map(|(_, at)| at).or(self.other_at)
    }
}

impl State {
    fn has_rivals(&self, client: ClientId, now: Instant) -> bool {
        self.rivals.of(client).is_some_and(|at| now.saturating_duration_since(at) < RIVALRY)
    }
}

/// A slot of a device, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    device: &'a Device,
    client: ClientId,
    weight: f32,
    /// Whether one of its threads waits for others to go first.
    gives_way: AtomicBool,
    turn: Mutex<Turn>,
}

/// From one time that a slot was granted to the next.
#[derive(Debug)]
struct Turn {
    since: Instant,
    /// Where the client stood.
    standing: f64,
    /// Whether another client was there of late.
    has_rivals: bool,
    /// How long the slot was others', since that was last asked.
    paused: Duration,
}

impl Device {
    /// A device with `slots` slots (at least 1): one a compute core on CPU, one on a GPU.
    pub fn new(slots: usize) -> Self {
        Self {
            state: Mutex::new(State {
                arbiter: Arbiter::new(slots.max(1)),
                waiting: Vec::new(),
                rivals: Rivals::default(),
                shadows: Vec::new(),
            }),
            waiting: AtomicUsize::new(0),
            names: RandomState::new(),
        }
    }

    /// Workers that stand in line for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A model's identity.
    pub fn client(&self, model: &str) -> ClientId {
        ClientId(self.names.hash_one(model))
    }

    /// Waits for a slot, for a client of `weight`.
    pub(crate) fn acquire(&self, client: ClientId, weight: f32) -> Slot<'_> {
        let now = Instant::now();
        let mut state = self.lock();
        state.rivals.saw(client, now);
        let claim = state.arbiter.claim(client);
        if let Claim::Wait(ticket) = claim {
            self.enter(&mut state, ticket);
            drop(state);
            self.wait(ticket);
        } else {
            drop(state);
        }
        let turn = Mutex::new(self.turn(client));
        Slot { device: self, client, weight, gives_way: AtomicBool::new(false), turn }
    }

    /// A slot for shadow work, if one is free and nobody stands in line for it; else `waiter` is told when that may be so.
    pub(crate) fn acquire_idle(&self, waiter: &Weak<dyn AwaitsIdle>) -> Option<IdleSlot<'_>> {
        let mut state = self.lock();
        if state.arbiter.claim_idle() {
            return Some(IdleSlot(self));
        }
        if !state.shadows.iter().any(|known| known.ptr_eq(waiter)) {
            state.shadows.push(Weak::clone(waiter));
        }
        None
    }

    /// Wakes the thread that was granted a slot; tells those with shadow work where none was.
    fn hand_over(&self, mut state: MutexGuard<'_, State>, granted: Option<Ticket>) {
        if let Some(place) = state.waiting.iter().position(|(waiting, _)| Some(*waiting) == granted) {
            let (_, thread) = state.waiting.swap_remove(place);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            drop(state);
            thread.unpark();
        } else if !state.shadows.is_empty() {
            let shadows = std::mem::take(&mut state.shadows);
            drop(state);
            shadows.iter().filter_map(Weak::upgrade).for_each(|waiter| waiter.may_be_idle());
        }
    }

    fn enter(&self, state: &mut State, ticket: Ticket) {
        state.waiting.push((ticket, thread::current()));
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    fn wait(&self, ticket: Ticket) {
        while self.lock().waiting.iter().any(|(waiting, _)| *waiting == ticket) {
            thread::park();
        }
    }

    /// A client was granted a slot.
    fn turn(&self, client: ClientId) -> Turn {
        let since = Instant::now();
        let state = self.lock();
        let has_rivals = state.has_rivals(client, since);
        Turn { since, standing: state.arbiter.standing(client), has_rivals, paused: Duration::ZERO }
    }

    // The state is only touched by the few lines here, which do not panic: a poisoned lock is still a sound one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Stands in line again, gives the slot back, and waits. Whoever had less goes first, and that may be the same client: were
    /// the slot given back before, the others would always be.
    pub(crate) fn again(&self) {
        let mut turn = self.lock();
        *turn = self.pass_on(self.device.lock(), &turn);
    }

    /// Within a batch: has others go first who are owed that, and waits. Costs next to nothing while nobody stands in line.
    pub(crate) fn give_way(&self) {
        if !self.is_wanted() && !self.gives_way.load(Ordering::Relaxed) {
            return;
        }
        // Other threads of the instance wait here until it goes on.
        let mut turn = self.lock();
        let state = self.device.lock();
        if state.arbiter.is_owed(turn.standing) {
            self.gives_way.store(true, Ordering::Relaxed);
            let since = Instant::now();
            let next = self.pass_on(state, &turn);
            *turn = Turn { paused: turn.paused + since.elapsed(), ..next };
            self.gives_way.store(false, Ordering::Relaxed);
        }
    }

    /// How long others went first, since this was last asked.
    pub(crate) fn take_paused(&self) -> Duration {
        std::mem::take(&mut self.lock().paused)
    }

    fn pass_on(&self, mut state: MutexGuard<'_, State>, turn: &Turn) -> Turn {
        let Self { device, client, weight, .. } = *self;
        state.rivals.saw(client, Instant::now());
        let claim = state.arbiter.claim(client);
        if let Claim::Wait(ticket) = claim {
            device.enter(&mut state, ticket);
        }
        let granted = state.arbiter.release(client, weight, turn.since.elapsed());
        device.hand_over(state, granted);
        if let Claim::Wait(ticket) = claim {
            device.wait(ticket);
        }
        device.turn(client)
    }

    /// Has what was used of the slot count while it is kept.
    pub(crate) fn charge(&self) {
        let mut turn = self.lock();
        let used = turn.since.elapsed();
        if used >= CHARGED_EACH {
            let mut state = self.device.lock();
            state.arbiter.charge(self.client, self.weight, used);
            turn.since += used;
            turn.standing = state.arbiter.standing(self.client);
            // Who has it all the time is there all the time, and others may have gone.
            state.rivals.saw(self.client, turn.since);
            turn.has_rivals = state.has_rivals(self.client, turn.since);
        }
    }

    /// Whether someone waits for a slot of this device.
    pub(crate) fn is_wanted(&self) -> bool {
        self.device.waiting() > 0
    }

    /// Whether another client was there of late.
    pub(crate) fn has_rivals(&self) -> bool {
        self.lock().has_rivals
    }

    // As of the device's.
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let used = self.lock().since.elapsed();
        let mut state = self.device.lock();
        let granted = state.arbiter.release(self.client, self.weight, used);
        self.device.hand_over(state, granted);
    }
}

/// A slot that shadow work has, given back on drop.
#[derive(Debug)]
pub(crate) struct IdleSlot<'a>(&'a Device);

impl Drop for IdleSlot<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let granted = state.arbiter.release_idle();
        self.0.hand_over(state, granted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_greedy_model_does_not_starve_another() {
        let mut arbiter = Arbiter::new(1);
        let (greedy, modest) = (ClientId(0), ClientId(1));
        assert_eq!(arbiter.claim(greedy), Claim::Granted);
        let greedy_tickets: Vec<_> = (0..5).map(|_| arbiter.claim(greedy)).collect();
        let modest_ticket = arbiter.claim(modest);
        let mut order = Vec::new();
        let mut holder = greedy;
        while let Some(ticket) = arbiter.release(holder, 1.0, MS) {
            let is_modest = Claim::Wait(ticket) == modest_ticket;
            holder = if is_modest { modest } else { greedy };
            order.push(Claim::Wait(ticket));
        }
        assert_eq!(order[0], modest_ticket, "the second model is next, however many the first has in line");
        assert_eq!(order[1..], greedy_tickets);
        assert_eq!(arbiter.claim(modest), Claim::Granted, "the last release freed the slot");
    }

    #[test]
    fn shadow_work_has_what_nobody_else_wants_and_counts_for_nobody() {
        let mut arbiter = Arbiter::new(2);
        let (one, other) = (ClientId(0), ClientId(1));
        assert_eq!(arbiter.claim(one), Claim::Granted);
        assert!(arbiter.claim_idle(), "a slot is free");
        assert!(!arbiter.claim_idle(), "none is left");
        let Claim::Wait(ticket) = arbiter.claim(other) else { panic!("no slot is free") };
        assert_eq!(arbiter.release_idle(), Some(ticket), "whoever waits gets it");
        let Claim::Wait(second) = arbiter.claim(one) else { panic!("no slot is free") };
        assert_eq!(arbiter.release(other, 1.0, MS), Some(second));
        assert_eq!(arbiter.release(one, 1.0, MS), None);
        assert!(arbiter.claim_idle());
        assert_eq!(arbiter.release_idle(), None);
    }

    #[test]
    fn what_was_used_alone_is_no_debt() {
        let mut arbiter = Arbiter::new(1);
        let (old, new) = (ClientId(0), ClientId(1));
        assert_eq!(arbiter.claim(old), Claim::Granted);
        arbiter.charge(old, 1.0, 600_000 * MS);
        let Claim::Wait(first) = arbiter.claim(new) else { panic!("there is one slot") };
        let Claim::Wait(second) = arbiter.claim(old) else { panic!("there is one slot") };
        assert_eq!(arbiter.release(old, 1.0, MS), Some(first));
        assert!(matches!(arbiter.claim(new), Claim::Wait(_)));
        assert_eq!(arbiter.release(new, 1.0, CREDIT + 5 * MS), Some(second), "not after another ten minutes");
    }

    #[test]
    fn who_comes_now_and_then_goes_first_for_a_while_and_no_longer() {
        let mut arbiter = Arbiter::new(1);
        let (greedy, modest) = (ClientId(0), ClientId(1));
        assert_eq!(arbiter.claim(greedy), Claim::Granted);
        arbiter.charge(greedy, 1.0, 60_000 * MS);
        let Claim::Wait(_) = arbiter.claim(modest) else { panic!("there is one slot") };
        let (mut holder, mut in_a_row) = (greedy, 0);
        loop {
            // Both always want the slot.
            let _ = arbiter.claim(holder);
            let before = arbiter.clients.iter().find(|client| client.id == modest).unwrap().tickets.len();
            arbiter.release(holder, 1.0, 10 * MS);
            let after = arbiter.clients.iter().find(|client| client.id == modest).unwrap().tickets.len();
            if after == before {
                break;
            }
            (holder, in_a_row) = (modest, in_a_row + 1);
        }
        assert!((10..=12).contains(&in_a_row), "{in_a_row} batches of 10 ms: the credit, not the minute");
        assert!(arbiter.clients.len() == 2);
    }

    proptest! {
        /// Models that always want a slot get time by their weights, whatever their batches take.
        #[test]
        fn time_is_shared_by_weight(
            models in prop::collection::vec((1u64..50, 1u32..8), 2..6),
            slots in 1usize..3,
        ) {
            let mut arbiter = Arbiter::new(slots);
            // Each model claims again as soon as it was served: (model, when its batch ends).
            let mut running: Vec<(u64, usize)> = Vec::new();
            let mut used = vec![0u64; models.len()];
            let mut tickets = std::collections::HashMap::new();
            let claim = |arbiter: &mut Arbiter, model: usize, now: u64, running: &mut Vec<(u64, usize)>,
                             tickets: &mut std::collections::HashMap<Ticket, usize>| {
                match arbiter.claim(ClientId(model as u64)) {
                    Claim::Granted => running.push((now + models[model].0, model)),
                    Claim::Wait(ticket) => { tickets.insert(ticket, model); }
                }
            };
            for model in 0..models.len() {
                for _ in 0..=slots { claim(&mut arbiter, model, 0, &mut running, &mut tickets); }
            }
            for _ in 0..20_000 {
                running.sort_unstable_by(|a, b| b.cmp(a));
                let (now, model) = running.pop().unwrap();
                let (took, weight) = models[model];
                used[model] += took;
                let granted = arbiter.release(ClientId(model as u64), weight as f32, MS * took as u32);
                if let Some(next) = granted.and_then(|ticket| tickets.remove(&ticket)) {
                    running.push((now + models[next].0, next));
                }
                claim(&mut arbiter, model, now, &mut running, &mut tickets);
            }
            let shares: Vec<f64> =
                models.iter().zip(&used).map(|(&(_, weight), &used)| used as f64 / f64::from(weight)).collect();
            let (least, most) = shares.iter().fold((f64::MAX, 0.0f64), |(a, b), &s| (a.min(s), b.max(s)));
            // One batch more or less of each is what cannot be divided; a model cannot use more than its slots.
            let weights: u32 = models.iter().map(|model| model.1).sum();
            let can_use_its_share = models.iter().all(|model| model.1 as usize * slots <= weights as usize);
            if can_use_its_share {
                prop_assert!(most <= 1.02 * least + 200.0, "{shares:?} {models:?}");
            }
        }
    }

    #[test]
    fn versions_of_a_model_go_in_the_order_in_which_they_came() {
        let device = Device::new(1);
        let (old, new) = (device.client("one"), device.client("one"));
        assert_eq!(old, new);
        let mut arbiter = Arbiter::new(1);
        assert_eq!(arbiter.claim(old), Claim::Granted);
        arbiter.charge(old, 1.0, 60_000 * MS);
        let tickets = [old, new, old].map(|client| arbiter.claim(client));
        let other = arbiter.claim(device.client("other"));
        let served: Vec<_> = (0..4).map(|_| Claim::Wait(arbiter.release(old, 1.0, MS).unwrap())).collect();
        assert_eq!(served, [other, tickets[0], tickets[1], tickets[2]]);
    }

    #[test]
    fn a_model_that_never_leaves_the_line_still_sees_its_rivals() {
        let device = Device::new(1);
        let (greedy, modest) = (device.client("greedy"), device.client("modest"));
        let slot = device.acquire(greedy, 1.0);
        assert!(!slot.has_rivals());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(device.acquire(modest, 1.0)));
            while device.waiting() == 0 {
                std::thread::yield_now();
            }
            slot.again();
            assert!(slot.has_rivals());
            slot.again();
            assert!(slot.has_rivals());
            drop(slot);
        });
        assert_eq!((device.lock().arbiter.free, device.waiting()), (1, 0));
    }

    #[test]
    fn rivals_are_those_who_were_there_of_late() {
        let mut rivals = Rivals::default();
        assert_eq!(rivals.of('a'), None);
        rivals.saw('b', 1);
        rivals.saw('a', 30);
        assert_eq!((rivals.of('a'), rivals.of('b')), (Some(1), Some(30)), "not when the second came");
        rivals.saw('a', 40);
        assert_eq!((rivals.of('a'), rivals.of('b'), rivals.of('c')), (Some(1), Some(40), Some(40)));
        rivals.saw('c', 50);
        assert_eq!((rivals.of('a'), rivals.of('c')), (Some(50), Some(40)));
    }

    #[test]
    fn a_model_that_keeps_its_slot_forgets_rivals_that_are_gone() {
        let device = Device::new(2);
        let (busy, gone) = (device.client("busy"), device.client("gone"));
        drop(device.acquire(gone, 1.0));
        let slot = device.acquire(busy, 1.0);
        assert!(slot.has_rivals());
        // As if a second had passed: nobody waits for it here.
        let past = Instant::now() - 2 * RIVALRY;
        device.lock().rivals = Rivals { last: Some((busy, past)), other_at: Some(past) };
        slot.lock().since -= CHARGED_EACH;
        slot.charge();
        assert!(!slot.has_rivals());
        assert!(device.acquire(gone, 1.0).has_rivals(), "it was there all the time");
    }

    #[test]
    fn slots_bound_what_runs_at_once() {
        let device = Device::new(2);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let client = device.client(&format!("model {}", number / 2));
                let (device, running, most) = (&device, &running, &most);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let slot = device.acquire(client, 1.0);
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
