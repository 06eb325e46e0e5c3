//! What the batcher allocates once it has seen as many requests: a list a batch, which leaves with it, and nothing a request.

use sconce_scheduler::{BatchPolicy, Batcher, Entry, Priority, Tenant, Work};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const WAITING: u32 = 2000;
const BATCH: usize = 64;
const BATCHES: u64 = 500;
const TENANTS: u32 = 300;

/// As many requests come as leave, of changing tenants, priorities and deadlines.
fn run(batcher: &mut Batcher<()>, start: Instant, batches: u64) -> u64 {
    let mut answered = 0;
    for at in 0..batches {
        let now = start + Duration::from_micros(at);
        let batch = batcher.take(now, false, |()| false);
        batcher.finished(
            batch.id,
            Work { rows: batch.entries.len(), tokens: 0 },
            Some(Duration::from_nanos(100)),
        );
        for (index, entry) in batch.entries.into_iter().enumerate() {
            answered += 1;
            let number = at * BATCH as u64 + index as u64;
            let id = u32::try_from(number * 7919 % u64::from(TENANTS)).unwrap_or(0);
            let deadline =
                number.is_multiple_of(2).then(|| now + Duration::from_millis(5000 + number * 31 % 997));
            let entry = Entry { tenant: Tenant { id, weight: 1.0 }, deadline, queued_at: now, ..entry };
            assert!(batcher.push(now, entry).is_ok(), "there is room: one left for it");
        }
    }
    answered
}

/// One test: the counts are the whole process's.
#[test]
fn a_batch_allocates_its_list_and_a_request_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let start = Instant::now();
    let policy = BatchPolicy {
        max_rows: BATCH,
        queue_depth: WAITING as usize,
        queue_target: Duration::ZERO,
        quantum: Duration::from_secs(1),
        ..BatchPolicy::default()
    };
    let mut batcher = Batcher::new(policy, 1);
    for number in 0..WAITING {
        let (priority, tenant) = (Priority::default(), Tenant { id: number % TENANTS, weight: 1.0 });
        let entry = Entry {
            ticket: (),
            rows: 1,
            tokens: 0,
            longest: 0,
            priority,
            tenant,
            queued_at: start,
            deadline: None,
        };
        assert!(batcher.push(start, entry).is_ok(), "there is room");
    }
    run(&mut batcher, start, BATCHES);
    let before = dhat::HeapStats::get();
    let answered = run(&mut batcher, start + Duration::from_millis(1), BATCHES);
    let after = dhat::HeapStats::get();
    assert_eq!(answered, BATCHES * BATCH as u64);
    let blocks = after.total_blocks - before.total_blocks;
    // What the test's own threads do is counted as well, now and then.
    assert!(
        (BATCHES..BATCHES + 50).contains(&blocks),
        "{blocks} for {BATCHES} batches, of {answered} requests"
    );
    assert!(
        after.curr_bytes <= before.curr_bytes + 1024,
        "{} more are kept",
        after.curr_bytes - before.curr_bytes
    );
}
