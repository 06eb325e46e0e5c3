//! What is on disk when a writer is killed, when the disk is full, when the folder may not be written.
//!
//! The writers are this very program, started again with `SCONCE_CHILD` set to what they are to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the helpers of a test fail the test"
)]

mod change;
mod disk;
#[path = "../support/mod.rs"]
mod support;
mod trace;

use change::{Change, State};
use sconce_registry::Registry;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// In front of what a child says, among what the test harness says.
const MARK: &str = "crash: ";
/// A new store is begun after so many kills, so that stores are young as well as old.
const KILLS_A_STORE: u64 = 25;

/// Not a test but what children do.
#[test]
fn child() {
    let (Ok(role), Ok(dir)) = (env::var("SCONCE_CHILD"), env::var("SCONCE_DIR")) else { return };
    let dir = Path::new(&dir);
    match role.as_str() {
        "write" => write_until_killed(dir, false),
        "acknowledge early" => write_until_killed(dir, true),
        "fill" => disk::fill(dir),
        "open" => disk::try_to_open(dir),
        "few" => trace::write_few(dir),
        other => panic!("no such role: {other}"),
    }
}

#[test]
fn no_acknowledged_write_is_lost_and_none_is_there_by_half() {
    let kills = if env::var_os("SCONCE_FULL").is_some() { 3_000 } else { 300 };
    let seed = env::var("SCONCE_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}: set SCONCE_SEED to try another");
    let (mut acknowledged, mut cut, mut landed, mut orphans, mut opening) = (0, 0, 0, 0, 0);
    let mut store: Option<(tempfile::TempDir, State)> = None;
    for kill in 0..kills {
        if kill % KILLS_A_STORE == 0 {
            store = None;
        }
        let (dir, state) = store.get_or_insert_with(|| (tempfile::tempdir().unwrap(), State::default()));
        let found = kill_once(dir.path(), "write", seed + kill, state);
        let found = found.unwrap_or_else(|problem| panic!("kill {kill}, seed {seed}: {problem}"));
        acknowledged += found.acknowledged;
        cut += u64::from(found.cut);
        landed += u64::from(found.landed);
        orphans += found.orphans;
        opening += u64::from(found.opening);
    }
    println!(
        "{kills} kills, {opening} of them before the store was open; {acknowledged} writes acknowledged, all there; {cut} cut \
         short, {landed} of them there whole; {orphans} orphans collected"
    );
    assert!(acknowledged > kills && cut > kills / 4 && opening > 0, "the kills come at the wrong times");
}

#[test]
fn a_writer_that_acknowledges_too_early_is_caught() {
    let (dir, mut state) = (tempfile::tempdir().unwrap(), State::default());
    let caught = (0..300).find_map(|seed| kill_once(dir.path(), "acknowledge early", seed, &mut state).err());
    let problem = caught.expect("a write that was acknowledged before it was made should have been missed");
    assert!(problem.contains("is not what was acknowledged"), "{problem}");
}

/// What a kill led to.
struct Found {
    acknowledged: u64,
    /// A write was announced and not acknowledged,
    cut: bool,
    /// and is there.
    landed: bool,
    /// The store was not open yet.
    opening: bool,
    orphans: u64,
}

/// Lets a child write to `dir`, kills it at some time, and holds what is there against what it said. `state` is what was
/// there before, and becomes what is there now.
fn kill_once(dir: &Path, role: &str, seed: u64, state: &mut State) -> Result<Found, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut child = start(Command::new(env::current_exe().unwrap()), role, dir, seed);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = Vec::new();
    // Some are killed while they open the store, most somewhere in their writes.
    let wait_for = if random.u8(0..8) == 0 { 0 } else { random.usize(1..28) };
    while said.len() < wait_for && hear(&mut lines, &mut said) {}
    let delay = Duration::from_micros(random.u64(0..if wait_for == 0 { 40_000 } else { 6_000 }));
    let started = Instant::now();
    while started.elapsed() < delay {
        thread::yield_now();
    }
    child.kill().unwrap();
    while hear(&mut lines, &mut said) {}
    let status = child.wait().unwrap();
    if status.signal() != Some(9) {
        return Err(format!("the writer ended by itself: {status}, after {said:?}"));
    }

    let mut expected = state.clone();
    let mut pending = None;
    let mut acknowledged = 0;
    for line in &said {
        if let Some(plan) = line.strip_prefix("plan ") {
            pending = Some(Change::parse(plan));
        } else if line == "done" {
            expected.apply(&pending.take().expect("a plan before it is done"));
            acknowledged += 1;
        }
    }
    let registry = Registry::open(dir).map_err(|error| format!("it cannot be opened: {error}"))?;
    let found = State::read(&registry);
    let with_pending = pending.as_ref().map(|change| {
        let mut state = expected.clone();
        state.apply(change);
        state
    });
    let landed = found != expected;
    if landed && Some(&found) != with_pending.as_ref() {
        return Err(format!(
            "what is there is not what was acknowledged:\n{found:#?}\nexpected\n{expected:#?}\nor, after it, {pending:?}"
        ));
    }
    let report = registry.check().map_err(|error| error.to_string())?;
    if !report.is_intact() {
        return Err(format!("{report:#?}"));
    }
    let garbage = registry.collect_garbage(false).map_err(|error| error.to_string())?;
    let left = (registry.collect_garbage(true).unwrap().blobs, count_files(&dir.join("artifacts")));
    if garbage != report.garbage || left != (0, report.blobs) {
        return Err(format!("{left:?} files left after {garbage:?} was collected: {report:#?}"));
    }
    *state = found;
    let (cut, opening) = (pending.is_some(), said.is_empty());
    Ok(Found { acknowledged, cut, landed: landed && cut, opening, orphans: garbage.blobs })
}

/// Reads what the child says next, if it says anything more.
fn hear(lines: &mut impl BufRead, said: &mut Vec<String>) -> bool {
    let mut line = String::new();
    let read = lines.read_line(&mut line).unwrap();
    // A line that the kill cut short was not said.
    if let Some((_, words)) = line.split_once(MARK).filter(|_| line.ends_with('\n')) {
        said.push(words.trim_end().to_owned());
    }
    read > 0
}

fn say(words: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("{MARK}{words}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Starts this program as a child; `command` is it, or what starts it.
fn start(mut command: Command, role: &str, dir: &Path, seed: u64) -> Child {
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]).stdout(Stdio::piped());
    command.env("SCONCE_CHILD", role).env("SCONCE_DIR", dir).env("SCONCE_SEED", seed.to_string());
    command.spawn().unwrap()
}

/// Runs such a child to its end; returns what it said.
fn run(command: Command, role: &str, dir: &Path) -> Vec<String> {
    let mut child = start(command, role, dir, 1);
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{role}: {status}\n{output}");
    output.lines().filter_map(|line| Some(line.split_once(MARK)?.1.to_owned())).collect()
}

fn write_until_killed(dir: &Path, early: bool) {
    let seed: u64 = env::var("SCONCE_SEED").unwrap().parse().unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let registry = Registry::open(dir).unwrap();
    say("open");
    let mut state = State::read(&registry);
    loop {
        let change = state.pick(&mut random);
        say(&format!("plan {change}"));
        if early {
            say("done");
        }
        change.make(&registry);
        if !early {
            say("done");
        }
        state.apply(&change);
    }
}

fn count_files(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}
