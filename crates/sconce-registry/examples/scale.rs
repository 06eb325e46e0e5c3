//! 1,000 models, 10,000 versions in one store: how fast they are registered, listed, found again.
//!
//! `cargo run --release -p sconce-registry --example scale -- FOLDER`; the folder is to be missing or empty.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

#[path = "../tests/support/mod.rs"]
mod support;

use sconce_registry::{NewVersion, Registry, Topic, TopicLimits};
use std::env;
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};
use support::{by, import, name, number, signature};

const MODELS: u64 = 1_000;
const VERSIONS: u64 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("expected a folder")?;
    let started = Instant::now();
    let registry = Registry::open(folder.as_ref())?;
    println!("made in {:.3} s, resident {} MiB", started.elapsed().as_secs_f64(), resident_mib()?);

    let started = Instant::now();
    for version in 0..VERSIONS {
        for model in 0..MODELS {
            let mut new = NewVersion::new(name(&format!("model-{model:04}")));
            new.signature = signature();
            new.description = "a model among many".to_owned();
            new.metrics = (0..5).map(|metric| (format!("metric{metric}"), 0.5)).collect();
            // Most files are those of other versions, so that the catalogue is measured and not the copying.
            let weights = (model % 16).to_be_bytes();
            let files =
                [("model.safetensors", &weights[..]), ("config.json", b"{}"), ("tokenizer.json", b"[]")];
            registry.register(new, import(&registry, &files), &by())?;
        }
        let rate = ((version + 1) * MODELS) as f64 / started.elapsed().as_secs_f64();
        println!("{} versions: {rate:.0} a second", (version + 1) * MODELS);
    }
    let started = Instant::now();
    for model in 0..MODELS {
        registry.set_alias(
            &name(&format!("model-{model:04}")),
            "champion",
            number(VERSIONS),
            None,
            false,
            &by(),
        )?;
    }
    println!("{MODELS} promotions: {:.0} a second", MODELS as f64 / started.elapsed().as_secs_f64());
    println!("catalogue {} MiB, resident {} MiB", registry.catalogue_bytes()? >> 20, resident_mib()?);
    drop(registry);

    for round in 1..=2 {
        let started = Instant::now();
        let registry = Registry::open(folder.as_ref())?;
        let opened = started.elapsed();
        println!("opened (time {round}) in {:.3} s, resident {} MiB", opened.as_secs_f64(), resident_mib()?);
        let measure = |what: &str, read: &dyn Fn() -> Result<usize, Box<dyn Error>>| {
            for cache in ["cold", "warm"] {
                let started = Instant::now();
                let records = read()?;
                println!(
                    "{what}, {cache}: {records} records in {:.2} ms",
                    started.elapsed().as_secs_f64() * 1e3
                );
            }
            Ok::<_, Box<dyn Error>>(())
        };
        let middle = name("model-0500");
        measure("page of 100 models", &|| Ok(registry.models(Some(&middle), 100)?.len()))?;
        measure("page of 1,000 models", &|| Ok(registry.models(None, 1_000)?.len()))?;
        measure("page of versions", &|| Ok(registry.versions(&middle, None, 100)?.len()))?;
        measure("page of 100 audit entries", &|| Ok(registry.audit(9_000, 100)?.len()))?;
        measure("every record of every model", &|| {
            let mut records = 0;
            for model in registry.models(None, 1_000)? {
                records += 1 + registry.versions(&model.name, None, 1_000)?.len();
            }
            Ok(records)
        })?;
        println!("resident {} MiB", resident_mib()?);
    }

    let registry = Registry::open(folder.as_ref())?;
    let started = Instant::now();
    let report = registry.check()?;
    println!("checked in {:.2} s: {} problems", started.elapsed().as_secs_f64(), report.problems.len());
    let started = Instant::now();
    let backup = registry.backup(fs::File::create(format!("{folder}.tar"))?)?;
    println!("backed up in {:.2} s: {} records", started.elapsed().as_secs_f64(), backup.records);
    fs::remove_file(format!("{folder}.tar"))?;

    let journal = registry.journal();
    let max_bytes = 8 << 20;
    journal.set_limits(Topic::Exposures, TopicLimits { time_to_live: Duration::from_secs(3_600), max_bytes });
    let started = Instant::now();
    let entries = 200_000_u64;
    for entry in 0..entries {
        let appended = journal.append(Topic::Exposures, format!("{entry:020}").as_bytes(), &[0; 100], entry);
        match appended {
            Ok(_) => {}
            // Faster than the disk: wait for it.
            Err(_) => journal.sync()?,
        }
    }
    journal.sync()?;
    let rate = entries as f64 / started.elapsed().as_secs_f64();
    let on_disk = fs::metadata(format!("{folder}/journal/db"))?.len() >> 20;
    println!("journal: {rate:.0} entries a second, bound {} MiB, {on_disk} MiB on disk", max_bytes >> 20);
    println!("resident {} MiB", resident_mib()?);
    Ok(())
}

fn resident_mib() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib >> 10)
}
