use crate::cells::{CellKind, Cells};
use crate::value::Value;

/// What came in a part of a window: of each feature counts in the reference's cells, and moments.
#[derive(Debug, Clone)]
pub(crate) struct Pane {
    pub(crate) since_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) rows: u64,
    pub(crate) duplicates: u64,
    pub(crate) features: Vec<Tally>,
}

/// A feature's.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) counts: Vec<u64>,
    /// Of values of another type, which count as missing too.
    pub(crate) wrong_type: u64,
    /// Below the smallest value of the reference or above its largest.
    pub(crate) out_of_range: u64,
    /// Less the reference's mean: sums of such differences lose no digits.
    sum: f64,
    squares: f64,
    low: f64,
    high: f64,
    centre: f64,
    known: (f64, f64),
}

impl Pane {
    /// How many bytes it takes with these cells, about.
    pub(crate) fn bytes(cells: &[Cells]) -> usize {
        cells.iter().map(|it| size_of::<Tally>() + 8 * it.len()).sum::<usize>() + size_of::<Self>()
    }

    pub(crate) fn new(cells: &[Cells], now_ms: u64) -> Self {
        let features = cells.iter().map(Tally::new).collect();
        Self { since_ms: now_ms, until_ms: now_ms, rows: 0, duplicates: 0, features }
    }

    /// Empties it for new rows from now on.
    pub(crate) fn restart(&mut self, now_ms: u64) {
        (self.since_ms, self.until_ms, self.rows, self.duplicates) = (now_ms, now_ms, 0, 0);
        self.features.iter_mut().for_each(Tally::clear);
    }

    /// Adds what another counted later.
    pub(crate) fn add(&mut self, later: &Self) {
        self.since_ms = self.since_ms.min(later.since_ms);
        self.until_ms = self.until_ms.max(later.until_ms);
        self.rows += later.rows;
        self.duplicates += later.duplicates;
        self.features.iter_mut().zip(&later.features).for_each(|(ours, theirs)| ours.add(theirs));
    }
}

impl Tally {
    fn new(cells: &Cells) -> Self {
        let (centre, known) = match cells.kind() {
            CellKind::Numeric(bins) => {
                (bins.moments.0, bins.range.unwrap_or((f64::NEG_INFINITY, f64::INFINITY)))
            }
            CellKind::Categorical(_) => (0.0, (f64::NEG_INFINITY, f64::INFINITY)),
        };
        let (low, high) = (f64::INFINITY, f64::NEG_INFINITY);
        let counts = vec![0; cells.len()];
        Self { counts, wrong_type: 0, out_of_range: 0, sum: 0.0, squares: 0.0, low, high, centre, known }
    }

    fn clear(&mut self) {
        self.counts.fill(0);
        (self.wrong_type, self.out_of_range, self.sum, self.squares) = (0, 0, 0.0, 0.0);
        (self.low, self.high) = (f64::INFINITY, f64::NEG_INFINITY);
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(ours, theirs)| *ours += theirs);
        self.wrong_type += other.wrong_type;
        self.out_of_range += other.out_of_range;
        self.sum += other.sum;
        self.squares += other.squares;
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
    }

    /// Takes a value, and says which cell it fell into.
    #[inline]
    pub(crate) fn update(&mut self, cells: &Cells, value: Value<'_>) -> usize {
        let cell = match (cells.kind(), value) {
            (CellKind::Numeric(bins), Value::Number(number)) if number.is_finite() => {
                let off = number - self.centre;
                self.sum += off;
                self.squares += off * off;
                self.low = self.low.min(number);
                self.high = self.high.max(number);
                self.out_of_range += u64::from(number < self.known.0 || number > self.known.1);
                bins.bin(number)
            }
            (CellKind::Categorical(named), Value::Text(text)) => named.cell(text),
            (CellKind::Categorical(named), Value::Number(number)) if number.is_finite() => {
                named.cell(&number.to_string())
            }
            (CellKind::Numeric(_), Value::Text(_)) => {
                self.wrong_type += 1;
                cells.missing()
            }
            _ => cells.missing(),
        };
        // Every cell exists; a look is cheaper than a proof.
        if let Some(count) = self.counts.get_mut(cell) {
            *count += 1;
        }
        cell
    }

    /// How many values it has, of `cells`.
    pub(crate) fn values(&self) -> u64 {
        self.counts[..self.counts.len() - 1].iter().sum()
    }

    /// The smallest and the largest number; not in order before the first.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Mean and standard deviation; NaN without values.
    pub(crate) fn moments(&self) -> (f64, f64) {
        let n = self.values() as f64;
        let mean = self.sum / n;
        let variance = (self.squares - self.sum * mean).max(0.0) / (n - 1.0);
        (self.centre + mean, variance.sqrt())
    }
}
