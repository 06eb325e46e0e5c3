use super::CREDIT;
use crate::cost::Work;
use crate::line::Line;

/// The requests of one priority. Tenants share by start-time fair queueing (Goyal, Vin, Cheng 1996) on estimated time.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) lines: Vec<TenantLine>,
    pub(super) work: Work,
    /// The start of the request served last.
    pub(super) virtual_time: f64,
}

#[derive(Debug, Default)]
pub(super) struct TenantLine {
    pub(super) id: u32,
    pub(super) weight: f64,
    /// Time it was served, over its weight; never behind the level's when it has requests.
    pub(super) virtual_time: f64,
    pub(super) line: Line,
    /// The last batch in which none of it fits any more.
    pub(super) passed: u64,
}

impl Level {
    /// The line of a tenant; a new one begins where the others are.
    pub(super) fn line(&mut self, tenant: u32, make: impl FnOnce() -> TenantLine) -> &mut TenantLine {
        let earliest = self.earliest();
        let empty = |line: &TenantLine| line.line.is_empty() && line.virtual_time <= earliest;
        let at = self.lines.iter().position(|line| line.id == tenant);
        let at = at.or_else(|| self.lines.iter().position(empty)).unwrap_or_else(|| {
            self.lines.push(TenantLine { virtual_time: earliest, ..make() });
            self.lines.len() - 1
        });
        let line = &mut self.lines[at];
        if line.line.is_empty() {
            let had = if line.id == tenant { line.virtual_time } else { earliest };
            (line.id, line.virtual_time) = (tenant, had.max(earliest));
        }
        line
    }

    /// The tenant with the most places for its weight; of equal ones any.
    pub(super) fn greediest(&self) -> Option<&TenantLine> {
        let lines = self.lines.iter().filter(|line| !line.line.is_empty());
        lines.max_by(|a, b| a.places().total_cmp(&b.places()))
    }

    /// Where a tenant begins that was not there of late: it did not ask for what it could have had, and may ask for a little of it.
    pub(super) fn earliest(&self) -> f64 {
        self.virtual_time - CREDIT.as_secs_f64()
    }
}

impl TenantLine {
    /// Requests over weight.
    pub(super) fn places(&self) -> f64 {
        self.line.len() as f64 / self.weight.max(f64::MIN_POSITIVE)
    }
}
