use super::*;
use std::collections::BTreeMap;

const OPEN: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

fn journal() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("journal")).unwrap();
    (dir, journal)
}

fn keys(journal: &Journal, topic: Topic, now_ms: u64) -> Vec<String> {
    let found = journal.scan(topic, OPEN.0, OPEN.1, 1_000, now_ms).unwrap();
    found.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

#[test]
fn entries_are_there_at_once_and_after_waiting_also_when_opened_again() {
    let (dir, journal) = journal();
    let ticket = journal.append(Topic::Feedback, b"a", b"1", 10).unwrap();
    assert_eq!(journal.get(Topic::Feedback, b"a", 10).unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(journal.get(Topic::Reviews, b"a", 10).unwrap(), None);
    ticket.wait().unwrap();
    let large = vec![7; VALUE_BYTES];
    let _unwaited = journal.append(Topic::Feedback, b"b", &large, 11).unwrap();
    journal.sync().unwrap();
    let stats = journal.stats(Topic::Feedback);
    drop(journal);
    let journal = Journal::open(&dir.path().join("journal")).unwrap();
    assert_eq!(journal.stats(Topic::Feedback), stats);
    assert_eq!(journal.get(Topic::Feedback, b"b", 12).unwrap(), Some(large));
    assert_eq!(keys(&journal, Topic::Feedback, 12), ["a", "b"]);
}

#[test]
fn what_is_removed_is_gone_also_when_opened_again_and_what_is_left_is_counted() {
    let (dir, journal) = journal();
    for key in ["a", "b", "c"] {
        let _unwaited = journal.append(Topic::Reviews, key.as_bytes(), b"value", 10).unwrap();
    }
    let one = journal.stats(Topic::Reviews).bytes / 3;
    // The oldest, which the order begins with, and the latest.
    for key in [b"a", b"c"] {
        journal.remove(Topic::Reviews, key).unwrap().unwrap().wait().unwrap();
        assert!(journal.remove(Topic::Reviews, key).unwrap().is_none());
    }
    assert_eq!(
        (keys(&journal, Topic::Reviews, 10), journal.stats(Topic::Reviews).bytes),
        (vec!["b".into()], one)
    );
    let _again = journal.append(Topic::Reviews, b"a", b"other", 11).unwrap();
    drop(journal);
    let journal = Journal::open(&dir.path().join("journal")).unwrap();
    assert_eq!(keys(&journal, Topic::Reviews, 12), ["a", "b"]);
    let stats = journal.stats(Topic::Reviews);
    assert_eq!((stats.entries, stats.bytes, stats.expired, stats.evicted), (2, 2 * one, 0, 0));
}

#[test]
fn a_scan_keeps_to_its_range_and_limit() {
    let (_dir, journal) = journal();
    for key in ["a", "b", "ba", "c", "d"] {
        let _unwaited = journal.append(Topic::Exposures, key.as_bytes(), b"", 1).unwrap();
    }
    let scan = |from, to, limit| -> Vec<Vec<u8>> {
        let found = journal.scan(Topic::Exposures, from, to, limit, 1).unwrap();
        found.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(scan(Bound::Included(b"b"), Bound::Excluded(b"d"), 10), [&b"b"[..], b"ba", b"c"]);
    assert_eq!(scan(Bound::Excluded(b"b"), Bound::Included(b"d"), 2), [&b"ba"[..], b"c"]);
    assert!(journal.scan(Topic::Exposures, OPEN.0, OPEN.1, 0, 1).is_err());
    assert!(journal.scan(Topic::Exposures, OPEN.0, OPEN.1, 1_001, 1).is_err());
}

#[test]
fn what_expired_is_invisible_at_once_and_removed() {
    let (_dir, journal) = journal();
    journal.set_limits(
        Topic::Reviews,
        TopicLimits { time_to_live: Duration::from_millis(100), max_bytes: 1 << 20 },
    );
    let _old = journal.append(Topic::Reviews, b"old", b"x", 1_000).unwrap();
    let _new = journal.append(Topic::Reviews, b"new", b"x", 1_050).unwrap();
    assert_eq!(keys(&journal, Topic::Reviews, 1_099), ["new", "old"]);
    assert_eq!(keys(&journal, Topic::Reviews, 1_100), ["new"]);
    assert_eq!(journal.get(Topic::Reviews, b"old", 1_100).unwrap(), None);
    assert_eq!(journal.stats(Topic::Reviews).entries, 2);
    // An append removes what it finds expired.
    let _more = journal.append(Topic::Reviews, b"more", b"x", 1_100).unwrap();
    let stats = journal.stats(Topic::Reviews);
    assert_eq!((stats.entries, stats.expired, stats.evicted), (2, 1, 0));
    assert_eq!(journal.sweep(5_000).unwrap(), 2);
    let stats = journal.stats(Topic::Reviews);
    assert_eq!((stats.entries, stats.bytes, stats.expired), (0, 0, 3));
    journal.sync().unwrap();
}

#[test]
fn the_oldest_make_room() {
    let (_dir, journal) = journal();
    let limits = TopicLimits { time_to_live: Duration::from_secs(1), max_bytes: 5 * (ENTRY_BYTES + 2 + 100) };
    journal.set_limits(Topic::Monitors, limits);
    for number in 0..12_u64 {
        let key = format!("{number:02}");
        let _unwaited = journal.append(Topic::Monitors, key.as_bytes(), &[0; 100], number).unwrap();
        assert!(journal.stats(Topic::Monitors).bytes <= limits.max_bytes);
    }
    assert_eq!(keys(&journal, Topic::Monitors, 12), ["07", "08", "09", "10", "11"]);
    assert_eq!(journal.stats(Topic::Monitors).evicted, 7);
    // Written again, an entry is the newest.
    let _again = journal.append(Topic::Monitors, b"07", &[0; 100], 12).unwrap();
    let _next = journal.append(Topic::Monitors, b"12", &[0; 100], 13).unwrap();
    assert_eq!(keys(&journal, Topic::Monitors, 13), ["07", "09", "10", "11", "12"]);
    let too_large = journal.append(Topic::Monitors, b"x", &[0; 1_000], 14);
    assert!(matches!(too_large, Err(RegistryError::Exhausted(_))));
    assert_eq!(keys(&journal, Topic::Monitors, 14).len(), 5);
}

#[test]
fn keys_and_values_out_of_bounds_are_refused() {
    let (_dir, journal) = journal();
    for (key, value) in [
        (&b""[..], &b"x"[..]),
        (&[b'k'; KEY_BYTES + 1], b"x"),
        (b"a\0b", b"x"),
        (b"k", &[0; VALUE_BYTES + 1]),
    ] {
        let refused = journal.append(Topic::Feedback, key, value, 1);
        assert!(matches!(refused, Err(RegistryError::Invalid(_))));
    }
    assert_eq!(journal.stats(Topic::Feedback), TopicStats::default());
}

#[test]
fn it_agrees_with_a_map_of_what_was_appended() {
    let seed = 3;
    let mut random = fastrand::Rng::with_seed(seed);
    let (dir, mut journal) = journal();
    let limits = TopicLimits { time_to_live: Duration::from_millis(40), max_bytes: 4_000 };
    // Key → time, order, length of the value.
    let mut expected: BTreeMap<Vec<u8>, (u64, u64, usize)> = BTreeMap::new();
    let mut now_ms = 1;
    for round in 0..600 {
        if round % 150 == 149 {
            drop(journal);
            journal = Journal::open(&dir.path().join("journal")).unwrap();
        }
        journal.set_limits(Topic::Feedback, limits);
        now_ms += random.u64(0..4);
        let key = format!("{}", random.u8(0..60)).into_bytes();
        let value = vec![0; random.usize(0..300)];
        let _unwaited = journal.append(Topic::Feedback, &key, &value, now_ms).unwrap();
        expected.insert(key, (now_ms, round, value.len()));
        expected.retain(|_, (at_ms, ..)| now_ms < *at_ms + 40);
        let bytes = |map: &BTreeMap<Vec<u8>, (u64, u64, usize)>| -> u64 {
            map.iter().map(|(key, (.., length))| (key.len() + length) as u64 + ENTRY_BYTES).sum()
        };
        while bytes(&expected) > limits.max_bytes {
            let oldest = expected.iter().min_by_key(|(_, (at_ms, order, _))| (*at_ms, *order));
            let oldest = oldest.unwrap().0.clone();
            expected.remove(&oldest);
        }
        let found = journal.scan(Topic::Feedback, OPEN.0, OPEN.1, 1_000, now_ms).unwrap();
        let found: Vec<(Vec<u8>, usize)> = found.into_iter().map(|(key, value)| (key, value.len())).collect();
        let wanted: Vec<_> = expected.iter().map(|(key, (.., length))| (key.clone(), *length)).collect();
        assert_eq!(found, wanted, "round {round}, seed {seed}");
    }
}
