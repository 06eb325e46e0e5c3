/// One value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// None. A number that is not finite counts as none as well.
    Missing,
    /// A number; a category in a categorical column.
    Number(f64),
    /// A text; a category in a categorical column, and of the wrong type in a numeric one.
    Text(&'a str),
}

impl Value<'_> {
    /// Mixes it into a hash of a row: fast, and good enough to tell that a row came again.
    pub(crate) fn mix(&self, hash: u64) -> u64 {
        let mix = |hash: u64, bits: u64| (hash.rotate_left(5) ^ bits).wrapping_mul(0x517c_c1b7_2722_0a95);
        match self {
            Self::Missing => mix(hash, 1),
            Self::Number(number) => mix(hash, number.to_bits()),
            Self::Text(text) => {
                let chunk = |chunk: &[u8]| chunk.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
                text.as_bytes().chunks(8).fold(mix(hash, text.len() as u64), |hash, it| mix(hash, chunk(it)))
            }
        }
    }
}

/// Rows that came before, as far as it remembers: the latest of each of 4,096 places.
#[derive(Debug, Clone)]
pub(crate) struct RecentRows {
    places: Vec<u64>,
}

impl RecentRows {
    const PLACES: usize = 4_096;

    pub(crate) fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// Takes a row, and says whether it was seen before.
    pub(crate) fn repeats(&mut self, row: &[Value<'_>]) -> bool {
        let hash = row.iter().fold(1, |hash, value| value.mix(hash)) | 1;
        // Not before it is needed.
        self.places.resize(Self::PLACES, 0);
        let place = &mut self.places[(hash >> 52) as usize];
        std::mem::replace(place, hash) == hash
    }
}
