use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;

/// The BLAKE3 digest of some bytes. As text: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }

    /// Reads the text form, and nothing else: lower case, 64 digits.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        let hash = blake3::Hash::from_hex(text.as_bytes()).ok().filter(|_| lower)?;
        Some(hash.into())
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("digest: expected 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn the_text_form_is_read_back_and_no_other_is() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        assert_eq!(Digest::parse(&text), Some(digest));
        for bad in
            [&text[..63], &format!("{text}0"), &text.to_uppercase(), &text.replace(&text[..1], "g"), ""]
        {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}
