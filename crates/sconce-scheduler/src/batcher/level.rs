use super::CREDIT;
use super::turns::Turns;
use crate::cost::Work;
use crate::entry::Tenant;
use crate::line::{Line, Place, Spare};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;

/// The requests of one priority. Tenants share by start-time fair queueing (Goyal, Vin, Cheng 1996) on estimated time.
///
/// What is asked with each request takes no longer for many tenants than for few, but for a logarithm; only who has to make room in a full
/// queue is sought among all.
#[derive(Debug, Default)]
pub(super) struct Level {
    lines: Slab<TenantLine>,
    by_tenant: FxHashMap<u32, usize>,
    /// Of the lines that have requests and are not done with the batch that is composed: their virtual times.
    turns: Turns,
    /// The lines that are done with it.
    passed: Vec<usize>,
    /// Lines that had no requests when they came into this, each once: to be closed when their tenants had no more than the others.
    idle: VecDeque<usize>,
    /// Of all that waits.
    work: Work,
    /// Of the tenants that have requests: how many they are, and their weights.
    active: usize,
    weights: f64,
    /// Of those how many borrow.
    borrowers: usize,
    /// The start of the request served last. While those are served who borrow, it goes on by what everybody should have had: whoever is
    /// there already waits for newcomers as for anybody else, and not until no more come.
    virtual_time: f64,
    spare: Spare,
}

#[derive(Debug)]
pub(super) struct TenantLine {
    pub(super) tenant: u32,
    weight: f64,
    /// Time it was served, over its weight.
    virtual_time: f64,
    /// Up to here, if it began before, it has what it could have had before.
    borrows_until: Option<f64>,
    line: Line,
    is_idle: bool,
}

impl TenantLine {
    /// What waits, in order.
    pub(super) fn places(&self) -> &Line {
        &self.line
    }

    /// Requests over weight.
    pub(super) fn share(&self) -> f64 {
        self.line.len() as f64 / self.weight
    }

    /// What it counts among those that share.
    pub(super) fn weight(&self) -> f64 {
        if self.line.is_empty() { 0.0 } else { self.weight }
    }

    fn turn(&self) -> f64 {
        if self.line.is_empty() { Turns::NEVER } else { self.virtual_time }
    }
}

/// A tenant's weight as a divisor that keeps times finite.
pub(super) fn weight(tenant: Tenant) -> f64 {
    f64::from(tenant.weight.max(f32::MIN_POSITIVE))
}

impl Level {
    /// Work of all.
    pub(super) fn work(&self) -> Work {
        self.work
    }

    pub(super) fn is_empty(&self) -> bool {
        self.work.rows == 0
    }

    /// The weights of the tenants that have requests.
    pub(super) fn weights(&self) -> f64 {
        self.weights
    }

    pub(super) fn line(&self, at: usize) -> Option<&TenantLine> {
        self.lines.get(at)
    }

    pub(super) fn of_tenant(&self, tenant: u32) -> Option<&TenantLine> {
        self.lines.get(*self.by_tenant.get(&tenant)?)
    }

    /// The lines that have requests.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &TenantLine> {
        self.turns.all().filter_map(|at| self.lines.get(at))
    }

    /// The tenant with the most places for its weight; of equal ones any.
    pub(super) fn greediest(&self) -> Option<&TenantLine> {
        self.waiting().max_by(|a, b| a.share().total_cmp(&b.share()))
    }

    /// The line of the tenant that had the least of its share.
    pub(super) fn next(&self) -> Option<usize> {
        self.turns.first()
    }

    /// Nothing more of a line fits into the batch that is composed.
    pub(super) fn pass(&mut self, line: usize) {
        self.turns.set(line, Turns::NEVER);
        self.passed.push(line);
    }

    /// The batch is composed: what did not fit has its turn again.
    pub(super) fn pass_none(&mut self) {
        while let Some(at) = self.passed.pop() {
            self.turns.set(at, self.lines.get(at).map_or(Turns::NEVER, TenantLine::turn));
        }
    }

    /// A tenant that waits gets `seconds`.
    pub(super) fn charge(&mut self, at: usize, seconds: f64) {
        let Some(line) = self.lines.get_mut(at) else { return };
        let start = line.virtual_time;
        line.virtual_time += seconds / line.weight;
        if let Some(until) = line.borrows_until {
            self.virtual_time += seconds / self.weights.max(line.weight);
            if line.virtual_time >= until {
                line.borrows_until = None;
                self.borrowers -= 1;
            }
        } else if self.borrowers == 0 {
            self.virtual_time = start;
        } else {
            self.virtual_time = self.virtual_time.max(start);
        }
        self.turns.set(at, line.virtual_time);
    }

    /// Adds a request: the line it is in from now on.
    pub(super) fn insert(&mut self, tenant: Tenant, place: Place) -> usize {
        self.close_idle();
        // It did not ask for what it could have had, and may ask for a little of it: of what all those together may who are there.
        let earliest = self.virtual_time - CREDIT.as_secs_f64() / self.active.max(1) as f64;
        let at = *self.by_tenant.entry(tenant.id).or_insert_with(|| {
            self.lines.insert(TenantLine {
                tenant: tenant.id,
                weight: 1.0,
                virtual_time: earliest,
                borrows_until: None,
                line: Line::default(),
                is_idle: false,
            })
        });
        let Some(line) = self.lines.get_mut(at) else { return at };
        self.work.add(place.work);
        self.weights -= line.weight();
        line.weight = weight(tenant);
        if line.line.is_empty() {
            line.virtual_time = line.virtual_time.max(earliest);
            line.borrows_until = (line.virtual_time < self.virtual_time).then_some(self.virtual_time);
            self.borrowers += usize::from(line.borrows_until.is_some());
            self.active += 1;
            self.turns.set(at, line.virtual_time);
        }
        line.line.insert(place, &mut self.spare);
        self.weights += line.weight;
        at
    }

    /// Takes a request out.
    pub(super) fn remove(&mut self, at: usize, place: &Place) {
        let Some(line) = self.lines.get_mut(at) else { return };
        let before = line.weight();
        line.line.remove(place.key, &mut self.spare);
        self.turns.set(at, line.turn());
        if line.line.is_empty() {
            self.active -= usize::from(before > 0.0);
            self.borrowers -= usize::from(line.borrows_until.take().is_some());
            if !std::mem::replace(&mut line.is_idle, true) {
                self.idle.push_back(at);
            }
        }
        self.work.take(place.work);
        let left = self.weights - before + line.weight();
        // What rounding leaves does not outlast the tenants.
        self.weights = if self.is_empty() { 0.0 } else { left };
    }

    /// Closes a line or two of tenants that are gone. One that had more than its share stays until the others had as much.
    fn close_idle(&mut self) {
        let earliest = self.virtual_time - CREDIT.as_secs_f64();
        for _ in 0..2 {
            let Some(&at) = self.idle.front() else { return };
            let Some(line) = self.lines.get_mut(at) else { return };
            if line.line.is_empty() && line.virtual_time > earliest {
                return;
            }
            self.idle.pop_front();
            line.is_idle = false;
            if line.line.is_empty() {
                self.by_tenant.remove(&line.tenant);
                self.lines.remove(at);
            }
        }
    }
}
