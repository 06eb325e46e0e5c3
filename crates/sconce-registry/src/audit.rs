//! The audit trail: one entry a change, written with the change, each holding the hash of the one before it.
//!
//! What it can show: that an entry was altered, removed or moved, or that entries are missing at the end, as long as the
//! head that is stored beside them is not altered as well. What it cannot: whoever can write to the store can make a whole
//! new chain, head included. Only a copy of the head's hash that is kept elsewhere shows that.

use crate::store::Store;
use crate::{By, Digest, RegistryError, Result};
use sconce_core::{ModelName, ModelVersion};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Bound;

pub(crate) const ENTRIES: &[u8] = b"a/";
pub(crate) const HEAD: &[u8] = b"head";

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// What was done.
    pub body: AuditBody,
    /// BLAKE3 of the stored bytes of `body`, in which the hash of the entry before stands.
    pub hash: Digest,
}

/// What an audit entry says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditBody {
    /// 1, 2, 3, …
    pub seq: u64,
    /// Milliseconds since 1970, by this machine's clock.
    pub at_ms: u64,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// What, such as `register` or `set_alias`.
    pub action: String,
    /// The model.
    pub model: ModelName,
    /// The version, where it is one that was changed or is meant.
    #[serde(default)]
    pub version: Option<ModelVersion>,
    /// The alias.
    #[serde(default)]
    pub alias: Option<String>,
    /// The kind of the document.
    #[serde(default)]
    pub document: Option<String>,
    /// Whether it was done although a gate was not met.
    #[serde(default)]
    pub forced: bool,
    /// What was changed, before.
    #[serde(default)]
    pub before: Option<Value>,
    /// What was changed, after.
    #[serde(default)]
    pub after: Option<Value>,
    /// The routing generation after it.
    pub generation: u64,
    /// The hash of the entry before; of the first entry: of nothing.
    pub previous_hash: Digest,
}

/// What a walk along the chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Entries that are in order, from the first.
    pub entries: u64,
    /// The hash of the last of them. Kept elsewhere, it shows later whether the chain up to here was replaced.
    pub head: Digest,
    /// The first thing that is wrong, if anything is.
    pub problem: Option<String>,
}

impl AuditReport {
    /// Whether the whole chain is in order.
    pub fn is_intact(&self) -> bool {
        self.problem.is_none()
    }
}

/// What an entry is made of, but for what the chain adds.
pub(crate) struct Change<'a> {
    pub(crate) action: &'static str,
    pub(crate) by: &'a By,
    pub(crate) model: &'a ModelName,
    pub(crate) version: Option<ModelVersion>,
    pub(crate) alias: Option<&'a str>,
    pub(crate) document: Option<&'a str>,
    pub(crate) forced: bool,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: Digest,
}

impl Head {
    pub(crate) fn start() -> Self {
        Self { seq: 0, hash: Digest::of(&[]) }
    }

    /// The next entry, as it is stored under [`entry_key`] of the returned head's `seq`.
    pub(crate) fn append(self, change: Change<'_>, at_ms: u64, generation: u64) -> Result<(Self, Vec<u8>)> {
        let body = AuditBody {
            seq: self.seq + 1,
            at_ms,
            actor: change.by.actor.clone(),
            reason: change.by.reason.clone(),
            action: change.action.to_owned(),
            model: change.model.clone(),
            version: change.version,
            alias: change.alias.map(str::to_owned),
            document: change.document.map(str::to_owned),
            forced: change.forced,
            before: change.before,
            after: change.after,
            generation,
            previous_hash: self.hash,
        };
        let bytes = serde_json::to_vec(&body).map_err(RegistryError::damaged)?;
        let hash = Digest::of(&bytes);
        // The bytes that were hashed are kept as they are: reading and writing them again might not give the same.
        Ok((Self { seq: body.seq, hash }, [hash.as_bytes(), bytes.as_slice()].concat()))
    }
}

pub(crate) fn entry_key(seq: u64) -> Vec<u8> {
    [ENTRIES, &seq.to_be_bytes()].concat()
}

/// Reads a stored entry, without judging it.
pub(crate) fn parse(stored: &[u8]) -> Result<AuditEntry> {
    let (hash, body) = split(stored)?;
    let body =
        serde_json::from_slice(body).map_err(|error| RegistryError::damaged(format!("audit: {error}")))?;
    Ok(AuditEntry { body, hash })
}

/// Walks along the whole chain.
pub(crate) fn verify(store: &Store) -> Result<AuditReport> {
    let mut head = Head::start();
    let mut problem = None;
    store.scan(ENTRIES, Bound::Unbounded, |key, stored| {
        problem = follows(head, key, &stored).err();
        if problem.is_none() {
            head = Head { seq: head.seq + 1, hash: parse(&stored)?.hash };
        }
        Ok(problem.is_none())
    })?;
    if problem.is_none() {
        let stored = read_head(store)?;
        if stored != head {
            problem = Some(format!(
                "the last entry is {}, expected {} with hash {}",
                head.seq, stored.seq, stored.hash
            ));
        }
    }
    Ok(AuditReport { entries: head.seq, head: head.hash, problem })
}

pub(crate) fn read_head(store: &Store) -> Result<Head> {
    let Some(stored) = store.get(HEAD)? else { return Ok(Head::start()) };
    serde_json::from_slice(&stored).map_err(|error| RegistryError::damaged(format!("audit head: {error}")))
}

/// Whether what is stored under `key` is the entry after `head`.
fn follows(head: Head, key: &[u8], stored: &[u8]) -> Result<(), String> {
    let seq = head.seq + 1;
    if key != entry_key(seq) {
        return Err(format!("entry {seq} is missing"));
    }
    let describe = |error: RegistryError| format!("entry {seq}: {error}");
    let entry = parse(stored).map_err(describe)?;
    let (_, body) = split(stored).map_err(describe)?;
    if Digest::of(body) != entry.hash {
        return Err(format!("entry {seq} was altered: it does not have its hash"));
    }
    if entry.body.seq != seq {
        return Err(format!("entry {seq} was moved: it says that it is {}", entry.body.seq));
    }
    if entry.body.previous_hash != head.hash {
        return Err(format!("entry {seq} does not follow the one before it: that has another hash"));
    }
    Ok(())
}

fn split(stored: &[u8]) -> Result<(Digest, &[u8])> {
    let (hash, body) =
        stored.split_first_chunk::<32>().ok_or_else(|| RegistryError::damaged("audit: cut short"))?;
    Ok((blake3::Hash::from_bytes(*hash).into(), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Batch;

    fn chain(entries: u64) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db"), 1 << 20, None).unwrap();
        let (by, model) = (By::new("me", "why"), ModelName::new("m").unwrap());
        let mut head = Head::start();
        let mut batch = Batch::new();
        for at_ms in 0..entries {
            let mut change = crate::changes::change("test", &by, &model);
            change.after = Some(Value::from(at_ms));
            let (next, stored) = head.append(change, at_ms, at_ms).unwrap();
            batch.insert(entry_key(next.seq), Some(stored));
            head = next;
        }
        batch.insert(HEAD.to_vec(), Some(serde_json::to_vec(&head).unwrap()));
        store.apply(&batch, || {}).unwrap();
        (dir, store)
    }

    fn check(change: impl FnOnce(&Store) -> Batch, entries: u64, problem: &str) {
        let (_dir, store) = chain(5);
        let report = verify(&store).unwrap();
        assert!(report.is_intact() && report.entries == 5, "{report:?}");
        store.apply(&change(&store), || {}).unwrap();
        let report = verify(&store).unwrap();
        assert_eq!(report.entries, entries, "{report:?}");
        assert!(report.problem.as_ref().unwrap().contains(problem), "{report:?}");
    }

    #[test]
    fn an_entry_that_was_altered_removed_or_moved_is_found() {
        let read = |store: &Store, seq| store.get(&entry_key(seq)).unwrap();
        let flip = |store: &Store| {
            let mut stored = read(store, 3).unwrap();
            let at = stored.len() - 80;
            stored[at] ^= 1;
            Batch::from([(entry_key(3), Some(stored))])
        };
        check(flip, 2, "entry 3");
        let rehash = |store: &Store| {
            let stored = read(store, 3).unwrap();
            let body = String::from_utf8(stored[32..].to_vec()).unwrap().replace("\"me\"", "\"you\"");
            let stored = [Digest::of(body.as_bytes()).as_bytes(), body.as_bytes()].concat();
            Batch::from([(entry_key(3), Some(stored))])
        };
        check(rehash, 3, "entry 4 does not follow");
        check(|_| Batch::from([(entry_key(2), None)]), 1, "entry 2 is missing");
        check(|_| Batch::from([(entry_key(5), None)]), 4, "the last entry is 4, expected 5");
        let swap =
            |store: &Store| Batch::from([(entry_key(2), read(store, 3)), (entry_key(3), read(store, 2))]);
        check(swap, 1, "entry 2 was moved");
        check(|store| Batch::from([(entry_key(6), read(store, 5))]), 5, "entry 6 was moved");
        check(|_| Batch::from([(entry_key(1), Some(b"x".to_vec()))]), 0, "entry 1: audit: cut short");
    }
}
