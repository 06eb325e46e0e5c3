use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// A model's name: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with a dot. Safe as a folder name and a label value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks `name`.
    ///
    /// # Errors
    /// `InvalidArgument` when it is empty, too long, starts with a dot or has another character.
    pub fn new(name: &str) -> Result<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty()
            || name.len() > Self::MAX_BYTES
            || name.starts_with('.')
            || !name.bytes().all(allowed)
        {
            return Err(Error::invalid(format!(
                "model name: expected 1 to {} characters of A-Z a-z 0-9 . _ - not starting with a dot, got {:?} ({} bytes)",
                Self::MAX_BYTES,
                abbreviate(name),
                name.len()
            )));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Checked like [`ModelName::new`].
impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&name).map_err(de::Error::custom)
    }
}

/// A model's version: an integer of at least 1. Clients parse it as an integer, so it fits in an `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelVersion(u64);

impl ModelVersion {
    /// Version `number`, or `None` when it is 0 or beyond `i64::MAX`.
    pub fn new(number: u64) -> Option<Self> {
        (1..=i64::MAX.unsigned_abs()).contains(&number).then_some(Self(number))
    }

    /// Parses a version's canonical decimal form: digits, no sign, no leading zero.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        if canonical { text.parse().ok().and_then(Self::new) } else { None }
    }

    /// The version as a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ModelVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Checked like [`ModelVersion::new`].
impl<'de> Deserialize<'de> for ModelVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        let expected = || de::Error::custom(format!("version {number}: expected 1 to {}", i64::MAX));
        Self::new(number).ok_or_else(expected)
    }
}

/// One prediction's identity, born at the front door and returned with the answer: a UUIDv7, so ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PredictionId(uuid::Uuid);

impl PredictionId {
    /// Bytes of an id as text.
    pub const TEXT_BYTES: usize = 36;

    /// A new id, stamped with the wall clock.
    #[expect(clippy::new_without_default, reason = "every call gives another id; a default would hide that")]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// The id that `text` is: hexadecimal digits in five groups, as an answer says it. `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let id = uuid::Uuid::try_parse(text).ok()?;
        (text.len() == Self::TEXT_BYTES && id.get_version() == Some(uuid::Version::SortRand))
            .then_some(Self(id))
    }

    /// When it was given, in milliseconds since 1970.
    pub fn at_ms(self) -> u64 {
        u64::try_from(self.0.as_u128() >> 80).unwrap_or_default()
    }

    /// What the text of every id of this millisecond or a later one comes behind, and that of an earlier one before.
    pub fn first_at(ms: u64) -> String {
        let ms = ms.min((1 << 48) - 1);
        format!("{:08x}-{:04x}", ms >> 16, ms & 0xffff)
    }

    /// A number from 0 up to 1 that is drawn with the id and is always the same for it: whatever takes the predictions below some
    /// share takes the same ones.
    pub fn share(&self) -> f64 {
        // The last four bytes are random in every id.
        let bits = u32::try_from(self.0.as_u128() & u128::from(u32::MAX)).unwrap_or_default();
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

impl fmt::Display for PredictionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// `text` fit for a message: at most 64 characters, so that hostile input cannot swell an error or a log line.
pub fn abbreviate(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "é", "a\0", &"x".repeat(129)] {
            assert!(ModelName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "all-MiniLM-L6-v2", "fraud.v2_x", &"x".repeat(128)] {
            assert!(ModelName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_refusal_of_a_long_name_is_short() {
        let message = ModelName::new(&"x".repeat(10_000)).unwrap_err().to_string();
        assert!(message.len() < 300, "{message}");
    }

    #[test]
    fn ids_are_read_back_and_sort_by_time() {
        let id = PredictionId::new();
        let text = id.to_string();
        assert_eq!((PredictionId::parse(&text), text.len()), (Some(id), PredictionId::TEXT_BYTES));
        let known = PredictionId::parse("01a203af-d337-741e-a1ed-2c41e7f0794b").unwrap();
        assert_eq!(known.at_ms(), 0x01a2_03af_d337);
        let first = PredictionId::first_at(known.at_ms());
        assert!(known.to_string() > first && known.to_string() < PredictionId::first_at(known.at_ms() + 1));
        assert!(known < id && PredictionId::first_at(u64::MAX) == "ffffffff-ffff");
        let other_forms = [
            "",
            "01a203afd337741ea1ed2c41e7f0794b",
            "{01a203af-d337-741e-a1ed-2c41e7f0794b}",
            "01a203af-d337-441e-a1ed-2c41e7f0794b",
            "01a203af-d337-741e-a1ed-2c41e7f0794g",
        ];
        assert!(other_forms.iter().all(|text| PredictionId::parse(text).is_none()));
    }

    #[test]
    fn shares_are_spread_evenly_and_stay() {
        let ids: Vec<PredictionId> = (0..10_000).map(|_| PredictionId::new()).collect();
        let below = |share| ids.iter().filter(|id| id.share() < share).count();
        assert_eq!((below(0.0), below(1.0)), (0, 10_000));
        // Seven standard deviations.
        assert!((4_650..5_350).contains(&below(0.5)), "{}", below(0.5));
        assert!(ids.iter().all(|id| id.share() == id.clone().share()));
    }

    #[test]
    fn versions_are_canonical_integers() {
        assert_eq!(ModelVersion::parse("12").map(ModelVersion::get), Some(12));
        for bad in ["", "0", "01", "-1", "+1", "1.0", "stable", "9223372036854775808"] {
            assert_eq!(ModelVersion::parse(bad), None, "{bad:?}");
        }
    }
}
