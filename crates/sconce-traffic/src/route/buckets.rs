//! Which variant has which of the 10,000 buckets, and which bucket a sticky key falls in.

use super::VariantId;
use serde::{Deserialize, Serialize};

/// How many buckets there are: one each 0.01 percent.
pub(super) const BUCKETS: u16 = 10_000;

/// Longer keys are hashed in pieces.
const SHORT_KEY_BYTES: usize = 512;

/// The owner of each bucket, run-length coded: consecutive runs, [`BUCKETS`] in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Buckets(Vec<(VariantId, u16)>);

impl Buckets {
    /// Shares buckets out by `shares`, which sum to [`BUCKETS`], moving no more of `self` than they ask for: who has too many gives
    /// up its last ones, and who has too few takes of those, in order.
    pub(super) fn reassigned(&self, shares: &[(VariantId, u16)]) -> Self {
        let mut owners: Vec<Option<VariantId>> = self.owners().map(Some).collect();
        owners.resize(BUCKETS.into(), None);
        let mut wanted: Vec<(VariantId, u16)> = shares.to_vec();
        for owner in &mut owners {
            let share =
                owner.and_then(|id| wanted.iter_mut().find(|(wanting, left)| *wanting == id && *left > 0));
            match share {
                Some((_, left)) => *left -= 1,
                None => *owner = None,
            }
        }
        let mut free = wanted.into_iter().flat_map(|(id, left)| std::iter::repeat_n(id, left.into()));
        for owner in owners.iter_mut().filter(|owner| owner.is_none()) {
            *owner = free.next();
        }
        let mut runs: Vec<(VariantId, u16)> = Vec::new();
        for id in owners.into_iter().flatten() {
            match runs.last_mut() {
                Some((last, length)) if *last == id => *length += 1,
                _ => runs.push((id, 1)),
            }
        }
        Self(runs)
    }

    /// The owner of each bucket, in order.
    pub(super) fn owners(&self) -> impl Iterator<Item = VariantId> + '_ {
        self.0.iter().flat_map(|(id, length)| std::iter::repeat_n(*id, (*length).into()))
    }

    /// Whether they are shared out by `shares`, and nobody else has any.
    pub(super) fn fit(&self, shares: &[(VariantId, u16)]) -> bool {
        let sum = |id| {
            self.0.iter().filter(|(owner, _)| id == *owner).map(|(_, length)| u64::from(*length)).sum::<u64>()
        };
        let all: u64 = self.0.iter().map(|(_, length)| u64::from(*length)).sum();
        all == u64::from(BUCKETS) && shares.iter().all(|(id, share)| sum(*id) == u64::from(*share))
    }
}

/// The bucket of a sticky key: the first 8 bytes of BLAKE3 over the salt's length, the salt and the key, little-endian, modulo
/// [`BUCKETS`]; with those 8 bytes, by which whoever has the key is told from others. Part of what is promised: the same on every
/// machine and in every release.
pub(super) fn sticky_bucket(salt: &[u8], key: &[u8]) -> (u16, u64) {
    let length = (salt.len() as u64).to_le_bytes();
    let mut short = [0; SHORT_KEY_BYTES];
    let (salt_end, end) = (8 + salt.len(), 8 + salt.len() + key.len());
    let hash = if end <= SHORT_KEY_BYTES {
        short[..8].copy_from_slice(&length);
        short[8..salt_end].copy_from_slice(salt);
        short[salt_end..end].copy_from_slice(key);
        blake3::hash(&short[..end])
    } else {
        blake3::Hasher::new().update(&length).update(salt).update(key).finalize()
    };
    let first = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
    let unit = u64::from_le_bytes(first);
    ((unit % u64::from(BUCKETS)) as u16, unit)
}

/// A bucket by random bits.
pub(super) fn random_bucket(random: u64) -> u16 {
    ((u128::from(random) * u128::from(BUCKETS)) >> 64) as u16
}
