use super::*;
use std::thread;

const HEADER: &str = "x-tenant-id";

fn table(quotas: &str) -> TenantTable {
    let config: Tenants = toml::from_str(&format!("header = '{HEADER}'\n{quotas}")).unwrap();
    assert_eq!(config.problems(), Vec::<String>::new());
    TenantTable::new(&config, Instant::now())
}

fn headers(names: &[&[u8]]) -> HeaderMap {
    let value = |name: &&[u8]| http::HeaderValue::from_bytes(name).unwrap();
    names.iter().map(|name| (HeaderName::from_static(HEADER), value(name))).collect()
}

fn caller(table: &TenantTable, name: &str, now: Instant) -> Caller {
    table.caller(&headers(&[name.as_bytes()]), now).unwrap()
}

fn id(caller: &Caller) -> u32 {
    caller.0.as_ref().unwrap().tenant.id
}

fn counts(table: &TenantTable, name: &str) -> [u64; 3] {
    let sample = table.sample().into_iter().find(|sample| sample.tenant == name).unwrap();
    [sample.ok, sample.rejected, sample.failed]
}

#[test]
fn without_a_key_everybody_is_the_default_tenant_and_nothing_is_counted() {
    let table = TenantTable::new(&Tenants::default(), Instant::now());
    let caller = caller(&table, "acme", Instant::now());
    let visit = caller.enter(Instant::now()).unwrap();
    assert_eq!(visit.rank().tenant, Tenant::default());
    assert!(visit.companion().is_none());
    assert_eq!((table.occupancy(), table.sample()), ((0, MAX_TENANTS), Vec::new()));
}

#[test]
fn names_are_checked() {
    let table = table("");
    let now = Instant::now();
    let longest = [b'a'; MAX_NAME_BYTES];
    for good in [&b"a"[..], b"team/search", &longest] {
        assert!(table.caller(&headers(&[good]), now).is_ok(), "{good:?}");
    }
    let too_long = [b'a'; MAX_NAME_BYTES + 1];
    for bad in [&b""[..], b"a b", b"a\tb", "é".as_bytes(), &too_long] {
        let error = table.caller(&headers(&[bad]), now).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{bad:?}");
        assert!(error.to_string().len() < 500, "{error}");
    }
    assert_eq!(table.caller(&headers(&[b"a", b"a"]), now).unwrap_err().code(), ErrorCode::InvalidArgument);
    assert_eq!(id(&table.caller(&HeaderMap::new(), now).unwrap()), 0);
}

#[test]
fn tenants_have_their_own_ids_weights_and_places() {
    let table = table(
        "default = { weight = 2.0, max_concurrent = 1 }\n[quotas.acme]\nweight = 4.0\nmax_concurrent = 2",
    );
    let now = Instant::now();
    let acme = caller(&table, "acme", now);
    let visits = [acme.enter(now).unwrap(), acme.enter(now).unwrap()];
    let error = acme.enter(now).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert!(error.retry_after().is_some() && error.to_string().contains("`acme` has 2 requests"), "{error}");
    // Others do not notice.
    let stranger = caller(&table, "stranger", now);
    let nameless = table.caller(&HeaderMap::new(), now).unwrap();
    let others = [stranger.enter(now).unwrap(), nameless.enter(now).unwrap()];
    assert!(stranger.enter(now).is_err() && nameless.enter(now).is_err());
    assert_eq!(caller(&table, "default", now).0.unwrap().name, nameless.0.as_ref().unwrap().name);

    let weights = [&visits[0], &others[0], &others[1]].map(|visit| visit.rank().tenant.weight);
    assert_eq!(weights, [4.0, 2.0, 2.0]);
    let mut ids = [id(&acme), id(&stranger), id(&nameless), id(&caller(&table, "other", now))];
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert_eq!(table.occupancy().0, 4);
    drop((visits, others));
    assert!(acme.enter(now).is_ok() && stranger.enter(now).is_ok() && nameless.enter(now).is_ok());
}

#[test]
fn a_place_is_kept_until_the_work_has_ended_and_each_end_is_counted_once() {
    let table = table("[quotas.acme]\nmax_concurrent = 1");
    let now = Instant::now();
    let acme = caller(&table, "acme", now);

    // Answered: free at once, while the answer is still on its way.
    let visit = acme.enter(now).unwrap();
    let companion = visit.companion().unwrap();
    visit.end(&Ok(()));
    assert!(acme.enter(now).is_ok());
    drop((visit, companion));
    // The second one above was dropped without an end.
    assert_eq!(counts(&table, "acme"), [1, 0, 1]);

    // Abandoned: a part of it may be in the queue, or be executed.
    let visit = acme.enter(now).unwrap();
    let companion = visit.companion().unwrap();
    drop(visit);
    assert!(acme.enter(now).is_err());
    drop(companion);
    let visit = acme.enter(now).unwrap();
    assert_eq!(counts(&table, "acme"), [1, 1, 2]);

    visit.end::<()>(&Err(Error::internal("failed")));
    drop(visit);
    let visit = acme.enter(now).unwrap();
    visit.end::<()>(&Err(Error::new(ErrorCode::ResourceExhausted, "the queue is full")));
    drop(visit);
    assert_eq!(counts(&table, "acme"), [1, 2, 3]);
    assert_eq!(acme.0.as_ref().unwrap().in_progress.load(Ordering::Relaxed), 0);
}

#[test]
fn a_rate_is_kept_and_a_refusal_says_when_to_come_back_and_takes_no_place() {
    let table = table("[quotas.acme]\nmax_concurrent = 1\nmax_requests_per_second = 4.0");
    let now = Instant::now();
    let acme = caller(&table, "acme", now);
    for _ in 0..4 {
        acme.enter(now).unwrap().end(&Ok(()));
    }
    for _ in 0..3 {
        let error = acme.enter(now).unwrap_err();
        let wait = error.retry_after().unwrap();
        assert!(wait.abs_diff(Duration::from_millis(250)) < Duration::from_micros(1), "{wait:?}");
        assert!(
            error.to_string().contains("`acme`") && error.to_string().contains("4 requests a second"),
            "{error}"
        );
    }
    assert!(acme.enter(now + Duration::from_millis(250)).is_ok());
    assert_eq!(counts(&table, "acme")[REJECTED], 3);
}

#[test]
fn a_full_table_forgets_who_is_idle_and_else_lets_newcomers_share() {
    let table = table("default = { max_requests_per_second = 1.0 }\n[quotas.kept]");
    let mut now = Instant::now();
    let room = MAX_TENANTS - 3;
    let name = |index: usize| format!("tenant-{index}");
    let seen: Vec<Caller> = (0..room).map(|index| caller(&table, &name(index), now)).collect();
    assert_eq!(table.occupancy(), (MAX_TENANTS, MAX_TENANTS));
    assert_eq!(id(&caller(&table, "newcomer", now)), 1);
    // The first has a request that somebody still works on, the second has used its rate, the third is idle.
    let companion = seen[0].enter(now).unwrap().companion();
    seen[1].enter(now).unwrap().end(&Ok(()));
    let [first, second, third] = [0, 1, 2].map(|index: usize| id(&seen[index]));
    drop(seen);

    // Not searched again at once.
    assert_eq!(id(&caller(&table, "newcomer", now)), 1);
    now += SEARCH_PAUSE;
    let newcomer = caller(&table, "newcomer", now);
    assert!(![0, 1, first, second].contains(&id(&newcomer)), "{}", id(&newcomer));
    assert_eq!(table.occupancy().0, 6, "default, other, kept, two that are not idle, the newcomer");
    assert_eq!([0, 1].map(|index| id(&caller(&table, &name(index), now))), [first, second]);
    assert_eq!(id(&caller(&table, "kept", now)), 2);

    // Filled again: no id is anybody else's while a request of its holder is left.
    let refill = |now| {
        let fill = |index: usize| caller(&table, &format!("again-{index}"), now);
        (0..2 * MAX_TENANTS).map(fill).collect::<Vec<_>>()
    };
    now += Duration::from_secs(10);
    let again = refill(now);
    assert!(again.iter().any(|caller| id(caller) == third) && again.iter().all(|caller| id(caller) != first));
    let mut ids: Vec<u32> = again.iter().map(id).filter(|id| *id != 1).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids in use at once are different");
    assert!(ids.iter().all(|id| (*id as usize) < MAX_TENANTS));
    drop((again, companion));
    now += Duration::from_secs(10);
    assert!(refill(now).iter().any(|caller| id(caller) == first));
}

#[test]
fn metrics_name_a_bounded_number_of_tenants_and_sum_the_others() {
    let table = table("[quotas.other]\nmax_concurrent = 1\n[quotas.first]\n[quotas.second]");
    let now = Instant::now();
    for index in 0..200 {
        caller(&table, &format!("tenant-{index:03}"), now).enter(now).unwrap().end(&Ok(()));
    }
    let sample = table.sample();
    assert_eq!(sample.len(), MAX_NAMED + 1);
    assert_eq!(sample[0].tenant, "default");
    for name in ["first", "second", "tenant-000"] {
        assert!(sample.iter().any(|sample| sample.tenant == name), "{name}");
    }
    let named = u64::try_from(MAX_NAMED - 3).unwrap();
    assert_eq!(counts(&table, "other"), [200 - named, 0, 0]);
    let other = caller(&table, "other", now);
    let _held = other.enter(now).unwrap();
    assert!(other.enter(now).is_err(), "those who share have a quota as well");
}

#[test]
fn many_at_once_never_pass_a_bound_and_leave_nothing_behind() {
    const BOUND: usize = 3;
    const SEED: u64 = 0x5eed_0005;
    let table = table(&format!("default = {{ max_concurrent = {BOUND} }}"));
    let now = Instant::now();
    let most = AtomicUsize::new(0);
    let running: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for worker in 0..8u64 {
            let (table, running, most) = (&table, &running, &most);
            scope.spawn(move || {
                let mut state = SEED ^ (worker << 32 | 1);
                for _ in 0..2000 {
                    // xorshift: which tenant is next need not be more random than that.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let tenant = usize::try_from(state % 4).unwrap();
                    let Ok(visit) = caller(table, &format!("t{tenant}"), now).enter(now) else { continue };
                    most.fetch_max(running[tenant].fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    running[tenant].fetch_sub(1, Ordering::SeqCst);
                    visit.end(&Ok(()));
                }
            });
        }
    });
    let most = most.into_inner();
    assert!((1..=BOUND).contains(&most), "{most} at once with seed {SEED}");
    for tenant in 0..4 {
        let known = caller(&table, &format!("t{tenant}"), now).0.unwrap();
        assert_eq!(known.in_progress.load(Ordering::Relaxed), 0, "seed {SEED}");
    }
}

#[test]
fn a_tenant_has_no_better_priority_than_its_quota_says() {
    let table = table("default = { best_priority = 4 }\nquotas.acme = { weight = 2.0 }");
    let now = Instant::now();
    let levels = |name: &str| {
        let rank = caller(&table, name, now).enter(now).unwrap().rank();
        [1, 4, 8].map(|level| rank.limit(Priority::new(level).unwrap()).level())
    };
    assert_eq!((levels("anybody"), levels("acme")), ([4, 4, 8], [1, 4, 8]));
    let wrong: Tenants = toml::from_str("header = 'x-tenant-id'\ndefault = { best_priority = 9 }").unwrap();
    assert_eq!(wrong.problems(), ["tenants.default.best_priority: expected 1 to 8, got 9"]);
}
